//! Disks of snapshots over NBD, as other projects' clients see them.
//!
//! Needs nbdcopy, nbdinfo, libnbd's Python module, qemu-img, qemu-io and certtool: `scripts/setup.sh test`.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::certificates::{make_certificates, make_client_certificate};
use support::exporter::{Exporter, peer, peer_succeeds};
use support::packs::{flip, packs_of};
use support::{Image, fail_with, json, succeed, undercroft, workspace};
use undercroft_format::pack::{PackKind, RECORD_HEADER_LEN};

/// A repository with a full snapshot and an increment of one VM with two disks.
struct Story {
    dir: tempfile::TempDir,
    repo: PathBuf,
    root: Image,
    swap: Image,
}

fn story() -> Story {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
    // Holes, and an end that is no multiple of anything but sectors.
    let mut root = Image::new(dir.path().join("root.raw"), 5, (24 << 20) + 512);
    root.bytes[4 << 20..16 << 20].fill(0);
    root.write();
    let swap = Image::new(dir.path().join("swap.raw"), 6, 3 << 20);
    let mut story = Story {
        dir,
        repo,
        root,
        swap,
    };
    succeed(&mut story.backup());
    let bitmap = story.root.change(9, &[3, 100, 380]);
    std::fs::write(story.path("cbt"), bitmap).expect("a bitmap");
    let changed = format!("root={}", story.path("cbt").display());
    let mut backup = story.backup();
    backup.args(["--parent", "web@latest", "--changed-blocks", &changed]);
    succeed(&mut backup);
    story
}

impl Story {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn backup(&self) -> Command {
        let mut command = undercroft(&self.repo);
        command.args(["backup", "--vm", "web"]);
        command.arg(&self.root.path).arg(&self.swap.path);
        command
    }

    fn command(&self, spec: &str) -> Command {
        let mut command = undercroft(&self.repo);
        command.args(["export", spec, "--nbd"]);
        command
    }

    /// On a socket.
    fn export(&self, spec: &str) -> Exporter {
        Exporter::start(self.command(spec).arg(self.socket()))
    }

    /// The id of the full snapshot.
    fn first(&self) -> String {
        let listed = json(undercroft(&self.repo).arg("snapshots"));
        let listed = listed["snapshots"].as_array().or(listed.as_array());
        let first = &listed.expect("a list")[0];
        first["id"].as_str().expect("an id").to_owned()
    }

