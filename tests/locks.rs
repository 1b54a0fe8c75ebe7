//! Retention locks: set with the snapshot, extended, never shortened, on a path and behind a server.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::served::Served;
use support::{Image, fail_with, files_below, json, succeed, undercroft, workspace};

/// The same story where the repository is a directory, and where it is behind a server.
fn tell(command: &dyn Fn() -> Command, image: &Image) {
    let backup = |lock: &str| {
        let mut backup = command();
        backup.args(["backup", "--vm", "vm", "--lock-until", lock]);
        backup.arg(&image.path);
        backup
    };
    let lock = |snapshot: &str, until: &str| {
        let mut lock = command();
        lock.args(["lock", snapshot, "--until", until]);
        lock
    };
    // What cannot be is refused before anything is read.
    for (wrong, why) in [
        ("2020-01-01", "already have ended"),
        ("9000w", "is refused"),
    ] {
        let text = fail_with(&mut backup(wrong), 1);
        assert!(text.contains(why), "{text}");
        assert!(!text.contains("stay stored"), "{text}");
    }
    let listed = json(command().arg("snapshots"));
    assert_eq!(listed.as_array().map(Vec::len), Some(0));

    let made = json(&mut backup("3d"));
    let first = made["locked_until"].as_str().expect("a time").to_owned();
    let id = made["id"].as_str().expect("an id").to_owned();
    succeed(command().args(["backup", "--vm", "vm"]).arg(&image.path));
    succeed(command().args(["backup", "--vm", "vm"]).arg(&image.path));
    let text = fail_with(command().args(["forget", "vm@latest", &id]), 1);
    assert!(text.contains("is locked until"), "{text}");
    let listed = json(command().arg("snapshots"));
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "none was removed");
    assert_eq!(listed[0]["locked_until"], first.as_str());
    assert_eq!(listed[1]["locked_until"], serde_json::Value::Null);

    let text = fail_with(&mut lock(&id, "1h"), 1);
    assert!(text.contains("can only be extended"), "{text}");
    let extended = json(&mut lock(&id, "30d"));
    let until = extended["locked_until"]
        .as_str()
        .expect("a time")
        .to_owned();
    assert!(until > first, "{until} {first}");
    let shown = succeed(command().args(["show", &id]));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("Locked     until 20"), "{shown}");

    // A plan keeps it and says why; a collection and a repair leave it alone.
    let pruned = json(command().args(["prune", "--keep-last", "1", "--gc"]));
    let decisions = pruned["decisions"].as_array().expect("an array");
    let of_locked = decisions
        .iter()
        .find(|decision| decision["id"] == id.as_str());
    let of_locked = of_locked.expect("it is decided on");
    assert_eq!(of_locked["keep"], true);
    assert!(
        of_locked.to_string().contains("locked until 20"),
        "{of_locked}"
    );
    succeed(command().arg("repair"));
    succeed(command().args(["verify", "--deep"]));
    let listed = json(command().arg("snapshots"));
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    assert_eq!(listed[0]["locked_until"], until.as_str());

    // A lock that has ended forbids nothing, and goes with its snapshot.
    let short = json(&mut backup("2s"));
    let short = short["id"].as_str().expect("an id").to_owned();
    fail_with(command().args(["forget", &short]), 1);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    succeed(command().args(["forget", &short]));
}

fn locks_in(repository: &Path) -> Vec<PathBuf> {
    let files = files_below(&repository.join("snapshots")).into_iter();
    let is_lock = |file: &PathBuf| file.extension().is_some_and(|ext| ext == "locked");
    files.filter(is_lock).collect()
}

