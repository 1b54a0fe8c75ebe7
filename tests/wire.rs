//! A repository behind a server, with the real program at both ends.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use support::served::Served;
use support::server::{Place, Server};
use support::{Image, fail_with, json, succeed, undercroft};

#[test]
fn a_repository_behind_a_server_is_like_a_local_one() {
    let served = Served::start();
    served.init();
    let local = served.path("local");
    succeed(undercroft(&local).args(["init", "--segment-size", "1M", "--pack-size", "1M"]));
    let mut image = Image::new(served.path("disk.raw"), 1, 24 << 20);
    let first = image.bytes.clone();
    let there = json(&mut served.backup(&image));
    let mut backup = undercroft(&local);
    backup.args(["backup", "--vm", "vm", "--progress", "none"]);
    let here = json(backup.arg(&image.path));
    for figure in ["data_bytes", "read_bytes", "new_bytes", "metadata_bytes"] {
        assert_eq!(
            there["disks"][0][figure], here["disks"][0][figure],
            "{figure}"
        );
    }
    served.assert_restores("vm@latest", &first);

    let again = json(&mut served.backup(&image));
    assert_eq!(again["disks"][0]["new_bytes"], 0);
    assert_eq!(again["packs"], 0, "an unchanged disk pushes nothing");

    // An increment.
    let bitmap = image.change(7, &[3, 4, 90, 200]);
    let changes = served.path("bitmap");
    std::fs::write(&changes, bitmap).expect("the bitmap");
    let mut increment = served.backup(&image);
    increment
        .args(["--parent", "vm@latest", "--changed-blocks"])
        .arg(&changes);
    let report = json(&mut increment);
    assert_eq!(report["disks"][0]["read_mode"], "changed-blocks");
    assert_eq!(report["disks"][0]["read_bytes"], 4 << 16);
    served.assert_restores("vm@latest", &image.bytes);

    // Everything that looks after a repository.
    let listed = json(served.undercroft().arg("snapshots"));
    assert_eq!(listed.as_array().map(Vec::len), Some(3));
    succeed(served.undercroft().args(["verify", "--deep"]));
    succeed(served.undercroft().args(["show", "vm@latest"]));
    succeed(
        served
            .undercroft()
            .args(["diff", "vm@latest-2", "vm@latest"]),
    );
    succeed(served.undercroft().args(["protect", "vm@latest-2"]));
    let text = fail_with(served.undercroft().args(["forget", "vm@latest-2"]), 1);
    assert!(text.contains("is protected"), "{text}");
    succeed(
        served
            .undercroft()
            .args(["protect", "--off", "vm@latest-2"]),
    );
    succeed(served.undercroft().args(["prune", "--keep-last", "1"]));
    let freed = json(served.undercroft().args(["gc", "--rewrite-below", "100"]));
    assert_eq!(freed["snapshots"], 1);
    assert_ne!(freed["packs_rewritten"], 0);
    succeed(served.undercroft().arg("repair"));
    let stats = json(served.undercroft().arg("stats"));
    assert_eq!(stats["snapshots"], 1);
    succeed(served.undercroft().args(["verify", "--deep"]));
    served.assert_restores("vm@latest", &image.bytes);
    let text = fail_with(served.undercroft().args(["show", "vm@latest-1"]), 1);
    assert!(
        text.contains("no snapshot") || text.contains("has only"),
        "{text}"
    );
}

#[test]
fn an_encrypted_repository_keeps_its_key_from_the_server() {
    let served = Served::start();
    let secret = served.path("passphrase");
    std::fs::write(&secret, "correct horse\n").expect("a file");
    let with_key = |words: &[&str]| {
        let mut command = served.undercroft();
        command.args(words).arg("--passphrase-file").arg(&secret);
        command
    };
    succeed(&mut with_key(&[
        "init",
        "--encrypt",
        "--segment-size",
        "1M",
    ]));
    let image = Image::new(served.path("disk.raw"), 1, 8 << 20);
    succeed(with_key(&["backup", "--vm", "vm"]).arg(&image.path));
    let target = served.path("restored.raw");
    let to = target.to_str().expect("UTF-8");
    succeed(&mut with_key(&["restore", "vm@latest", "--to", to]));
    assert!(std::fs::read(&target).expect("the file") == image.bytes);
    succeed(served.undercroft().arg("verify"));
    succeed(served.undercroft().arg("gc"));
    let text = fail_with(
        served
            .undercroft()
            .args(["restore", "vm@latest", "--to", "-"]),
        1,
    );
    assert!(
        text.contains("a passphrase or recovery key is needed"),
        "{text}"
    );
}

