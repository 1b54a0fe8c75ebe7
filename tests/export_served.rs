//! Exports from a repository behind a server, and from an encrypted one; what becomes of them when the server dies.
//!
//! Needs nbdcopy, libnbd's Python module, nbdfuse: `scripts/setup.sh test`.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::exporter::{Exporter, peer_succeeds};
use support::served::Served;
use support::{Image, succeed, undercroft, workspace};

const LEN: usize = (20 << 20) + 1536;

fn assert_copies(uri: &str, expected: &[u8], scratch: &Path) {
    peer_succeeds("nbdcopy", &[uri, scratch.to_str().expect("a plain path")]);
    assert!(
        std::fs::read(scratch).expect("the copy") == expected,
        "{uri}"
    );
}

#[test]
fn an_export_ends_its_reads_when_the_repositorys_server_dies() {
    let mut served = Served::start();
    served.init();
    let image = Image::new(served.path("disk.raw"), 8, LEN);
    succeed(&mut served.backup(&image));
    served.enroll_as("reader", "restore", "*");
    let socket = format!("unix:{}", served.path("s").display());
    let mut export = served.undercroft_as("reader");
    export.args([
        "export",
        "vm@latest",
        "--cache-size",
        "8M",
        "--nbd",
        &socket,
    ]);
    let exporter = Exporter::start(&mut export);
    assert_copies(exporter.uri(), &image.bytes, &served.path("copy"));
    served.kill();
    // Some of it is kept in memory; the rest is told to be gone, in bounded time.
    let script = format!(
        "import nbd\nh = nbd.NBD()\nh.connect_uri('{}')\n\
         for at in range(0, 20 << 20, 4 << 20):\n  try: h.pread(4 << 20, at)\n\
         \x20 except nbd.Error as e:\n    assert e.errno == 'EIO', e\n    break\n\
         else: raise AssertionError('all of it was read')\nh.shutdown()\n",
        exporter.uri()
    );
    peer_succeeds("/usr/bin/python3", &["-c", &script]);
    let (code, _) = exporter.terminate();
    assert_eq!(code, Some(0));
}

#[test]
fn an_encrypted_disk_is_mounted_and_compared() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    let encrypted = || {
        let mut command = undercroft(&repo);
        command.env("UNDERCROFT_PASSPHRASE", "horse");
        command
    };
    succeed(encrypted().args(["init", "--encrypt"]));
    let image = Image::new(dir.path().join("disk.raw"), 8, LEN);
    succeed(encrypted().args(["backup", "--vm", "vm"]).arg(&image.path));
    let socket = format!("unix:{}", dir.path().join("s").display());
    let exporter =
        Exporter::start(encrypted().args(["export", "vm@latest:disk", "--nbd", &socket]));
    assert_copies(exporter.uri(), &image.bytes, &dir.path().join("copy"));
    let file = dir.path().join("mounted.raw");
    std::fs::write(&file, "").expect("a file");
    let mut fuse = Command::new("nbdfuse")
        .args([&file, Path::new("--readonly")].iter().rev())
        .arg(exporter.uri())
        .stdin(Stdio::null())
        .spawn()
        .expect("it starts: scripts/setup.sh test installs it");
    let size = |file: &Path| std::fs::metadata(file).map_or(0, |found| found.len());
    for _ in 0..600 {
        if size(&file) == LEN as u64 || fuse.try_wait().expect("its state").is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = std::fs::read(&file);
    let _ = Command::new("fusermount3").arg("-u").arg(&file).status();
    let _ = fuse.kill();
    let _ = fuse.wait();
    assert!(found.expect("the mounted disk") == image.bytes);
}
