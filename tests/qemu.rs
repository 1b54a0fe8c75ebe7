//! Backups of a running QEMU guest through its monitor: a real guest, under software emulation, that writes
//! all the time.
//!
//! Needs qemu-system-x86_64 and qemu-img: `scripts/setup.sh test`.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::guest::{DISK_LEN, Guest, wait_until, writes_done};
use support::{fail_with, json, succeed, undercroft, workspace};

struct Story {
    dir: tempfile::TempDir,
    repo: PathBuf,
    guest: Guest,
}

impl Story {
    fn new() -> Self {
        Self::with("")
    }

    /// With these properties of the second disk's device.
    fn with(properties: &str) -> Self {
        let dir = workspace();
        let repo = dir.path().join("repo");
        succeed(undercroft(&repo).arg("init"));
        let guest = Guest::boot(dir.path(), properties);
        Self { dir, repo, guest }
    }

    fn backup(&self) -> Command {
        let mut command = undercroft(&self.repo);
        command.args(["backup", "--vm", "web", "--qmp"]);
        command
            .arg(self.guest.socket())
            .arg("--qmp-scratch")
            .arg(self.dir.path());
        command
    }

    /// Starts a backup and stops its process once it has made its point in time.
    fn begin(&mut self) -> Child {
        let command = self.backup();
        self.begin_with(command)
    }

    fn begin_with(&mut self, mut command: Command) -> Child {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("it starts");
        wait_until("the backup makes its point", || self.guest.has_export());
        send(&child, Signal::STOP);
        assert!(
            self.guest.has_export(),
            "it was over before it could be stopped"
        );
        child
    }

    /// Restores the newest snapshot.
    fn restore(&self) -> [Vec<u8>; 2] {
        let target = self.dir.path().join("restored");
        let _ = std::fs::remove_dir_all(&target);
        succeed(
            undercroft(&self.repo)
                .args(["restore", "web@latest", "--to"])
                .arg(target.join("")),
        );
        ["root.raw", "data.raw"].map(|name| std::fs::read(target.join(name)).expect("a disk"))
    }

    fn snapshots(&self) -> usize {
        let listed = json(undercroft(&self.repo).arg("snapshots"));
        let listed = listed["snapshots"].as_array().or(listed.as_array());
        listed.expect("a list").len()
    }
}

/// Both disks are of one moment, and how many writes were done then.
fn assert_one_moment([root, data]: &[Vec<u8>; 2]) -> usize {
    let (first, second) = (writes_done(root), writes_done(data));
    // The second disk's write N follows the first disk's.
    assert!(
        first == second || first == second + 1,
        "root has {first} writes, data {second}"
    );
    second
}

/// What is in QEMU besides the bitmaps that the next backup needs.
fn without_bitmaps(mut inside: Value) -> Value {
    inside["bitmaps"] = Value::Null;
    inside
}

fn bitmaps(inside: &Value) -> usize {
    inside["bitmaps"].as_array().expect("a list").len()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it runs");
}

