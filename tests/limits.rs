//! Limits of bandwidth, revocation and shutdown, with the real program at both ends.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::served::Served;
use support::{Image, fail_with, json, noise, succeed};

/// An image without anything that could be left out or packed closer.
fn noisy(served: &Served, len: usize) -> Image {
    let image = Image {
        path: served.path("disk.raw"),
        bytes: noise(7, len),
    };
    image.write();
    image
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    for _ in 0..600 {
        if is_there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("waited for {what} in vain");
}

#[expect(clippy::disallowed_methods, reason = "what is limited takes time")]
fn now() -> Instant {
    Instant::now()
}

fn seconds_of(command: &mut Command) -> f64 {
    let since = now();
    succeed(command);
    since.elapsed().as_secs_f64()
}

/// A backup as a process whose progress comes as lines of JSON on standard error.
fn start_backup(served: &Served, who: &str, image: &Image) -> Child {
    let mut command = served.undercroft_as(who);
    command.args([
        "backup",
        "--vm",
        "vm",
        "--progress",
        "json",
        "--threads",
        "1",
    ]);
    command.arg(&image.path);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("it starts")
}

fn finished_segments(served: &Served) -> u64 {
    let sessions = served.sessions();
    let finished = sessions
        .first()
        .map(|session| &session["finished_segments"]);
    finished.and_then(|finished| finished.as_u64()).unwrap_or(0)
}

/// 16 MiB at 4 MiB/s take four seconds, less what fits into windows; on an unlimited path a fraction of one.
#[test]
fn a_client_and_a_server_keep_to_their_limits() {
    let served = Served::start();
    served.init();
    let image = noisy(&served, 16 << 20);
    let mut backup = served.backup(&image);
    let took = seconds_of(backup.args(["--limit-upload", "4MiB/s"]));
    assert!((3.0..30.0).contains(&took), "uploaded within {took} s");
    let target = served.path("out.raw");
    let restore = |served: &Served| {
        let mut command = served.undercroft();
        command
            .args(["restore", "vm@latest", "--force", "--to"])
            .arg(&target);
        command
    };
    let took =
        seconds_of(restore(&served).env("UNDERCROFT_LIMIT_DOWNLOAD", "4M@00:00-24:00 UTC;90M"));
    assert!((2.5..30.0).contains(&took), "downloaded within {took} s");
    assert!(std::fs::read(&target).expect("the file") == image.bytes);

    let served = Served::start_with(&[
        "--limit-in",
        "4MiB/s",
        "--limit-in",
        "90M",
        "--limit-out",
        "4M",
    ]);
    served.init();
    let image = noisy(&served, 16 << 20);
    let took = seconds_of(&mut served.backup(&image));
    assert!((3.0..30.0).contains(&took), "taken in within {took} s");
    let target = served.path("out.raw");
    let mut command = served.undercroft();
    command.args(["restore", "vm@latest", "--to"]).arg(&target);
    let took = seconds_of(&mut command);
    assert!((2.5..30.0).contains(&took), "given out within {took} s");
    assert!(std::fs::read(&target).expect("the file") == image.bytes);
    let status = json(served.undercroft().args(["repository", "status"]));
    assert_eq!(status["limits"][0]["direction"], "in");
    assert_eq!(status["limits"][0]["bytes_per_second"], 4 << 20);
    assert_eq!(status["limits"][0]["rules"][1], "90MiB/s");
    assert_eq!(status["limits"][1]["bytes_per_second"], 4 << 20);
}

/// Questions do not wait behind data, and two backups get equal parts.
#[test]
fn limits_starve_nobody() {
    let served = Served::start_with(&["--limit-in", "1MiB/s"]);
    served.init();
    let image = noisy(&served, 64 << 20);
    let mut backups: Vec<Child> = (0..2)
        .map(|_| start_backup(&served, "admin", &image))
        .collect();
    wait_for("both", || served.sessions().len() == 2);
    std::thread::sleep(Duration::from_secs(6));
    let since = now();
    let sessions = served.sessions();
    assert!(since.elapsed() < Duration::from_secs(5), "a question waits");
    let pushed: Vec<u64> = sessions
        .iter()
        .map(|session| session["pushed_bytes"].as_u64().expect("a number"))
        .collect();
    assert!(pushed.iter().all(|bytes| *bytes >= 1 << 20), "{pushed:?}");
    for backup in &mut backups {
        backup.kill().expect("it runs");
        backup.wait().expect("it ends");
    }
}

#[test]
fn what_is_no_limit_is_told() {
    let served = Served::start();
    for (limit, said) in [
        ("fast", "is no rate"),
        ("1K", "at least 128KiB/s"),
        ("50M@weekdays", "does not belong in a schedule"),
    ] {
        let text = fail_with(
            served
                .undercroft()
                .args(["snapshots", "--limit-upload", limit]),
            2,
        );
        assert!(text.contains(said), "{text}");
        assert!(!text.contains("environment"), "{text}");
    }
    // Whoever did not write it here is told where it comes from.
    for (variable, words) in [
        ("UNDERCROFT_LIMIT_UPLOAD", &["snapshots"][..]),
        ("UNDERCROFT_LIMIT_DOWNLOAD", &["snapshots", "--json"]),
        ("UNDERCROFT_PROXY", &["proxy", "status"]),
        (
            "UNDERCROFT_METRICS",
            &["repository", "serve", "--store", "x"],
        ),
        ("UNDERCROFT_LOG", &["snapshots"]),
        ("UNDERCROFT_LOG", &["snapshots", "--json"]),
    ] {
        let mut command = served.undercroft();
        let text = fail_with(command.args(words).env(variable, "fast=/x"), 2);
        assert!(text.contains(variable), "{variable}: {text}");
    }
    let mut command = served.undercroft();
    let text = fail_with(command.args(["snapshots", "--log", "inof"]), 2);
    assert!(text.contains("no level of the log"), "{text}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    let text = fail_with(
        command.arg("snapshots").env("UNDERCROFT_REPO", "ftp://x"),
        2,
    );
    assert!(text.contains("UNDERCROFT_REPO"), "{text}");
}

/// Revoked in the middle of a backup: the client says why and ends; somebody else goes on.
#[test]
fn whoever_is_revoked_is_put_out_and_another_goes_on() {
    let served = Served::start_with(&["--limit-in", "4MiB/s"]);
    served.init();
    served.enroll_as("proxy", "ingest", "*");
    let image = noisy(&served, 48 << 20);
    let backup = start_backup(&served, "proxy", &image);
    wait_for("finished segments", || finished_segments(&served) > 4);
    let mut revoke = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    revoke.args(["repository", "revoke", "proxy", "--store"]);
    succeed(revoke.arg(served.path("store")));
    let since = now();
    let output = backup.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("revoked"), "{text}");
    assert!(
        since.elapsed() < Duration::from_secs(30),
        "it tried again: {text}"
    );
    let text = fail_with(served.undercroft_as("proxy").arg("snapshots"), 1);
    assert!(text.contains("revoked"), "{text}");
    let sessions = served.sessions();
    let id = sessions[0]["session"]
        .as_str()
        .expect("it is kept")
        .to_owned();
    let report = json(served.backup(&image).args(["--resume", &id]));
    let read = report["disks"][0]["read_bytes"].as_u64().expect("a number");
    assert!(
        read <= 44 << 20,
        "finished segments are not read again: {read}"
    );
    served.assert_restores("vm@latest", &image.bytes);
}

