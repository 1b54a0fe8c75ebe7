//! Disks over NBD: backups from real servers, and from a double of XenServer's, restored and compared.
//!
//! Needs nbdkit, qemu-nbd and certtool: `scripts/setup.sh test`.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::certificates::make_certificates;
use support::exports::{Server, story};
use support::{assert_restores, fail_with, json, succeed, undercroft};

#[test]
fn holes_are_never_read() {
    let story = story();
    let _server = Server::nbdkit(&story.path("s"), &["file", story.file()]);
    let read = story.assert_backs_up(&story.unix_uri("s"));
    assert!(read <= 17 << 20, "{read} bytes were read");
    assert!(read >= 8 << 20, "{read} bytes were read");
}

#[test]
fn servers_without_structured_replies_are_read_whole() {
    let story = story();
    let _server = Server::nbdkit(&story.path("s"), &["--no-sr", "file", story.file()]);
    let read = story.assert_backs_up(&story.unix_uri("s"));
    assert_eq!(read, story.image.bytes.len() as u64);
}

#[test]
fn qemu_exports_of_qcow2_images_are_read() {
    let story = story();
    let qcow2 = story.path("disk.qcow2");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
    succeed(convert.arg(&story.image.path).arg(&qcow2));
    let socket = story.path("s");
    let mut command = Command::new("qemu-nbd");
    command.args(["-r", "-t", "-f", "qcow2", "-e", "8", "-x", "vm/root", "-k"]);
    let _server = Server::start(command.arg(&socket).arg(&qcow2), &socket);
    let uri = format!("nbd+unix:///vm/root?socket={}", socket.display());
    let read = story.assert_backs_up(&uri);
    assert!(read <= 18 << 20, "{read} bytes were read");
    let wrong = format!("nbd+unix:///vm/other?socket={}", socket.display());
    let text = fail_with(&mut story.backup(&wrong), 1);
    assert!(
        text.contains("no such export") && text.contains("vm/other"),
        "{text}"
    );
}

#[test]
fn block_sizes_are_kept_to() {
    let mut story = story();
    story.image.bytes.truncate(40 << 20);
    story.image.write();
    let policy = [
        "--filter=blocksize-policy",
        "file",
        story.file(),
        "blocksize-minimum=64K",
        "blocksize-preferred=64K",
        "blocksize-maximum=128K",
        "blocksize-error-policy=error",
    ];
    let _server = Server::nbdkit(&story.path("s"), &policy);
    story.assert_backs_up(&story.unix_uri("s"));
}

#[test]
fn errors_that_pass_are_survived() {
    let story = story();
    let faults = [
        "--filter=error",
        "file",
        story.file(),
        "error-pread=EIO",
        "error-pread-rate=5%",
    ];
    let _server = Server::nbdkit(&story.path("s"), &faults);
    story.assert_backs_up(&story.unix_uri("s"));
}

#[test]
fn a_range_that_cannot_be_read_fails_the_backup_with_its_place() {
    let story = story();
    let script = format!(
        "if [ $4 -le 4194304 ] && [ $(($4+$3)) -gt 4194304 ]; then echo 'EIO bad sector' >&2; exit 1; fi; \
         dd if={} iflag=count_bytes,skip_bytes skip=$4 count=$3 bs=1M 2>/dev/null",
        story.file()
    );
    let size = format!("get_size=echo {}", story.image.bytes.len());
    let pread = format!("pread={script}");
    let _server = Server::nbdkit(&story.path("s"), &["eval", &size, &pread]);
    let text = fail_with(&mut story.backup(&story.unix_uri("s")), 1);
    assert!(text.contains("4194304") && text.contains("EIO"), "{text}");
    let snapshots = json(undercroft(&story.repo).arg("snapshots"));
    let snapshots = snapshots["snapshots"].as_array().or(snapshots.as_array());
    assert_eq!(snapshots.map(Vec::len), Some(0));
}

