//! VMs as XVAs: backed up from archives that other programs made, restored, compared, written and read again.
//!
//! Needs tar, gzip, zstd and sha1sum: `scripts/setup.sh test`.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::certificates::make_certificates;
use support::served::Served;
use support::{Image, assert_restores, fail_with, json, noise, succeed, undercroft, workspace};
use xxhash_rust::xxh64::xxh64;

const MIB: usize = 1 << 20;

/// An XVA in the making: names and payloads in order. Nothing of it comes from the program under test.
#[derive(Clone, Default)]
struct Xva {
    members: Vec<(String, Vec<u8>)>,
}

/// A disk of an XVA.
struct XvaDisk<'a> {
    reference: &'a str,
    userdevice: &'a str,
    bytes: &'a [u8],
}

impl Xva {
    /// Of a VM with these disks, their blocks of zeros left out where that is allowed.
    fn of(disks: &[XvaDisk<'_>]) -> Self {
        let mut xva = Self::described(disks, "Halted", false);
        for disk in disks {
            let last = disk.bytes.len().div_ceil(MIB) - 1;
            for (number, block) in disk.bytes.chunks(MIB).enumerate() {
                let is_zero = block.iter().all(|byte| *byte == 0);
                if number == 0 || number == last || !is_zero {
                    xva.block(disk.reference, number, block);
                }
            }
        }
        xva
    }

    /// The description alone.
    fn described(disks: &[XvaDisk<'_>], power_state: &str, is_a_template: bool) -> Self {
        let text = description(disks, power_state, is_a_template);
        Self {
            members: vec![("ova.xml".to_owned(), text.into_bytes())],
        }
    }

    fn block(&mut self, reference: &str, number: usize, block: &[u8]) {
        let name = format!("{reference}/{number:08}");
        let checksum = format!("{:016X}", xxh64(block, 0));
        self.members.push((name.clone(), block.to_vec()));
        self.members
            .push((format!("{name}.xxhash"), checksum.into_bytes()));
    }

    /// As xapi writes it.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, payload) in &self.members {
            bytes.extend_from_slice(&v7_header(name, payload.len()));
            bytes.extend_from_slice(payload);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend_from_slice(&[0; 1024]);
        bytes
    }

    /// As GNU tar writes it in one of its formats.
    fn by_tar(&self, scratch: &Path, format: &str) -> Vec<u8> {
        let dir = scratch.join(format!("members-{format}"));
        let mut names = String::new();
        for (name, payload) in &self.members {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            std::fs::write(path, payload).expect("a member");
            names += &format!("{name}\n");
        }
        std::fs::write(dir.join("names"), names).expect("a list");
        let mut tar = Command::new("tar");
        tar.current_dir(&dir).arg(format!("--format={format}"));
        succeed(tar.args(["--no-recursion", "-c", "-T", "names"])).stdout
    }
}

fn v7_header(name: &str, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (field, value) in [(100, b"0000400"), (108, b"0000000"), (116, b"0000000")] {
        header[field..field + 7].copy_from_slice(value);
    }
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
    header
}

/// An `ova.xml` with as much as matters, written as xapi would.
fn description(disks: &[XvaDisk<'_>], power_state: &str, is_a_template: bool) -> String {
    let member = |name: &str, value: &str| format!("<member><name>{name}</name>{value}</member>");
    let text = |name: &str, value: &str| member(name, &format!("<value>{value}</value>"));
    let flag = |name: &str, flag: bool| {
        let flag = u8::from(flag);
        member(name, &format!("<value><boolean>{flag}</boolean></value>"))
    };
    let object = |class: &str, id: &str, fields: &[String]| {
        let fields = fields.concat();
        format!(
            "<value><struct>{}{}{}</struct></value>",
            text("class", class),
            text("id", id),
            member(
                "snapshot",
                &format!("<value><struct>{fields}</struct></value>")
            )
        )
    };
    let info = match is_a_template {
        true => format!(
            "<value><struct>{}</struct></value>",
            text("disk-snapshot-type", "x")
        ),
        false => "<value><struct></struct></value>".to_owned(),
    };
    let mut objects = vec![
        object(
            "VM",
            "Ref:1",
            &[
                text("uuid", "11111111-1111-1111-1111-111111111111"),
                text("name_label", "web &amp; mail"),
                text("power_state", power_state),
                flag("is_a_template", is_a_template),
                flag("is_a_snapshot", false),
                member("snapshot_info", &info),
                text("affinity", "OpaqueRef:NULL"),
            ],
        ),
        object(
            "SR",
            "Ref:2",
            &[text("uuid", "sr-1"), text("content_type", "user")],
        ),
        object(
            "SR",
            "Ref:3",
            &[text("uuid", "sr-iso"), text("content_type", "iso")],
        ),
        object(
            "VDI",
            "Ref:4",
            &[text("virtual_size", "5000"), text("SR", "Ref:3")],
        ),
        object(
            "VBD",
            "Ref:5",
            &[
                text("VM", "Ref:1"),
                text("VDI", "Ref:4"),
                text("userdevice", "3"),
                text("type", "CD"),
            ],
        ),
        object(
            "VIF",
            "Ref:6",
            &[text("VM", "Ref:1"), text("MAC", "9e:89:c8:4a:62:ba")],
        ),
    ];
    for (place, disk) in disks.iter().enumerate() {
        objects.push(object(
            "VDI",
            disk.reference,
            &[
                text("uuid", &format!("vdi-{place}")),
                text("virtual_size", &disk.bytes.len().to_string()),
                text("SR", "Ref:2"),
            ],
        ));
        objects.push(object(
            "VBD",
            &format!("Ref:9{place}"),
            &[
                text("VM", "Ref:1"),
                text("VDI", disk.reference),
                text("userdevice", disk.userdevice),
                text("device", ""),
                flag("empty", false),
                text("type", "Disk"),
            ],
        ));
    }
    let version = [text("product_brand", "XCP-ng"), text("export_vsn", "2")].concat();
    format!(
        "<value><struct>{}{}</struct></value>",
        member(
            "version",
            &format!("<value><struct>{version}</struct></value>")
        ),
        member(
            "objects",
            &format!(
                "<value><array><data>{}</data></array></value>",
                objects.concat()
            )
        )
    )
}

struct Story {
    dir: tempfile::TempDir,
    repo: PathBuf,
    root: Image,
    data: Image,
}

/// A VM with two disks: one with holes of many blocks, one with a short last block.
fn story() -> Story {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).arg("init"));
    let mut root = Image::new(dir.path().join("root.raw"), 3, 40 * MIB);
    root.bytes[3 * MIB..19 * MIB].fill(0);
    root.bytes[30 * MIB..31 * MIB].fill(0);
    root.write();
    let data = Image::new(dir.path().join("data.raw"), 4, 3 * MIB + 512);
    Story {
        dir,
        repo,
        root,
        data,
    }
}

