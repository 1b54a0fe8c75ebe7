//! Makes the checksums of an XVA fit: otherwise libFuzzer only ever sees them fail.

use undercroft_format::xva::ChecksumKind;

const BLOCK: usize = 512;

/// `bytes` with the checksums of headers, and those of blocks in their checksum files, as they should be.
pub fn forged(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    let mut block = 0..0;
    while at + BLOCK <= bytes.len() {
        let header = &mut bytes[at..at + BLOCK];
        if header.iter().all(|byte| *byte == 0) {
            at += BLOCK;
            continue;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
        let digits = header[124..136]
            .iter()
            .take_while(|byte| matches!(byte, b'0'..=b'7'));
        let size = digits.fold(0_usize, |size, digit| size << 3 | usize::from(digit - b'0'));
        let name = header[..100].to_vec();
        let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(100)];
        let start = at + BLOCK;
        let end = start.saturating_add(size).min(bytes.len());
        let kinds = [ChecksumKind::Xxh64, ChecksumKind::Sha1];
        let kind = kinds
            .into_iter()
            .find(|kind| name.ends_with(kind.suffix().as_bytes()));
        match kind {
            Some(kind) if end - start == kind.digits() => {
                let digits = kind.of(&bytes[block.clone()]);
                bytes[start..end].copy_from_slice(digits.as_bytes());
            }
            _ => block = start..end,
        }
        at = start.saturating_add(size.next_multiple_of(BLOCK));
    }
    bytes
}