/// SIGTERM in the middle of a backup: what was begun is finished, and nothing is read twice.
#[test]
fn a_server_that_shuts_down_lets_clients_finish_what_they_began() {
    let mut served = Served::start_with(&["--limit-in", "8MiB/s"]);
    served.init();
    let image = noisy(&served, 64 << 20);
    let backup = start_backup(&served, "admin", &image);
    wait_for("finished segments", || finished_segments(&served) > 4);
    let pid = served.process.id().to_string();
    succeed(Command::new("kill").args(["-TERM", &pid]));
    assert!(served.process.wait().expect("it ends").success());
    served.start_again();
    // Taken up though nobody asked for the repository yet, or gone on with already.
    wait_for("the session", || !served.sessions().is_empty());
    let output = backup.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("was interrupted"), "{text}");
    let mut read: Vec<u64> = vec![0];
    for line in text.lines() {
        let Ok(state) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let bytes = state["read_bytes"].as_u64().expect("a number");
        match read.last_mut() {
            Some(last) if bytes >= *last => *last = bytes,
            _ => read.push(bytes),
        }
    }
    let total: u64 = read.iter().sum();
    assert!(read.len() > 1, "{text}");
    assert!(
        total <= image.bytes.len() as u64 + (1 << 20),
        "read twice: {read:?}"
    );
    served.assert_restores("vm@latest", &image.bytes);
}