impl Story {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Not in the order of their names: a reader does not care.
    fn disks(&self) -> [XvaDisk<'_>; 2] {
        [
            XvaDisk {
                reference: "Ref:9",
                userdevice: "0",
                bytes: &self.root.bytes,
            },
            XvaDisk {
                reference: "Ref:10",
                userdevice: "1",
                bytes: &self.data.bytes,
            },
        ]
    }

    fn xva(&self) -> Xva {
        Xva::of(&self.disks())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    }

    fn backup(&self, xva: &Path) -> Command {
        let mut command = undercroft(&self.repo);
        command.args(["backup", "--xva"]).arg(xva);
        command
    }

    /// Backs up, restores, compares; the report.
    fn assert_backs_up(&self, xva: &Path) -> serde_json::Value {
        let report = json(&mut self.backup(xva));
        self.assert_restores(report["id"].as_str().expect("an id"));
        report
    }

    fn assert_restores(&self, snapshot: &str) {
        for (label, image) in [("xvda", &self.root), ("xvdb", &self.data)] {
            let target = self.path("restored.raw");
            let mut restore = undercroft(&self.repo);
            restore.args(["restore", snapshot, "--force", "--disk", label, "--to"]);
            succeed(restore.arg(&target));
            let restored = std::fs::read(&target).expect("the restored file");
            assert!(restored == image.bytes, "{snapshot}: disk {label}");
        }
    }

    /// Backing up these bytes fails with an error that says so, and publishes nothing.
    fn assert_fails(&self, what: &str, bytes: &[u8], expected: &[&str]) {
        let xva = self.write("bad.xva", bytes);
        let text = fail_with(&mut self.backup(&xva), 1);
        for expected in expected {
            assert!(
                text.contains(expected),
                "{what}: {expected:?} is not in: {text}"
            );
        }
        assert_eq!(self.snapshots(), 0, "{what}");
    }

    fn snapshots(&self) -> usize {
        let listed = json(undercroft(&self.repo).arg("snapshots"));
        let listed = listed["snapshots"].as_array().or(listed.as_array());
        listed.expect("a list").len()
    }
}

fn of_disk<'a>(report: &'a serde_json::Value, label: &str) -> &'a serde_json::Value {
    let disks = report["disks"].as_array().expect("disks");
    let found = disks.iter().find(|disk| disk["label"] == label);
    found.unwrap_or_else(|| panic!("no disk {label}: {report}"))
}

