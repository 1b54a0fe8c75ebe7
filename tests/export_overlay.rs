//! Exports that can be written to: what was flushed stays, and becomes a snapshot.
//!
//! Needs nbdcopy, libnbd's Python module and qemu-io: `scripts/setup.sh test`. One story needs root for a small file system
//! of its own.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::exporter::{Exporter, peer, peer_succeeds};
use support::{Image, assert_restores, fail_with, json, succeed, undercroft, workspace};

struct Story {
    dir: tempfile::TempDir,
    repo: PathBuf,
    image: Image,
}

fn story() -> Story {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
    let mut image = Image::new(dir.path().join("root.raw"), 5, (24 << 20) + 512);
    image.bytes[4 << 20..16 << 20].fill(0);
    image.write();
    let mut backup = undercroft(&repo);
    succeed(backup.args(["backup", "--vm", "web"]).arg(&image.path));
    Story { dir, repo, image }
}

impl Story {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, overlay: &Path) -> Command {
        let mut command = undercroft(&self.repo);
        command.args(["export", "web@latest:root", "--overlay"]);
        command.arg(overlay).arg("--nbd");
        command.arg(format!("unix:{}", self.path("s").display()));
        command
    }

    fn export(&self, overlay: &Path) -> Exporter {
        Exporter::start(&mut self.command(overlay))
    }

    /// Runs a script with an open handle `h`, and the URI of the export.
    fn python(&self, uri: &str, script: &str) -> String {
        let begin = format!(
            "import nbd, os\nh = nbd.NBD()\nh.set_strict_mode(0)\nh.connect_uri('{uri}')\n"
        );
        peer_succeeds("/usr/bin/python3", &["-c", &(begin + script)])
    }

    fn copy(&self, uri: &str) -> Vec<u8> {
        let copy = self.path("copy");
        let _ = std::fs::remove_file(&copy);
        peer_succeeds("nbdcopy", &[uri, copy.to_str().expect("a plain path")]);
        std::fs::read(copy).expect("the copy")
    }
}

#[test]
fn what_was_flushed_survives_a_killed_exporter_and_becomes_a_snapshot() {
    let mut story = story();
    let overlay = story.path("o");
    let exporter = story.export(&overlay);
    let said = fail_with(&mut story.command(&overlay), 1);
    assert!(said.contains("another process"), "{said}");
    let size = story.image.bytes.len();
    // Whole parts, sectors, single bytes, the end; by FUA and by a flush of another connection.
    story.python(
        exporter.uri(),
        "size = h.get_size()\nh.pwrite(b'a' * 70000, 65536)\nh.pwrite(b'b' * 512, 512)\nh.pwrite(b'c' * 7, 5 << 20)\n\
         h.pwrite(b'd' * 600, size - 600)\nh.zero(200000, 1 << 20)\nh.trim(1 << 20, 2 << 20)\nh.zero(5, 66000, nbd.CMD_FLAG_NO_HOLE)\n\
         g = nbd.NBD()\ng.connect_uri(h.get_uri())\nassert g.pread(7, 5 << 20) == b'c' * 7\ng.flush()\n\
         h.pwrite(b'e' * 4096, 20 << 20, nbd.CMD_FLAG_FUA)\n\
         def fails(errno, call):\n  try: call()\n  except nbd.Error as e: assert e.errno == errno, (errno, e)\n  else: raise AssertionError(errno)\n\
         fails('ENOSPC', lambda: h.pwrite(b'x' * 2, size - 1))\nfails('EINVAL', lambda: h.trim(2, size - 1))\n\
         assert not h.is_read_only() and h.can_multi_conn() and h.can_fua()\n",
    );
    let put = |bytes: &mut Vec<u8>, at: usize, len: usize, byte: u8| bytes[at..at + len].fill(byte);
    let bytes = &mut story.image.bytes;
    put(bytes, 65536, 70000, b'a');
    put(bytes, 512, 512, b'b');
    put(bytes, 5 << 20, 7, b'c');
    put(bytes, size - 600, 600, b'd');
    put(bytes, 1 << 20, 200_000, 0);
    put(bytes, 2 << 20, 1 << 20, 0);
    put(bytes, 66000, 5, 0);
    put(bytes, 20 << 20, 4096, b'e');
    exporter.kill();
    let exporter = story.export(&overlay);
    assert!(story.copy(exporter.uri()) == story.image.bytes);
    let mut backup = undercroft(&story.repo);
    backup
        .args(["backup", "--vm", "web", "--overlay"])
        .arg(&overlay);
    let said = fail_with(&mut backup, 1);
    assert!(said.contains("stop the export"), "{said}");
    let (code, _) = exporter.terminate();
    assert_eq!(code, Some(0));
    let made = json(&mut backup);
    assert_eq!(made["disks"][0]["read_mode"], "changed-blocks", "{made}");
    let read = made["disks"][0]["read_bytes"].as_u64().expect("a number");
    assert!(
        read <= 4 << 20,
        "{read} bytes were read for some that were written"
    );
    assert_restores(
        &story.repo,
        "web@latest",
        &story.image.bytes,
        story.dir.path(),
    );
    succeed(undercroft(&story.repo).args(["verify", "--deep"]));
    // What an interrupted copy lacks would read as zeros.
    let short = story.path("short");
    std::fs::copy(&overlay, &short).expect("a copy");
    let file = std::fs::File::options().write(true).open(&short);
    file.and_then(|file| file.set_len(20 << 20))
        .expect("it can be cut");
    let said = fail_with(
        undercroft(&story.repo)
            .args(["backup", "--vm", "web", "--overlay"])
            .arg(&short),
        1,
    );
    assert!(said.contains("cut short"), "{said}");
    // The newest snapshot is another one now.
    let said = fail_with(&mut story.command(&overlay), 1);
    assert!(
        said.contains("lies over another disk") && said.contains("snapshot"),
        "{said}"
    );
    // Over that, the overlay is discarded in the end.
    let other = story.path("other");
    let mut command = story.command(&other);
    let exporter = Exporter::start(command.arg("--discard"));
    story.python(
        exporter.uri(),
        "h.pwrite(b'z' * 512, 0)\nassert h.pread(512, 0) == b'z' * 512\n",
    );
    exporter.terminate();
    assert!(!other.exists());
    assert_restores(
        &story.repo,
        "web@latest",
        &story.image.bytes,
        story.dir.path(),
    );
}

