//! Everything that a disk is restored to beside plain files: qcow2 images, NBD exports, targets that hold nearly the
//! disk; read back, and compared by other programs.
//!
//! Needs qemu-utils and nbdkit: `scripts/setup.sh test`.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::exports::{Server, Story, story};
use support::{assert_restores, fail_with, json, noise, succeed, undercroft};

fn restore(story: &Story, snapshot: &str) -> Command {
    let mut command = undercroft(&story.repo);
    command.args(["restore", snapshot]);
    command
}

/// A full snapshot, and an increment on it.
fn two_snapshots(story: &mut Story) -> Vec<u8> {
    let file = story.file().to_owned();
    json(&mut story.backup(&file));
    let before = story.image.bytes.clone();
    let bitmap = story.image.change(7, &[1, 2, 200, 640]);
    std::fs::write(story.path("bitmap"), bitmap).expect("a file");
    let changed = format!("root={}", story.path("bitmap").display());
    let mut backup = story.backup(&file);
    backup.args(["--parent", "web@latest", "--changed-blocks", &changed]);
    assert_eq!(json(&mut backup)["disks"][0]["read_mode"], "changed-blocks");
    before
}

fn raw_of(image: &Path, scratch: &Path) -> Vec<u8> {
    let raw = scratch.join("converted.raw");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw"]);
    succeed(convert.arg(image).arg(&raw));
    std::fs::read(raw).expect("the converted disk")
}

fn assert_equal(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first byte that differs");
}

fn first_disk(report: &Value) -> &Value {
    &report["disks"][0]
}

#[test]
fn a_qcow2_image_is_whole_and_sparse_and_always_the_same() {
    let mut story = story();
    let before = two_snapshots(&mut story);
    for (snapshot, expected) in [
        ("web@latest-1", &before),
        ("web@latest", &story.image.bytes.clone()),
    ] {
        let target = story.path("disk.qcow2");
        let mut command = restore(&story, snapshot);
        command.args(["--format", "qcow2", "--force", "--to"]);
        succeed(command.arg(&target));
        let mut check = Command::new("qemu-img");
        succeed(check.args(["check", "-f", "qcow2"]).arg(&target));
        assert_equal(&raw_of(&target, story.dir.path()), expected);
        let image = std::fs::read(&target).expect("the image");
        assert!(
            image.len() < 20 << 20,
            "zeros are not there: {}",
            image.len()
        );
        let mut again = restore(&story, snapshot);
        let output = succeed(again.args(["--format", "qcow2", "--to", "-"]));
        assert!(output.stdout == image, "not the same file");
    }
    let dir = story.path("dir");
    let mut into = restore(&story, "web@latest");
    into.args(["--format", "qcow2", "--to"]).arg(dir.join(""));
    succeed(&mut into);
    assert!(dir.join("root.qcow2").is_file());
}

#[test]
fn what_is_no_qcow2_image_is_refused() {
    let story = story();
    let odd = story.path("odd.raw");
    std::fs::write(&odd, noise(3, 1000)).expect("a file");
    json(&mut story.backup(odd.to_str().expect("a plain path")));
    let target = story.path("odd.qcow2");
    let qcow2 = |more: &[&str]| {
        let mut command = restore(&story, "web@latest");
        command.args(["--format", "qcow2"]).args(more);
        command.arg("--to").arg(&target);
        command
    };
    let text = fail_with(&mut qcow2(&[]), 1);
    assert!(
        text.contains("1000 bytes") && text.contains("multiple of 512"),
        "{text}"
    );
    assert!(!target.exists());
    let text = fail_with(&mut qcow2(&["--in-place"]), 2);
    assert!(text.contains("cannot be written in place"), "{text}");
    let text = fail_with(&mut qcow2(&["--verify"]), 2);
    assert!(text.contains("qemu-img compare"), "{text}");
    let text = fail_with(&mut qcow2(&["--vhd-since", "web@latest"]), 2);
    assert!(text.contains("--vhd-since makes a VHD"), "{text}");
}