#[test]
fn an_xva_becomes_disks_lineage_and_metadata() {
    let story = story();
    let xva = story.xva();
    let report = story.assert_backs_up(&story.write("web.xva", &xva.bytes()));
    assert_eq!(report["vm"], "web & mail");
    assert_eq!(report["metadata"]["name"], "ova.xml");
    let root = of_disk(&report, "xvda");
    assert_eq!(root["size"], 40 * MIB);
    assert_eq!(root["lineage"]["vdi-uuid"], "vdi-0");
    assert_eq!(root["lineage"]["sr-uuid"], "sr-1");
    assert_eq!(root["lineage"]["userdevice"], "0");
    assert_eq!(root["lineage"]["virtual-size"], (40 * MIB).to_string());
    let read = root["read_bytes"].as_u64().expect("a number");
    assert!(read <= 24 * MIB as u64, "{read} bytes: holes are not read");
    assert_eq!(of_disk(&report, "xvdb")["size"], 3 * MIB + 512);
    let all = story.path("all/");
    let mut restore = undercroft(&story.repo);
    succeed(
        restore
            .args(["restore", "web & mail@latest", "--to"])
            .arg(&all),
    );
    let restored = std::fs::read(all.join("ova.xml")).expect("the metadata");
    assert!(restored == xva.members[0].1, "it is kept byte for byte");
}

/// Whether it comes first or last in the stream; what is left out is checked all the same.
#[test]
fn disks_of_an_xva_can_be_left_out() {
    let story = story();
    let xva = story.write("web.xva", &story.xva().bytes());
    for (excluded, kept, image) in [("xvda", "xvdb", &story.data), ("xvdb", "xvda", &story.root)] {
        let report = json(story.backup(&xva).args(["--exclude-disk", excluded]));
        assert_eq!(report["disks"].as_array().map(Vec::len), Some(1));
        assert_eq!(of_disk(&report, kept)["size"], image.bytes.len());
        let snapshot = report["id"].as_str().expect("an id");
        assert_restores(&story.repo, snapshot, &image.bytes, story.dir.path());
    }
    let text = fail_with(story.backup(&xva).args(["--exclude-disk", "root"]), 2);
    assert!(text.contains("labelled: xvda, xvdb"), "{text}");
    let mut all = story.backup(&xva);
    all.args(["--exclude-disk", "xvda", "--exclude-disk", "xvdb"]);
    assert!(fail_with(&mut all, 2).contains("leaves no disk"));
    let mut damaged = story.xva().bytes();
    let block = damaged.len() / 2;
    damaged[block] ^= 1;
    let damaged = story.write("damaged.xva", &damaged);
    for excluded in ["xvda", "xvdb"] {
        fail_with(story.backup(&damaged).args(["--exclude-disk", excluded]), 1);
    }
}

#[test]
fn disks_of_an_xva_are_those_of_a_raw_backup() {
    let mut story = story();
    // Partitions at sector 63 move the grid, and what an XVA leaves out ends off it.
    let mut table = [0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&63_u32.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&70_000_u32.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    for shifted in [false, true] {
        if shifted {
            story.root.bytes[..512].copy_from_slice(&table);
            story.root.write();
        }
        let mut raw = undercroft(&story.repo);
        raw.args(["backup", "--vm", "raw", "--disk"]);
        raw.arg(format!("xvda={}", story.root.path.display()))
            .arg("--disk");
        raw.arg(format!("xvdb={}", story.data.path.display()));
        let raw = json(&mut raw);
        let report = story.assert_backs_up(&story.write("web.xva", &story.xva().bytes()));
        for label in ["xvda", "xvdb"] {
            let (raw, xva) = (of_disk(&raw, label), of_disk(&report, label));
            assert_eq!(xva["new_bytes"], 0, "{label}");
            assert_eq!(
                xva["metadata_bytes"], 0,
                "{label}: the maps are the same, too"
            );
            assert_eq!(xva["data_bytes"], raw["data_bytes"]);
            assert_eq!(xva["grid_phase"], raw["grid_phase"]);
        }
        let phase = if shifted { 63 * 512 % 4096 } else { 0 };
        assert_eq!(of_disk(&report, "xvda")["grid_phase"], phase);
    }
}

#[test]
fn archives_of_other_programs_are_read() {
    let story = story();
    for format in ["v7", "oldgnu", "gnu", "ustar", "pax"] {
        let bytes = story.xva().by_tar(story.dir.path(), format);
        story.assert_backs_up(&story.write("other.xva", &bytes));
    }
    // Units of another length, and last blocks filled up to whole ones.
    let mut xva = Xva::described(&story.disks(), "Halted", false);
    for (reference, disk, unit) in [
        ("Ref:10", &story.data, 300_000),
        ("Ref:9", &story.root, 3 * MIB),
    ] {
        for (number, block) in disk.bytes.chunks(unit).enumerate() {
            let mut block = block.to_vec();
            block.resize(unit, 0);
            if number == 0 || block.iter().any(|byte| *byte != 0) {
                xva.block(reference, number, &block);
            }
        }
    }
    story.assert_backs_up(&story.write("other.xva", &xva.bytes()));
}

#[test]
fn numbers_are_counters_and_sha1_is_verified() {
    let story = story();
    let mut xva = Xva::described(&story.disks(), "Halted", false);
    // What xapi does while it scans zeros: an empty block, whose number all later ones are shifted by.
    let mut shift = 0;
    for (number, block) in story.root.bytes.chunks(MIB).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            xva.block("Ref:9", number + shift, block);
        } else if number % 5 == 0 {
            xva.block("Ref:9", number + shift, &[]);
            shift += 1;
        }
    }
    assert!(shift > 2, "there were keep-alives");
    for (number, block) in story.data.bytes.chunks(MIB).enumerate() {
        let name = format!("Ref:10/{number:08}");
        let file = story.write("block", block);
        let sum = succeed(Command::new("sha1sum").arg(file)).stdout;
        xva.members.push((name.clone(), block.to_vec()));
        xva.members
            .push((format!("{name}.checksum"), sum[..40].to_vec()));
    }
    story.assert_backs_up(&story.write("web.xva", &xva.bytes()));
    let last = xva.members.len() - 1;
    xva.members[last].1[0] ^= 1;
    let bad = story.write("bad.xva", &xva.bytes());
    let text = fail_with(&mut story.backup(&bad), 1);
    assert!(text.contains("Ref:10/00000003.checksum"), "{text}");
}

