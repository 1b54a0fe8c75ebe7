//! Dirty bitmaps of NBD exports: QEMU tracks the changes, its server tells them, and what passes between shows what
//! was read.
//!
//! Needs qemu-img, qemu-io, qemu-nbd and nbdkit: `scripts/setup.sh test`.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine;
use support::exports::{Server, Story, story};
use support::{assert_restores, fail_with, json, succeed};

/// Passes on what a client and a server say, and remembers what the client said, connection by connection.
struct Relay(Arc<Mutex<Vec<Said>>>);

type Said = Arc<Mutex<Vec<u8>>>;

impl Relay {
    fn start(listen: &Path, server: &Path) -> Self {
        let _ = std::fs::remove_file(listen);
        let listener = UnixListener::bind(listen).expect("a socket");
        let (relay, server) = (Self(Arc::default()), server.to_owned());
        let log = relay.0.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.expect("a connection");
                let mut server = UnixStream::connect(&server).expect("the server");
                let mut answers = server.try_clone().expect("a twin");
                let mut back = client.try_clone().expect("a twin");
                let said = Arc::<Mutex<Vec<u8>>>::default();
                log.lock().expect("nobody panicked").push(said.clone());
                std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(got @ 1..) = client.read(&mut bytes) {
                        said.lock().expect("nobody panicked").extend(&bytes[..got]);
                        server.write_all(&bytes[..got]).expect("the server");
                    }
                    let _ = server.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        relay
    }

    /// The ranges that were read since the last time, in order.
    fn take_reads(&self) -> Vec<(u64, u64)> {
        // The last words may still be on their way here; they are no reads.
        let said = std::mem::take(&mut *self.0.lock().expect("nobody panicked"));
        let said = said
            .iter()
            .map(|said| said.lock().expect("nobody panicked").clone());
        let mut reads: Vec<_> = said.flat_map(|said| reads_of(&said)).collect();
        reads.sort_unstable();
        reads
    }
}

/// The reads in what a client says from its first byte on.
fn reads_of(said: &[u8]) -> Vec<(u64, u64)> {
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let mut rest = &said[4..];
    while rest.starts_with(b"IHAVEOPT") {
        let (option, len) = (number(&rest[8..12]), number(&rest[12..16]) as usize);
        rest = &rest[16 + len..];
        if option == 7 {
            break;
        }
    }
    let requests = rest.chunks_exact(28);
    let reads = requests.filter(|request| number(&request[6..8]) == 0);
    reads
        .map(|request| {
            let start = number(&request[16..24]);
            (start, start + number(&request[24..28]))
        })
        .collect()
}

/// A qcow2 image with a bitmap, its changes, and what serves it.
struct Qcow2 {
    story: Story,
    qcow2: PathBuf,
}

const BLOCK: u64 = 64 << 10;

impl Qcow2 {
    fn new() -> Self {
        let mut story = story();
        story.image.bytes.truncate(40 << 20);
        story.image.write();
        let qcow2 = story.path("disk.qcow2");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
        succeed(convert.arg(&story.image.path).arg(&qcow2));
        Self { story, qcow2 }
    }

    fn add_bitmap(&self, name: &str) {
        let mut add = Command::new("qemu-img");
        succeed(add.args(["bitmap", "--add"]).arg(&self.qcow2).arg(name));
    }

    fn write(&mut self, start: usize, len: usize, pattern: u8) {
        let mut io = Command::new("qemu-io");
        io.args([
            "-f",
            "qcow2",
            "-c",
            &format!("write -P {pattern} {start} {len}"),
        ]);
        succeed(io.arg(&self.qcow2));
        self.story.image.bytes[start..start + len].fill(pattern);
    }

    fn resize(&mut self, len: usize) {
        let mut resize = Command::new("qemu-img");
        resize.args(["resize", "-q", "-f", "qcow2", "--shrink"]);
        succeed(resize.arg(&self.qcow2).arg(len.to_string()));
        self.story.image.bytes.resize(len, 0);
    }

