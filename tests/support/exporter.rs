//! A running `undercroft export`.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// An exporter, killed with its test.
pub struct Exporter {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// What it said when it listened.
    pub said: Value,
}

impl Exporter {
    /// Starts `command`, a whole `undercroft export ...`, and waits until it listens.
    pub fn start(command: &mut Command) -> Self {
        command
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("it can be read");
        let said = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{command:?} said {line:?}: {:?}", child.try_wait()));
        Self { child, lines, said }
    }

    /// What it says next.
    pub fn next_said(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("it can be read");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("it said {line:?}"))
    }

    /// The URI of an export.
    pub fn uri_of(&self, export: usize) -> &str {
        self.said["exports"][export]["uri"].as_str().expect("a URI")
    }

    /// That of the first one.
    pub fn uri(&self) -> &str {
        self.uri_of(0)
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM, and what became of it; the lines that it said after it listened.
    pub fn terminate(mut self) -> (Option<i32>, String) {
        self.signal();
        let mut rest = String::new();
        for line in self.lines.by_ref().lines() {
            rest += &line.expect("it can be read");
        }
        let status = self.child.wait().expect("it ends");
        (status.code(), rest)
    }

    /// SIGTERM.
    pub fn signal(&self) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, Signal::TERM).expect("it runs");
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program of another project; its output, and whether it succeeded.
pub fn peer(program: &str, args: &[&str]) -> Output {
    // A peer that hangs is a failure, too.
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "120", program]).args(args);
    command
        .stdin(Stdio::null())
        .output()
        .expect("timeout starts")
}

/// Runs it and expects success; what it printed.
pub fn peer_succeeds(program: &str, args: &[&str]) -> String {
    let output = peer(program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
