//! What a service manager is told.

mod support;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::served::Served;
use support::{fail_with, workspace};

#[test]
fn two_servers_do_not_share_a_store() {
    let served = Served::start();
    let mut second = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    second.args(["repository", "serve", "--listen", "127.0.0.1:0", "--store"]);
    let told = fail_with(second.arg(served.path("store")), 1);
    assert!(told.contains("another daemon works with"), "{told}");
    assert!(told.contains("--store DIR"), "{told}");
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