    fn serve(&self, bitmap: &str) -> Server {
        let socket = self.story.path("server");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-f", "qcow2", "-e", "8", "-B", bitmap, "-k"]);
        Server::start(command.arg(&socket).arg(&self.qcow2), &socket)
    }

    fn increment(&self, bitmap: &str) -> Command {
        let uri = self.story.unix_uri("s");
        let mut command = self.story.backup(&format!("{uri}&x-dirty-bitmap={bitmap}"));
        command.args(["--parent", "web@latest"]);
        command
    }

    fn assert_restores(&self) {
        let (repo, dir) = (&self.story.repo, self.story.dir.path());
        assert_restores(repo, "web@latest", &self.story.image.bytes, dir);
    }
}

#[test]
fn only_what_a_dirty_bitmap_names_is_read() {
    let mut disk = Qcow2::new();
    disk.add_bitmap("b0");
    let relay = Relay::start(&disk.story.path("s"), &disk.story.path("server"));
    let server = disk.serve("b0");
    let uri = disk.story.unix_uri("s");
    let full = json(&mut disk.story.backup(&format!("{uri}&x-dirty-bitmap=b0")));
    assert_eq!(full["disks"][0]["reasons"][0], "full:no-parent");
    assert_eq!(full["disks"][0]["lineage"]["bitmap"], "b0");
    drop(server);
    disk.write(5 << 20, 100, 1);
    disk.write((9 << 20) - 1, 2, 2);
    disk.write(20 << 20, 300 << 10, 3);
    disk.write((40 << 20) - 512, 512, 0);
    let _server = disk.serve("b0");
    relay.take_reads();
    let report = json(disk.increment("b0").args(["--audit", "0"]));
    let dirty = [
        (5 << 20, (5 << 20) + BLOCK),
        ((9 << 20) - BLOCK, (9 << 20) + BLOCK),
        (20 << 20, (20 << 20) + 5 * BLOCK),
        ((40 << 20) - BLOCK, 40 << 20),
    ];
    assert_eq!(joined(relay.take_reads()), dirty);
    assert_eq!(report["disks"][0]["read_mode"], "changed-blocks");
    assert_eq!(report["disks"][0]["read_bytes"], 9 * BLOCK);
    disk.assert_restores();

    // A bitmap of XAPI's and the map that nbdinfo prints say the same.
    let server = format!(
        "nbd+unix:///?socket={}",
        disk.story.path("server").display()
    );
    let mut map = Command::new("nbdinfo");
    map.args(["--json", "--map=qemu:dirty-bitmap:b0", &server]);
    let map = succeed(&mut map).stdout;
    for text in [map, xapi_bitmap(&dirty, 40 << 20)] {
        let changes = disk.story.path("changes");
        std::fs::write(&changes, text).expect("a file");
        let mut increment = disk.story.backup(&uri);
        increment.args(["--parent", "web@latest", "--audit", "0"]);
        increment.args(["--lineage", "root:bitmap=b0"]);
        let report = json(increment.arg("--changed-blocks").arg(&changes));
        assert_eq!(report["disks"][0]["read_bytes"], 9 * BLOCK, "{report}");
        assert_eq!(joined(relay.take_reads()), dirty);
    }

    // Changes and a sample of the rest, and nothing else.
    let report = json(&mut disk.increment("b0"));
    let bytes = |value: &serde_json::Value| value["read_bytes"].as_u64().expect("a number");
    let told = bytes(&report["disks"][0]) + bytes(&report["audits"][0]);
    let read: u64 = relay
        .take_reads()
        .iter()
        .map(|(start, end)| end - start)
        .sum();
    assert_eq!(report["audits"][0]["blocks"], 16);
    assert!(
        read >= told && read <= told + told / 100,
        "{read} bytes were read, {told} told"
    );
    let report = json(disk.increment("b0").args(["--audit", "100%"]));
    assert_eq!(
        report["audits"][0]["mismatch"],
        serde_json::Value::Null,
        "{report}"
    );
}