fn run_with_input(command: &mut Command, input: &[u8]) -> std::process::Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A reader that has seen enough goes away.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("it ends")
    })
}

fn packed(program: &[&str], bytes: &[u8]) -> Vec<u8> {
    let output = run_with_input(Command::new(program[0]).args(&program[1..]), bytes);
    assert!(output.status.success());
    output.stdout
}

#[test]
fn compressed_archives_are_unpacked() {
    let story = story();
    let bytes = story.xva().bytes();
    for program in [&["gzip", "-1"][..], &["zstd", "-q"]] {
        let whole = packed(program, &bytes);
        story.assert_backs_up(&story.write("web.xva.packed", &whole));
        // Several members or frames, one after the other.
        let (a, b) = bytes.split_at(bytes.len() / 3);
        let parts = [packed(program, a), packed(program, b)].concat();
        story.assert_backs_up(&story.write("web.xva.packed", &parts));
    }
    let story = self::story();
    for program in [&["gzip", "-1"][..], &["zstd", "-q"]] {
        let whole = packed(program, &bytes);
        story.assert_fails("cut", &whole[..whole.len() - 5], &["reading the XVA"]);
        story.assert_fails("in half", &whole[..whole.len() / 2], &["reading the XVA"]);
        let garbage = [&whole[..], b"garbage"].concat();
        story.assert_fails("garbage", &garbage, &["reading the XVA"]);
        let twice = [&whole[..], &whole].concat();
        story.assert_fails("twice", &twice, &["only zeros"]);
        let short = packed(program, &bytes[..bytes.len() - 1024]);
        story.assert_fails("no end", &short, &["truncated"]);
    }
}

#[test]
fn standard_input_is_read_once() {
    let story = story();
    let bytes = story.xva().bytes();
    for bytes in [bytes.clone(), packed(&["zstd", "-q"], &bytes)] {
        let mut command = story.backup(Path::new("-"));
        let output = run_with_input(command.args(["--vm", "piped", "--json"]), &bytes);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["vm"], "piped");
        story.assert_restores(report["id"].as_str().expect("an id"));
    }
    let before = story.snapshots();
    let output = run_with_input(&mut story.backup(Path::new("-")), &bytes[..bytes.len() / 2]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("truncated") && text.contains("make it again"),
        "{text}"
    );
    assert_eq!(story.snapshots(), before);
}

/// Answers one request after the other with `answers`, then is gone.
fn serve(answers: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = std::thread::spawn(move || {
        let serve_one = |answer: Vec<u8>| {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n")
                && stream.read(&mut byte).is_ok_and(|got| got == 1)
            {
                request.push(byte[0]);
            }
            let _ = stream.write_all(&answer);
            String::from_utf8_lossy(&request).into_owned()
        };
        answers.into_iter().map(serve_one).collect()
    });
    (
        format!("http://root:secret@{address}/export?session_id=OpaqueRef:secret"),
        server,
    )
}

