//! Leaving the terminal: the command runs itself once more, and returns when that has mounted.
//!
//! The second process inherits the terminal, so that it can ask for a passphrase and report errors. Once it has mounted
//! it prints the report, and a zero byte, which nothing else contains; then it leaves the session of the terminal and
//! writes to its log. It is another process, and no copy of this one, because a copy has one thread only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::failure::Problem;

/// Set for the second process.
const READY_VARIABLE: &str = "UNDERCROFT_MOUNT_BACKGROUND";
/// Ends the report.
const READY: u8 = 0;

/// True in the second process.
pub fn is_second() -> bool {
    std::env::var_os(READY_VARIABLE).is_some()
}

/// Runs the same command once more, passes its report on, and returns when it is ready. Ends as it does if it fails: it
/// has said why.
pub fn start() -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(program)
        .arg0("undercroft")
        .args(std::env::args_os().skip(1))
        .env(READY_VARIABLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the process that serves the mount")?;
    let mut said = Vec::new();
    let mut output = child.stdout.take().context("reading its report")?;
    output
        .read_to_end(&mut said)
        .context("reading its report")?;
    if let Some((&READY, report)) = said.split_last() {
        return crate::report::print(report);
    }
    let ended = child.wait().context("waiting for it")?;
    crate::report::print(&said)?;
    match ended.code() {
        Some(code) => std::process::exit(code),
        None => {
            Err(Problem::new(format!("the process that serves the mount died: {ended}")).into())
        }
    }
}

/// The file that the second process logs to: made, and open.
pub fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("making {}", directory.display()))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| {
            Problem::new(format!("opening the log {}", path.display()))
                .hint("name another file: --log-file FILE")
        })
}

/// Where the second process logs to, if nobody says: a file per mountpoint.
pub fn default_log(mountpoint: &Path) -> PathBuf {
    let from = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    let state = from("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| from("HOME").map(|home| PathBuf::from(home).join(".local/state")));
    let state = state.unwrap_or_else(std::env::temp_dir);
    let name = mountpoint.to_string_lossy();
    let name = name.trim_matches('/').replace('/', "-");
    state.join("undercroft").join(format!("mount-{name}.log"))
}

/// Says that the mount is ready, and leaves the terminal.
pub fn leave(log: &File) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    stdout
        .write_all(&[READY])
        .and_then(|()| stdout.flush())
        .context("telling that the mount is ready")?;
    // A process group's leader cannot, and needs not: somebody started it by itself.
    let _ = rustix::process::setsid();
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("opening /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("leaving the terminal")?;
    rustix::stdio::dup2_stderr(log).context("leaving the terminal")?;
    rustix::stdio::dup2_stdout(&null).context("leaving the terminal")?;
    // A directory that this holds could not be unmounted.
    let _ = std::env::set_current_dir("/");
    Ok(())
}