fn xapi_bitmap(ranges: &[(u64, u64)], len: u64) -> Vec<u8> {
    let mut bitmap = vec![0_u8; len.div_ceil(BLOCK).div_ceil(8) as usize];
    for block in ranges
        .iter()
        .flat_map(|(start, end)| start / BLOCK..end / BLOCK)
    {
        bitmap[block as usize / 8] |= 0x80 >> (block % 8);
    }
    let text = base64::engine::general_purpose::STANDARD.encode(bitmap);
    text.into_bytes()
}

fn joined(ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

#[test]
fn a_bitmap_that_is_not_there_leads_to_a_full_read() {
    let mut disk = Qcow2::new();
    disk.add_bitmap("b0");
    let _relay = Relay::start(&disk.story.path("s"), &disk.story.path("server"));
    let server = disk.serve("b0");
    let uri = disk.story.unix_uri("s");
    succeed(&mut disk.story.backup(&uri));
    drop(server);
    disk.write(5 << 20, 100, 1);
    let server = disk.serve("b0");
    for (bitmap, reason) in [
        ("b1", "full:no-dirty-bitmap"),
        ("b0", "full:lineage-bitmap"),
    ] {
        let output = succeed(disk.increment(bitmap).arg("--json"));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["disks"][0]["reasons"][0], reason);
        assert_eq!(report["disks"][0]["read_mode"], "full");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("the disk is read in full"), "{said}");
        disk.assert_restores();
    }
    drop(server);
    // A server that cannot tell anything of ranges.
    let _server = Server::nbdkit(
        &disk.story.path("other"),
        &["--no-sr", "file", disk.story.file()],
    );
    let uri = disk.story.unix_uri("other") + "&x-dirty-bitmap=b0";
    let report = json(disk.story.backup(&uri).args(["--parent", "web@latest"]));
    assert_eq!(report["disks"][0]["reasons"][0], "full:no-dirty-bitmap");
    let mut both = disk.story.backup(&uri);
    both.arg("--changed-blocks").arg(disk.story.file());
    let text = fail_with(&mut both, 2);
    assert!(
        text.contains("both --changed-blocks and a dirty bitmap"),
        "{text}"
    );
}

/// What was written before the bitmap began is not in it.
#[test]
fn a_bitmap_that_began_after_the_parent_is_not_believed() {
    let mut disk = Qcow2::new();
    let _relay = Relay::start(&disk.story.path("s"), &disk.story.path("server"));
    disk.add_bitmap("other");
    let server = disk.serve("other");
    let uri = disk.story.unix_uri("s");
    let mut full = disk.story.backup(&format!("{uri}&x-dirty-bitmap=b0"));
    let output = succeed(full.arg("--json"));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(
        report["disks"][0]["lineage"]["bitmap"].is_null(),
        "{report}"
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("no such bitmap"), "{text}");
    drop(server);
    disk.write(5 << 20, 100, 1);
    disk.add_bitmap("b0");
    disk.write(9 << 20, 100, 2);
    let _server = disk.serve("b0");
    let report = json(&mut disk.increment("b0"));
    assert_eq!(report["disks"][0]["reasons"][0], "full:lineage-bitmap");
    disk.assert_restores();
    let report = json(&mut disk.increment("b0"));
    assert_eq!(report["disks"][0]["read_mode"], "changed-blocks");
}

#[test]
fn an_export_that_was_resized_is_read_by_its_bitmap() {
    let mut disk = Qcow2::new();
    disk.add_bitmap("b0");
    let _relay = Relay::start(&disk.story.path("s"), &disk.story.path("server"));
    let server = disk.serve("b0");
    let uri = disk.story.unix_uri("s");
    succeed(&mut disk.story.backup(&format!("{uri}&x-dirty-bitmap=b0")));
    drop(server);
    for len in [(50 << 20) + 512, (31 << 20) + 1024, (31 << 20) + 512] {
        disk.resize(len);
        disk.write(3 << 20, 4096, 9);
        let server = disk.serve("b0");
        let report = json(disk.increment("b0").args(["--audit", "100%"]));
        assert_eq!(
            report["disks"][0]["read_mode"], "changed-blocks",
            "{report}"
        );
        assert_eq!(
            report["audits"][0]["mismatch"],
            serde_json::Value::Null,
            "{report}"
        );
        disk.assert_restores();
        drop(server);
    }
}