#[test]
fn web_servers_are_asked_and_not_believed() {
    let story = story();
    let bytes = story.xva().bytes();
    let answer =
        |head: &str, body: &[u8]| [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat();
    let length = |len: usize| format!("200 OK\r\nContent-Length: {len}");
    // xapi's answers have no length: their end is that of the connection.
    let good = [
        answer(&length(bytes.len()), &bytes),
        answer("200 OK\r\nConnection: close", &bytes),
        [&b"HTTP/1.0 200 OK\r\n\r\n"[..], &bytes].concat(),
    ];
    for answer in good {
        let (url, server) = serve(vec![answer]);
        let report = story.assert_backs_up(Path::new(&url));
        let asked = server.join().expect("it served");
        assert!(asked[0].starts_with("GET /export?session_id="), "{asked:?}");
        let shown = json(undercroft(&story.repo).args(["show", report["id"].as_str().unwrap()]));
        assert!(!shown.to_string().contains("secret"), "{shown}");
    }
    let before = story.snapshots();
    let error = b"HTTP/1.1 500 Internal Error\r\n\r\n";
    for (what, answer, expected) in [
        (
            "cut, with a length",
            answer(&length(bytes.len()), &bytes[..bytes.len() / 2]),
            "reading the XVA",
        ),
        (
            "cut, without",
            answer("200 OK", &bytes[..bytes.len() / 2]),
            "truncated",
        ),
        (
            "cut in the description",
            answer("200 OK", &bytes[..2000]),
            "truncated",
        ),
        (
            "cut before the end mark",
            answer("200 OK", &bytes[..bytes.len() - 1024]),
            "truncated",
        ),
        ("refused", answer("401 Unauthorized", b""), "answered 401"),
        (
            "a second answer at once",
            answer("200 OK", error),
            "had answered",
        ),
        (
            "a second answer",
            answer("200 OK", &[&bytes, &error[..]].concat()),
            "only zeros",
        ),
        ("a page", answer("200 OK", b"<html>"), "page of text"),
        ("nothing", answer("200 OK", b""), "it is empty"),
    ] {
        let (url, server) = serve(vec![answer]);
        let text = fail_with(&mut story.backup(Path::new(&url)), 1);
        assert!(text.contains(expected), "{what}: {text}");
        assert!(!text.contains("secret"), "{what}: {text}");
        server.join().expect("it served");
        assert_eq!(story.snapshots(), before, "{what}");
    }
}

/// Serves the directory `files` over TLS, but for `/moved`, which leads to where there is none.
const HTTPS_SERVER: &str = r#"
import http.server, ssl
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/moved":
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", "http://localhost:1/export?session_id=secret")
        self.end_headers()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server-cert.pem", "server-key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

#[test]
fn https_servers_are_verified() {
    let story = story();
    let dir = story.dir.path();
    make_certificates(dir);
    story.write("web.xva", &story.xva().bytes());
    let mut server = Command::new("python3")
        .current_dir(dir)
        .args(["-c", HTTPS_SERVER])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 starts");
    let mut port = String::new();
    let mut said = std::io::BufReader::new(server.stdout.take().expect("a pipe"));
    std::io::BufRead::read_line(&mut said, &mut port).expect("a port");
    let url = |path: &str| format!("https://localhost:{}/{path}", port.trim());
    let backup = |path: &str| story.backup(Path::new(&url(path)));
    let authority = dir.join("ca-cert.pem");
    let text = fail_with(&mut backup("web.xva"), 1);
    assert!(text.contains("certificate"), "{text}");
    for (path, expected) in [("moved", "without TLS"), ("none", "answered 404")] {
        let text = fail_with(backup(path).env("SSL_CERT_FILE", &authority), 1);
        assert!(
            text.contains(expected) && !text.contains("secret"),
            "{text}"
        );
    }
    assert_eq!(story.snapshots(), 0);
    let report = json(backup("web.xva").env("SSL_CERT_FILE", &authority));
    story.assert_restores(report["id"].as_str().expect("an id"));
    server.kill().expect("it runs");
    server.wait().expect("it ends");
}

#[test]
fn damaged_archives_publish_nothing() {
    let story = story();
    let xva = story.xva();
    let bytes = xva.bytes();
    for cut in [
        0,
        100,
        511,
        512,
        4000,
        MIB,
        7 * MIB + 13,
        bytes.len() - 1024,
        bytes.len() - 512,
        bytes.len() - 1,
    ] {
        let expected = if cut == 0 { "it is empty" } else { "truncated" };
        story.assert_fails(&format!("cut to {cut}"), &bytes[..cut], &[expected]);
    }
    let place = |name: &str| {
        let mut members = xva.members.iter();
        members
            .position(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("{name}"))
    };
    let changed = |change: &dyn Fn(&mut Vec<(String, Vec<u8>)>)| {
        let mut changed = xva.clone();
        change(&mut changed.members);
        changed.bytes()
    };
    let (first, data) = (place("Ref:9/00000000"), place("Ref:10/00000000"));
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "a damaged block",
            changed(&|members| members[first + 2].1[77] ^= 1),
            &[
                "Ref:9/00000001.xxhash at byte",
                "was damaged",
                "copy the XVA again",
            ],
        ),
        (
            "a damaged checksum",
            changed(&|members| members[first + 1].1[0] = b'x'),
            &["Ref:9/00000000.xxhash", "checksum"],
        ),
        (
            "no checksum",
            changed(&|members| drop(members.remove(first + 1))),
            &["the checksum of Ref:9/00000000 is expected"],
        ),
        (
            "a block twice",
            changed(&|members| {
                let pair = members[first..first + 2].to_vec();
                members.splice(first..first, pair);
            }),
            &["Ref:9/00000000 at byte", "1 or more is expected"],
        ),
        (
            "blocks in disorder",
            changed(&|members| members[first + 2..first + 6].rotate_left(2)),
            &["Ref:9/00000001", "3 or more is expected"],
        ),
        (
            "a block that is too long",
            changed(&|members| members[first + 2].1.push(0)),
            &[
                "Ref:9/00000001",
                "1048577 bytes long where 1048576 are expected",
            ],
        ),
        (
            "a disk that goes on",
            changed(&|members| {
                let last = data - 2;
                members[last].0 = "Ref:9/00000099".to_owned();
                members[last + 1].0 = "Ref:9/00000099.xxhash".to_owned();
            }),
            &["Ref:9/00000099", "the disk ends at 41943040"],
        ),
        (
            "a disk without its last block",
            changed(&|members| drop(members.drain(data - 2..data))),
            &["disk Ref:9 ends after", "its last block is missing"],
        ),
        (
            "a disk without blocks",
            changed(&|members| members.truncate(data)),
            &["disk Ref:10 is missing"],
        ),
        (
            "disks that interleave",
            changed(&|members| members[data - 2..].rotate_left(2)),
            &["disk Ref:9 ends after"],
        ),
        (
            "a disk that nobody knows",
            changed(&|members| members[data].0 = "Ref:11/00000000".to_owned()),
            &["ova.xml has no disk Ref:11", "Ref:9, Ref:10"],
        ),
        (
            "a name that leads elsewhere",
            changed(&|members| members[data].0 = "../../etc/00000000".to_owned()),
            &["ova.xml has no disk ../../etc"],
        ),
        (
            "a file that is none of a VM's",
            changed(&|members| members.insert(first, ("README".to_owned(), b"hi".to_vec()))),
            &["README at byte", "is called DISK/NUMBER"],
        ),
        (
            "no description",
            changed(&|members| drop(members.remove(0))),
            &["Ref:9/00000000 at byte 0", "begins with ova.xml"],
        ),
        (
            "an old layout",
            changed(&|members| {
                let text = String::from_utf8(members[0].1.clone()).expect("text");
                members[0].1 = text
                    .replace("<value>2</value>", "<value>1</value>")
                    .into_bytes();
            }),
            &["export version 1", "only version 2"],
        ),
        (
            "no XML",
            changed(&|members| members[0].1 = b"<value><struct>&bomb;</struct></value>".to_vec()),
            &["ova.xml", "byte 15", "&bomb;"],
        ),
        (
            "a description without disks",
            changed(&|members| {
                let empty = Xva::described(&[], "Halted", false);
                *members = empty.members;
            }),
            &["holds no disks"],
        ),
        (
            "a raw disk",
            story.root.bytes[512..].to_vec(),
            &["begins with ova.xml", "--disk LABEL=FILE"],
        ),
        (
            "noise",
            noise(7, 5000),
            &["a tar header is expected", "--disk LABEL=FILE"],
        ),
        (
            "something at its end",
            [&bytes[..], b"x"].concat(),
            &["only zeros"],
        ),
    ];
    for (what, bytes, expected) in cases {
        story.assert_fails(what, &bytes, expected);
    }
}

