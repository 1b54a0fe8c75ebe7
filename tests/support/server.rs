//! A repository server as its own process, and programs enrolled at it.
#![allow(
    clippy::disallowed_methods,
    reason = "these lines and waits take real time"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{json, succeed, undercroft, workspace};

/// How the server is run, and where.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Words before the server's command line, as `ip netns exec NAME`.
    pub server: Vec<OsString>,
    /// Words before a client's command line.
    pub client: Vec<OsString>,
    /// The server's IP address; loopback if none.
    pub address: Option<String>,
    /// Further options of `repository serve`.
    pub options: Vec<String>,
}

/// A server with a store of its own, and an administrator enrolled at it.
pub struct Server {
    pub dir: tempfile::TempDir,
    pub place: Place,
    pub port: u16,
    process: Child,
}

impl Server {
    /// Starts one and enrols the administrator.
    pub fn start(place: Place) -> Self {
        let dir = workspace();
        let (process, port, token) = serve(dir.path(), &place, 0);
        let server = Self {
            dir,
            place,
            port,
            process,
        };
        let token = token.expect("the first start prints a token");
        server.enroll("admin", "admin", &token);
        server
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub fn address(&self) -> String {
        let host = self.place.address.as_deref().unwrap_or("127.0.0.1");
        format!("quic://{host}:{}", self.port)
    }

    /// What the server has said on standard error since its first start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("server.log")).expect("the server's log")
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Most memory that the server ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        peak_memory(self.process.id()).expect("the server runs")
    }

    /// The program, where clients run.
    pub fn program(&self, name: &str) -> Command {
        let mut command = wrapped(&self.place.client);
        command
            .env("UNDERCROFT_CONFIG", self.path(&format!("{name}.config")))
            .env_remove("UNDERCROFT_REPO")
            .stdin(Stdio::null());
        command
    }

    pub fn enroll(&self, name: &str, role: &str, token: &str) {
        succeed(&mut self.enroll_command(name, role, token));
    }

    pub fn enroll_command(&self, name: &str, role: &str, token: &str) -> Command {
        let mut command = self.program(name);
        command.args(["enroll", &self.address(), "--role", role]);
        command.args(["--token", token, "--name", name]);
        command
    }

    /// A token of the server's, by the files.
    pub fn token(&self, words: &[&str]) -> String {
        let mut tokens = Command::new(env!("CARGO_BIN_EXE_undercroft"));
        tokens.args(["repository", "tokens"]).args(words);
        let made = json(tokens.arg("--store").arg(self.store()));
        made["token"].as_str().expect("a token").to_owned()
    }

    /// The program as the administrator, with the repository `main`.
    pub fn undercroft(&self) -> Command {
        self.undercroft_as("admin")
    }

    pub fn undercroft_as(&self, name: &str) -> Command {
        let mut command = self.program(name);
        command.args(["--repo", &format!("{}/main", self.address())]);
        command
    }

    /// Makes the repository `main`, with segments and packs that even small images fill many of.
    pub fn init(&self) {
        let sizes = ["init", "--segment-size", "1M", "--pack-size", "1M"];
        succeed(self.undercroft().args(sizes));
    }

    pub fn backup(&self, vm: &str, image: &Path) -> Command {
        let mut command = self.undercroft();
        command.args(["backup", "--vm", vm, "--progress", "none"]);
        command.arg("--disk");
        let mut disk = OsString::from("disk=");
        disk.push(image);
        command.arg(disk);
        command
    }

    /// Restores a snapshot's only disk through the server and compares it.
    pub fn assert_restores(&self, snapshot: &str, expected: &[u8]) {
        let target = self.path(&format!("restored-{}.raw", snapshot.replace('@', "-")));
        let _ = std::fs::remove_file(&target);
        let mut restore = self.undercroft();
        restore.args(["restore", snapshot, "--progress", "none", "--to"]);
        succeed(restore.arg(&target));
        assert_same(&target, expected, snapshot);
        let _ = std::fs::remove_file(&target);
    }

    pub fn snapshots(&self) -> Vec<serde_json::Value> {
        let listed = json(self.undercroft().arg("snapshots"));
        listed.as_array().expect("an array").clone()
    }

    pub fn sessions(&self) -> Vec<serde_json::Value> {
        let listed = json(self.undercroft().args(["repository", "sessions"]));
        listed.as_array().expect("an array").clone()
    }

    /// Bytes of all packs, open ones included.
    pub fn pack_bytes(&self) -> u64 {
        pack_bytes(&self.store().join("main"))
    }

    pub fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// Starts again on the same port.
    pub fn start_again(&mut self) {
        let (process, port, token) = serve(self.dir.path(), &self.place, self.port);
        assert_eq!(port, self.port);
        assert_eq!(token, None, "a token is printed once");
        self.process = process;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server said:\n{}", tail(&self.log(), 60));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Bytes of all packs of a local repository.
pub fn pack_bytes(repository: &Path) -> u64 {
    let packs = super::files_below(&repository.join("packs"));
    let lens = packs
        .iter()
        .filter_map(|pack| std::fs::metadata(pack).ok())
        .map(|meta| meta.len());
    lens.sum()
}

/// Most memory that a process ever had, in bytes; `None` if it is gone.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Compares a file with what it should hold.
pub fn assert_same(path: &Path, expected: &[u8], what: &str) {
    let found = std::fs::read(path).expect("the restored file");
    assert_eq!(found.len(), expected.len(), "{what}");
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: first byte that differs");
}

/// Waits for something that must come within `limit`.
pub fn wait_for(what: &str, limit: Duration, mut is_there: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !is_there() {
        assert!(
            Instant::now() < until,
            "waited {limit:?} for {what} in vain"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The program, run by way of `words`.
pub fn wrapped(words: &[OsString]) -> Command {
    let program = env!("CARGO_BIN_EXE_undercroft");
    match words.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// A local repository with the sizes of [`Server::init`], for what a backup stores without a network.
pub fn local_bytes(dir: &Path, image: &Path) -> u64 {
    let repo = dir.join("clean");
    let sizes = ["init", "--segment-size", "1M", "--pack-size", "1M"];
    succeed(undercroft(&repo).args(sizes));
    let mut backup = undercroft(&repo);
    backup.args(["backup", "--vm", "vm", "--progress", "none"]);
    succeed(backup.arg(image));
    let bytes = pack_bytes(&repo);
    std::fs::remove_dir_all(&repo).expect("it can be removed");
    bytes
}

fn serve(dir: &Path, place: &Place, port: u16) -> (Child, u16, Option<String>) {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("server.log"))
        .expect("a log");
    let host = place.address.as_deref().unwrap_or("127.0.0.1");
    let mut process = wrapped(&place.server)
        .args(["-v", "repository", "serve", "--listen"])
        .arg(format!("{host}:{port}"))
        .arg("--store")
        .arg(dir.join("store"))
        .args(&place.options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    let listening = next();
    let port = listening.rsplit(':').next().expect("a port");
    let port = port.parse().expect("a number");
    let is_first = !dir.join("admin.config").exists();
    let token = is_first.then(|| {
        next();
        next().rsplit(' ').next().expect("a token").to_owned()
    });
    // Whatever it says later has somewhere to go.
    std::thread::spawn(move || lines.for_each(drop));
    (process, port, token)
}
