//! Instant recovery: a guest boots from an export while its disk is streamed to its final place. docs/export.md has
//! the recipe.
//!
//! Needs qemu-system-x86_64 and qemu-img: `scripts/setup.sh test`.

mod support;

use std::path::{Path, PathBuf};

use serde_json::json;
use support::exporter::Exporter;
use support::guest::{DISK_LEN, Guest, wait_until, writes_done};
use support::{succeed, undercroft, workspace};

const DEVICE: &str = "virtio-blk-pci,drive=root-node,id=root,bootindex=0";
const NODE: &str = "driver=nbd,node-name=root-node,server.type=unix,server.path=s,export=root";

/// A repository with the disk of a machine that is lost.
fn lost(dir: &Path) -> PathBuf {
    let repo = dir.join("repo");
    succeed(undercroft(&repo).arg("init"));
    let root = Guest::make_disks(dir);
    let mut backup = undercroft(&repo);
    succeed(backup.args(["backup", "--vm", "web"]).arg(&root));
    std::fs::remove_file(&root).expect("it is there");
    repo
}

#[test]
fn a_guest_runs_on_an_export_until_its_disk_is_in_its_place() {
    let dir = workspace();
    let repo = lost(dir.path());
    let (overlay, place) = (dir.path().join("overlay"), dir.path().join("place.raw"));
    let mut export = undercroft(&repo);
    export
        .args(["export", "web@latest:root", "--discard", "--overlay"])
        .arg(&overlay);
    export
        .arg("--nbd")
        .arg(format!("unix:{}", dir.path().join("s").display()));
    let exporter = Exporter::start(&mut export);
    let root = ["-blockdev", NODE, "-device", DEVICE];
    let mut guest = Guest::boot_from(dir.path(), &root, "");
    // It runs before anything was restored; now its disk goes where it belongs, while it writes.
    let file = std::fs::File::create(&place).expect("a file");
    file.set_len(DISK_LEN as u64).expect("room");
    let target = json!({
        "driver": "raw",
        "node-name": "place",
        "file": {"driver": "file", "filename": "place.raw"},
    });
    guest.run("blockdev-add", target);
    let mirror = json!({
        "job-id": "recover",
        "device": "root-node",
        "target": "place",
        "sync": "full",
        "copy-mode": "write-blocking",
        "auto-dismiss": false,
    });
    guest.run("blockdev-mirror", mirror);
    let status = |guest: &mut Guest| {
        let jobs = guest.run("query-jobs", json!(null));
        let job = jobs.as_array().and_then(|jobs| jobs.first().cloned());
        let job = job.expect("the job is not dismissed");
        assert!(job["error"].is_null(), "{job}");
        job["status"].as_str().expect("text").to_owned()
    };
    wait_until("the disk is in its place", || status(&mut guest) == "ready");
    guest.let_write(20);
    guest.run("job-complete", json!({"id": "recover"}));
    wait_until("the guest is on it", || status(&mut guest) == "concluded");
    guest.run("job-dismiss", json!({"id": "recover"}));
    guest.run("blockdev-del", json!({"node-name": "root-node"}));
    // The repository is not needed any more.
    let (code, _) = exporter.terminate();
    assert_eq!(code, Some(0));
    assert!(!overlay.exists(), "it was to be discarded");
    guest.let_write(20);
    guest.run("stop", json!(null));
    let on_place = writes_done(&std::fs::read(&place).expect("the disk"));
    let on_data = writes_done(&guest.disk("data"));
    assert!(
        on_place >= 40 && on_place - on_data <= 1,
        "{on_place} and {on_data}"
    );
}

#[test]
fn a_guest_runs_on_a_disk_that_is_restored_meanwhile() {
    let dir = workspace();
    let repo = lost(dir.path());
    let place = dir.path().join("place.raw");
    let start = || {
        let mut restore = undercroft(&repo);
        restore
            .args(["restore", "web@latest", "--live", "--to"])
            .arg(&place);
        restore
            .arg("--nbd")
            .arg(format!("unix:{}", dir.path().join("s").display()));
        Exporter::start(&mut restore)
    };
    // Whatever became of it, the same again goes on.
    start().kill();
    let mut exporter = start();
    let root = ["-blockdev", NODE, "-device", DEVICE];
    let mut guest = Guest::boot_from(dir.path(), &root, "");
    assert_eq!(exporter.next_said()["event"], "restored");
    guest.let_write(20);
    guest.run("stop", json!(null));
    let on_data = writes_done(&guest.disk("data"));
    drop(guest);
    let (code, _) = exporter.terminate();
    assert_eq!(code, Some(0));
    let on_place = writes_done(&std::fs::read(&place).expect("the disk"));
    assert!(
        on_place >= 20 && on_place - on_data <= 1,
        "{on_place} and {on_data}"
    );
    assert!(
        !dir.path().join("place.raw.live").exists(),
        "the state is of no use any more"
    );
}
