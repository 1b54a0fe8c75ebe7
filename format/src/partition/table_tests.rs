use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::units::{DiskLength, DiskRange};

const SECTOR: usize = 512;

fn read_from(disk: &[u8]) -> Result<PartitionTable, TableError<Infallible>> {
    read_table(DiskLength::new(disk.len() as u64), |offset, out| {
        out.copy_from_slice(&disk[offset as usize..][..out.len()]);
        Ok(())
    })
}

/// `None` where the entry would be.
type Entry = Option<(u8, u32, u32)>;

fn write_record(disk: &mut [u8], at: usize, entries: &[Entry]) {
    let record = &mut disk[at..at + 512];
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    for (place, entry) in entries.iter().enumerate() {
        let Some((kind, first, sectors)) = entry else {
            continue;
        };
        let at = 446 + 16 * place;
        record[at + 4] = *kind;
        record[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        record[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    }
}

fn mbr(sectors: usize, entries: &[Entry]) -> Vec<u8> {
    let mut disk = vec![0; sectors * SECTOR];
    write_record(&mut disk, 0, entries);
    disk
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC)
        .checksum(bytes)
        .to_le_bytes()
}

/// A header at `sector` with its entries at `entries_at`.
fn write_gpt(
    disk: &mut [u8],
    sector_len: usize,
    sector: usize,
    entries_at: usize,
    parts: &[(u64, u64)],
) {
    let array = &mut disk[entries_at * sector_len..][..128 * 128];
    for (entry, (first, last)) in array.chunks_exact_mut(128).zip(parts) {
        if *first == 0 {
            continue;
        }
        entry[..16].fill(0xa5);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        entry[56..60].copy_from_slice(b"d\0\xe4\0");
    }
    let array_crc = crc32(array);
    let header = &mut disk[sector * sector_len..][..92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[24..32].copy_from_slice(&(sector as u64).to_le_bytes());
    header[72..80].copy_from_slice(&(entries_at as u64).to_le_bytes());
    header[80] = 128;
    header[84] = 128;
    header[88..92].copy_from_slice(&array_crc);
    seal(header);
}

fn seal(header: &mut [u8]) {
    header[16..20].fill(0);
    let crc = crc32(header);
    header[16..20].copy_from_slice(&crc);
}

fn gpt(sector_len: usize, sectors: usize, parts: &[(u64, u64)]) -> Vec<u8> {
    let mut disk = vec![0; sectors * sector_len];
    write_record(&mut disk, 0, &[Some((0xee, 1, u32::MAX))]);
    write_gpt(&mut disk, sector_len, 1, 2, parts);
    write_gpt(
        &mut disk,
        sector_len,
        sectors - 1,
        sectors - 1 - 128 * 128 / sector_len,
        parts,
    );
    disk
}

fn ranges(table: &PartitionTable) -> Vec<(u32, u64, u64)> {
    let of = |partition: &Partition| {
        let DiskRange { start, end } = partition.range;
        (partition.number.get(), start, end)
    };
    table.partitions.iter().map(of).collect()
}

#[test]
fn primaries_keep_their_places_and_logicals_begin_with_five() {
    let mut disk = mbr(
        9000,
        &[None, Some((0x83, 63, 100)), Some((0x05, 1000, 8000))],
    );
    write_record(
        &mut disk,
        1000 * SECTOR,
        &[Some((0x82, 10, 90)), Some((0x05, 500, 600))],
    );
    write_record(&mut disk, 1500 * SECTOR, &[Some((0x07, 20, 80))]);
    let table = read_from(&disk).unwrap();
    assert_eq!(table.scheme, Scheme::Mbr);
    let s = |sector: u64| sector * 512;
    let expected = [
        (2, s(63), s(163)),
        (5, s(1010), s(1100)),
        (6, s(1520), s(1600)),
    ];
    assert_eq!(ranges(&table), expected);
    assert_eq!(table.partitions[2].kind, PartitionKind::Mbr(7));
    assert!(table.notes.is_empty(), "{:?}", table.notes);
}

#[test]
fn chain_that_comes_back_ends_with_a_note() {
    let mut disk = mbr(9000, &[Some((0x0f, 1000, 8000))]);
    write_record(
        &mut disk,
        1000 * SECTOR,
        &[Some((0x83, 10, 90)), Some((0x05, 500, 600))],
    );
    write_record(
        &mut disk,
        1500 * SECTOR,
        &[Some((0x83, 10, 90)), Some((0x05, 500, 600))],
    );
    let table = read_from(&disk).unwrap();
    assert_eq!(table.partitions.len(), 2);
    assert_eq!(table.notes, [TableNote::EndlessChain { sector: 1500 }]);
}

#[test]
fn chain_of_every_sector_ends() {
    let mut disk = mbr(9000, &[Some((0x0f, 1000, 8000))]);
    for sector in 1000..8900 {
        let link = Some((0x05, (sector - 999) as u32, 1));
        write_record(&mut disk, sector * SECTOR, &[Some((0x83, 1, 1)), link]);
    }
    let table = read_from(&disk).unwrap();
    assert_eq!(table.partitions.len(), 256);
    assert!(matches!(table.notes[..], [TableNote::EndlessChain { .. }]));
}

#[test]
fn links_past_the_end_leave_what_was_found() {
    let mut disk = mbr(9000, &[Some((0x83, 63, 100)), Some((0x0f, 1000, 8000))]);
    write_record(
        &mut disk,
        1000 * SECTOR,
        &[Some((0x83, 10, 90)), Some((0x05, u32::MAX, 6))],
    );
    let table = read_from(&disk).unwrap();
    assert_eq!(ranges(&table).len(), 2);
    assert!(matches!(table.notes[..], [TableNote::BrokenChain { .. }]));
}

#[test]
fn entries_past_the_disk_are_left_out_with_a_note() {
    let table = read_from(&mbr(1000, &[Some((0x83, 63, 937)), Some((0x83, 63, 938))])).unwrap();
    assert_eq!(ranges(&table), [(1, 63 * 512, 1000 * 512)]);
    assert!(matches!(table.notes[..], [TableNote::NotOnDisk { .. }]));
    let table = read_from(&gpt(SECTOR, 1000, &[(100, 999), (100, 1000), (200, 100)])).unwrap();
    assert_eq!(ranges(&table), [(1, 100 * 512, 1000 * 512)]);
    assert_eq!(table.notes.len(), 2);
}

#[test]
fn boot_sectors_of_file_systems_are_no_table() {
    let whole = |disk: &[u8]| read_from(disk).unwrap().scheme == Scheme::Whole;
    assert!(whole(&[0; 100]));
    assert!(whole(&[0; 4096]));
    assert!(whole(&mbr(1000, &[])));
    assert!(whole(&mbr(1000, &[Some((0x0c, 0, 1000))])));
    let mut code = mbr(1000, &[Some((0x83, 63, 100))]);
    code[446 + 48] = 0x6f;
    assert!(whole(&code));
}

#[test]
fn gpt_entries_keep_their_numbers_and_names() {
    for sector_len in [512, 4096] {
        let table = read_from(&gpt(sector_len, 1000, &[(40, 49), (0, 0), (50, 89)])).unwrap();
        let at = |sector: u64| sector * sector_len as u64;
        assert_eq!(ranges(&table), [(1, at(40), at(50)), (3, at(50), at(90))]);
        assert_eq!(table.partitions[0].name, "dä");
        assert_eq!((table.scheme, table.notes.len()), (Scheme::Gpt, 0));
    }
}

#[test]
fn copy_at_the_end_serves_if_the_first_is_damaged() {
    for damaged in [512, 512 + 60, 1024 + 40] {
        let mut disk = gpt(SECTOR, 1000, &[(40, 49)]);
        disk[damaged] ^= 1;
        let table = read_from(&disk).unwrap();
        assert_eq!(ranges(&table).len(), 1, "{damaged}");
        assert!(matches!(table.notes[..], [TableNote::CopyTaken { .. }]));
        let len = disk.len();
        disk[len - 512 + 60] ^= 1;
        assert!(matches!(read_from(&disk), Err(TableError::GptLost { .. })));
    }
}

#[test]
fn copy_at_the_end_serves_if_the_start_cannot_be_read() {
    let disk = gpt(SECTOR, 1000, &[(40, 49)]);
    let read = |offset: u64, out: &mut [u8]| {
        if offset < 64 * 1024 {
            return Err("lost");
        }
        out.copy_from_slice(&disk[offset as usize..][..out.len()]);
        Ok(())
    };
    let table = read_table(DiskLength::new(disk.len() as u64), read).unwrap();
    assert_eq!(ranges(&table), [(1, 40 * 512, 50 * 512)]);
    let table = read_table(DiskLength::new(disk.len() as u64), |_, _: &mut [u8]| {
        Err("lost")
    });
    assert!(matches!(table, Err(TableError::Unreadable("lost"))));
}

#[test]
fn hybrid_table_is_a_gpt_as_long_as_that_is_whole() {
    let mut disk = gpt(SECTOR, 1000, &[(40, 49)]);
    write_record(&mut disk, 0, &[Some((0xee, 1, 39)), Some((0x83, 300, 10))]);
    assert_eq!(
        ranges(&read_from(&disk).unwrap()),
        [(1, 40 * 512, 50 * 512)]
    );
    disk[512] = 0;
    let end = disk.len() - 512;
    disk[end] = 0;
    let table = read_from(&disk).unwrap();
    assert_eq!(ranges(&table), [(2, 300 * 512, 310 * 512)]);
    assert_eq!(table.notes, [TableNote::OnlyHybrid]);
}

#[test]
fn headers_that_ask_for_too_much_are_damaged() {
    for (at, bytes) in [
        (80, [0xff; 4]),
        (84, [0, 1, 0, 0x10]),
        (84, [129, 0, 0, 0]),
        (72, [0xff; 4]),
    ] {
        let mut disk = gpt(SECTOR, 1000, &[(40, 49)]);
        disk[512 + at..][..4].copy_from_slice(&bytes);
        seal(&mut disk[512..512 + 92]);
        let table = read_from(&disk).unwrap();
        assert!(
            matches!(table.notes[..], [TableNote::CopyTaken { .. }]),
            "{at}"
        );
    }
}

/// An ext superblock where sectors of 4 KiB put the partition.
#[test]
fn mbr_of_large_sectors_is_known_by_what_its_partitions_hold() {
    let entries = [Some((0x83, 16, 100)), Some((0x05, 200, 50))];
    let mut disk = mbr(8 * 1000, &entries);
    disk[16 * 4096 + 1080..][..2].copy_from_slice(&[0x53, 0xef]);
    write_record(&mut disk, 200 * 4096, &[Some((0x83, 5, 10))]);
    let table = read_from(&disk).unwrap();
    assert_eq!(
        ranges(&table),
        [(1, 16 * 4096, 116 * 4096), (5, 205 * 4096, 215 * 4096)]
    );
}

proptest! {
    #[test]
    fn whatever_is_listed_lies_on_the_disk(
        damage in prop::collection::vec((0..1_usize << 20, any::<u8>()), 0..60),
        at_table in prop::collection::vec((440..1300_usize, any::<u8>()), 0..60),
        is_gpt: bool,
        forged: bool,
    ) {
        let mut disk = gpt(SECTOR, 1 << 11, &[(63, 1000), (1001, 2000)]);
        if !is_gpt {
            disk = mbr(1 << 11, &[Some((0x83, 63, 100)), Some((0x05, 1000, 1000))]);
            write_record(&mut disk, 1000 * SECTOR, &[Some((0x83, 10, 90)), Some((0x05, 500, 300))]);
        }
        for (at, byte) in damage.into_iter().chain(at_table) {
            disk[at] = byte;
        }
        if forged {
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            seal(&mut disk[512..512 + 92]);
        }
        if let Ok(table) = read_from(&disk) {
            for partition in table.partitions {
                prop_assert!(!partition.range.is_empty() && partition.range.end <= 1 << 20);
            }
        }
    }
}