#[test]
fn tls_servers_are_verified() {
    let story = story();
    let pki = story.path("pki");
    std::fs::create_dir(&pki).expect("a directory");
    make_certificates(&pki);
    let dir = pki.display();
    let tls = format!("--tls-certificates={dir}");
    let args = ["--tls=require", &tls, "file", story.file()];
    let socket = story.path("s");
    let _server = Server::nbdkit(&socket, &args);
    let uri = |parameters: &str| {
        let socket = socket.display();
        format!("nbds+unix:///?socket={socket}&{parameters}")
    };
    story.assert_backs_up(&uri(&format!(
        "tls-certificates={dir}&tls-hostname=localhost"
    )));
    story.assert_backs_up(&uri(&format!("x-tls-pin={dir}/server-cert.pem")));
    for (parameters, code, expected) in [
        (format!("x-tls-pin={dir}/ca-cert.pem"), 1, "pinned"),
        ("x-tls-pin=sha256:00".to_owned(), 1, "64 hexadecimal digits"),
        (
            format!("tls-certificates={dir}&tls-hostname=other"),
            1,
            "not valid for name",
        ),
        ("tls-hostname=localhost".to_owned(), 1, ""),
        (format!("tls-certificates={dir}"), 1, "tls-hostname"),
        (
            "tls-hostname=localhost&tls-verify-peer=0".to_owned(),
            2,
            "always verified",
        ),
    ] {
        let text = fail_with(&mut story.backup(&uri(&parameters)), code);
        assert!(text.contains(expected), "{parameters}: {text}");
    }
    let clear = fail_with(&mut story.backup(&story.unix_uri("s")), 1);
    assert!(clear.contains("nbds://"), "{clear}");
    drop(_server);
    std::fs::remove_file(&socket).ok();
    let _server = Server::nbdkit(&socket, &["file", story.file()]);
    let secure = uri(&format!("x-tls-pin={dir}/server-cert.pem"));
    let text = fail_with(&mut story.backup(&secure), 1);
    assert!(text.contains("refuses STARTTLS"), "{text}");
}

/// xapi-nbd as its source has it: EXPORT_NAME alone, one request at a time, one error and the end, silence
/// for those it does not know.
#[derive(Default)]
struct XapiDouble {
    disk: Vec<u8>,
    /// Reads after which a connection is dropped.
    drop_after: Option<usize>,
    connections: AtomicUsize,
    connections_most: AtomicUsize,
    requests_ahead: AtomicUsize,
    goodbyes: AtomicUsize,
    reads: AtomicUsize,
}

const XAPI_EXPORT: &str = "/3f9c?session_id=OpaqueRef:secret";

