//! Reading sealed packs: the table of contents, single records.

use std::sync::Arc;

use undercroft_format::codec::{DecodeError, Problem, Reader};
use undercroft_format::id::{PackId, RepositoryId};
use undercroft_format::pack::{
    FOOTER_LEN, Footer, PACK_ALIGNMENT, PACK_HEADER_LEN, PackHeader, PackKind, RECORD_HEADER_LEN,
    RecordHeader, RecordInfo, Toc,
};

use super::error::{RecordProblem, RepositoryError, Result};
use super::layout;
use crate::io::{BlockFile, Storage};

/// A sealed pack's header and table of contents.
#[derive(Debug)]
pub struct PackContents {
    /// The pack.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// Length of the file.
    pub len: u64,
    /// Its records.
    pub toc: Toc,
    /// Where the table begins: after the last record, and zeros.
    pub toc_position: u64,
    /// Where the table ends.
    pub toc_end: u64,
}

/// Lists the sealed packs, and the names of the unsealed ones, in order of id.
///
/// # Errors
/// Any failure of a listing: a short list must never pass for a complete one.
pub fn list_packs(storage: &dyn Storage) -> Result<PackListing> {
    let mut listing = PackListing::default();
    let dirs = storage
        .list(layout::PACKS)
        .map_err(RepositoryError::io("listing", layout::PACKS))?;
    for dir in dirs.iter().filter(|entry| entry.is_dir) {
        let path = format!("{}/{}", layout::PACKS, dir.name);
        let entries = storage
            .list(&path)
            .map_err(RepositoryError::io("listing", &path))?;
        for entry in entries {
            let (name, open) = match entry.name.strip_suffix(layout::OPEN_SUFFIX) {
                Some(name) => (name, true),
                None => (entry.name.as_str(), false),
            };
            match name.parse::<PackId>() {
                // In another directory it is nobody's: whoever looks for a pack looks in its own.
                Ok(id) if layout::pack_dir(id) != path => {
                    listing.foreign.push(format!("{path}/{}", entry.name));
                }
                Ok(id) if open => listing.open.push((id, entry.len)),
                Ok(id) => listing.sealed.push((id, entry.len)),
                Err(_) => listing.foreign.push(format!("{path}/{}", entry.name)),
            }
        }
    }
    Ok(listing)
}

/// What stands in the packs' directory.
#[derive(Debug, Default)]
pub struct PackListing {
    /// Sealed packs with their lengths.
    pub sealed: Vec<(PackId, u64)>,
    /// Packs still being written, or left by a session that died.
    pub open: Vec<(PackId, u64)>,
    /// Files that are neither.
    pub foreign: Vec<String>,
}

/// Reads and checks a sealed pack's header and table of contents.
pub fn read_contents(
    storage: &dyn Storage,
    repository: RepositoryId,
    id: PackId,
) -> Result<PackContents> {
    let path = layout::pack(id);
    let file = storage
        .open(&path, false)
        .map_err(RepositoryError::io("opening", &path))?;
    contents_of(&*file, repository, id, &path)
}

/// Reads and checks the header and the table of contents of sealed pack `id` in `file`.
pub fn contents_of(
    file: &dyn BlockFile,
    repository: RepositoryId,
    id: PackId,
    path: &str,
) -> Result<PackContents> {
    let io = |source| RepositoryError::io("reading", path)(source);
    let damaged = |source| RepositoryError::damaged(path)(source);
    let len = file.len().map_err(io)?;
    let mut head = [0; PACK_HEADER_LEN];
    read_exact(file, &mut head, 0, path)?;
    let header = check_header(&head, repository, id).map_err(damaged)?;
    // The footer and, in most packs, the whole table come with one read.
    let guess = len.min(96 << 10);
    let mut tail = vec![0; guess as usize];
    read_exact(file, &mut tail, len - guess, path)?;
    let (footer, toc) = match parse_tail(&tail, len, id).map_err(damaged)? {
        Tail::Complete(footer, toc) => (footer, toc),
        Tail::Partial(footer) => {
            let mut table = vec![0; footer.toc_len()];
            read_exact(file, &mut table, footer.toc_position, path)?;
            let toc = Toc::decode(&table, &footer).map_err(damaged)?;
            (footer, toc)
        }
    };
    Ok(PackContents {
        id,
        kind: header.kind,
        len,
        toc,
        toc_position: footer.toc_position,
        toc_end: footer.toc_position + footer.toc_len() as u64,
    })
}

/// Checks that a pack's first bytes are those of pack `id` of `repository`.
pub fn check_header(
    head: &[u8],
    repository: RepositoryId,
    id: PackId,
) -> Result<PackHeader, DecodeError> {
    let header = PackHeader::decode(head)?;
    if header.id != id || header.repository != repository {
        return Err(Reader::new("pack header", head).error(Problem::Invalid(
            "owner: the header of another pack or repository",
        )));
    }
    Ok(header)
}

enum Tail {
    Complete(Footer, Toc),
    Partial(Footer),
}

fn parse_tail(tail: &[u8], file_len: u64, id: PackId) -> Result<Tail, DecodeError> {
    let footer = check_footer(tail, file_len, id)?;
    let tail_start = file_len - tail.len() as u64;
    match footer.toc_position.checked_sub(tail_start) {
        Some(start) => {
            let start = start as usize;
            let toc = Toc::decode(&tail[start..start + footer.toc_len()], &footer)?;
            Ok(Tail::Complete(footer, toc))
        }
        None => Ok(Tail::Partial(footer)),
    }
}

