//! Two ends that do not trust each other: what the client's user and the server's log are told, by the real
//! program at both ends. Time passes by `faketime`; where that is missing, those stories say that they are
//! skipped.

mod support;

use std::ffi::OsString;
use std::process::{Command, Stdio};

use support::fail_with;
use support::server::{Place, Server};
use support::{copy_tree, json, succeed};

/// Words before a command that make it see another time.
fn faketime(offset: &str) -> Option<Vec<OsString>> {
    let works = Command::new("faketime")
        .args(["-f", "+1y", "true"])
        .stderr(Stdio::null())
        .status();
    if !works.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI has faketime");
        eprintln!("skipped: there is no faketime");
        return None;
    }
    Some(["faketime", "-f", offset].map(OsString::from).to_vec())
}

fn start() -> Server {
    let server = Server::start(Place::default());
    server.init();
    server
}

/// The client is told one thing and what to do, the log another, and nobody is told to look at the network.
fn assert_told(server: &Server, command: &mut Command, client: &str, log: &str) {
    let said = fail_with(command, 1);
    assert!(said.contains(client), "the client said: {said}");
    assert!(
        !said.contains("UDP"),
        "the network is not the matter: {said}"
    );
    let logged = server.log();
    assert!(logged.contains(log), "the server said: {logged}");
}

#[test]
fn certificates_of_another_server() {
    let here = start();
    let there = start();
    // The machine's files of one server, under the address of the other.
    let enrolled = |server: &Server| server.path("admin.config");
    let mixed = here.path("mixed.config");
    copy_files(&enrolled(&there), &mixed);
    rename_server(&mixed, there.port, here.port);
    let mut command = here.program("mixed");
    let repo = format!("{}/main", here.address());
    assert_told(
        &here,
        command.args(["--repo", &repo, "snapshots"]),
        "the server's authority is not the one that is trusted here",
        "the client does not trust this server's authority",
    );
    // A token of the other server's.
    let token = there.token(&["--role", "ingest"]);
    assert_told(
        &here,
        &mut here.enroll_command("stray", "ingest", &token),
        "the token was not made by the server or proxy at",
        "it has a token or a certificate of another server",
    );
}

fn copy_files(from: &std::path::Path, to: &std::path::Path) {
    copy_tree(from, to);
}

/// Files of a server are kept under its address.
fn rename_server(config: &std::path::Path, from: u16, to: u16) {
    let (from, to) = (from.to_string(), to.to_string());
    let mut dirs = vec![config.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            let renamed = dir.join(name.replace(&from, &to));
            std::fs::rename(&path, &renamed).expect("it can be renamed");
            if renamed.is_dir() {
                dirs.push(renamed);
            }
        }
    }
}

#[test]
fn a_certificate_that_was_revoked() {
    let server = start();
    let token = server.token(&["--role", "ingest"]);
    server.enroll("proxy", "ingest", &token);
    succeed(server.undercroft_as("proxy").arg("snapshots"));
    let mut revoke = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    revoke.args(["repository", "revoke", "proxy", "--store"]);
    succeed(revoke.arg(server.store()));
    assert_told(
        &server,
        server.undercroft_as("proxy").arg("snapshots"),
        "this machine's certificate was revoked: enrol anew with a new token",
        "the client's certificate was revoked",
    );
}

#[test]
fn a_token_that_is_used_or_of_another_role_or_mistyped() {
    let server = start();
    let token = server.token(&["--role", "ingest"]);
    let said = fail_with(&mut server.enroll_command("x", "admin", &token), 1);
    assert!(said.contains("ingest") && said.contains("admin"), "{said}");
    server.enroll("first", "ingest", &token);
    let said = fail_with(&mut server.enroll_command("second", "ingest", &token), 1);
    assert!(said.contains("used") && said.contains("first"), "{said}");
    let mut typo = token.clone();
    let last = if typo.pop() == Some('0') { '1' } else { '0' };
    typo.push(last);
    let output = server.enroll_command("third", "ingest", &typo).output();
    let output = output.expect("it starts");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("typ") || said.contains("complete"), "{said}");
    // The wrong role for a verb.
    let said = fail_with(server.undercroft_as("first").arg("gc"), 1);
    assert!(said.contains("ingest"), "{said}");
    let said = fail_with(
        server.undercroft_as("first").args(["repository", "status"]),
        1,
    );
    assert!(said.contains("ingest"), "{said}");
    assert!(server.log().contains("refused"), "{}", server.log());
}

