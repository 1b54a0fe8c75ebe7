//! NBD servers that fail: connections cut at any byte, servers that are slow, that end, that come back with
//! another disk.
//!
//! Needs nbdkit, qemu-nbd and nbd-server: `scripts/setup.sh test`.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use support::exports::{Server, Story, story};
use support::{assert_restores, fail_with, json, succeed, undercroft};

fn assert_no_snapshots(story: &Story) {
    let snapshots = json(undercroft(&story.repo).arg("snapshots"));
    let snapshots = snapshots["snapshots"].as_array().or(snapshots.as_array());
    assert_eq!(snapshots.map(Vec::len), Some(0));
}

/// Passes connections to `listen` on to `server`; each is cut after so many bytes of the server, in this order,
/// those after them never.
fn relay(listen: PathBuf, server: PathBuf, cuts: &[u64]) {
    let listener = UnixListener::bind(listen).expect("a socket");
    let cuts: Vec<u64> = cuts.iter().rev().copied().collect();
    let cuts = Mutex::new(cuts);
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.expect("a connection");
            let cut = cuts.lock().expect("nobody panics").pop();
            let far = UnixStream::connect(&server).expect("the server");
            pass(near, far, cut.unwrap_or(u64::MAX));
        }
    });
}

fn pass(near: UnixStream, far: UnixStream, cut: u64) {
    let clone = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
    let (mut asks, mut asked) = (clone(&near), clone(&far));
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut asks, &mut asked);
        let _ = asked.shutdown(std::net::Shutdown::Both);
    });
    std::thread::spawn(move || {
        let (mut near, mut far) = (near, far);
        let mut left = cut;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let most = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            match far.read(&mut buffer[..most]) {
                Ok(read @ 1..) if near.write_all(&buffer[..read]).is_ok() => left -= read as u64,
                _ => break,
            }
        }
        let _ = near.shutdown(std::net::Shutdown::Both);
        let _ = far.shutdown(std::net::Shutdown::Both);
    });
}

/// In the middle of a chunk's payload, of a header, of a negotiation, of a word.
#[test]
fn connections_that_are_cut_anywhere_lose_nothing() {
    let story = story();
    let socket = story.path("s");
    // nbdkit 1.32 fails an assertion when a client goes in the middle of a reply.
    let mut command = Command::new("qemu-nbd");
    command.args(["-r", "-t", "-f", "raw", "-e", "8", "-k"]);
    let _server = Server::start(command.arg(&socket).arg(&story.image.path), &socket);
    let cuts = [(1 << 20) + 7, 40, 301, (5 << 20) + 1, 700_000, 17, 1 << 16];
    relay(story.path("r"), story.path("s"), &cuts);
    story.assert_backs_up(&format!("{}&x-connections=1", story.unix_uri("r")));
}

#[test]
fn a_server_that_closes_while_it_is_asked_for_the_export_is_told_of() {
    let story = story();
    let _server = Server::nbdkit(&story.path("s"), &["file", story.file()]);
    relay(story.path("r"), story.path("s"), &[20]);
    let text = fail_with(&mut story.backup(&story.unix_uri("r")), 1);
    assert!(text.contains("opening the source nbd+unix:///"), "{text}");
    assert_no_snapshots(&story);
}

#[test]
fn an_export_that_comes_back_with_another_size_is_not_gone_on_with() {
    let story = story();
    let socket = story.path("s");
    let slow = ["--filter=rate", "file", story.file(), "rate=16M"];
    let server = Server::nbdkit(&socket, &slow);
    let mut backup = story.backup(&story.unix_uri("s"));
    let child = backup.stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
    let child = child.expect("the binary starts");
    std::thread::sleep(Duration::from_millis(1200));
    drop(server);
    std::fs::remove_file(&socket).ok();
    let _server = Server::nbdkit(&socket, &["memory", "32M"]);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let (before, now) = (story.image.bytes.len().to_string(), (32 << 20).to_string());
    assert!(text.contains(&before) && text.contains(&now), "{text}");
    assert_no_snapshots(&story);
}

/// The last client has said goodbye, which ends this server at once.
#[test]
fn a_server_that_exits_with_its_last_client_ends_in_order() {
    let story = story();
    let args = ["--filter=exitlast", "file", story.file()];
    let mut server = Server::nbdkit(&story.path("s"), &args);
    story.assert_backs_up(&story.unix_uri("s"));
    for _ in 0..100 {
        if let Some(status) = server.0.try_wait().expect("a child") {
            assert!(status.success());
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the server still has a client");
}

#[test]
fn slow_servers_are_waited_for() {
    let story = story();
    let args = ["--filter=delay", "file", story.file(), "rdelay=40ms"];
    let _server = Server::nbdkit(&story.path("s"), &args);
    story.assert_backs_up(&story.unix_uri("s"));
}

/// It says that all of it is zero.
#[test]
fn a_server_that_lies_about_zeros_is_read_whole() {
    let story = story();
    let len = story.image.bytes.len();
    let pread = format!(
        "pread=dd if={} iflag=count_bytes,skip_bytes skip=$4 count=$3 bs=1M 2>/dev/null",
        story.file()
    );
    let size = format!("get_size=echo {len}");
    let extents = format!("extents=echo 0 {len} hole,zero");
    let liar = ["eval", &size, &pread, &extents];
    let _server = Server::nbdkit(&story.path("s"), &liar);
    let text = fail_with(&mut story.backup(&story.unix_uri("s")), 4);
    assert!(text.contains("which its server says are zero"), "{text}");
    let (repo, scratch) = (&story.repo, story.dir.path());
    assert_restores(repo, "web@latest", &story.image.bytes, scratch);
    let shown = json(undercroft(repo).args(["show", "web@latest"])).to_string();
    assert!(shown.contains("note:holes-untrue"), "{shown}");
}

/// A daemon whose process number stands in a file.
struct Daemon(PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(&self.0) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
    }
}

#[test]
fn exports_of_nbd_server_are_read() {
    let story = story();
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port();
    let config = story.path("config");
    let text = format!(
        "[generic]\nport = {port}\nlistenaddr = 127.0.0.1\n[disk]\nexportname = {}\nreadonly = true\n",
        story.file()
    );
    std::fs::write(&config, text).expect("a file");
    let pid = story.path("pid");
    // With one process alone it serves one connection.
    succeed(
        Command::new("nbd-server")
            .arg("-C")
            .arg(&config)
            .arg("-p")
            .arg(&pid),
    );
    let _server = Daemon(pid);
    for _ in 0..600 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    story.assert_backs_up(&format!("nbd://127.0.0.1:{port}/disk"));
    let other = format!("nbd://127.0.0.1:{port}/other");
    let text = fail_with(&mut story.backup(&other), 1);
    assert!(text.contains("other"), "{text}");
}
