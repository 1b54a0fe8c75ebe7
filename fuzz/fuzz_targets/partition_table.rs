//! The partition table of a guest's disk, and what it holds: whatever is listed lies on the disk, numbers come once,
//! and nothing is read past the end, nor more often than is promised.
#![no_main]

use std::convert::Infallible;

use libfuzzer_sys::fuzz_target;
use undercroft_format::file_system::detect;
use undercroft_format::partition::read_table;
use undercroft_format::units::DiskLength;

fuzz_target!(|disk: &[u8]| {
    check(disk);
    let mut disk = disk.to_vec();
    for sector_len in [512, 4096] {
        forge(&mut disk, sector_len);
        check(&disk);
    }
});

fn check(disk: &[u8]) {
    let size = DiskLength::new(disk.len() as u64);
    let mut reads = 0;
    let mut read = |offset: u64, out: &mut [u8]| {
        reads += 1;
        assert!(out.len() <= 1 << 20);
        out.copy_from_slice(&disk[offset as usize..][..out.len()]);
        Ok::<_, Infallible>(())
    };
    let table = read_table(size, &mut read);
    let Ok(_) = detect(size, &mut read);
    assert!(reads <= 320);
    let Ok(table) = table else { return };
    for partition in &table.partitions {
        assert!(!partition.range.is_empty() && partition.range.end <= size.get());
    }
    assert!(table.partitions.is_sorted_by_key(|partition| partition.number));
    assert!(table.partitions.windows(2).all(|pair| pair[0].number != pair[1].number));
}

/// The signatures and checksums of both copies of a GPT, so that what they guard is reached.
fn forge(disk: &mut [u8], sector_len: usize) {
    let sectors = disk.len() / sector_len;
    if sectors < 3 {
        return;
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for entry in 0..4 {
        disk[446 + 16 * entry] &= 0x80;
    }
    for sector in [1, sectors - 1] {
        let at = sector * sector_len;
        let u64_at = |disk: &[u8], at: usize| u64::from_le_bytes(disk[at..at + 8].try_into().unwrap());
        disk[at..at + 8].copy_from_slice(b"EFI PART");
        disk[at + 12..at + 16].copy_from_slice(&92_u32.to_le_bytes());
        disk[at + 24..at + 32].copy_from_slice(&(sector as u64).to_le_bytes());
        let array = (u64_at(disk, at + 72) as usize).saturating_mul(sector_len);
        let [count, len] = [80, 84].map(|field| u64_at(disk, at + field) as u32 as usize);
        let end = array.saturating_add(count.saturating_mul(len));
        if let Some(entries) = disk.get(array..end) {
            let crc = crc32(entries);
            disk[at + 88..at + 92].copy_from_slice(&crc);
        }
        disk[at + 16..at + 20].fill(0);
        let crc = crc32(&disk[at..at + 92]);
        disk[at + 16..at + 20].copy_from_slice(&crc);
    }
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(bytes).to_le_bytes()
}