/// The server is killed again and again while a backup runs: the backup goes on by itself.
#[test]
fn a_backup_goes_on_when_a_killed_server_is_back() {
    let mut served = Served::start();
    served.init();
    let image = Image::new(served.path("disk.raw"), 1, 96 << 20);
    let child = served
        .backup(&image)
        .args(["--threads", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut kept = 0;
    for _ in 0..2 {
        wait_for("finished segments", || {
            let sessions = served.sessions();
            let finished = sessions
                .first()
                .and_then(|session| session["finished_segments"].as_u64());
            finished.is_some_and(|finished| finished > kept) || sessions.is_empty()
        });
        let sessions = served.sessions();
        kept = sessions
            .first()
            .and_then(|session| session["finished_segments"].as_u64())
            .unwrap_or(kept);
        served.kill();
        served.start_again();
    }
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    served.assert_restores("vm@latest", &image.bytes);
    succeed(served.undercroft().args(["verify", "--deep"]));
}

/// A client is killed; another one goes on and reads only what was not finished.
#[test]
fn a_killed_clients_session_is_gone_on_with() {
    let served = Served::start();
    served.init();
    let image = Image::new(served.path("disk.raw"), 1, 96 << 20);
    let mut child = served
        .backup(&image)
        .args(["--threads", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_for("finished segments", || {
        let sessions = served.sessions();
        sessions
            .first()
            .and_then(|session| session["finished_segments"].as_u64())
            > Some(8)
    });
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let sessions = served.sessions();
    let id = sessions[0]["session"].as_str().expect("an id").to_owned();
    // A disk in another state is not gone on with.
    let other = Image::new(served.path("disk2.raw"), 2, 96 << 20);
    let mut command = served.undercroft();
    command.args(["backup", "--vm", "vm", "--resume", &id, "--disk"]);
    let text = fail_with(command.arg(format!("disk={}", other.path.display())), 1);
    assert!(text.contains("not in the state"), "{text}");
    let report = json(served.backup(&image).args(["--resume", &id]));
    let read = report["disks"][0]["read_bytes"].as_u64().expect("a number");
    assert!(
        read < 88 << 20,
        "finished segments are not read again: {read}"
    );
    served.assert_restores("vm@latest", &image.bytes);
    succeed(served.undercroft().args(["verify", "--deep"]));
    // Asked again, it says what it published, and publishes nothing.
    let again = json(served.backup(&image).args(["--resume", &id]));
    assert_eq!(again["id"], report["id"]);
    let listed = json(served.undercroft().arg("snapshots"));
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
}

#[test]
fn roles_and_scopes_are_enforced() {
    let served = Served::start();
    served.init();
    let image = Image::new(served.path("disk.raw"), 1, 4 << 20);
    succeed(&mut served.backup(&image));
    served.enroll_as("proxy", "ingest", "web*");
    served.enroll_as("operator", "restore", "vm");
    let backup = |who: &str, vm: &str| {
        let mut command = served.undercroft_as(who);
        command.args(["backup", "--vm", vm]).arg(&image.path);
        command
    };
    succeed(&mut backup("proxy", "web01"));
    let mut tokens = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    tokens.args(["repository", "tokens", "--role", "restore"]);
    tokens.args(["--repository", "other", "--store"]);
    let made = json(tokens.arg(served.path("store")));
    let token = made["token"].as_str().expect("a token");
    served.enroll("elsewhere", "restore", token);
    let text = fail_with(served.undercroft_as("elsewhere").arg("snapshots"), 1);
    let why = "in repository main, which is out of its scope: enrol with a token";
    assert!(text.contains(why), "{text}");
    let text = fail_with(&mut backup("proxy", "db01"), 1);
    assert!(text.contains("out of its scope"), "{text}");
    let text = fail_with(&mut backup("operator", "vm"), 1);
    assert!(text.contains("may not"), "{text}");
    // What is out of scope does not exist.
    let listed = json(served.undercroft_as("proxy").arg("snapshots"));
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    let target = served.path("out.raw");
    let restore = |who: &str, snapshot: &str| {
        let mut command = served.undercroft_as(who);
        command
            .args(["restore", snapshot, "--force", "--to"])
            .arg(&target);
        command
    };
    succeed(&mut restore("operator", "vm@latest"));
    fail_with(&mut restore("operator", "web01@latest"), 1);
    fail_with(&mut restore("proxy", "web01@latest"), 1);
    // What one may not read is not damaged.
    let _ = std::fs::remove_file(&target);
    let mut allowing = restore("proxy", "web01@latest");
    let text = fail_with(allowing.arg("--allow-damage"), 1);
    assert!(text.contains("may not read a snapshot's data"), "{text}");
    assert!(!target.exists(), "nothing half-written is left");
    for words in [
        &["gc"][..],
        &["verify"],
        &["stats"],
        &["forget", "vm@latest"],
    ] {
        fail_with(served.undercroft_as("operator").args(words), 1);
        fail_with(served.undercroft_as("proxy").args(words), 1);
    }
    succeed(served.undercroft().args(["repository", "status"]));
    fail_with(
        served.undercroft_as("proxy").args(["repository", "status"]),
        1,
    );
}

/// An address with brackets, from the command line to the directory of the certificates.
#[test]
fn a_server_is_reached_by_ipv6() {
    let server = Server::start(Place {
        address: Some("[::1]".to_owned()),
        ..Place::default()
    });
    server.init();
    let image = Image::new(server.path("disk.raw"), 1, 2 << 20);
    succeed(&mut server.backup("vm", &image.path));
    server.assert_restores("vm@latest", &image.bytes);
    let config = format!("admin.config/[::1]:{}/identity", server.port);
    assert!(server.path(&config).exists());
}

/// Who may not do something is told so, and nothing else: whether there is anything to do is looked at afterwards.
#[test]
fn what_a_role_may_not_do_is_refused_whatever_there_is_to_do() {
    let served = Served::start();
    served.init();
    served.enroll_as("proxy", "ingest", "*");
    served.enroll_as("operator", "restore", "*");
    let target = served.path("out.raw");
    let target = target.to_str().expect("UTF-8");
    let refuse = |is_there: bool| {
        for (who, words, verb) in [
            ("proxy", &["prune", "--keep-last", "9"][..], "forget"),
            (
                "proxy",
                &["prune", "--keep-last", "9", "--dry-run"],
                "forget",
            ),
            (
                "operator",
                &["prune", "--keep-last", "9", "-n", "--vm", "x"],
                "forget",
            ),
            ("proxy", &["forget", "vm@latest"], "forget"),
            ("operator", &["forget", "x@latest"], "forget"),
            ("proxy", &["protect", "vm@latest"], "protect"),
            ("operator", &["protect", "--off", "x@latest"], "protect"),
            ("operator", &["lock", "vm@latest", "--until", "1d"], "lock"),
            ("proxy", &["gc", "--dry-run"], "collect"),
            ("operator", &["gc"], "collect"),
            ("proxy", &["verify"], "verify"),
            ("operator", &["verify", "x@latest"], "verify"),
            ("proxy", &["repair"], "repair"),
            ("operator", &["repair", "--deep"], "repair"),
            ("proxy", &["stats"], "figures"),
            ("proxy", &["restore", "vm@latest", "--to", target], "data"),
            ("proxy", &["restore", "x@latest", "--to", target], "data"),
        ] {
            let text = fail_with(served.undercroft_as(who).args(words), 1);
            let is_told = text.contains("may not") && text.contains(verb);
            assert!(is_told, "{who} {words:?} ({is_there}): {text}");
        }
        assert!(!served.path("out.raw").exists(), "a target was touched");
    };
    refuse(false);
    let image = Image::new(served.path("disk.raw"), 1, 2 << 20);
    succeed(&mut served.backup(&image));
    refuse(true);
    let prune = json(
        served
            .undercroft()
            .args(["prune", "--keep-last", "9", "-n"]),
    );
    assert_eq!(prune["decisions"][0]["keep"], true);
}

/// SIGTERM: the server ends in order, and the backup goes on when it is back.
#[test]
fn a_server_that_is_asked_to_stop_loses_nothing() {
    let mut served = Served::start();
    served.init();
    let image = Image::new(served.path("disk.raw"), 1, 96 << 20);
    let child = served
        .backup(&image)
        .args(["--threads", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    wait_for("a session", || !served.sessions().is_empty());
    succeed(Command::new("sh").args(["-c", &format!("kill -TERM {}", served.process.id())]));
    assert!(served.process.wait().expect("it ends").success());
    served.start_again();
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    served.assert_restores("vm@latest", &image.bytes);
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("waited for {what} in vain");
}