/// A token may say the name; whoever does not say one gets that of the token. Attempts in vain leave nothing.
#[test]
fn a_token_that_is_for_a_name() {
    let server = start();
    let token = server.token(&["--role", "ingest", "--name", "proxy-1"]);
    let said = fail_with(&mut server.enroll_command("other", "ingest", &token), 1);
    assert!(
        said.contains("is for the name proxy-1") && said.contains("--name"),
        "{said}"
    );
    let left = |who: &str| std::fs::read_dir(server.path(&format!("{who}.config")));
    let left = |who: &str| left(who).map_or(0, Iterator::count);
    assert_eq!(left("other"), 0, "an attempt in vain left something");
    let enroll = |server: &Server, address: &str| {
        let mut command = server.program("machine");
        command.args(["enroll", address, "--role", "ingest", "--token", &token]);
        command
    };
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let nobody = format!("quic://{}", nobody.local_addr().expect("an address"));
    fail_with(&mut enroll(&server, &nobody), 1);
    assert_eq!(left("machine"), 0, "an attempt in vain left something");
    let report = json(&mut enroll(&server, &server.address()));
    assert_eq!(report["name"], "proxy-1");
    succeed(server.undercroft_as("machine").arg("snapshots"));
    // A name that somebody has.
    let again = server.token(&["--role", "ingest"]);
    let mut taken = server.program("again");
    taken.args(["enroll", &server.address(), "--role", "ingest"]);
    taken.args(["--token", &again, "--name", "proxy-1"]);
    let said = fail_with(&mut taken, 1);
    assert!(
        said.contains("is taken") && said.contains("--name"),
        "{said}"
    );
}

#[test]
fn a_certificate_that_has_ended() {
    let mut server = start();
    // The server's clock is a year later than the client's, whose certificate has ended by then.
    let Some(later) = faketime("+365d") else {
        return;
    };
    server.kill();
    server.place.server = later.clone();
    server.start_again();
    assert_told(
        &server,
        server.undercroft().arg("snapshots"),
        "not valid at this machine's time: set the clocks",
        "this server's certificate is not valid at the client's time",
    );
    // Both a year later.
    server.place.client = later;
    assert_told(
        &server,
        server.undercroft().arg("snapshots"),
        "this machine's certificate has expired: enrol anew with a new token",
        "the client's certificate has expired",
    );
}

#[test]
fn a_token_that_has_ended() {
    let mut server = start();
    let token = server.token(&["--role", "ingest", "--expires", "1h"]);
    let Some(later) = faketime("+2d") else {
        return;
    };
    server.kill();
    server.place.server = later;
    server.start_again();
    let said = fail_with(&mut server.enroll_command("late", "ingest", &token), 1);
    assert!(said.contains("token") && said.contains("tokens`"), "{said}");
    assert!(said.contains("expired") || said.contains("ended"), "{said}");
}

/// An hour does not matter, a year does, and says so.
#[test]
fn a_clients_clock_is_wrong() {
    let mut server = start();
    let Some(hour) = faketime("-1h") else {
        return;
    };
    for words in [hour, faketime("+1h").expect("just seen")] {
        server.place.client = words;
        succeed(server.undercroft().arg("snapshots"));
    }
    for offset in ["+365d", "-365d"] {
        server.place.client = faketime(offset).expect("just seen");
        assert_told(
            &server,
            server.undercroft().arg("snapshots"),
            "not valid at this machine's time: set the clocks of both machines",
            "this server's certificate is not valid at the client's time",
        );
    }
}
