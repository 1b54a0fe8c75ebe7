//! Takes out of QEMU what was put in: at the end of a backup, after a failure at any step of it, and at the
//! beginning of the next if this process died.
//!
//! It goes by what QEMU says is there, not by what should be: a command whose answer was lost may have been
//! carried out.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::error::QemuError;
use super::monitor::Monitor;
use super::names::is_copy;
use crate::clock::Stopwatch;

/// How long something may take to go.
const PATIENCE: Duration = match cfg!(test) {
    false => Duration::from_secs(30),
    true => Duration::from_millis(100),
};
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is to go.
pub(super) struct Sweep<'a> {
    /// What the names of its nodes, jobs, exports and descriptors begin with.
    pub prefix: &'a str,
    /// Whether the NBD server is ours.
    pub server: Server,
    /// Which bitmaps, besides the copies of this prefix.
    pub bitmaps: &'a dyn Fn(&str) -> bool,
}

/// Whose QEMU's NBD server is. It has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Ours,
    NotOurs,
    /// Taken for ours if something of ours, and nobody else's export, is there.
    Unknown,
}

/// Sweeps. What fails does not keep the rest from going; all failures are returned.
pub(super) fn sweep(monitor: &mut dyn Monitor, what: &Sweep<'_>) -> Vec<QemuError> {
    let mut problems = Vec::new();
    let steps: [fn(&mut dyn Monitor, &Sweep<'_>) -> Result<(), QemuError>; 5] = [
        end_exports,
        remove_bitmaps,
        end_jobs,
        delete_nodes,
        close_files,
    ];
    for step in steps {
        if let Err(error) = step(monitor, what) {
            let is_broken = error.is_broken();
            problems.push(error);
            if is_broken {
                break;
            }
        }
    }
    problems
}

fn end_exports(monitor: &mut dyn Monitor, what: &Sweep<'_>) -> Result<(), QemuError> {
    let exports = monitor.run("query-block-exports", Value::Null)?;
    let (ours, others): (Vec<_>, Vec<_>) =
        names(&exports, "id").partition(|name| name.starts_with(what.prefix));
    let is_ours = match what.server {
        Server::Ours => true,
        Server::NotOurs => false,
        Server::Unknown => {
            let has_left = !ours.is_empty() || !our_nodes(monitor, what.prefix)?.is_empty();
            has_left && others.is_empty()
        }
    };
    // Its exports go with it. Refused twice, it does not run.
    if is_ours && !is_done(monitor, "nbd-server-stop", Value::Null)? {
        is_done(monitor, "nbd-server-stop", Value::Null)?;
    }
    wait_until("an export", || {
        let exports = monitor.run("query-block-exports", Value::Null)?;
        let ours = names(&exports, "id").filter(|name| name.starts_with(what.prefix));
        let ours: Vec<_> = ours.collect();
        for id in &ours {
            is_done(
                monitor,
                "block-export-del",
                json!({"id": id, "mode": "hard"}),
            )?;
        }
        Ok(ours.is_empty())
    })
}

/// Whether QEMU did as asked. If it refused, the next look tells why, or that it is no matter.
fn is_done(
    monitor: &mut dyn Monitor,
    command: &'static str,
    arguments: Value,
) -> Result<bool, QemuError> {
    match monitor.run(command, arguments) {
        Err(QemuError::Refused { .. }) => Ok(false),
        other => other.map(|_| true),
    }
}

fn remove_bitmaps(monitor: &mut dyn Monitor, what: &Sweep<'_>) -> Result<(), QemuError> {
    let nodes = nodes(monitor)?;
    let mut failed = Ok(());
    for node in nodes.as_array().into_iter().flatten() {
        let node_name = node["node-name"].as_str().unwrap_or_default();
        for name in names(&node["dirty-bitmaps"], "name") {
            if !is_copy(&name) && !(what.bitmaps)(&name) {
                continue;
            }
            let arguments = json!({"node": node_name, "name": name});
            if let Err(error) = monitor.run("block-dirty-bitmap-remove", arguments) {
                failed = Err(error);
            }
        }
    }
    failed
}

fn end_jobs(monitor: &mut dyn Monitor, what: &Sweep<'_>) -> Result<(), QemuError> {
    let mut cancelled = Vec::new();
    wait_until("a job", || {
        let jobs = monitor.run("query-jobs", Value::Null)?;
        let jobs = jobs.as_array().into_iter().flatten();
        let ours = jobs.filter_map(|job| {
            let id = job["id"].as_str()?;
            let is_ours = id.starts_with(what.prefix);
            is_ours.then(|| (id.to_owned(), job["status"] == "concluded"))
        });
        let ours: Vec<_> = ours.collect();
        for (id, is_concluded) in &ours {
            let command = match is_concluded {
                true => "job-dismiss",
                false if cancelled.contains(id) => continue,
                false => "job-cancel",
            };
            if is_done(monitor, command, json!({"id": id}))? {
                cancelled.push(id.clone());
            }
        }
        Ok(ours.is_empty())
    })
}

fn delete_nodes(monitor: &mut dyn Monitor, what: &Sweep<'_>) -> Result<(), QemuError> {
    let mut refusal = None;
    let gone = wait_until("a scratch image", || {
        let ours = our_nodes(monitor, what.prefix)?;
        for node in &ours {
            match monitor.run("blockdev-del", json!({"node-name": node})) {
                // Another one stands on it still.
                Err(error @ QemuError::Refused { .. }) => refusal = Some(error),
                other => _ = other?,
            }
        }
        Ok(ours.is_empty())
    });
    match (gone, refusal) {
        (Err(QemuError::Stays { .. }), Some(refusal)) => Err(refusal),
        (gone, _) => gone,
    }
}

fn close_files(monitor: &mut dyn Monitor, what: &Sweep<'_>) -> Result<(), QemuError> {
    let sets = monitor.run("query-fdsets", Value::Null)?;
    for set in sets.as_array().into_iter().flatten() {
        let is_ours = |file: &Value| {
            let opaque = file["opaque"].as_str();
            opaque.is_some_and(|name| name.starts_with(what.prefix))
        };
        if set["fds"]
            .as_array()
            .is_some_and(|files| files.iter().any(is_ours))
        {
            let arguments = json!({"fdset-id": set["fdset-id"]});
            monitor.run("remove-fd", arguments)?;
        }
    }
    Ok(())
}

/// All nodes, each without those below it.
fn nodes(monitor: &mut dyn Monitor) -> Result<Value, QemuError> {
    monitor.run("query-named-block-nodes", json!({"flat": true}))
}

fn our_nodes(monitor: &mut dyn Monitor, prefix: &str) -> Result<Vec<String>, QemuError> {
    let nodes = nodes(monitor)?;
    let names = names(&nodes, "node-name").filter(|name| name.starts_with(prefix));
    // Those of files, which end with a letter, after what stands on them.
    let mut names: Vec<_> = names.collect();
    names.sort_by_key(|name| name.ends_with('f'));
    Ok(names)
}

fn names(list: &Value, field: &str) -> impl Iterator<Item = String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(move |item| Some(item[field].as_str()?.to_owned()))
}

fn wait_until(
    what: &str,
    mut is_so: impl FnMut() -> Result<bool, QemuError>,
) -> Result<(), QemuError> {
    let clock = Stopwatch::start();
    while !is_so()? {
        if clock.elapsed() > PATIENCE {
            return Err(QemuError::Stays {
                what: what.to_owned(),
                seconds: PATIENCE.as_secs(),
            });
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