#[test]
fn copies_go_both_ways_and_many_write_at_once() {
    let story = story();
    let exporter = story.export(&story.path("o"));
    let other = Image::new(story.path("other.raw"), 77, story.image.bytes.len());
    let file = other.path.to_str().expect("a plain path");
    peer_succeeds(
        "nbdcopy",
        &["--flush", "--connections=4", file, exporter.uri()],
    );
    peer_succeeds(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", exporter.uri(), file],
    );
    exporter.kill();
    let exporter = story.export(&story.path("o"));
    assert!(story.copy(exporter.uri()) == other.bytes);
    let written = peer(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 5 1001 70001",
            "-c",
            "read -P 5 1001 70001",
            "-c",
            "flush",
            exporter.uri(),
        ],
    );
    let said = String::from_utf8_lossy(&written.stdout).into_owned();
    assert!(
        written.status.success() && !said.contains("failed"),
        "{said}"
    );
    let foreign = fail_with(&mut story.command(&other.path), 1);
    assert!(foreign.contains("is no overlay"), "{foreign}");
    assert!(
        std::fs::read(&other.path).expect("the file") == other.bytes,
        "it was left alone"
    );
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let story = story();
    let small = story.path("small");
    std::fs::create_dir(&small).expect("a directory");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "undercroft-test"])
        .arg(&small)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("not root: cannot mount a small file system; covered by the simulated disk");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(small.clone());
    let overlay = small.join("o");
    let exporter = story.export(&overlay);
    let written = story.python(
        exporter.uri(),
        "done = 0\ntry:\n  for n in range(200):\n    h.pwrite(bytes([n + 1]) * 65536, n * 65536)\n    h.flush()\n    done = n + 1\n\
         except nbd.Error as e:\n  assert e.errno == 'ENOSPC', e\nassert 20 < done < 70, done\n\
         h.flush()\nfor n in range(done): assert h.pread(65536, n * 65536) == bytes([n + 1]) * 65536\n\
         h.trim(10 * 65536, 0)\nh.pwrite(b'x' * 65536, 100 * 65536)\nh.flush()\nprint(done)\n",
    );
    let done: usize = written.trim().parse().expect("a number");
    exporter.kill();
    let exporter = story.export(&overlay);
    let found = story.copy(exporter.uri());
    let blocks = found.chunks(65536);
    for (number, block) in blocks.enumerate().take(done) {
        let byte = if number < 10 { 0 } else { number as u8 + 1 };
        assert!(block.iter().all(|found| *found == byte), "block {number}");
    }
    assert!(found[100 << 16..101 << 16].iter().all(|byte| *byte == b'x'));
    assert!(found[200 << 16..] == story.image.bytes[200 << 16..]);
}
