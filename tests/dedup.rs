//! The same bytes are stored once, however they arrive.

use std::os::unix::fs::FileExt;

mod support;

use support::{Image, assert_restores, json, succeed, undercroft, workspace};

fn new_bytes(report: &serde_json::Value) -> u64 {
    report["disks"][0]["new_bytes"].as_u64().expect("a number")
}

/// A disk whose partition begins at sector 63, as old installers made them: its grid is out of step
/// with the file system's holes.
#[test]
fn a_disk_without_holes_deduplicates_against_its_sparse_twin() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
    let mut sparse = Image::new(dir.path().join("sparse.raw"), 5, 6 << 20);
    let sectors = (sparse.bytes.len() / 512 - 63) as u32;
    sparse.bytes[446..462].fill(0);
    sparse.bytes[450] = 0x83;
    sparse.bytes[454..458].copy_from_slice(&63_u32.to_le_bytes());
    sparse.bytes[458..462].copy_from_slice(&sectors.to_le_bytes());
    sparse.bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    sparse.write();
    let dense = dir.path().join("dense.raw");
    std::fs::write(&dense, &sparse.bytes).expect("the twin");
    let mut backup = undercroft(&repo);
    let first = json(backup.args(["backup", "--vm", "a"]).arg(&sparse.path));
    assert!(new_bytes(&first) > 1 << 20);
    let mut backup = undercroft(&repo);
    let second = json(backup.args(["backup", "--vm", "b"]).arg(&dense));
    assert_eq!(new_bytes(&second), 0, "{second}");
    assert_restores(&repo, "b@latest", &sparse.bytes, dir.path());
}

/// Nothing changed: one snapshot file is all that is written.
#[test]
fn an_unchanged_disk_stores_nothing() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
    let image = Image::new(dir.path().join("disk.raw"), 5, 6 << 20);
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "vm"])
            .arg(&image.path),
    );
    let packs = support::files_below(&repo.join("packs"));
    let snapshots = support::files_below(&repo.join("snapshots")).len();
    let mut backup = undercroft(&repo);
    let again = json(backup.args(["backup", "--vm", "vm"]).arg(&image.path));
    assert_eq!(new_bytes(&again), 0);
    assert_eq!(support::files_below(&repo.join("packs")), packs);
    assert_eq!(
        support::files_below(&repo.join("snapshots")).len(),
        snapshots + 1
    );
}

/// Segment by segment, in memory: the target is read, and only what differs is written.
#[test]
fn an_in_place_restore_writes_what_differs() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
    let mut image = Image::new(dir.path().join("disk.raw"), 5, (6 << 20) + 1234);
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "vm"])
            .arg(&image.path),
    );
    let wanted = image.bytes.clone();
    image.change(1, &[0, 7, 40, 96]);
    let mut restore = undercroft(&repo);
    let report = json(
        restore
            .args(["restore", "vm@latest", "--in-place", "--to"])
            .arg(&image.path),
    );
    assert_eq!(std::fs::read(&image.path).expect("the target"), wanted);
    let written = report["disks"][0]["written_bytes"]
        .as_u64()
        .expect("a number");
    assert!((64 << 10..=1 << 20).contains(&written), "{report}");
}

/// The target's holes are zeros already: comparing 8 GiB of them reads nothing.
#[test]
fn an_in_place_restore_does_not_read_holes() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init"]));
    let disk = dir.path().join("disk.raw");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&disk)
        .expect("a disk");
    file.set_len(8 << 30).expect("a sparse disk");
    file.write_all_at(&[7; 100_000], 5 << 30).expect("data");
    succeed(undercroft(&repo).args(["backup", "--vm", "vm"]).arg(&disk));
    // Data in the target where the disk has none, and the reverse.
    file.set_len(0)
        .and_then(|()| file.set_len(8 << 30))
        .expect("an empty disk");
    file.write_all_at(&[9; 5000], (3 << 30) + 77)
        .expect("other data");
    let run = succeed(
        undercroft(&repo)
            .args([
                "--progress=json",
                "restore",
                "vm@latest",
                "--in-place",
                "--to",
            ])
            .arg(&disk),
    );
    let progress = String::from_utf8_lossy(&run.stderr).into_owned();
    let last = progress.lines().last().expect("progress was told");
    let last: serde_json::Value = serde_json::from_str(last).expect("a line of JSON");
    let read = last["read_bytes"].as_u64().expect("a number");
    assert!(read < 1 << 20, "{read} bytes were read");
    let mut wanted = vec![0; 100_000];
    file.read_exact_at(&mut wanted, 5 << 30).expect("the data");
    assert!(wanted.iter().all(|byte| *byte == 7));
    file.read_exact_at(&mut wanted, 3 << 30).expect("zeros");
    assert!(wanted.iter().all(|byte| *byte == 0));
}