    fn socket(&self) -> String {
        format!("unix:{}", self.path("s").display())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Copies an export with nbdcopy and compares.
fn assert_copies(uri: &str, expected: &[u8], scratch: &Path) {
    let _ = std::fs::remove_file(scratch);
    peer_succeeds("nbdcopy", &[uri, text(scratch)]);
    assert!(
        std::fs::read(scratch).expect("the copy") == expected,
        "{uri}"
    );
}

#[test]
fn every_disk_is_an_export_and_other_clients_read_its_bytes() {
    let story = story();
    let exporter = story.export("web@latest");
    assert_eq!(exporter.said["exports"][0]["name"], "root");
    assert_eq!(exporter.said["exports"][1]["disk"], "swap");
    let copy = story.path("copy");
    assert_copies(exporter.uri_of(0), &story.root.bytes, &copy);
    assert_copies(exporter.uri_of(1), &story.swap.bytes, &copy);
    for (export, image) in [(0, &story.root), (1, &story.swap)] {
        let uri = exporter.uri_of(export);
        peer_succeeds(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", uri, text(&image.path)],
        );
        // Without structured replies, too.
        peer_succeeds(
            "nbdcopy",
            &[
                "--requests=4",
                "--connections=1",
                "--request-size=65536",
                uri,
                text(&copy),
            ],
        );
        assert!(std::fs::read(&copy).expect("the copy") == image.bytes);
    }
    let nameless = exporter.uri().replace("///root?", "///?");
    assert!(
        !peer("nbdinfo", &[&nameless]).status.success(),
        "no export is the default"
    );
    let listed = peer_succeeds("nbdinfo", &["--list", "--json", &nameless]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let exports = listed["exports"].as_array().expect("a list");
    let names: Vec<_> = exports
        .iter()
        .map(|export| &export["export-name"])
        .collect();
    assert_eq!(names, ["root", "swap"]);
    assert_eq!(exports[0]["export-size"], story.root.bytes.len());
    assert_eq!(exports[0]["is_read_only"], true);
    assert_eq!(exports[0]["can_multi_conn"], true);
    assert_eq!(exports[0]["contexts"][0], "base:allocation");
    let (code, said) = exporter.terminate();
    assert_eq!((code, said.as_str()), (Some(0), r#"{"event":"stopping"}"#));
    assert!(!story.path("s").exists(), "the socket is left behind");
}

#[test]
fn one_disk_is_the_default_export_and_may_have_another_name() {
    let story = story();
    let spec = format!("{}:root", story.first());
    let exporter = Exporter::start(story.command(&spec).args(["127.0.0.1:0", "--name", "a b"]));
    let uri = exporter.uri().to_owned();
    assert!(
        uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/a%20b"),
        "{uri}"
    );
    let nameless = uri.trim_end_matches("a%20b");
    let copy = story.path("copy");
    // The full one, not the increment.
    let mut expected = Image::new(story.path("again.raw"), 5, story.root.bytes.len());
    expected.bytes[4 << 20..16 << 20].fill(0);
    assert_copies(&uri, &expected.bytes, &copy);
    assert_copies(nameless, &expected.bytes, &copy);
    let size = peer_succeeds("nbdinfo", &["--size", nameless]);
    assert_eq!(size.trim(), story.root.bytes.len().to_string());
}

#[test]
fn holes_are_told() {
    let story = story();
    let exporter = story.export("web@latest:root");
    let map = peer_succeeds("nbdinfo", &["--map", "--json", exporter.uri()]);
    let map: Value = serde_json::from_str(&map).expect("JSON");
    let mut at = 0;
    for extent in map.as_array().expect("a list") {
        let number = |key: &str| extent[key].as_u64().expect("a number") as usize;
        let (offset, len) = (number("offset"), number("length"));
        assert_eq!(offset, at, "no gaps");
        at += len;
        let is_zero = story.root.bytes[offset..at].iter().all(|byte| *byte == 0);
        match number("type") {
            0 => assert!(
                !is_zero || len < 4096,
                "{offset}+{len} is nothing but zeros"
            ),
            3 => assert!(is_zero, "{offset}+{len} is no hole"),
            other => panic!("type {other}"),
        }
    }
    assert_eq!(at, story.root.bytes.len());
}

#[test]
fn odd_reads_are_answered_and_writes_refused() {
    let story = story();
    let exporter = story.export("web@latest:root");
    let io = |commands: &[&str]| {
        let mut args = vec!["-r", "-f", "raw", exporter.uri()];
        commands
            .iter()
            .for_each(|command| args.extend(["-c", command]));
        peer("qemu-io", &args)
    };
    let output = io(&[
        "read -v 1001 17",
        "read 0 512",
        "read 24M 512",
        "read 24M 1K",
    ]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("read 17/17") && said.contains("read 512/512"),
        "{said}"
    );
    let script = format!(
        "import nbd\nh = nbd.NBD()\nh.set_strict_mode(0)\nh.connect_uri('{}')\nsize = h.get_size()\n\
         disk = open('{}', 'rb').read()\nassert size == len(disk)\n\
         def fails(errno, call):\n  try: call()\n  except nbd.Error as e: assert e.errno == errno, (errno, e)\n  else: raise AssertionError(errno)\n\
         for at, n in [(0, 1), (size - 1, 1), (511, 1026), (4194303, 12582914), (size - 70000, 70000)]:\n  assert h.pread(n, at) == disk[at:at + n], at\n\
         fails('EINVAL', lambda: h.pread(2, size - 1))\nfails('EINVAL', lambda: h.pread(512, 1 << 62))\n\
         fails('EPERM', lambda: h.pwrite(b'x' * 512, 0))\nfails('EPERM', lambda: h.zero(512, 0))\nfails('EPERM', lambda: h.trim(512, 0))\n\
         h.flush()\nh.cache(65536, 0)\nassert h.pread(512, 0) == disk[:512]\nassert h.pread(0, 5) == b''\n",
        exporter.uri(),
        story.root.path.display()
    );
    peer_succeeds("/usr/bin/python3", &["-c", &script]);
}

#[test]
fn many_readers_at_once_get_their_bytes() {
    let story = story();
    let exporter = story.export("web@latest:root");
    std::thread::scope(|scope| {
        for reader in 0..64_u64 {
            let (uri, bytes) = (exporter.uri(), &story.root.bytes);
            let socket = story.path("s");
            scope.spawn(move || {
                let mut client = RawClient::open(&socket);
                for number in 0..20 {
                    let at = (reader * 7919 + number * 524_287) % (bytes.len() as u64 - 9000);
                    let len = 1 + (reader * 131 + number * 977) as usize % 9000;
                    let found = client
                        .read(at, len)
                        .unwrap_or_else(|errno| panic!("{uri}: {errno}"));
                    assert!(found == bytes[at as usize..at as usize + len], "{at}+{len}");
                }
            });
        }
    });
}

/// A client without any ability, that can misbehave.
struct RawClient(UnixStream);

impl RawClient {
    fn open(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).expect("it listens");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        stream.write_all(&3_u32.to_be_bytes()).expect("flags");
        let mut option = b"IHAVEOPT".to_vec();
        option.extend(1_u32.to_be_bytes());
        option.extend(0_u32.to_be_bytes());
        stream.write_all(&option).expect("EXPORT_NAME");
        let mut export = [0; 10];
        stream.read_exact(&mut export).expect("the export");
        Self(stream)
    }

    fn ask(&mut self, command: u16, at: u64, len: usize) {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0_u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(7_u64.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend((len as u32).to_be_bytes());
        self.0.write_all(&request).expect("a request");
    }

    fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>, u32> {
        self.ask(0, at, len);
        let mut header = [0; 16];
        self.0.read_exact(&mut header).expect("a reply");
        assert_eq!(header[8..], 7_u64.to_be_bytes());
        match u32::from_be_bytes([header[4], header[5], header[6], header[7]]) {
            0 => {
                let mut bytes = vec![0; len];
                self.0.read_exact(&mut bytes).expect("its bytes");
                Ok(bytes)
            }
            errno => Err(errno),
        }
    }
}

#[test]
fn clients_that_go_in_the_middle_leave_the_others_alone() {
    let story = story();
    let exporter = story.export("web@latest:root");
    let socket = story.path("s");
    for number in 0..40 {
        let mut client = RawClient::open(&socket);
        match number % 4 {
            // With a reply under way,
            0 => client.ask(0, 0, 8 << 20),
            // within a request,
            1 => client.0.write_all(&[0x25, 0x60, 0x95]).expect("it listens"),
            // within what cannot be written anyway,
            2 => client.ask(1, 0, 1 << 20),
            // with something else than a request.
            _ => client
                .0
                .write_all(b"GET / HTTP/1.1\r\n\r\n")
                .expect("it listens"),
        }
    }
    // One that never takes its replies.
    let mut greedy = RawClient::open(&socket);
    for _ in 0..20 {
        greedy.ask(0, 0, 16 << 20);
    }
    assert_copies(exporter.uri(), &story.root.bytes, &story.path("copy"));
    drop(greedy);
    let (code, _) = exporter.terminate();
    assert_eq!(code, Some(0));
}

#[test]
fn tls_is_spoken_with_those_who_are_vouched_for() {
    let story = story();
    let pki = story.path("pki");
    std::fs::create_dir(&pki).expect("a directory");
    make_certificates(&pki);
    let file = |name: &str| pki.join(name).display().to_string();
    let tls = [
        "--tls-cert".to_owned(),
        file("server-cert.pem"),
        "--tls-key".to_owned(),
        file("server-key.pem"),
    ];
    let exporter = Exporter::start(
        story
            .command("web@latest:root")
            .arg("localhost:0")
            .args(&tls),
    );
    let uri = exporter
        .uri()
        .replace("127.0.0.1", "localhost")
        .replace("[::1]", "localhost");
    assert!(uri.starts_with("nbds://"), "{uri}");
    let secure = format!("{uri}?tls-certificates={}", pki.display());
    assert_copies(&secure, &story.root.bytes, &story.path("copy"));
    assert!(
        !peer("nbdinfo", &[&uri.replace("nbds:", "nbd:")])
            .status
            .success()
    );
    drop(exporter);
    let mutual = [
        &tls[..],
        &["--tls-client-ca".to_owned(), file("ca-cert.pem")],
    ]
    .concat();
    let exporter = Exporter::start(
        story
            .command("web@latest:root")
            .arg("localhost:0")
            .args(&mutual),
    );
    let uri = exporter
        .uri()
        .replace("127.0.0.1", "localhost")
        .replace("[::1]", "localhost");
    let secure = format!("{uri}?tls-certificates={}", pki.display());
    assert!(
        !peer("nbdinfo", &[&secure]).status.success(),
        "without a certificate"
    );
    make_client_certificate(&pki);
    assert_copies(&secure, &story.root.bytes, &story.path("copy"));
    drop(exporter);
    let open = story
        .command("web@latest:root")
        .arg("0.0.0.0:0")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&open.stderr).into_owned();
    assert_eq!(open.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--tls-cert") && said.contains("--insecure"),
        "{said}"
    );
    let exporter = Exporter::start(
        story
            .command("web@latest:root")
            .args(["0.0.0.0:0", "--insecure"]),
    );
    assert!(exporter.uri().starts_with("nbd://0.0.0.0:"));
}

#[test]
fn a_dead_exporters_socket_is_taken_over_and_a_living_ones_is_not() {
    let story = story();
    let exporter = story.export("web@latest:root");
    let socket = story.socket();
    let said = fail_with(story.command("web@latest:root").arg(&socket), 1);
    assert!(said.contains("another program listens"), "{said}");
    exporter.kill();
    assert!(story.path("s").exists(), "nobody was there to remove it");
    let exporter = story.export("web@latest:root");
    assert_copies(exporter.uri(), &story.root.bytes, &story.path("copy"));
    std::fs::write(story.path("file"), "mine").expect("a file");
    let file = format!("unix:{}", story.path("file").display());
    let said = fail_with(story.command("web@latest:root").arg(&file), 1);
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(
        std::fs::read(story.path("file")).expect("the file"),
        b"mine"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let story = story();
    let socket = story.socket();
    let said = fail_with(story.command("web@latest:data").arg(&socket), 2);
    assert!(
        said.contains("no disk data") && said.contains("root, swap"),
        "{said}"
    );
    let said = fail_with(
        story.command("web@latest").args([&socket, "--name", "x"]),
        2,
    );
    assert!(said.contains("--name is for one disk"), "{said}");
    let said = fail_with(story.command("other@latest").arg(&socket), 1);
    assert!(said.contains("other"), "{said}");
    fail_with(
        story
            .command("web@latest")
            .args([&socket, "--tls-cert", "x"]),
        2,
    );
    let tls = [&socket, "--tls-cert", "/nowhere", "--tls-key", "/nowhere"];
    let said = fail_with(story.command("web@latest").args(tls), 1);
    assert!(said.contains("/nowhere"), "{said}");
}

#[test]
fn an_export_is_backed_up_as_the_same_snapshot() {
    let story = story();
    // The full one: an increment keeps its parent's cuts around what changed.
    let exporter = story.export(&story.first());
    let mut again = undercroft(&story.repo);
    again.args(["backup", "--vm", "again"]);
    for export in [0, 1] {
        let label = exporter.said["exports"][export]["disk"]
            .as_str()
            .expect("a label");
        again
            .arg("--disk")
            .arg(format!("{label}={}", exporter.uri_of(export)));
    }
    let again = json(&mut again);
    // Neither data nor a map nor a node of a tree: both have the same root.
    assert_eq!(again["new_bytes"], 0, "{again}");
    assert_eq!(again["metadata_bytes"], 0, "{again}");
    let read = again["read_bytes"].as_u64().expect("a number");
    assert!(read < story.root.bytes.len() as u64, "holes are not read");
}

#[test]
fn damage_costs_its_own_range() {
    let story = story();
    let mut damaged = 0;
    for (pack, records) in packs_of(&story.repo, PackKind::Data) {
        for (position, _) in records.iter().skip(5).step_by(40) {
            flip(&pack, position + RECORD_HEADER_LEN + 3, 2);
            damaged += 1;
        }
    }
    let exporter = story.export("web@latest:root");
    let mut client = RawClient::open(&story.path("s"));
    let (mut good, mut bad) = (0, 0);
    for (number, expected) in story.root.bytes.chunks_exact(4096).enumerate() {
        match client.read(number as u64 * 4096, 4096) {
            Ok(found) => {
                assert!(found == expected, "block {number}");
                good += 1;
            }
            Err(errno) => {
                assert_eq!(errno, 5);
                bad += 1;
            }
        }
    }
    assert!(bad > 0, "the damage was not met");
    // A chunk has 256 KiB at most, and may be there more than once.
    assert!(bad <= 64 * damaged && good > bad, "{bad} blocks of {good}");
    drop(exporter);
}
