//! A pack in one buffer: header, records, table of contents, footer. What decodes encodes to the same
//! bytes, also when somebody made the checksums fit; a record decodes at its own place only; entries lie
//! apart from each other, between header and table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::codec::checksum;
use undercroft_format::id::PackId;
use undercroft_format::pack::{
    FOOTER_LEN, Footer, PACK_ALIGNMENT, PACK_HEADER_LEN, PAYLOAD_LEN_MAX, PLAIN_LEN_MAX,
    PackHeader, RECORD_HEADER_LEN, RecordHeader, TOC_ENTRY_LEN, Toc,
};

const PACK: PackId = PackId::from_bytes([0x5a; 16]);

fuzz_target!(|bytes: &[u8]| {
    header(bytes);
    record(bytes);
    tail(bytes);
});

/// Puts the checksum of the first 56 bytes, and of what `more` says, behind them.
fn forge(bytes: &[u8], more: &[u8]) -> Option<[u8; 64]> {
    let mut forged = *bytes.first_chunk::<64>()?;
    let covered = [&forged[..56], more].concat();
    forged[56..].copy_from_slice(&checksum(&covered).to_le_bytes());
    Some(forged)
}

fn header(bytes: &[u8]) {
    if let Ok(header) = PackHeader::decode(bytes) {
        assert_eq!(header.encode(), bytes[..PACK_HEADER_LEN]);
    }
    if let Some(forged) = forge(bytes, &[])
        && let Ok(header) = PackHeader::decode(&forged)
    {
        assert_eq!(header.encode(), forged);
    }
}

fn record(bytes: &[u8]) {
    for at in [0, PACK_HEADER_LEN] {
        let Some(bytes) = bytes.get(at..) else { return };
        let position = at as u64;
        let place = [&PACK.as_bytes()[..], &position.to_le_bytes()].concat();
        let Some(forged) = forge(bytes, &place) else {
            return;
        };
        let Ok(header) = RecordHeader::decode(&forged, PACK, position) else {
            continue;
        };
        assert_eq!(header.encode(PACK, position), forged);
        assert!(
            header.info.stored_len <= PAYLOAD_LEN_MAX && header.info.plain_len <= PLAIN_LEN_MAX
        );
        assert!(RecordHeader::decode(&forged, PACK, position + 1).is_err());
        assert!(RecordHeader::decode(&forged, PackId::from_bytes([0; 16]), position).is_err());
        let payload = &bytes[RECORD_HEADER_LEN..];
        let intact = payload.len() == header.info.stored_len as usize
            && checksum(payload) == header.payload_checksum;
        assert_eq!(header.check_payload(payload).is_ok(), intact);
    }
}

fn tail(bytes: &[u8]) {
    let Some(footer_at) = bytes.len().checked_sub(FOOTER_LEN) else {
        return;
    };
    read_tail(bytes, bytes.len() as u64);
    let mut forged = bytes.to_vec();
    // First as the footer has it, with a checksum that fits: positions and lengths stay wild.
    let mut footer = *bytes[footer_at..].first_chunk::<FOOTER_LEN>().unwrap();
    footer[..8].copy_from_slice(b"UCPTOC\0\x01");
    footer[36..40].fill(0);
    let mut footer = forge(&footer, &[]).unwrap();
    let pack_len = u64::from_le_bytes(footer[48..56].try_into().unwrap());
    let _ = Footer::decode(&footer, pack_len);
    // Then with the fields that the buffer's length asks for: what is in the table stays wild.
    let entries = u32::from_le_bytes(footer[32..36].try_into().unwrap()) % 64;
    let table_len = entries as usize * TOC_ENTRY_LEN;
    if table_len > footer_at {
        return;
    }
    let pack_len = PACK_ALIGNMENT * 8;
    let fill =
        ((table_len + FOOTER_LEN) as u64).next_multiple_of(PACK_ALIGNMENT) - FOOTER_LEN as u64;
    let toc_position = pack_len - FOOTER_LEN as u64 - fill;
    forged.truncate(table_len);
    let toc_checksum = checksum(&forged);
    forged.resize(fill as usize, 0);
    footer[24..32].copy_from_slice(&toc_position.to_le_bytes());
    footer[32..36].copy_from_slice(&entries.to_le_bytes());
    footer[40..48].copy_from_slice(&toc_checksum.to_le_bytes());
    footer[48..56].copy_from_slice(&pack_len.to_le_bytes());
    forged.extend_from_slice(&forge(&footer, &[]).unwrap());
    assert!(Footer::decode(&forged[forged.len() - FOOTER_LEN..], pack_len).is_ok());
    read_tail(&forged, pack_len);
}

/// Reads the end of a pack of `pack_len` bytes.
fn read_tail(tail: &[u8], pack_len: u64) {
    let Ok(footer) = Footer::decode(&tail[tail.len() - FOOTER_LEN..], pack_len) else {
        return;
    };
    let tail_start = pack_len - tail.len() as u64;
    let Some(start) = footer.toc_position.checked_sub(tail_start) else {
        return;
    };
    let start = start as usize;
    let Ok(toc) = Toc::decode(&tail[start..start + footer.toc_len()], &footer) else {
        return;
    };
    assert_eq!(toc.entries.len(), footer.entries as usize);
    let mut end = PACK_HEADER_LEN as u64;
    for entry in &toc.entries {
        assert!(u64::from(entry.position) >= end);
        end = entry.end();
    }
    assert!(end <= footer.toc_position);
    let encoded = toc.encode_tail(footer.pack, footer.toc_position);
    let padding = start + footer.toc_len()..tail.len() - FOOTER_LEN;
    if tail[padding].iter().all(|byte| *byte == 0) {
        assert_eq!(encoded, tail[start..]);
    }
}