#[test]
fn options_that_contradict_are_refused() {
    let story = story();
    let xva = story.write("web.xva", &story.xva().bytes());
    for more in [
        &["--disk", "a=b"][..],
        &["--metadata", "x"],
        &["--changed-blocks", "x"],
        &["--lineage", "a:b=c"],
        &["raw.img"],
    ] {
        let text = fail_with(story.backup(&xva).args(more), 2);
        assert!(text.contains("cannot be used with"), "{text}");
    }
    let text = fail_with(undercroft(&story.repo).args(["backup", "x.raw"]), 2);
    assert!(text.contains("--vm"), "{text}");
    let dir = story.dir.path().to_owned();
    assert!(fail_with(&mut story.backup(&dir), 1).contains("is a directory"));
    let missing = story.path("missing.xva");
    assert!(fail_with(&mut story.backup(&missing), 1).contains("missing.xva"));
}

impl Story {
    fn restore_xva(&self, snapshot: &str, target: &Path, more: &[&str]) -> Command {
        let mut command = undercroft(&self.repo);
        command
            .args(["restore", snapshot])
            .args(more)
            .arg("--xva")
            .arg(target);
        command
    }
}

/// Names and sizes as GNU tar sees them.
fn listed(xva: &Path) -> Vec<(String, u64)> {
    let text = succeed(Command::new("tar").arg("tvf").arg(xva)).stdout;
    let text = String::from_utf8(text).expect("text");
    let line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[5].to_owned(), words[2].parse().expect("a size"))
    };
    text.lines().map(line).collect()
}

