//! What a service manager is told.

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::served::Served;
use support::{fail_with, succeed, workspace};

#[test]
fn two_servers_do_not_share_a_store() {
    let served = Served::start();
    let mut second = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    second.args(["repository", "serve", "--listen", "127.0.0.1:0", "--store"]);
    let told = fail_with(second.arg(served.path("store")), 1);
    assert!(told.contains("another daemon works with"), "{told}");
    assert!(told.contains("--store DIR"), "{told}");
}

/// With --json whoever starts a daemon reads what it needs from one line; the name of a host is an address, too.
#[test]
fn what_a_daemon_says_is_json_if_that_is_asked_for() {
    let dir = workspace();
    for daemon in [
        &["repository", "serve", "--store"][..],
        &["proxy", "serve", "--state"],
    ] {
        let place = dir.path().join(daemon[0]);
        let start = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
            command.args(daemon).arg(&place);
            command.args([
                "--listen",
                "localhost:0",
                "--metrics",
                "localhost:0",
                "--json",
            ]);
            let mut process = command.stdout(Stdio::piped()).spawn().expect("it starts");
            let out = process.stdout.take().expect("a pipe");
            (process, BufReader::new(out).lines())
        };
        let next = |lines: &mut dyn Iterator<Item = std::io::Result<String>>| {
            let line = lines.next().expect("a line").expect("text");
            serde_json::from_str::<Value>(&line).expect("JSON")
        };
        let mut authority = None;
        for is_first in [true, false] {
            let (mut process, mut lines) = start();
            let said = next(&mut lines);
            assert_eq!(said["event"], "listening");
            let address = said["address"].as_str().expect("an address");
            let address: std::net::SocketAddr = address.parse().expect("an address");
            assert!(address.ip().is_loopback() && address.port() != 0, "{said}");
            assert!(
                said["metrics"]
                    .as_str()
                    .expect("where")
                    .starts_with("http://")
            );
            assert_eq!(said["token"].is_string(), is_first, "{said}");
            let before = authority.replace(said["authority"].clone());
            assert!(before.is_none_or(|before| before == said["authority"]));
            succeed(Command::new("kill").arg(process.id().to_string()));
            assert_eq!(next(&mut lines)["event"], "stopping");
            assert!(lines.next().is_none());
            assert!(process.wait().expect("it ends").success());
        }
    }
    for (listen, said) in [
        ("localhost", "no port"),
        ("no.such.host.invalid:1", "looked up"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
        command.args(["repository", "serve", "--listen", listen, "--store"]);
        let told = fail_with(command.arg(dir.path().join("none")), 2);
        assert!(
            told.contains(said) && told.contains("0.0.0.0:7420"),
            "{told}"
        );
    }
}

#[test]
fn a_service_manager_is_told_when_the_server_listens_and_when_it_stops() {
    let dir = workspace();
    // The path of a socket has at most 107 bytes, which a checkout's may exceed.
    let short = tempfile::tempdir().expect("a temporary directory");
    let socket = short.path().join("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    let patience = Some(Duration::from_secs(60));
    manager.set_read_timeout(patience).expect("a timeout");
    let mut server = Command::new(env!("CARGO_BIN_EXE_undercroft"))
        .args(["repository", "serve", "--listen", "127.0.0.1:0", "--store"])
        .arg(dir.path().join("store"))
        .env("NOTIFY_SOCKET", &socket)
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let said = || {
        let mut buffer = [0; 1024];
        let len = manager.recv(&mut buffer).expect("it says something");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert!(said().starts_with("READY=1\nSTATUS=listening on 127.0.0.1:"));
    let terminate = rustix::process::kill_process(
        rustix::process::Pid::from_child(&server),
        rustix::process::Signal::TERM,
    );
    assert_eq!(terminate, Ok(()));
    assert!(said().starts_with("STOPPING=1\n"));
    assert!(server.wait().expect("it ends").success());
}
