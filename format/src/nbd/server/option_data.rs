//! What options carry, and what INFO and GO answer.

use super::offer::{BLOCK_SIZES, Offer};
use crate::nbd::wire::{
    INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, STRING_LEN_MAX, be16, be32,
};

/// Longest text of a name in messages.
const SHOWN_MAX: usize = 128;

/// What INFO and GO answer, piece by piece.
pub(super) fn information(offer: &Offer, structured: bool, wanted: &[u8]) -> Vec<Vec<u8>> {
    let begin = |kind: u16| kind.to_be_bytes().to_vec();
    let mut export = begin(INFO_EXPORT);
    export.extend_from_slice(&offer.size.to_be_bytes());
    export.extend_from_slice(&offer.flags(structured).0.to_be_bytes());
    let mut sizes = begin(INFO_BLOCK_SIZE);
    for size in [
        BLOCK_SIZES.minimum,
        BLOCK_SIZES.preferred,
        BLOCK_SIZES.maximum,
    ] {
        sizes.extend_from_slice(&size.to_be_bytes());
    }
    let (kinds, _) = wanted.as_chunks::<2>();
    let is_wanted = |kind: u16| kinds.contains(&kind.to_be_bytes());
    let mut all = vec![export, sizes];
    for (kind, text) in [
        (INFO_NAME, &offer.name),
        (INFO_DESCRIPTION, &offer.description),
    ] {
        if is_wanted(kind) && (kind == INFO_NAME || !text.is_empty()) {
            let mut data = begin(kind);
            data.extend_from_slice(text.as_bytes());
            all.push(data);
        }
    }
    all
}

/// Name, and the kinds of information asked for.
pub(super) fn info_data(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = string(data)?;
    let (count, kinds) = rest.split_at_checked(2)?;
    (kinds.len() == usize::from(be16(count, 0)) * 2).then_some((name, kinds))
}

/// Name, and queries.
pub(super) fn context_data(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (name, rest) = string(data)?;
    let (count, mut rest) = rest.split_at_checked(4)?;
    let mut queries = Vec::new();
    for _ in 0..be32(count, 0) {
        let query;
        (query, rest) = string(rest)?;
        queries.push(query);
    }
    rest.is_empty().then_some((name, queries))
}

fn string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_at_checked(4)?;
    let len = be32(len, 0) as usize;
    if len > STRING_LEN_MAX {
        return None;
    }
    rest.split_at_checked(len)
}

pub(super) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars().take(SHOWN_MAX).collect()
}
