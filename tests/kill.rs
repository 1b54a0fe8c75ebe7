//! The power goes, or somebody sends SIGKILL: nothing that was committed is lost, nothing half-done shows.

mod support;

use std::io::Write;
use std::time::Duration;

use support::{Image, assert_restores, files_below, json, succeed, undercroft, workspace};

/// Kills backups at moments spread over their whole run; after each, every snapshot restores.
#[test]
fn a_killed_backup_leaves_earlier_snapshots_and_no_half_ones() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M", "--pack-size", "1M"]));
    let mut image = Image::new(dir.path().join("disk.raw"), 1, 24 << 20);
    let backup = |image: &Image| {
        let mut command = undercroft(&repo);
        command
            .args(["backup", "--vm", "vm", "--progress", "none"])
            .arg(&image.path);
        command
    };
    succeed(&mut backup(&image));
    let mut committed = vec![image.bytes.clone()];
    for round in 0..40_u64 {
        let changed: Vec<usize> = (0..200).map(|n| (n * 7 + round as usize) % 384).collect();
        image.change(round, &changed);
        let mut child = backup(&image)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(Duration::from_micros(1500 * (round + 1)));
        let _ = child.kill();
        child.wait().expect("it ends");
        let listed = json(undercroft(&repo).arg("snapshots"));
        let listed = listed.as_array().expect("an array").clone();
        assert!(listed.len() == committed.len() || listed.len() == committed.len() + 1);
        if listed.len() > committed.len() {
            committed.push(image.bytes.clone());
        }
        let newest = listed.last().expect("at least one")["id"]
            .as_str()
            .expect("an id")
            .to_owned();
        assert_restores(
            &repo,
            &newest,
            committed.last().expect("at least one"),
            dir.path(),
        );
        if round % 10 == 9 {
            succeed(undercroft(&repo).args(["verify", "--deep"]));
        }
    }
    succeed(undercroft(&repo).arg("gc"));
    let left: Vec<_> = files_below(&repo)
        .into_iter()
        .filter(|file| {
            let name = file.to_string_lossy().into_owned();
            name.ends_with(".open") || name.ends_with(".tmp") || name.contains("/sessions/")
        })
        .collect();
    assert!(
        left.is_empty(),
        "a collection removes what dead sessions left: {left:?}"
    );
    succeed(undercroft(&repo).args(["verify", "--deep"]));
    let listed = json(undercroft(&repo).arg("snapshots"));
    for (entry, bytes) in listed.as_array().expect("an array").iter().zip(&committed) {
        assert_restores(
            &repo,
            entry["id"].as_str().expect("an id"),
            bytes,
            dir.path(),
        );
    }
}

/// Kills collections that rewrite packs.
#[test]
fn a_killed_collection_loses_nothing() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M", "--pack-size", "1M"]));
    let mut image = Image::new(dir.path().join("disk.raw"), 1, 16 << 20);
    for round in 0..8_u64 {
        let changed: Vec<usize> = (0..60)
            .map(|n| (n * 11 + round as usize * 3) % 256)
            .collect();
        image.change(round * 1000, &changed);
        let mut backup = undercroft(&repo);
        succeed(backup.args(["backup", "--vm", "vm"]).arg(&image.path));
        if round > 0 {
            succeed(undercroft(&repo).args(["forget", "vm@latest-1"]));
        }
        let mut child = undercroft(&repo)
            .args(["gc", "--rewrite-below", "100"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(Duration::from_millis(4 + 5 * round));
        let _ = child.kill();
        child.wait().expect("it ends");
        assert_restores(&repo, "vm@latest", &image.bytes, dir.path());
    }
    succeed(undercroft(&repo).arg("gc"));
    succeed(undercroft(&repo).args(["verify", "--deep"]));
    assert_restores(&repo, "vm@latest", &image.bytes, dir.path());
}

/// Ctrl-C: nothing is published, the repository is clean, and the next run finds what is there.
#[test]
fn an_interrupted_backup_says_how_to_go_on() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M", "--pack-size", "1M"]));
    let image = Image::new(dir.path().join("disk.raw"), 1, 24 << 20);
    let mut child = undercroft(&repo)
        .args(["backup", "--vm", "vm", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    // A pipe holds 64 KiB: when all of this is written, the backup is under way.
    pipe.write_all(&image.bytes[..16 << 20]).expect("it reads");
    // The shell's own `kill`: a bare system has no program of that name.
    let kill = format!("kill -INT {}", child.id());
    succeed(std::process::Command::new("sh").args(["-c", &kill]));
    // The stream goes on until nobody reads it any more; its end never looks like that of the disk.
    for piece in image.bytes.chunks(4096) {
        if pipe.write_all(piece).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    drop(pipe);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no snapshot was published"), "{text}");
    assert!(
        text.contains("backup --vm vm"),
        "it names the command to run again: {text}"
    );
    let listed = json(undercroft(&repo).arg("snapshots"));
    assert_eq!(listed.as_array().map(Vec::len), Some(0));
    succeed(undercroft(&repo).arg("verify"));

    let mut backup = undercroft(&repo);
    backup.args(["backup", "--vm", "vm", "-"]);
    let file = std::fs::File::open(&image.path).expect("the image");
    let report = json(backup.stdin(file));
    let new = report["disks"][0]["new_bytes"].as_u64().expect("a number");
    assert!(
        new < 16 << 20,
        "what was stored before the signal is found: {new}"
    );
    assert_restores(&repo, "vm@latest", &image.bytes, dir.path());
}
