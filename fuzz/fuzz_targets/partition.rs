//! The grid's phase from a guest's partition table: some multiple of 512 below 4096 for any bytes, and never
//! one that no partition in the head could have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::partition::grid_phase;
use undercroft_format::units::DiskLength;

fuzz_target!(|input: (u64, &[u8])| {
    let (disk_len, head) = input;
    let mut table = head.to_vec();
    check(&table, disk_len);
    // With the signatures in place, so that what they guard is reached.
    if table.len() >= 512 {
        table[510..512].copy_from_slice(&[0x55, 0xaa]);
        check(&table, disk_len);
        for entry in 0..4 {
            table[446 + 16 * entry] &= 0x80;
        }
        check(&table, disk_len);
        if table.len() >= 520 {
            table[450] = 0xee;
            table[512..520].copy_from_slice(b"EFI PART");
            check(&table, disk_len);
        }
    }
});

fn check(head: &[u8], disk_len: u64) {
    let phase = grid_phase(head, DiskLength::new(disk_len));
    assert!(phase < 4096 && phase.is_multiple_of(512));
    if head.get(510..512) != Some(&[0x55, 0xaa]) || disk_len < 1024 {
        assert_eq!(phase, 0);
    }
}