#[test]
fn a_dry_run_says_what_would_be_written_and_writes_nothing() {
    let mut story = story();
    let before = two_snapshots(&mut story);
    let target = story.path("target.raw");
    // As the first snapshot, with a block where there are zeros.
    let mut held = before;
    held[16 << 20..(16 << 20) + 4096].fill(9);
    std::fs::write(&target, &held).expect("a file");
    let in_place = |more: &[&str]| {
        let mut command = restore(&story, "web@latest");
        command.arg("--in-place").args(more);
        command.arg("--to").arg(&target);
        command
    };
    let would = json(&mut in_place(&["--dry-run"]));
    assert_eq!(would["dry_run"], true);
    assert_equal(&std::fs::read(&target).expect("the target"), &held);
    let did = json(&mut in_place(&["--verify"]));
    assert_equal(
        &std::fs::read(&target).expect("the target"),
        &story.image.bytes,
    );
    for figure in ["written_bytes", "zeroed_bytes", "equal_bytes"] {
        assert_eq!(
            first_disk(&would)[figure],
            first_disk(&did)[figure],
            "{figure}"
        );
        assert_ne!(first_disk(&did)[figure], 0, "{figure}");
    }
    assert_eq!(first_disk(&did)["verified"], true);
    let written = first_disk(&did)["written_bytes"].as_u64().expect("bytes");
    assert!(written < 2 << 20, "{written} of four blocks");
    let nothing = json(&mut in_place(&["--dry-run"]));
    assert_eq!(first_disk(&nothing)["written_bytes"], 0);
    // A target that is cut short would be made longer.
    std::fs::write(&target, &held[..8 << 20]).expect("a file");
    let short = json(&mut in_place(&["--dry-run"]));
    assert!(first_disk(&short)["written_bytes"].as_u64() > Some(4 << 20));
    assert_eq!(target.metadata().expect("it is there").len(), 8 << 20);
    std::fs::remove_file(&target).expect("it is there");
    let text = fail_with(&mut in_place(&["--dry-run"]), 1);
    assert!(text.contains("does not exist"), "{text}");
    let mut without = restore(&story, "web@latest");
    fail_with(without.args(["--dry-run", "--to"]).arg(&target), 2);
    assert!(!target.exists());
}

#[test]
fn new_files_are_read_back_before_they_have_their_name() {
    let mut story = story();
    two_snapshots(&mut story);
    let target = story.path("new.raw");
    let mut command = restore(&story, "web@latest");
    let report = json(command.arg("--verify").arg("--to").arg(&target));
    assert_eq!(first_disk(&report)["verified"], true);
    assert_equal(
        &std::fs::read(&target).expect("the target"),
        &story.image.bytes,
    );
    let mut stdout = restore(&story, "web@latest");
    let text = fail_with(stdout.args(["--verify", "--to", "-"]), 2);
    assert!(text.contains("leave out --verify"), "{text}");
}

#[test]
fn a_target_that_forgets_is_found_out() {
    let story = story();
    json(&mut story.backup(story.file()));
    // Whatever is written, it reads as zeros.
    let _server = Server::nbdkit(&story.path("null"), &["null", "64M"]);
    let mut command = restore(&story, "web@latest");
    command.args(["--verify", "--to", &story.unix_uri("null")]);
    let text = fail_with(&mut command, 1);
    assert!(text.contains("is not disk root"), "{text}");
    assert!(text.contains("differ after the restore"), "{text}");
}

fn qemu_nbd(story: &Story, image: &str, socket: &str, args: &[&str]) -> Server {
    let socket = story.path(socket);
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "qcow2", "-k"]).arg(&socket).args(args);
    Server::start(command.arg(story.path(image)), &socket)
}

fn make_qcow2(story: &Story, name: &str, size: usize) {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-f", "qcow2"]);
    succeed(create.arg(story.path(name)).arg(size.to_string()));
}

#[test]
fn an_image_behind_qemu_nbd_becomes_the_disk_and_then_the_next_one() {
    let mut story = story();
    two_snapshots(&mut story);
    let size = story.image.bytes.len();
    make_qcow2(&story, "disk.qcow2", size);
    // One client at a time, and gone after it: the server's defaults.
    let server = qemu_nbd(&story, "disk.qcow2", "q.sock", &[]);
    let mut command = restore(&story, "web@latest-1");
    let report = json(command.args(["--verify", "--to", &story.unix_uri("q.sock")]));
    assert_eq!(first_disk(&report)["verified"], true);
    drop(server);
    assert_restores(
        &story.repo,
        "web@latest-1",
        &raw_of(&story.path("disk.qcow2"), story.dir.path()),
        story.dir.path(),
    );
    let several = ["--shared=8", "--persistent"];
    let _server = qemu_nbd(&story, "disk.qcow2", "q.sock", &several);
    let uri = story.unix_uri("q.sock");
    let text = fail_with(restore(&story, "web@latest").args(["--to", &uri]), 1);
    assert!(
        text.contains("may hold data") && text.contains("--in-place"),
        "{text}"
    );
    let mut in_place = restore(&story, "web@latest");
    let report = json(in_place.args(["--in-place", "--verify", "--to", &uri]));
    let written = first_disk(&report)["written_bytes"]
        .as_u64()
        .expect("bytes");
    assert!((1..2 << 20).contains(&written), "{written} of four blocks");
    assert!(first_disk(&report)["equal_bytes"].as_u64() > Some(8 << 20));
    let mut again = restore(&story, "web@latest");
    let report = json(again.args(["--in-place", "--dry-run", "--to", &uri]));
    assert_eq!(first_disk(&report)["written_bytes"], 0);
    drop(_server);
    assert_equal(
        &raw_of(&story.path("disk.qcow2"), story.dir.path()),
        &story.image.bytes,
    );
}

