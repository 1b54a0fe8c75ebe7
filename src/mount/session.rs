//! Mounting, waiting for the end, and unmounting.

use std::io;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fuser::{BackgroundSession, Config, MountOption, Session};
use rustix::mount::UnmountFlags;
use undercroft_dataplane::progress::Progress;

use super::fs::SnapshotFs;
use super::state::State;
use crate::failure::{Problem, one_line};

/// Requests answered at once: those that wait for the repository must leave some for those that do not.
const THREADS: usize = 24;
/// How often it is looked whether to end.
const TICK: Duration = Duration::from_millis(100);
/// How far ahead of a reader in sequence the kernel reads, where it lets us say so.
const READ_AHEAD_KIB: u32 = 2048;
const DEVICE: &str = "/dev/fuse";
/// Mounts and unmounts for users.
const HELPER: &str = "fusermount3";

/// A mount, as long as it lasts.
pub struct Mount<'a> {
    mountpoint: &'a Path,
    state: Arc<State>,
    /// Never dropped: it would unmount what is mounted there by then, which may be another's.
    session: ManuallyDrop<BackgroundSession>,
}

/// Whether the program behind a mount has died.
fn is_dead(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    )
}

/// Checks that something can be mounted at `mountpoint`.
pub fn check(mountpoint: &Path) -> anyhow::Result<()> {
    let shown = mountpoint.display();
    let problem = |text: String, hint: String| Err(Problem::new(text).hint(hint).into());
    let dead = || {
        problem(
            format!("at {shown} there is a mount whose program has died"),
            format!("unmount it: umount {shown}, or fusermount3 -u {shown}"),
        )
    };
    match std::fs::metadata(mountpoint) {
        Ok(found) if !found.is_dir() => {
            return problem(
                format!("{shown} is no directory, so nothing can be mounted there"),
                "name an empty directory".to_owned(),
            );
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return problem(
                format!("the mountpoint {shown} does not exist"),
                format!("make it: mkdir -p {shown}"),
            );
        }
        Err(error) if is_dead(&error) => return dead(),
        Err(error) => return Err(error).with_context(|| format!("looking at {shown}")),
    }
    let entries = std::fs::read_dir(mountpoint);
    if entries.as_ref().is_err_and(is_dead) {
        return dead();
    }
    let mut entries = entries.with_context(|| format!("looking into {shown}"))?;
    if entries.next().is_some() {
        return problem(
            format!("the mountpoint {shown} is not empty: what is in it would be hidden"),
            "name an empty directory, or unmount what is mounted there".to_owned(),
        );
    }
    if !Path::new(DEVICE).exists() {
        return Err(Problem::new(format!(
            "there is no {DEVICE} here, so nothing can be mounted"
        ))
        .hint("load the kernel's module as root: modprobe fuse")
        .hint("in a container, let it have the device: --device /dev/fuse --cap-add SYS_ADMIN")
        .into());
    }
    Ok(())
}

impl<'a> Mount<'a> {
    /// Mounts what `state` has.
    ///
    /// # Errors
    /// The system does not mount it: who runs this may not, or a program is missing.
    pub fn begin(mountpoint: &'a Path, state: Arc<State>) -> anyhow::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
            MountOption::FSName("undercroft".to_owned()),
            MountOption::Subtype("undercroft".to_owned()),
        ];
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let fs = SnapshotFs::new(state.clone());
        let session =
            Session::new(fs, mountpoint, &config).map_err(|error| explain(error, mountpoint))?;
        let session = session
            .spawn()
            .context("starting the threads of the mount")?;
        Ok(Self {
            mountpoint,
            state,
            session: ManuallyDrop::new(session),
        })
    }

    /// Serves until it is unmounted, or `progress` says to stop; then it unmounts.
    pub fn serve(self, progress: &Progress) -> anyhow::Result<()> {
        read_further_ahead(self.mountpoint);
        while !progress.is_stopping() && !self.has_ended() {
            std::thread::sleep(TICK);
            self.state.tidy(false);
        }
        let unmounted = match self.has_ended() {
            true => Ok(()),
            false => self.unmount(),
        };
        // What is left of pins goes with the process, but others would see it until then.
        self.state.tidy(true);
        unmounted
    }

    fn has_ended(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// Unmounts; what is in use goes as soon as this process ends, and whoever reads it gets an error.
    fn unmount(&self) -> anyhow::Result<()> {
        let Err(error) = self.unmount_by(UnmountFlags::empty(), &["-u"]) else {
            return Ok(());
        };
        let shown = self.mountpoint.display();
        tracing::warn!(mountpoint = %shown, error = one_line(&*error), "files are in use there, and go");
        let unmounted = self.unmount_by(UnmountFlags::DETACH, &["-u", "-z"]);
        unmounted.with_context(|| {
            Problem::new(format!("unmounting {shown}"))
                .hint(format!("run as root: umount --lazy {shown}"))
        })
    }

    /// By the system call, or by the program that may do it for users.
    fn unmount_by(&self, flags: UnmountFlags, options: &[&str]) -> anyhow::Result<()> {
        match rustix::mount::unmount(self.mountpoint, flags) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        let helped = Command::new(HELPER)
            .args(options)
            .arg("--")
            .arg(self.mountpoint)
            .stdin(Stdio::null())
            .output()
            .context(HELPER)?;
        if !helped.status.success() {
            let said = String::from_utf8_lossy(&helped.stderr);
            anyhow::bail!("{HELPER}: {}", said.trim());
        }
        Ok(())
    }
}

/// Has the kernel read further ahead. Only root may, and others do without.
///
/// Nothing may ask the mount itself: were this process killed meanwhile, the kernel would wait for its answer, and the
/// process for the kernel.
fn read_further_ahead(mountpoint: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc_pid_mountinfo(5): the third field is the device, the fifth the mountpoint; the last line is the latest.
    let device = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?;
        let at = fields.nth(1)?;
        (Path::new(at) == mountpoint).then_some(device)
    });
    let Some(device) = device else {
        return;
    };
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(
            file,
            error = one_line(&error),
            "the kernel reads ahead as it does"
        );
    }
}

fn explain(error: io::Error, mountpoint: &Path) -> anyhow::Error {
    let problem = Problem::new(format!("mounting at {}", mountpoint.display()));
    let is_root = rustix::process::geteuid().is_root();
    let problem = match error.kind() {
        io::ErrorKind::NotFound if !is_root => {
            problem.hint("who is not root mounts with fusermount3: install Debian's package fuse3")
        }
        io::ErrorKind::PermissionDenied if is_root => problem
            .hint("in a container, allow it to mount: --cap-add SYS_ADMIN --device /dev/fuse"),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => problem.hint(format!(
            "it takes the right to use {DEVICE}, and to write to the mountpoint; or run it as root"
        )),
        _ if !is_root => problem.hint(
            "fusermount3 refuses it: the mountpoint has to be yours; see also /etc/fuse.conf",
        ),
        _ => problem,
    };
    anyhow::Error::new(error).context(problem)
}