/// Checks the footer at the end of `tail`, the last bytes of the file of pack `id`.
pub fn check_footer(tail: &[u8], file_len: u64, id: PackId) -> Result<Footer, DecodeError> {
    let start = tail.len().checked_sub(FOOTER_LEN).ok_or_else(|| {
        Reader::new("pack footer", tail).error(Problem::Truncated { needed: FOOTER_LEN })
    })?;
    let footer = Footer::decode(&tail[start..], file_len)?;
    if footer.pack != id {
        return Err(Reader::new("pack footer", tail)
            .error(Problem::Invalid("owner: the footer of another pack")));
    }
    Ok(footer)
}

/// Fills `buf` from `offset` on; an early end is damage.
pub fn read_exact(file: &dyn BlockFile, buf: &mut [u8], offset: u64, path: &str) -> Result<()> {
    let wanted = buf.len();
    let got = file
        .read_at(buf, offset)
        .map_err(RepositoryError::io("reading", path))?;
    if got < wanted {
        let error = Reader::new("pack", &[]).error(Problem::Truncated {
            needed: wanted - got,
        });
        return Err(RepositoryError::damaged(path)(error));
    }
    Ok(())
}

/// Checks the record in `bytes`, which stands at `position` of `pack` and should be `info`'s, and
/// returns its payload.
pub fn check_record<'a>(
    bytes: &'a [u8],
    pack: PackId,
    position: u64,
    info: &RecordInfo,
) -> Result<&'a [u8], RecordProblem> {
    let header = RecordHeader::decode(bytes, pack, position)?;
    if header.info != *info {
        return Err(RecordProblem::OtherObject);
    }
    let payload = bytes
        .get(RECORD_HEADER_LEN..info.record_len() as usize)
        .ok_or_else(|| {
            Reader::new("record", bytes).error(Problem::Truncated {
                needed: info.record_len() as usize - bytes.len(),
            })
        })?;
    header.check_payload(payload)?;
    Ok(payload)
}

/// One record found by [`scan`].
pub struct ScannedRecord<'a> {
    /// Where its header stands.
    pub position: u64,
    /// What it is.
    pub header: RecordHeader,
    /// Its payload, not yet checked.
    pub payload: &'a [u8],
}

/// Walks the records of a whole pack held in `bytes`, up to `end`, and reports each, in order.
///
/// Stops at the first header that does not check out and returns its position and problem: past it,
/// no position can be trusted.
pub fn scan<'a>(
    bytes: &'a [u8],
    pack: PackId,
    end: u64,
    mut found: impl FnMut(ScannedRecord<'a>),
) -> Result<(), (u64, DecodeError)> {
    let end = (end as usize).min(bytes.len());
    let mut at = PACK_HEADER_LEN;
    while at < end {
        let rest = &bytes[at..end];
        if rest.starts_with(&[0; 4]) || rest.len() < 4 {
            let next = (at + 1).next_multiple_of(PACK_ALIGNMENT as usize).min(end);
            if let Some(stray) = bytes[at..next].iter().position(|byte| *byte != 0) {
                let error = Reader::new("pack padding", &bytes[at + stray..])
                    .error(Problem::NotCanonical("padding is not zero"));
                return Err(((at + stray) as u64, error));
            }
            at = next;
            continue;
        }
        let header = RecordHeader::decode(rest, pack, at as u64).map_err(|e| (at as u64, e))?;
        let len = header.info.record_len() as usize;
        if len > rest.len() {
            let error = Reader::new("record", rest).error(Problem::Truncated {
                needed: len - rest.len(),
            });
            return Err((at as u64, error));
        }
        found(ScannedRecord {
            position: at as u64,
            header,
            payload: &rest[RECORD_HEADER_LEN..len],
        });
        at += len;
    }
    Ok(())
}

/// Open pack files, a bounded number of them.
pub struct PackFiles {
    storage: Arc<dyn Storage>,
    direct: bool,
    open: parking_lot::Mutex<std::collections::HashMap<PackId, Arc<dyn BlockFile>>>,
}

/// Files kept open at once: well below the usual limit of 1024 per process, as each may take two.
const OPEN_FILES_MAX: usize = 256;

impl PackFiles {
    /// Packs of `storage`; read past the page cache if `direct`.
    pub fn new(storage: Arc<dyn Storage>, direct: bool) -> Self {
        Self {
            storage,
            direct,
            open: parking_lot::Mutex::default(),
        }
    }

    /// The file of sealed pack `id`.
    pub fn get(&self, id: PackId) -> std::io::Result<Arc<dyn BlockFile>> {
        if let Some(file) = self.open.lock().get(&id) {
            return Ok(file.clone());
        }
        let file = self.storage.open(&layout::pack(id), self.direct)?;
        let mut open = self.open.lock();
        if open.len() >= OPEN_FILES_MAX {
            open.clear();
        }
        open.insert(id, file.clone());
        Ok(file)
    }

    /// Forgets a pack that is about to be removed.
    pub fn forget(&self, id: PackId) {
        self.open.lock().remove(&id);
    }
}