#[test]
fn what_is_written_is_an_xva_and_always_the_same() {
    let story = story();
    let source = story.xva();
    succeed(&mut story.backup(&story.write("web.xva", &source.bytes())));
    let out = story.path("out.xva");
    let report = json(&mut story.restore_xva("web & mail@latest", &out, &[]));
    assert_eq!(report["xva"], out.to_str().expect("a plain path"));
    let written = std::fs::read(&out).expect("an XVA");
    // xapi demands the disks in the order of their names.
    let expected = {
        let mut xva = source.clone();
        let first = xva
            .members
            .iter()
            .position(|(name, _)| name.starts_with("Ref:10"));
        xva.members[1..].rotate_left(first.expect("it is there") - 1);
        xva.bytes()
    };
    assert!(written == expected, "byte for byte what xapi would write");
    let names: Vec<_> = source
        .members
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(listed(&out).len(), names.len());
    let again = story.path("again.xva");
    succeed(&mut story.restore_xva("web & mail@latest", &again, &[]));
    assert!(std::fs::read(&again).expect("an XVA") == written);
    let piped = succeed(&mut story.restore_xva("web & mail@latest", Path::new("-"), &[])).stdout;
    assert!(piped == written);
    let report = story.assert_backs_up(&out);
    assert_eq!(of_disk(&report, "xvda")["new_bytes"], 0);
    let text = fail_with(&mut story.restore_xva("web & mail@latest", &out, &[]), 1);
    assert!(
        text.contains("exists") && text.contains("--force"),
        "{text}"
    );
    let sha1 = ["--force", "--xva-checksum", "sha1"];
    succeed(&mut story.restore_xva("web & mail@latest", &out, &sha1));
    assert!(
        listed(&out)
            .iter()
            .any(|(name, size)| name.ends_with("00.checksum") && *size == 40)
    );
    story.assert_backs_up(&out);
    let partial = |path: PathBuf| path.to_string_lossy().contains("partial");
    assert!(
        !support::files_below(story.dir.path())
            .into_iter()
            .any(partial)
    );
}

#[test]
fn repositories_behind_a_server_take_and_give_xvas() {
    let story = story();
    let served = Served::start();
    served.init();
    let bytes = Xva::of(&story.disks()[..1]).bytes();
    let xva = story.write("web.xva", &bytes);
    let mut backup = served.undercroft();
    let report = json(backup.args(["backup", "--vm", "vm", "--xva"]).arg(&xva));
    assert_eq!(report["disks"][0]["label"], "xvda");
    let mut again = served.undercroft();
    again.args(["backup", "--vm", "vm", "--json", "--xva", "-"]);
    let output = run_with_input(&mut again, &packed(&["gzip", "-1"], &bytes));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["new_bytes"], 0);
    let out = story.path("out.xva");
    let mut restore = served.undercroft();
    succeed(restore.args(["restore", "vm@latest", "--xva"]).arg(&out));
    assert!(std::fs::read(&out).expect("an XVA") == bytes);
}

