//! Exports of real NBD servers, and backups of them.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Image, assert_restores, json, succeed, undercroft, workspace};

/// A server of another project, ended with its test.
pub struct Server(pub Child);

impl Server {
    /// Starts a program that makes `socket`.
    pub fn start(command: &mut Command, socket: &Path) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let server = Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")));
        for _ in 0..600 {
            if socket.exists() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{command:?} made no socket");
    }

    pub fn nbdkit(socket: &Path, args: &[&str]) -> Self {
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "-U"]).arg(socket).args(args);
        Self::start(&mut command, socket)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A repository, an image, and what is made beside them.
pub struct Story {
    pub dir: tempfile::TempDir,
    pub repo: PathBuf,
    pub image: Image,
}

/// Holes take two thirds of the image, and its end is no multiple of anything but sectors.
pub fn story() -> Story {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).arg("init"));
    let mut image = Image::new(dir.path().join("disk.raw"), 5, (40 << 20) + 512);
    image.bytes[8 << 20..32 << 20].fill(0);
    image.write();
    Story { dir, repo, image }
}

impl Story {
    pub fn backup(&self, uri: &str) -> Command {
        let mut command = undercroft(&self.repo);
        command.args(["backup", "--vm", "web", "--disk"]);
        command.arg(format!("root={uri}"));
        command
    }

    /// Backs up, restores, compares; the bytes that were read.
    pub fn assert_backs_up(&self, uri: &str) -> u64 {
        let report = json(&mut self.backup(uri));
        let scratch = self.dir.path();
        assert_restores(&self.repo, "web@latest", &self.image.bytes, scratch);
        report["disks"][0]["read_bytes"].as_u64().expect("a number")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn unix_uri(&self, socket: &str) -> String {
        format!("nbd+unix:///?socket={}", self.path(socket).display())
    }

    pub fn file(&self) -> &str {
        self.image.path.to_str().expect("a plain path")
    }
}