impl XapiDouble {
    /// Serves on a port of its own, which it gives.
    fn serve(self: &Arc<Self>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let double = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let double = double.clone();
                std::thread::spawn(move || {
                    let open = double.connections.fetch_add(1, Ordering::SeqCst) + 1;
                    double.connections_most.fetch_max(open, Ordering::SeqCst);
                    if open <= 16 {
                        let _ = double.connection(stream.expect("a connection"));
                    }
                    double.connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        port
    }

    fn connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x01")?;
        let mut flags = [0; 4];
        stream.read_exact(&mut flags)?;
        assert_eq!(flags, [0, 0, 0, 1], "only what was offered may be echoed");
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header)?;
            assert_eq!(header[..8], *b"IHAVEOPT");
            let len = u32::from_be_bytes(header[12..].try_into().unwrap());
            let mut data = vec![0; len as usize];
            stream.read_exact(&mut data)?;
            if header[11] == 1 {
                if data != XAPI_EXPORT.as_bytes() {
                    return Ok(());
                }
                break;
            }
            stream.write_all(&0x0003_e889_0455_65a9_u64.to_be_bytes())?;
            stream.write_all(&header[8..12])?;
            stream.write_all(&[0x80, 0, 0, 1, 0, 0, 0, 0])?;
        }
        stream.write_all(&(self.disk.len() as u64).to_be_bytes())?;
        stream.write_all(&[0, 3])?;
        stream.write_all(&[0; 124])?;
        let mut served = 0;
        loop {
            let mut request = [0; 28];
            stream.read_exact(&mut request)?;
            let offset = u64::from_be_bytes(request[16..24].try_into().unwrap()) as usize;
            let len = u32::from_be_bytes(request[24..].try_into().unwrap()) as usize;
            let mut reply = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
            reply.extend_from_slice(&request[8..16]);
            if request[7] == 2 {
                self.goodbyes.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            let is_ragged = !offset.is_multiple_of(512) || !len.is_multiple_of(512);
            if request[7] != 0 || is_ragged || offset + len > self.disk.len() {
                reply[7] = 22;
                return stream.write_all(&reply);
            }
            stream.set_nonblocking(true)?;
            if stream.peek(&mut [0]).is_ok() {
                self.requests_ahead.fetch_add(1, Ordering::SeqCst);
            }
            stream.set_nonblocking(false)?;
            if self.drop_after.is_some_and(|most| served >= most) {
                stream.write_all(&reply)?;
                return stream.write_all(&self.disk[offset..offset + len / 2]);
            }
            stream.write_all(&reply)?;
            stream.write_all(&self.disk[offset..offset + len])?;
            self.reads.fetch_add(1, Ordering::SeqCst);
            served += 1;
        }
    }
}

fn xapi_uri(port: u16, export: &str) -> String {
    let export = export.replace('?', "%3F");
    format!("nbd://127.0.0.1:{port}/{export}")
}

#[test]
fn xapi_nbd_is_told_by_itself_and_gets_one_request_at_a_time() {
    for drop_after in [None, Some(3)] {
        let story = story();
        let double = Arc::new(XapiDouble {
            disk: story.image.bytes.clone(),
            drop_after,
            ..XapiDouble::default()
        });
        let port = double.serve();
        let read = story.assert_backs_up(&xapi_uri(port, XAPI_EXPORT));
        assert_eq!(read, story.image.bytes.len() as u64);
        assert_eq!(double.requests_ahead.load(Ordering::SeqCst), 0);
        let most = double.connections_most.load(Ordering::SeqCst);
        assert!((1..=4).contains(&most), "{most} connections at once");
        for _ in 0..100 {
            if double.connections.load(Ordering::SeqCst) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(double.goodbyes.load(Ordering::SeqCst) >= 1);
        let shown = json(undercroft(&story.repo).args(["show", "web@latest"]));
        assert!(!shown.to_string().contains("secret"), "{shown}");
    }
}

#[test]
fn a_bad_session_is_explained_and_not_shown() {
    let story = story();
    let double = Arc::new(XapiDouble::default());
    let port = double.serve();
    let uri = xapi_uri(port, "/3f9c?session_id=OpaqueRef:wrong");
    let text = fail_with(&mut story.backup(&uri), 1);
    assert!(text.contains("session in the name is not valid"), "{text}");
    assert!(!text.contains("OpaqueRef"), "{text}");
}

#[test]
fn a_server_that_comes_back_is_gone_on_with() {
    let story = story();
    let socket = story.path("s");
    let slow = ["--filter=rate", "file", story.file(), "rate=16M"];
    let server = Server::nbdkit(&socket, &slow);
    let mut backup = story.backup(&story.unix_uri("s"));
    let child = backup.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let child = child.expect("the binary starts");
    std::thread::sleep(Duration::from_millis(1200));
    drop(server);
    std::fs::remove_file(&socket).ok();
    std::thread::sleep(Duration::from_millis(300));
    let _server = Server::nbdkit(&socket, &["file", story.file()]);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert_restores(
        &story.repo,
        "web@latest",
        &story.image.bytes,
        story.dir.path(),
    );
}