#[test]
fn an_interrupted_session_goes_on_with_the_same_file() {
    let story = story();
    let mut served = Served::start();
    served.init();
    let bytes = noise(11, 12 * MIB);
    let disk = XvaDisk {
        reference: "Ref:7",
        userdevice: "0",
        bytes: &bytes,
    };
    let xva = story.write("noise.xva", &Xva::of(&[disk]).bytes());
    let mut backup = served.undercroft();
    backup.args([
        "backup",
        "--vm",
        "vm",
        "--json",
        "--limit-upload",
        "2MiB/s",
        "--xva",
    ]);
    let child = backup
        .arg(&xva)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.expect("it starts");
    let finished = |served: &Served| {
        let sessions = served.sessions();
        let finished = sessions
            .first()
            .map(|session| &session["finished_segments"]);
        finished.and_then(serde_json::Value::as_u64).unwrap_or(0)
    };
    let mut tries = 0;
    while finished(&served) < 2 {
        tries += 1;
        assert!(tries < 600, "no segment was finished");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    served.kill();
    served.start_again();
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("going on"),
        "{text}"
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let read = report["disks"][0]["read_bytes"].as_u64().expect("a number");
    assert!(
        read < bytes.len() as u64,
        "{read}: what was finished is not worked on again"
    );
    served.assert_restores("vm@latest", &bytes);
}

#[test]
fn exports_of_snapshots_become_vms() {
    let story = story();
    let mut xva = story.xva();
    let text = description(&story.disks(), "Halted", true);
    xva.members[0].1 = text.clone().into_bytes();
    succeed(&mut story.backup(&story.write("web.xva", &xva.bytes())));
    let out = story.path("out.xva");
    succeed(&mut story.restore_xva("web & mail@latest", &out, &[]));
    let ova = succeed(Command::new("tar").args(["-xOf"]).arg(&out).arg("ova.xml")).stdout;
    let flag = |flag| format!("<name>is_a_template</name><value><boolean>{flag}</boolean></value>");
    assert!(text.contains(&flag(1)));
    assert_eq!(
        String::from_utf8(ova).expect("text"),
        text.replace(&flag(1), &flag(0))
    );
}

#[test]
fn disks_that_were_left_out_are_not_in_the_xva() {
    let story = story();
    let xva = story.write("web.xva", &story.xva().bytes());
    succeed(story.backup(&xva).args(["--exclude-disk", "xvda"]));
    let out = story.path("out.xva");
    succeed(&mut story.restore_xva("web & mail@latest", &out, &[]));
    let bytes = std::fs::read(&out).expect("an XVA");
    let rest = Xva::of(&story.disks()[1..]);
    let expected: Vec<_> = rest.members.iter().map(|(name, _)| name.clone()).collect();
    let names: Vec<_> = listed(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, expected);
    let report = json(&mut story.backup(&out));
    assert_eq!(report["disks"].as_array().map(Vec::len), Some(1));
    assert_eq!(of_disk(&report, "xvdb")["new_bytes"], 0);
    let has = |word: &str| {
        bytes
            .windows(word.len())
            .any(|found| found == word.as_bytes())
    };
    assert!(!has("Ref:9<") && !has("Ref:90<") && has("Ref:10<") && has("web &amp; mail"));
}

#[test]
fn snapshots_of_raw_disks_become_xvas() {
    let story = story();
    let mut raw = undercroft(&story.repo);
    raw.args(["backup", "--vm", "raw"]);
    // The small disk comes first in the archive: then nothing may be left out of the other.
    let small = Image::new(story.path("small.raw"), 9, 100_000);
    succeed(raw.args([&small.path, &story.root.path, &story.data.path]));
    let out = story.path("out.xva");
    succeed(&mut story.restore_xva("raw@latest", &out, &[]));
    let members = listed(&out);
    assert_eq!(members[0].0, "ova.xml");
    assert_eq!(members.len(), 1 + 2 * (1 + 40 + 4));
    let written = std::fs::read(&out).expect("an XVA");
    succeed(&mut story.restore_xva("raw@latest", &out, &["--force"]));
    assert!(std::fs::read(&out).expect("an XVA") == written);
    let report = json(&mut story.backup(&out));
    assert_eq!(report["vm"], "raw");
    assert_eq!(report["new_bytes"], 0);
    for (label, image) in [
        ("xvda", &small),
        ("xvdb", &story.root),
        ("xvdc", &story.data),
    ] {
        let target = story.path("restored.raw");
        let mut restore = undercroft(&story.repo);
        let id = report["id"].as_str().expect("an id");
        restore.args(["restore", id, "--force", "--disk", label, "--to"]);
        succeed(restore.arg(&target));
        assert!(
            std::fs::read(&target).expect("a disk") == image.bytes,
            "{label}"
        );
    }
}

#[test]
fn a_target_that_fails_leaves_nothing() {
    let story = story();
    succeed(&mut story.backup(&story.write("web.xva", &story.xva().bytes())));
    let text = fail_with(
        &mut story.restore_xva("web & mail@latest", Path::new("/dev/full"), &[]),
        1,
    );
    assert!(
        text.contains("/dev/full") && text.contains("No space left"),
        "{text}"
    );
    let dir = story.dir.path().to_owned();
    let text = fail_with(&mut story.restore_xva("web & mail@latest", &dir, &[]), 2);
    assert!(text.contains("is a directory"), "{text}");
    let lost = story.path("no/where.xva");
    let text = fail_with(&mut story.restore_xva("web & mail@latest", &lost, &[]), 1);
    assert!(text.contains("there is no directory"), "{text}");
}