#[test]
fn all_of_an_export_that_held_something_else_is_overwritten() {
    let story = story();
    json(&mut story.backup(story.file()));
    let size = story.image.bytes.len();
    // Blocks that are larger than sectors; the disk's end lies in one. Zeros have to be written.
    let held = story.path("held.raw");
    let mut content = noise(5, size.next_multiple_of(4096) + 8192);
    std::fs::write(&held, &content).expect("a file");
    let filters = [
        "--filter=blocksize-policy",
        "--filter=nozero",
        "file",
        held.to_str().expect("a plain path"),
        "blocksize-minimum=4096",
        "blocksize-preferred=65536",
        "blocksize-maximum=262144",
        "blocksize-error-policy=error",
        "zeromode=none",
    ];
    let _server = Server::nbdkit(&story.path("n.sock"), &filters);
    let uri = story.unix_uri("n.sock");
    let mut command = restore(&story, "web@latest");
    json(command.args(["--force", "--verify", "--to", &uri]));
    content[..size].copy_from_slice(&story.image.bytes);
    assert_equal(&std::fs::read(&held).expect("the file"), &content);
}

#[test]
fn an_export_that_cannot_take_the_disk_is_refused_or_ends_the_restore() {
    let story = story();
    json(&mut story.backup(story.file()));
    let held = story.path("held.raw");
    std::fs::File::create(&held)
        .and_then(|file| file.set_len(64 << 20))
        .expect("a file");
    let held = held.to_str().expect("a plain path");
    let refused = |name: &str, filters: &[&str]| {
        let _server = Server::nbdkit(&story.path(name), filters);
        let uri = story.unix_uri(name);
        fail_with(restore(&story, "web@latest").args(["--to", &uri]), 1)
    };
    let text = refused("small", &["memory", "10M"]);
    assert!(text.contains("smaller than disk root"), "{text}");
    let text = refused("ro", &["-r", "file", held]);
    assert!(text.contains("read-only"), "{text}");
    let full = [
        "--filter=error",
        "file",
        held,
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=100%",
    ];
    let text = refused("full", &full);
    assert!(text.contains("ENOSPC"), "{text}");
    let missing = story.unix_uri("gone");
    let text = fail_with(restore(&story, "web@latest").args(["--to", &missing]), 1);
    assert!(text.contains("connecting to the NBD server"), "{text}");
    let text = fail_with(
        restore(&story, "web@latest").args(["--format", "qcow2", "--to", &missing]),
        2,
    );
    assert!(text.contains("the server knows how to store"), "{text}");
}

#[test]
fn a_server_that_dies_ends_the_restore_with_an_error() {
    let story = story();
    json(&mut story.backup(story.file()));
    let slow = ["--filter=delay", "memory", "64M", "delay-write=3"];
    let mut server = Server::nbdkit(&story.path("slow"), &slow);
    let mut command = restore(&story, "web@latest");
    command.args(["--to", &story.unix_uri("slow")]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("it starts");
    std::thread::sleep(std::time::Duration::from_secs(1));
    server.0.kill().expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("broke while the export was written"),
        "{text}"
    );
}

#[test]
fn what_differs_comes_as_a_list_of_extents_that_a_backup_takes() {
    let mut story = story();
    two_snapshots(&mut story);
    let mut diff = undercroft(&story.repo);
    diff.args(["diff", "web@latest-1", "web@latest", "--extents"]);
    let output = succeed(&mut diff);
    let extents: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let bytes: u64 = extents
        .as_array()
        .expect("a list")
        .iter()
        .map(|extent| extent["length"].as_u64().expect("bytes"))
        .sum();
    assert!((3 << 16..2 << 20).contains(&bytes), "{bytes}");
    std::fs::write(story.path("extents.json"), &output.stdout).expect("a file");
    // Another repository, which has the first state only.
    let other = story.path("other");
    succeed(undercroft(&other).arg("init"));
    let first = story.path("first.raw");
    let mut command = restore(&story, "web@latest-1");
    succeed(command.arg("--to").arg(&first));
    let root = |path: &Path| format!("root={}", path.display());
    let backup = || {
        let mut command = undercroft(&other);
        command.args(["backup", "--vm", "web", "--disk"]);
        command
    };
    succeed(backup().arg(root(&first)));
    let mut increment = backup();
    increment.arg(root(&story.image.path));
    increment.args(["--parent", "web@latest", "--changed-blocks"]);
    let report = json(increment.arg(root(&story.path("extents.json"))));
    assert_eq!(first_disk(&report)["read_mode"], "changed-blocks");
    assert_restores(&other, "web@latest", &story.image.bytes, story.dir.path());
}
