//! The VHD reader against QEMU's, over files with faults: what both read is the same.
//!
//! The reader refuses more than QEMU does: wrong checksums, a missing or differing footer, tables and blocks that share
//! bytes with others, blocks past the file's end (QEMU gives zeros). It reads less of a block whose bitmap has holes: QEMU
//! ignores bitmaps, so no fault is put there.
//!
//! Needs qemu-img: `scripts/setup.sh test`.

mod support;

use std::path::Path;
use std::process::Command;

use support::vhd::{BLOCK, Vhd, sum};
use support::{Random, noise, workspace};
use undercroft_dataplane::io::BlockFile;
use undercroft_dataplane::vhd::chain::open_whole;
use undercroft_dataplane::vhd::disk::VhdDisk;

const FILES: u64 = 150;

fn ours(path: &Path) -> Result<Vec<u8>, String> {
    let layers = open_whole(&[path.to_owned()]).map_err(|error| error.to_string())?;
    let disk = VhdDisk::new(layers, None);
    let mut bytes = vec![1; disk.size() as usize];
    let got = disk
        .read_at(&mut bytes, 0)
        .map_err(|error| error.to_string())?;
    assert_eq!(got, bytes.len());
    assert_holes_are_zero(&disk, &bytes);
    Ok(bytes)
}

/// What the disk calls a hole is not read by a backup.
fn assert_holes_are_zero(disk: &VhdDisk, bytes: &[u8]) {
    let (mut at, end) = (0, bytes.len() as u64);
    while let Some(data) = disk.next_data(at, end).expect("bitmaps can be read") {
        assert!(
            bytes[at as usize..data.start as usize]
                .iter()
                .all(|byte| *byte == 0)
        );
        at = data.end;
    }
    assert!(bytes[at as usize..].iter().all(|byte| *byte == 0));
}

fn qemu(path: &Path, out: &Path) -> Result<Vec<u8>, String> {
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-f", "vpc", "-O", "raw"])
        .arg(path)
        .arg(out);
    let output = command.output().expect("qemu-img is there");
    match output.status.success() {
        true => Ok(std::fs::read(out).expect("QEMU's answer")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A file with blocks that are whole, so that bitmaps say nothing.
fn whole(random: &mut Random) -> Vec<u8> {
    let size = ((1 + random.below(9)) << 20) as usize + 512 * random.below(4) as usize;
    let mut vhd = Vhd::dynamic(size, 1);
    for block in 0..size.div_ceil(BLOCK) {
        if random.below(3) > 0 {
            vhd.write(block * BLOCK, &noise(random.next(), BLOCK));
        }
    }
    vhd.encode()
}

/// Puts a fault into a file; checksums still fit, mostly.
fn spoil(random: &mut Random, file: &mut Vec<u8>) {
    let end = file.len() - 512;
    let entry = |random: &mut Random| 2048 + 4 * random.below(6) as usize;
    match random.below(9) {
        // Another entry of the table.
        0 => {
            let (from, to) = (entry(random), entry(random));
            file.copy_within(from..from + 4, to);
        }
        1 => {
            let at = entry(random);
            let value = [u32::MAX, 0, 4, 5, random.next() as u32][random.below(5) as usize];
            file[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        // Two entries change places: another disk, but a good one.
        2 => {
            let (from, to) = (entry(random), entry(random));
            let kept: [u8; 4] = file[to..to + 4].try_into().expect("four bytes");
            file.copy_within(from..from + 4, to);
            file[from..from + 4].copy_from_slice(&kept);
        }
        // Data.
        3 => {
            let at = 2048 + 512 + 512 + random.below(BLOCK as u64) as usize;
            if at < end {
                file[at] ^= 0x55;
            }
        }
        // A field of the dynamic header.
        4 => {
            let at = 512 + 16 + random.below(20) as usize;
            file[at] = random.next() as u8;
            sum(&mut file[512..1536], 36);
        }
        // The size, in both footers.
        5 => {
            let size = 512 * (1 + random.below(30_000));
            for at in [0, end] {
                file[at + 48..at + 56].copy_from_slice(&size.to_be_bytes());
                sum(&mut file[at..at + 512], 64);
            }
        }
        6 => file.truncate(random.below(file.len() as u64) as usize),
        7 => {
            let extra = vec![7; 512 * (1 + random.below(3)) as usize];
            file.splice(end..end, extra);
        }
        // Any byte of what stands before the blocks.
        _ => {
            let at = random.below(2060) as usize;
            file[at] ^= 1 << random.below(8);
        }
    }
}

#[test]
fn what_both_read_is_the_same() {
    let dir = workspace();
    let (path, out) = (dir.path().join("f.vhd"), dir.path().join("out.raw"));
    let mut random = Random(4);
    let (mut alike, mut refused) = (0, 0);
    for round in 0..FILES {
        let mut file = whole(&mut random);
        for _ in 0..random.below(3) {
            spoil(&mut random, &mut file);
        }
        std::fs::write(&path, &file).expect("written");
        let Ok(ours) = ours(&path) else {
            refused += 1;
            continue;
        };
        let theirs = qemu(&path, &out).unwrap_or_else(|error| panic!("file {round}: {error}"));
        assert_eq!(ours.len(), theirs.len(), "file {round}");
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(differs, None, "file {round}");
        alike += 1;
    }
    assert!(
        alike >= FILES / 3 && refused >= FILES / 8,
        "{alike} alike, {refused} refused"
    );
}