/// Expects a failure; what was printed on standard error.
fn failure(child: Child) -> String {
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

#[test]
fn a_guest_that_writes_is_backed_up_as_it_was_at_one_moment() {
    let mut story = Story::new();
    let before = story.guest.inside();
    let mut done = 0;
    for round in 0..3 {
        let report = json(&mut story.backup());
        let now = assert_one_moment(&story.restore());
        assert!(now > done, "round {round}: {now} writes after {done}");
        done = now;
        let inside = story.guest.inside();
        assert_eq!(bitmaps(&inside), 2, "{inside}");
        assert_eq!(without_bitmaps(inside), without_bitmaps(before.clone()));
        assert_eq!(story.guest.status(), "running");
        for disk in report["disks"].as_array().expect("disks") {
            let read = disk["read_bytes"].as_u64().expect("a number");
            // The window of numbered sectors, and the audit's sample of the rest.
            let limit = if round == 0 { DISK_LEN / 2 } else { 11 << 20 };
            assert!(read < limit as u64, "{disk}");
            let (mode, reasons) = match round {
                0 => ("full", json!(["full:requested"])),
                _ => ("changed-blocks", json!([])),
            };
            assert_eq!(
                (&disk["read_mode"], &disk["reasons"]),
                (&json!(mode), &reasons),
                "{disk}"
            );
        }
        story.guest.let_write(100);
    }
    // A paused guest's disks are known byte by byte.
    story.guest.run("stop", Value::Null);
    json(&mut story.backup());
    let restored = story.restore();
    assert_one_moment(&restored);
    for (label, restored) in ["root", "data"].into_iter().zip(&restored) {
        assert!(
            story.guest.disk(label) == *restored,
            "{label} is not what qemu-img reads"
        );
    }
    assert_eq!(story.guest.status(), "paused");
}

#[test]
fn after_a_killed_backup_the_next_one_works() {
    let mut story = Story::new();
    json(&mut story.backup());
    let before = story.guest.inside();
    let mut child = story.begin();
    send(&child, Signal::KILL);
    child.wait().expect("it ends");
    assert_ne!(story.guest.inside(), before, "it left something");
    story.guest.let_write(50);

    let report = json(&mut story.backup());
    assert_one_moment(&story.restore());
    for disk in report["disks"].as_array().expect("disks") {
        assert_eq!(disk["read_mode"], "changed-blocks", "{disk}");
    }
    let inside = story.guest.inside();
    assert_eq!(bitmaps(&inside), 2, "{inside}");
    assert_eq!(without_bitmaps(inside), without_bitmaps(before));
}

#[test]
fn a_disk_without_its_bitmap_is_read_in_full() {
    let mut story = Story::new();
    json(&mut story.backup());
    let nodes = story
        .guest
        .run("query-named-block-nodes", json!({"flat": true}));
    let mut nodes = nodes.as_array().expect("nodes").iter();
    let node = nodes.find(|node| node["dirty-bitmaps"].is_array() && node["drv"] == "qcow2");
    let node = node.expect("the disk root");
    let name = &node["dirty-bitmaps"][0]["name"];
    let arguments = json!({"node": node["node-name"], "name": name});
    story.guest.run("block-dirty-bitmap-remove", arguments);
    story.guest.let_write(50);

    let report = json(&mut story.backup());
    assert_one_moment(&story.restore());
    let reasons = |label: &str| {
        let mut disks = report["disks"].as_array().expect("disks").iter();
        let disk = disks.find(|disk| disk["label"] == label);
        disk.expect("the disk")["reasons"].clone()
    };
    assert_eq!(reasons("root"), json!(["full:no-dirty-bitmap"]));
    assert_eq!(reasons("data"), json!([]));
    let warning = report["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("the guest does not have it"), "{warning}");
    assert_eq!(bitmaps(&story.guest.inside()), 2);
}

#[test]
fn a_backup_that_is_stopped_leaves_qemu_as_it_was() {
    let mut story = Story::new();
    json(&mut story.backup());
    let before = story.guest.inside();
    let child = story.begin();
    send(&child, Signal::TERM);
    send(&child, Signal::CONT);
    let text = failure(child);
    assert!(text.contains("stopped on request"), "{text}");
    assert_eq!(story.guest.inside(), before);
    assert_eq!(story.snapshots(), 1);
}

#[test]
fn whatever_cannot_be_done_leaves_qemu_as_it_was() {
    let mut story = Story::new();
    let before = story.guest.inside();
    let missing = story.dir.path().join("missing");
    let with_scratch = |dir: &Path| {
        let mut command = undercroft(&story.repo);
        command
            .args(["backup", "--vm", "web", "--qmp"])
            .arg(story.guest.socket());
        command.arg("--qmp-scratch").arg(dir);
        command
    };
    let text = fail_with(&mut with_scratch(&missing), 1);
    assert!(
        text.contains("missing") && text.contains("--qmp-scratch DIR"),
        "{text}"
    );
    let text = fail_with(story.backup().args(["--exclude-disk", "rot"]), 2);
    assert!(text.contains("root, data"), "{text}");
    assert_eq!(story.guest.inside(), before);

    // QEMU has one NBD server.
    let socket = story.dir.path().join("other.nbd");
    let address =
        json!({"type": "unix", "data": {"path": socket.file_name().expect("a name").to_str()}});
    story
        .guest
        .run("nbd-server-start", json!({"addr": address}));
    let text = fail_with(&mut story.backup(), 1);
    assert!(
        text.contains("already running") && text.contains("Hint: QEMU has one"),
        "{text}"
    );
    assert_eq!(story.guest.inside(), before);
    story.guest.run("nbd-server-stop", Value::Null);
    assert_eq!(story.snapshots(), 0);
    assert_eq!(story.guest.status(), "running");
}

#[test]
fn disks_can_be_left_out() {
    let mut story = Story::with(",iothread=io");
    // QEMU 7.2 ends, and the guest with it, when an NBD client leaves a disk of an I/O thread.
    let text = fail_with(&mut story.backup(), 1);
    assert!(
        text.contains("/objects/io") && text.contains("--exclude-disk data"),
        "{text}"
    );
    let report = json(story.backup().args(["--exclude-disk", "data"]));
    let disks = report["disks"].as_array().expect("disks");
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0]["label"], "root");
    assert_eq!(bitmaps(&story.guest.inside()), 1);
    story.guest.let_write(10);
}

#[test]
fn a_scratch_directory_that_fills_does_not_stop_the_guest_for_good() {
    let mut story = Story::new();
    let small = story.dir.path().join("small");
    std::fs::create_dir(&small).expect("a directory");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=64m", "undercroft-test"]);
    succeed(mount.arg(&small));
    let _mounted = Unmount(small.clone());
    let before = story.guest.inside();
    let mut command = undercroft(&story.repo);
    command
        .args(["backup", "--vm", "web", "--qmp"])
        .arg(story.guest.socket());
    command.arg("--qmp-scratch").arg(&small);
    // A cluster is copied before the first write to it only: those writes must not be over before the directory is
    // full.
    story.guest.run("stop", Value::Null);
    let child = story.begin_with(command);
    let _ = std::fs::write(small.join("filler"), vec![1; 64 << 20]);
    story.guest.run("cont", Value::Null);
    // QEMU itself waits while a write has failed and an NBD client takes no answers: nothing may be asked of it now.
    std::thread::sleep(Duration::from_secs(2));
    send(&child, Signal::CONT);
    let text = failure(child);
    assert!(
        text.contains("the scratch directory") && text.contains("bytes left"),
        "{text}"
    );
    wait_until("the guest goes on", || story.guest.status() == "running");
    // Files that were lent go when the monitor does, a little later.
    wait_until("nothing is left in QEMU", || story.guest.inside() == before);
    story.guest.let_write(50);
    assert_eq!(story.snapshots(), 0);
    // No write of the guest was lost.
    json(&mut story.backup());
    assert_one_moment(&story.restore());
}

/// A small file system that goes with its test.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
