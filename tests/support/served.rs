//! A repository server and those who are enrolled at it, as processes.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::{Image, json, succeed, undercroft, workspace};

/// A server on loopback, and an administrator enrolled at it.
pub struct Served {
    dir: tempfile::TempDir,
    /// Where it listens, on loopback.
    pub port: u16,
    /// The server.
    pub process: Child,
    options: Vec<String>,
}

impl Served {
    /// Starts a server with an empty store.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more options on its command line.
    pub fn start_with(options: &[&str]) -> Self {
        Self::begin(workspace(), options, |_| {}).0
    }

    /// Starts a server with an empty store in `dir`, by a command that `change` has seen. Returns, too, what
    /// it says after the token, line by line.
    pub fn start_in(
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut Command),
    ) -> (Self, Receiver<String>) {
        Self::begin(dir, &[], change)
    }

    fn begin(
        dir: tempfile::TempDir,
        options: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> (Self, Receiver<String>) {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let (process, port, token, lines) = serve(dir.path(), 0, &options, change);
        let served = Self {
            dir,
            port,
            process,
            options,
        };
        served.enroll(
            "admin",
            "admin",
            &token.expect("the first start prints a token"),
        );
        (served, lines)
    }

    /// A path in the story's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As programs are told it.
    pub fn address(&self) -> String {
        format!("quic://127.0.0.1:{}", self.port)
    }

    /// Enrols `name` by a token.
    pub fn enroll(&self, name: &str, role: &str, token: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
        command.env("UNDERCROFT_CONFIG", self.path(&format!("{name}.config")));
        command.args([
            "enroll",
            &self.address(),
            "--role",
            role,
            "--token",
            token,
            "--name",
            name,
        ]);
        succeed(&mut command);
    }

    /// Somebody else, enrolled by a token that the administrator made.
    pub fn enroll_as(&self, name: &str, role: &str, vm: &str) {
        let mut tokens = Command::new(env!("CARGO_BIN_EXE_undercroft"));
        tokens.args([
            "repository",
            "tokens",
            "--role",
            role,
            "--vm",
            vm,
            "--store",
        ]);
        let made = json(tokens.arg(self.path("store")));
        self.enroll(name, role, made["token"].as_str().expect("a token"));
    }

    /// The program as the administrator.
    pub fn undercroft(&self) -> Command {
        self.undercroft_as("admin")
    }

    /// The program as somebody else who is enrolled.
    pub fn undercroft_as(&self, name: &str) -> Command {
        let mut command = undercroft(Path::new(&format!("{}/main", self.address())));
        command.env("UNDERCROFT_CONFIG", self.path(&format!("{name}.config")));
        command
    }

    /// A backup of the only disk of the VM `vm`.
    pub fn backup(&self, image: &Image) -> Command {
        let mut command = self.undercroft();
        command
            .args(["backup", "--vm", "vm", "--progress", "none"])
            .arg(&image.path);
        command
    }

    /// Restores `snapshot`'s only disk and compares it with `expected`.
    pub fn assert_restores(&self, snapshot: &str, expected: &[u8]) {
        let target = self.path("restored.raw");
        let _ = std::fs::remove_file(&target);
        let mut restore = self.undercroft();
        succeed(restore.args(["restore", snapshot, "--to"]).arg(&target));
        assert!(
            std::fs::read(&target).expect("the file") == expected,
            "{snapshot}"
        );
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// Starts again on the same port.
    pub fn start_again(&mut self) {
        let (process, port, token, _) = serve(self.dir.path(), self.port, &self.options, |_| {});
        assert_eq!(port, self.port);
        assert_eq!(token, None, "a token is printed once");
        self.process = process;
    }

    /// What `repository sessions` lists.
    pub fn sessions(&self) -> Vec<serde_json::Value> {
        let mut sessions = self.undercroft();
        let listed = json(sessions.args(["repository", "sessions"]));
        listed.as_array().expect("an array").clone()
    }

    /// Makes the repository `main`, with small segments and packs.
    pub fn init(&self) {
        let mut init = self.undercroft();
        succeed(init.args(["init", "--segment-size", "1M", "--pack-size", "1M"]));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(
    dir: &Path,
    port: u16,
    options: &[String],
    change: impl FnOnce(&mut Command),
) -> (Child, u16, Option<String>, Receiver<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    command
        .args(["repository", "serve", "--checkpoint", "0", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("--store")
        .arg(dir.join("store"))
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    change(&mut command);
    let mut process = command.spawn().expect("it starts");
    let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    let listening = next();
    let port = listening
        .rsplit(':')
        .next()
        .expect("a port")
        .parse()
        .expect("a number");
    let is_first = !dir.join("admin.config").exists();
    let token = is_first.then(|| {
        next();
        next().rsplit(' ').next().expect("a token").to_owned()
    });
    // Whatever it says later has somewhere to go, whether anybody listens or not.
    let (said, later) = channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
    (process, port, token, later)
}