#[test]
fn a_locked_snapshot_stays_in_a_directory() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
    let image = Image::new(dir.path().join("disk.raw"), 1, 4 << 20);
    tell(&|| undercroft(&repo), &image);
    let locks = locks_in(&repo);
    assert_eq!(locks.len(), 1);

    // What an interrupted publication left is swept, what locks a snapshot is not.
    let stray = repo.join("snapshots/00112233445566778899aabbccddeeff.locked");
    std::fs::copy(&locks[0], &stray).expect("a copy");
    succeed(undercroft(&repo).arg("gc"));
    assert_eq!(locks_in(&repo), locks);

    // A lock that cannot be read locks, and is not replaced by one that might be shorter.
    let mut bytes = std::fs::read(&locks[0]).expect("the lock");
    bytes[25] ^= 1;
    std::fs::write(&locks[0], &bytes).expect("written");
    let text = fail_with(undercroft(&repo).arg("verify"), 3);
    assert!(text.contains("damage was found"), "{text}");
    let listed = json(undercroft(&repo).arg("snapshots"));
    let id = listed[0]["id"].as_str().expect("an id");
    fail_with(undercroft(&repo).args(["forget", id]), 1);
    fail_with(undercroft(&repo).args(["lock", id, "--until", "40d"]), 1);
    std::fs::write(&locks[0], b"").expect("written");
    fail_with(undercroft(&repo).args(["forget", id]), 1);
}

#[test]
fn a_locked_snapshot_stays_behind_a_server() {
    let mut served = Served::start();
    served.init();
    let image = Image::new(served.path("disk.raw"), 1, 4 << 20);
    tell(&|| served.undercroft(), &image);
    // The lock is where the snapshot is, not in the server's memory.
    served.kill();
    served.start_again();
    let text = fail_with(served.undercroft().args(["forget", "vm@latest-1"]), 1);
    assert!(text.contains("is locked until"), "{text}");
    assert_eq!(locks_in(&served.path("store/main")).len(), 1);
}

/// Who may lock, and that nobody may do otherwise.
#[test]
fn every_role_and_every_thing_that_can_be_done_to_a_lock() {
    let served = Served::start();
    served.init();
    let image = Image::new(served.path("disk.raw"), 1, 4 << 20);
    served.enroll_as("proxy", "ingest", "web*");
    served.enroll_as("operator", "restore", "*");
    let run = |who: &str, words: &[&str]| {
        let mut command = served.undercroft_as(who);
        command.args(words);
        command
    };
    for vm in ["web1", "db1"] {
        let mut backup = run("admin", &["backup", "--vm", vm]);
        succeed(backup.arg(&image.path));
    }
    let mut locked = run("proxy", &["backup", "--vm", "web1", "--lock-until", "1d"]);
    succeed(locked.arg(&image.path));
    // Role, verb, whether it may: of a snapshot in its scope that is locked for a day.
    let matrix: &[(&str, &[&str], bool)] = &[
        ("operator", &["lock", "web1@latest", "--until", "2d"], false),
        ("operator", &["lock", "web1@latest", "--until", "1h"], false),
        ("operator", &["forget", "web1@latest"], false),
        ("proxy", &["lock", "web1@latest", "--until", "2d"], true),
        ("proxy", &["lock", "web1@latest", "--until", "1h"], false),
        ("proxy", &["lock", "web1@latest-1", "--until", "1d"], true),
        ("proxy", &["lock", "db1@latest", "--until", "1d"], false),
        ("proxy", &["forget", "web1@latest"], false),
        ("admin", &["lock", "web1@latest", "--until", "3d"], true),
        ("admin", &["lock", "web1@latest", "--until", "2d"], false),
        (
            "admin",
            &["lock", "web1@latest", "--until", "2020-01-01"],
            false,
        ),
        ("admin", &["lock", "web1@latest", "--until", "2000w"], false),
        ("admin", &["forget", "web1@latest"], false),
        ("admin", &["forget", "web1@latest-1"], false),
        ("admin", &["forget", "db1@latest"], true),
    ];
    for (who, words, may) in matrix {
        let mut command = run(who, words);
        match may {
            true => drop(succeed(&mut command)),
            false => drop(fail_with(&mut command, 1)),
        }
    }
    let mut backup = run("operator", &["backup", "--vm", "x", "--lock-until", "1d"]);
    fail_with(backup.arg(&image.path), 1);
    let listed = json(run("admin", &["snapshots"]).arg("--vm").arg("web1"));
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
}
