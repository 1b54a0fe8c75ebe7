//! A full disk: clear errors, earlier snapshots intact, and a collection that makes room.
//!
//! Needs root for a small file system of its own; without, the story is told by the simulated disk in
//! the data plane's tests alone.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::served::Served;
use support::{Image, assert_restores, fail_with, json, noise, succeed, undercroft, workspace};

/// A small file system, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a directory");
        let options = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "undercroft-test"])
            .arg(at)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_loses_nothing_and_can_be_collected() {
    let dir = workspace();
    let Some(disk) = SmallDisk::mount(&dir.path().join("small"), 48 << 20) else {
        eprintln!("not root: cannot mount a small file system; covered by the simulated disk");
        return;
    };
    let repo = disk.0.join("repo");
    let init = [
        "init",
        "--segment-size",
        "1M",
        "--pack-size",
        "1M",
        "--index-memory",
        "64M",
    ];
    succeed(undercroft(&repo).args(init));
    let mut image = Image::new(dir.path().join("disk.raw"), 1, 16 << 20);
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "vm"])
            .arg(&image.path),
    );
    let first = image.bytes.clone();

    let all: Vec<usize> = (0..256).collect();
    let mut failed = None;
    for round in 0..6 {
        image.change(1000 * (round + 1), &all);
        let before = sealed_bytes(&repo);
        let output = undercroft(&repo)
            .args(["backup", "--vm", "vm"])
            .arg(&image.path)
            .output()
            .expect("it starts");
        if !output.status.success() {
            let kept = sealed_bytes(&repo) - before;
            failed = Some((String::from_utf8_lossy(&output.stderr).into_owned(), kept));
            break;
        }
    }
    let (text, kept) = failed.expect("48 MiB do not hold seven disks of 16 MiB");
    assert!(text.to_lowercase().contains("no space"), "{text}");
    assert!(text.contains("gc"), "it says what makes room: {text}");
    // Only what was sealed stays: less than what was stored until the disk was full.
    let said = text.split(" MiB of new data stay").next();
    let said = said.and_then(|text| text.rsplit(' ').next()?.parse().ok());
    let said: f64 = said.unwrap_or_else(|| panic!("{text}"));
    let kept = kept as f64 / f64::from(1 << 20);
    assert!(
        (said - kept).abs() < 0.1,
        "{said} said, {kept} kept: {text}"
    );

    assert_restores(
        &repo,
        "vm@latest",
        &restored_latest(&repo, dir.path()),
        dir.path(),
    );
    succeed(undercroft(&repo).arg("verify"));
    let oldest = json(undercroft(&repo).arg("snapshots"))[0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    assert_restores(&repo, &oldest, &first, dir.path());

    succeed(undercroft(&repo).args(["forget", &oldest]));
    succeed(undercroft(&repo).arg("gc"));
    let missing = fail_with(undercroft(&repo).args(["show", &oldest]), 1);
    assert!(missing.contains(&oldest[..8]), "{missing}");
    let small = Image::new(dir.path().join("small.raw"), 7, 1 << 20);
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "other"])
            .arg(&small.path),
    );
    assert_restores(&repo, "other@latest", &small.bytes, dir.path());
    succeed(undercroft(&repo).args(["verify", "--deep"]));
}

/// Behind a server a backup that found no room is not kept: what it wrote would keep the disk full for its lease.
#[test]
fn a_full_disk_behind_a_server_is_freed_by_a_collection() {
    let dir = workspace();
    let Some(_disk) = SmallDisk::mount(&dir.path().join("store"), 64 << 20) else {
        eprintln!("not root: cannot mount a small file system");
        return;
    };
    let (served, _) = Served::start_in(dir, |_| {});
    let sizes = ["--segment-size", "1M", "--pack-size", "1M"];
    succeed(
        served
            .undercroft()
            .arg("init")
            .args(sizes)
            .args(["--index-memory", "16M"]),
    );
    let small = Image::new(served.path("small.raw"), 1, 4 << 20);
    succeed(&mut served.backup(&small));
    let large = served.path("large.raw");
    std::fs::write(&large, noise(7, 96 << 20)).expect("an image");
    let mut backup = served.undercroft();
    let text = fail_with(backup.args(["backup", "--vm", "large"]).arg(&large), 1);
    assert!(
        text.contains("No space left") && text.contains("gc"),
        "{text}"
    );
    assert!(served.sessions().is_empty(), "it can write no more");
    served.assert_restores("vm@latest", &small.bytes);
    let freed = json(served.undercroft().arg("gc"));
    assert!(freed["bytes_freed"].as_u64() > Some(16 << 20), "{freed}");
    assert_eq!(freed["packs_held"], 0);
    let other = Image::new(served.path("other.raw"), 2, 4 << 20);
    let mut backup = served.undercroft();
    succeed(backup.args(["backup", "--vm", "other"]).arg(&other.path));
    served.assert_restores("other@latest", &other.bytes);
    succeed(served.undercroft().args(["verify", "--deep"]));
}

