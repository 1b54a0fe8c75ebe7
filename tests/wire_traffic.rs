//! How much of a backup travels to a server, counted where the packets are sent and received.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::served::Served;
use support::{json, succeed};

const SEGMENT: u64 = 16 << 20;

/// A disk with a block of data in each of its segments.
fn sparse_disk(path: &Path, segments: u64) {
    let file = File::create(path).expect("a file");
    file.set_len(segments * SEGMENT).expect("it is sparse");
    for segment in 0..segments {
        let block = [segment.to_le_bytes(); 512];
        file.write_all_at(block.as_flattened(), segment * SEGMENT)
            .expect("it is written");
    }
}

/// Backs a disk up and returns how many bytes travelled.
fn wire_bytes(served: &Served, vm: &str, disk: &Path) -> u64 {
    let mut backup = served.undercroft();
    backup.args(["backup", "--progress", "none", "--vm", vm]);
    let report: Value = json(backup.arg(disk));
    let bytes = |direction: &str| report[direction].as_u64().expect("a number");
    bytes("wire_bytes_sent") + bytes("wire_bytes_received")
}

#[test]
fn a_read_of_what_did_not_change_moves_little() {
    let mut served = Served::start();
    // Again, and as it usually is: this one makes each segment durable for itself.
    served.kill();
    served.process = Command::new(env!("CARGO_BIN_EXE_undercroft"))
        .args(["repository", "serve", "--listen"])
        .arg(format!("127.0.0.1:{}", served.port))
        .arg("--store")
        .arg(served.path("store"))
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    succeed(served.undercroft().arg("init"));
    // The smaller one shows what any backup costs, the difference what a segment does.
    let (few, many) = (128, 1152);
    let mut moved = Vec::new();
    for segments in [few, many] {
        let (vm, disk) = (format!("vm{segments}"), served.path("disk.raw"));
        sparse_disk(&disk, segments);
        wire_bytes(&served, &vm, &disk);
        moved.push(wire_bytes(&served, &vm, &disk));
        assert!(
            wire_bytes(&served, &format!("clone of {vm}"), &disk) < (200 << 10) + 400 * segments
        );
        // One segment changed: its chunk, its map and the nodes above travel.
        let file = File::options().write(true).open(&disk).expect("the disk");
        file.write_all_at(b"changed", 77 * SEGMENT)
            .expect("written");
        assert!(wire_bytes(&served, &vm, &disk) < moved[moved.len() - 1] + (64 << 10));
        let target = served.path("restored.raw");
        let mut restore = served.undercroft();
        restore.args(["restore", "--disk", "disk", "--to"]);
        succeed(restore.arg(&target).arg(format!("{vm}@latest")));
        let mut found = [0; 7];
        let restored = File::open(&target).expect("the file");
        restored
            .read_exact_at(&mut found, 77 * SEGMENT)
            .expect("it is as long");
        assert_eq!(&found, b"changed");
        std::fs::remove_file(&target).expect("it is there");
    }
    let per_segment = (moved[1].saturating_sub(moved[0])) as f64 / (many - few) as f64;
    let terabyte = moved[0] as f64 + per_segment * (1_u64 << 40) as f64 / SEGMENT as f64;
    assert!(
        terabyte < (2 << 20) as f64,
        "{moved:?} bytes: {per_segment:.1} per segment, {terabyte:.0} for a tebibyte"
    );
    // The figures are those of a server: there is no wire to a directory.
    let mut local = support::undercroft(&served.path("local"));
    succeed(local.arg("init"));
    let mut backup = support::undercroft(&served.path("local"));
    backup.args(["backup", "--progress", "none", "--vm", "vm"]);
    let report: Value = json(backup.arg(served.path("disk.raw")));
    assert_eq!(report.get("wire_bytes_sent"), None);
}
