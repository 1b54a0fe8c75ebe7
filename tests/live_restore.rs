//! Disks that are used while they are restored.
//!
//! Needs nbdcopy and libnbd's Python module: `scripts/setup.sh test`.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::exporter::{Exporter, peer_succeeds};
use support::packs::{flip, packs_of};
use support::{Image, fail_with, succeed, undercroft, workspace};
use undercroft_format::pack::{PackKind, RECORD_HEADER_LEN};

const LEN: usize = (40 << 20) + 512;

struct Story {
    dir: tempfile::TempDir,
    repo: PathBuf,
    image: Image,
}

fn story() -> Story {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
    let image = Image::new(dir.path().join("root.raw"), 5, LEN);
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "web"])
            .arg(&image.path),
    );
    Story { dir, repo, image }
}

impl Story {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn restore(&self, target: &Path) -> Command {
        let mut command = undercroft(&self.repo);
        command
            .args(["restore", "web@latest", "--live", "--to"])
            .arg(target);
        command
            .arg("--nbd")
            .arg(format!("unix:{}", self.path("s").display()));
        command
    }

    fn python(&self, uri: &str, script: &str) {
        let begin = format!("import nbd\nh = nbd.NBD()\nh.connect_uri('{uri}')\n");
        peer_succeeds("/usr/bin/python3", &["-c", &(begin + script)]);
    }
}

#[test]
fn what_clients_flush_is_in_the_restored_disk_after_crashes() {
    let mut story = story();
    let target = story.path("target.raw");
    std::fs::write(&target, "somebody's").expect("a file");
    let said = fail_with(&mut story.restore(&target), 2);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(std::fs::read(&target).expect("the file"), b"somebody's");
    // Other bytes than zeros, where holes have to go.
    std::fs::write(&target, vec![0xaa; LEN + 4096]).expect("a file");
    let mut force = story.restore(&target);
    let mut exporter = Exporter::start(force.arg("--force"));
    for (round, byte) in [b'a', b'b', b'c'].into_iter().enumerate() {
        let at = round * (12 << 20) + 1000;
        let script = format!(
            "h.pwrite(bytes([{byte}]) * 5000, {at})\nh.zero(9000, {at} + 100000)\nh.trim(8192, {at} // 4096 * 4096 + 409600)\nh.flush()\n\
             assert h.pread(5000, {at}) == bytes([{byte}]) * 5000\n"
        );
        story.python(exporter.uri(), &script);
        let bytes = &mut story.image.bytes;
        bytes[at..at + 5000].fill(byte);
        bytes[at + 100_000..at + 109_000].fill(0);
        let trimmed = at / 4096 * 4096 + 409_600;
        bytes[trimmed..trimmed + 8192].fill(0);
        exporter.kill();
        exporter = Exporter::start(&mut story.restore(&target));
        let copy = story.path("copy");
        let _ = std::fs::remove_file(&copy);
        peer_succeeds(
            "nbdcopy",
            &[exporter.uri(), copy.to_str().expect("a plain path")],
        );
        assert!(std::fs::read(copy).expect("the copy") == story.image.bytes);
    }
    let said = exporter.next_said();
    assert_eq!(said["event"], "restored", "{said}");
    let (code, _) = exporter.terminate();
    assert_eq!(code, Some(0));
    assert!(std::fs::read(&target).expect("the disk") == story.image.bytes);
    assert!(!story.path("target.raw.live").exists());
}

/// Zeros that were flushed, and a write over them that was not: the crash takes the write back, from the target, too.
#[test]
fn what_a_crash_takes_back_is_not_in_the_restored_disk() {
    let mut story = story();
    let target = story.path("target.raw");
    let mut exporter = Exporter::start(&mut story.restore(&target));
    assert_eq!(exporter.next_said()["event"], "restored");
    story.python(
        exporter.uri(),
        "h.zero(1 << 20, 1 << 20)\nh.flush()\nh.pwrite(b'w' * 65536, 1 << 20)\n",
    );
    exporter.kill();
    story.image.bytes[1 << 20..2 << 20].fill(0);
    let mut exporter = Exporter::start(&mut story.restore(&target));
    story.python(
        exporter.uri(),
        "assert h.pread(65536, 1 << 20) == bytes(65536)\n",
    );
    assert_eq!(exporter.next_said()["event"], "restored");
    let (code, _) = exporter.terminate();
    assert_eq!(code, Some(0));
    let restored = std::fs::read(&target).expect("the disk");
    let differs = restored
        .iter()
        .zip(&story.image.bytes)
        .position(|(a, b)| a != b);
    assert_eq!((restored.len(), differs), (LEN, None));
}

#[test]
fn what_is_damaged_is_told_and_the_rest_is_restored() {
    let story = story();
    for (pack, records) in packs_of(&story.repo, PackKind::Data) {
        for (position, _) in records.iter().skip(3).step_by(60) {
            flip(&pack, position + RECORD_HEADER_LEN + 3, 2);
        }
    }
    let target = story.path("target.raw");
    let mut exporter = Exporter::start(&mut story.restore(&target));
    // Reads of what is damaged fail, and go on failing; everything else can be had.
    let script = format!(
        "disk = open('{}', 'rb').read()\ngood = bad = 0\n\
         for at in range(0, len(disk), 65536):\n  n = min(65536, len(disk) - at)\n  try:\n    assert h.pread(n, at) == disk[at:at + n]\n    good += 1\n\
         \x20 except nbd.Error as e:\n    assert e.errno == 'EIO', e\n    bad += 1\nassert bad > 0 and good > bad, (good, bad)\n",
        story.image.path.display()
    );
    story.python(exporter.uri(), &script);
    // Written over, it is not missed any more.
    story.python(exporter.uri(), &format!("for at in range(0, {LEN}, 512 << 10): h.pwrite(b'z' * min(512 << 10, {LEN} - at), at)\n"));
    assert_eq!(exporter.next_said()["event"], "restored");
    let (code, _) = exporter.terminate();
    assert_eq!(code, Some(0));
    assert!(
        std::fs::read(&target)
            .expect("the disk")
            .iter()
            .all(|byte| *byte == b'z')
    );
}