/// Sealed packs together: what a session that failed leaves for the next to find.
fn sealed_bytes(repo: &Path) -> u64 {
    let packs = support::files_below(&repo.join("packs")).into_iter();
    let sealed = packs.filter(|path| path.extension().is_none());
    sealed
        .map(|path| std::fs::metadata(path).expect("a pack").len())
        .sum()
}

/// The index is not made anew for want of room, and what is said is about the room.
#[test]
fn a_full_disk_is_not_taken_for_a_damaged_index() {
    let dir = workspace();
    let Some(disk) = SmallDisk::mount(&dir.path().join("small"), 24 << 20) else {
        eprintln!("not root: cannot mount a small file system");
        return;
    };
    let repo = disk.0.join("repo");
    succeed(undercroft(&repo).args(["init", "--index-memory", "64M"]));
    let image = Image::new(dir.path().join("disk.raw"), 1, 2 << 20);
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "vm"])
            .arg(&image.path),
    );
    fill(&disk.0.join("filler"));
    let output = undercroft(&repo)
        .args(["gc", "--dry-run"])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("rocksdb:"), "{text}");
    assert!(!text.contains("damaged"), "{text}");
    assert!(!text.contains("rebuild-index"), "{text}");

    // The old index would make way for the new one.
    std::fs::remove_dir_all(repo.join("index")).expect("it is there");
    fill(&disk.0.join("more"));
    let text = fail_with(undercroft(&repo).arg("rebuild-index"), 1);
    assert!(text.contains("No space left"), "{text}");
    assert!(!text.contains("rocksdb:"), "{text}");
    assert!(!text.contains("rebuild-index"), "{text}");
    assert!(text.contains("Hint: make room: "), "{text}");

    // A full target is another disk's business.
    for file in ["filler", "more"] {
        std::fs::remove_file(disk.0.join(file)).expect("it is there");
    }
    succeed(undercroft(&repo).arg("rebuild-index"));
    let Some(target) = SmallDisk::mount(&dir.path().join("target"), 1 << 20) else {
        return;
    };
    let file = target.0.join("disk.raw");
    let text = fail_with(
        undercroft(&repo)
            .args(["restore", "vm@latest", "--to"])
            .arg(&file),
        1,
    );
    assert!(text.contains("No space left"), "{text}");
    assert!(text.contains("Hint: make room there"), "{text}");
    assert!(!text.contains("prune"), "{text}");
}

/// Writes until there is no room left.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    for len in [1 << 20, 4096] {
        while file.write_all(&vec![1; len]).is_ok() {}
    }
}

#[test]
fn a_full_disk_can_be_read() {
    let dir = workspace();
    let Some(disk) = SmallDisk::mount(&dir.path().join("small"), 48 << 20) else {
        eprintln!("not root: cannot mount a small file system");
        return;
    };
    let repo = disk.0.join("repo");
    succeed(undercroft(&repo).args(["init", "--index-memory", "64M"]));
    let image = Image::new(dir.path().join("disk.raw"), 1, 4 << 20);
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "vm"])
            .arg(&image.path),
    );
    let mut filler = std::fs::File::create(disk.0.join("filler")).expect("a file");
    while filler.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    assert_restores(&repo, "vm@latest", &image.bytes, dir.path());
    succeed(undercroft(&repo).args(["verify", "--deep"]));
}

fn restored_latest(repo: &Path, scratch: &Path) -> Vec<u8> {
    let target = scratch.join("latest.raw");
    let _ = std::fs::remove_file(&target);
    succeed(
        undercroft(repo)
            .args(["restore", "vm@latest", "--to"])
            .arg(&target),
    );
    std::fs::read(target).expect("the restored file")
}
