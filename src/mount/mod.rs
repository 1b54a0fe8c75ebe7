//! Snapshots as files: what `undercroft mount` shows, and how it is served.
//!
//! [`tree`] names what there is, [`shown`] keeps that up to date, [`readers`] keeps what is being read in the
//! repository, [`files`] opens it, [`state`] knows what is open, [`fs`] answers the kernel, [`session`] mounts and unmounts, [`background`] leaves
//! the terminal.

pub mod background;
pub mod files;
pub mod fs;
pub mod nodes;
pub mod readers;
pub mod session;
pub mod shown;
pub mod state;
pub mod tree;

use std::time::Duration;

/// How long the kernel waits for a repository that does not answer, whatever it asked for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What `work` comes to, if it does so in time. It is given up then, and goes on by itself.
pub fn in_time<R: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> anyhow::Result<R> + Send + 'static,
) -> anyhow::Result<R> {
    let (done, result) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("mount-ask".into())
        .spawn(move || {
            // Nobody waits any more if it took too long.
            let _ = done.send(work());
        })?;
    result.recv_timeout(patience).unwrap_or_else(|_| {
        Err(anyhow::anyhow!(
            "the repository did not answer within {} s",
            patience.as_secs()
        ))
    })
}
