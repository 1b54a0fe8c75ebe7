//! Mounts of repositories by the real binary.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::json;

/// A mount that a background process serves; unmounted with its test.
pub struct Mounted {
    /// Where.
    pub at: PathBuf,
    /// Who serves it.
    pub process: u64,
}

impl Mounted {
    /// Mounts at `at`, which is made, by `command`, which has everything before `mount`.
    pub fn start(command: &mut Command, at: &Path, options: &[&str]) -> Self {
        std::fs::create_dir_all(at).expect("a mountpoint");
        let report = json(
            command
                .arg("mount")
                .arg(at)
                .arg("--log-file")
                .arg(at.with_extension("log"))
                .args(options),
        );
        Self {
            at: at.to_owned(),
            process: report["process"].as_u64().expect("a process"),
        }
    }

    /// The file of a disk of the newest snapshot of `vm`.
    pub fn latest(&self, vm: &str, file: &str) -> PathBuf {
        self.at.join(vm).join("latest").join(file)
    }

    /// The directories of a VM's snapshots, oldest first.
    pub fn times(&self, vm: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.at.join(vm)).expect("a directory");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let mut times: Vec<_> = paths.filter(|path| !path.ends_with("latest")).collect();
        times.sort();
        times
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.at)
    }

    pub fn unmount(&self) {
        let done = Command::new("umount").arg(&self.at).output();
        let done = done.expect("umount is there");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// Waits until the process has ended.
    pub fn wait(&self) {
        for _ in 0..1200 {
            if has_ended(self.process) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("process {} goes on", self.process);
    }

    /// The most memory that it has had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        super::server::peak_memory(self.process as u32).expect("it runs")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        if !has_ended(self.process) {
            let _ = Command::new("kill").arg(self.process.to_string()).status();
        }
    }
}

/// True if something is mounted at `at`.
pub fn is_mounted(at: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let at = at.to_str().expect("a plain name");
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(at))
}

/// A process that nobody waits for stays as a zombie where process 1 does not reap.
fn has_ended(process: u64) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else {
        return true;
    };
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.trim_start().starts_with('Z'))
}
