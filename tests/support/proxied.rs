//! A proxy and those who are enrolled at it, as processes.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::served::Served;
use super::{json, succeed};

/// A proxy on loopback. It reads below `disks` and writes below `out` of the story's directory; the story's
/// administrator is enrolled at it, and it is enrolled at the story's repository server.
pub struct Proxied {
    name: String,
    root: PathBuf,
    options: Vec<String>,
    passphrase: Option<String>,
    /// Where it listens, on loopback.
    pub port: u16,
    /// The proxy.
    pub process: Child,
    /// What its first start says after the token, line by line.
    pub said: Receiver<String>,
}

impl Proxied {
    /// Starts a proxy that the repository server knows in this role.
    pub fn start(served: &Served, name: &str, role: &str, options: &[&str]) -> Self {
        served.enroll_as(name, role, "*");
        Self::start_with(served, name, options, None)
    }

    /// Starts a proxy that is enrolled at the repository server and has a passphrase.
    pub fn start_with(
        served: &Served,
        name: &str,
        options: &[&str],
        passphrase: Option<&str>,
    ) -> Self {
        Self::start_by(served, name, options, passphrase, |_| {})
    }

    /// The same, by a command that `change` has seen.
    pub fn start_by(
        served: &Served,
        name: &str,
        options: &[&str],
        passphrase: Option<&str>,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        for dir in ["disks", "out"] {
            std::fs::create_dir_all(served.path(dir)).expect("a directory");
        }
        let root = served.path(".");
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let passphrase = passphrase.map(str::to_owned);
        let (process, port, token, said) =
            serve(&root, name, 0, &options, passphrase.as_deref(), change);
        let proxied = Self {
            name: name.to_owned(),
            root,
            options,
            passphrase,
            port,
            process,
            said,
        };
        let token = token.expect("the first start prints a token");
        proxied.enroll("admin", "admin", &token);
        proxied
    }

    /// As programs are told it.
    pub fn address(&self) -> String {
        format!("quic://127.0.0.1:{}", self.port)
    }

    /// Enrols `who` by a token.
    pub fn enroll(&self, who: &str, role: &str, token: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
        let config = self.root.join(format!("{who}.config"));
        command.env("UNDERCROFT_CONFIG", config);
        command.args(["enroll", &self.address(), "--role", role, "--name", who]);
        succeed(command.args(["--token", token]));
    }

    /// Somebody else, enrolled by a token that the administrator made.
    pub fn enroll_as(&self, who: &str, role: &str, vm: &str) {
        let mut tokens = Command::new(env!("CARGO_BIN_EXE_undercroft"));
        tokens.args(["proxy", "tokens", "--role", role, "--vm", vm, "--state"]);
        let made = json(tokens.arg(self.state()));
        self.enroll(who, role, made["token"].as_str().expect("a token"));
    }

    /// Its state.
    pub fn state(&self) -> PathBuf {
        self.root.join(format!("{}.state", self.name))
    }

    /// A command of the administrator that looks after the proxy.
    pub fn proxy(&self, served: &Served, words: &[&str]) -> Command {
        self.proxy_as(served, "admin", words)
    }

    /// A command of somebody that looks after the proxy.
    pub fn proxy_as(&self, served: &Served, who: &str, words: &[&str]) -> Command {
        let mut command = served.undercroft_as(who);
        command.arg("proxy").args(words);
        command.args(["--proxy", &self.address()]);
        command
    }

    /// A backup through it of a disk below `disks`.
    pub fn backup(&self, served: &Served, who: &str, vm: &str, disk: &Path) -> Command {
        let mut command = served.undercroft_as(who);
        command.args(["backup", "--vm", vm, "--progress", "none", "--proxy"]);
        command.arg(self.address()).arg(disk);
        command
    }

    /// A restore through it.
    pub fn restore(&self, served: &Served, who: &str, snapshot: &str, to: &Path) -> Command {
        let mut command = served.undercroft_as(who);
        command.args(["restore", snapshot, "--progress", "none", "--proxy"]);
        command.arg(self.address()).arg("--to").arg(to);
        command
    }

    /// What `proxy show` tells of a task.
    pub fn show(&self, served: &Served, task: &str) -> serde_json::Value {
        json(&mut self.proxy(served, &["show", task]))
    }

    /// The state of a task.
    pub fn state_of(&self, served: &Served, task: &str) -> String {
        let shown = self.show(served, task);
        shown["state"].as_str().expect("a state").to_owned()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// SIGTERM, and waits for an end in order.
    pub fn stop(&mut self) {
        signal(&self.process, "TERM");
        assert!(self.process.wait().expect("it ends").success());
    }

    /// Starts again on the same port.
    pub fn start_again(&mut self) {
        let passphrase = self.passphrase.as_deref();
        let (name, options) = (&self.name, &self.options);
        let (process, port, token, _) =
            serve(&self.root, name, self.port, options, passphrase, |_| {});
        assert_eq!((port, token), (self.port, None));
        self.process = process;
    }
}

impl Drop for Proxied {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends a signal, as in `TERM`.
pub fn signal(process: &Child, name: &str) {
    succeed(Command::new("sh").args(["-c", &format!("kill -{name} {}", process.id())]));
}

fn serve(
    root: &Path,
    name: &str,
    port: u16,
    options: &[String],
    passphrase: Option<&str>,
    change: impl FnOnce(&mut Command),
) -> (Child, u16, Option<String>, Receiver<String>) {
    let state = root.join(format!("{name}.state"));
    let is_first = !state.exists();
    let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    command
        .env_remove("UNDERCROFT_PASSPHRASE")
        .env("UNDERCROFT_CONFIG", root.join(format!("{name}.config")));
    if let Some(passphrase) = passphrase {
        command.env("UNDERCROFT_PASSPHRASE", passphrase);
    }
    command
        .args(["proxy", "serve", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("--state")
        .arg(state)
        .args(options)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    change(&mut command);
    let mut process = command.spawn().expect("it starts");
    let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    let listening = next();
    let port = listening.rsplit(':').next().expect("a port");
    let port = port.parse().expect("a number");
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
