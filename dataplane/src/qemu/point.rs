//! Makes a consistent point of a guest's disks, and exports it.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use undercroft_format::qmp::devices::Device;

use super::error::QemuError;
use super::monitor::Monitor;
use super::names::{Owner, PointId};
use super::scratch::{ExportSocket, ScratchDir};
use super::sweep::Server;

/// Bytes that a bit of a bitmap stands for.
const GRANULARITY: u64 = 64 << 10;
/// Names of nodes have room for so many.
const DISKS_MAX: usize = 9999;
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A disk that is to be backed up.
#[derive(Clone, Debug)]
pub struct PlannedDisk {
    /// The disk.
    pub device: Device,
    /// The bitmap that tells what changed since the parent; it is whole and not busy.
    pub since: Option<String>,
}

/// A disk at a point in time.
#[derive(Clone, Debug)]
pub struct ExportedDisk {
    /// Its label.
    pub label: String,
    /// The node that the guest writes to.
    pub node: String,
    /// Name of the export.
    pub export: String,
    /// The bitmap that records what is written after the point.
    pub bitmap: String,
    /// The bitmap, told by the export, of what changed between the parent and the point.
    pub changes: Option<String>,
}

/// A point that is exported.
#[derive(Debug)]
pub struct Point {
    pub(super) disks: Vec<ExportedDisk>,
    pub(super) socket: ExportSocket,
}

/// Makes the point. If that fails, some of it is there: what was made is swept by its names; `server` then
/// says whose QEMU's NBD server is.
///
/// # Errors
/// [`QemuError`]: which command failed and what QEMU said.
pub(super) fn make(
    monitor: &mut dyn Monitor,
    id: PointId,
    owner: Owner,
    disks: &[PlannedDisk],
    scratch: &mut ScratchDir,
    server: &mut Server,
) -> Result<Point, QemuError> {
    *server = Server::NotOurs;
    if disks.len() > DISKS_MAX {
        return Err(QemuError::TooManyDisks {
            count: disks.len(),
            limit: DISKS_MAX,
        });
    }
    for (number, disk) in disks.iter().enumerate() {
        make_scratch_image(monitor, id, number, &disk.device, scratch)?;
    }
    begin(monitor, id, owner, disks)?;
    let socket = serve(monitor, id, scratch, server)?;
    let exported = disks.iter().enumerate();
    let exported = exported.map(|(number, disk)| {
        let changes = disk.since.as_ref().map(|_| owner.copy(id));
        let export = id.scratch(number);
        let arguments = json!({
            "type": "nbd", "id": export, "node-name": export, "name": export, "writable": false,
            "bitmaps": changes.as_slice(),
        });
        monitor.run("block-export-add", arguments)?;
        Ok(ExportedDisk {
            label: disk.device.label.clone(),
            node: disk.device.node.clone(),
            export,
            bitmap: owner.bitmap(id),
            changes,
        })
    });
    Ok(Point {
        disks: exported.collect::<Result<_, QemuError>>()?,
        socket,
    })
}

/// An empty image that shows the disk below it.
fn make_scratch_image(
    monitor: &mut dyn Monitor,
    id: PointId,
    number: usize,
    disk: &Device,
    scratch: &mut ScratchDir,
) -> Result<(), QemuError> {
    let (image, file, job) = (id.scratch(number), id.file(number), id.making(number));
    let added = monitor.ask("add-fd", json!({"opaque": file}), Some(scratch.file()?))?;
    // It is gone once QEMU is: there is no need to wait until it lies on a disk.
    let cache = json!({"no-flush": true});
    let path = format!("/dev/fdset/{}", added["fdset-id"]);
    let node = json!({"driver": "file", "node-name": file, "filename": path, "cache": cache});
    monitor.run("blockdev-add", node)?;
    let options = json!({"driver": "qcow2", "file": file, "size": disk.size});
    monitor.run(
        "blockdev-create",
        json!({"job-id": job, "options": options}),
    )?;
    finish_job(monitor, &job).map_err(|error| match error {
        Ended::Failed(reason) => QemuError::ScratchImage {
            label: disk.label.clone(),
            reason,
        },
        Ended::Unheard(error) => error,
    })?;
    let node = json!({
        "driver": "qcow2", "node-name": image, "file": file, "backing": disk.node, "cache": cache,
    });
    monitor.run("blockdev-add", node)?;
    Ok(())
}

enum Ended {
    Failed(String),
    Unheard(QemuError),
}

impl From<QemuError> for Ended {
    fn from(error: QemuError) -> Self {
        Self::Unheard(error)
    }
}

/// Waits for the end of a job that QEMU carries out by itself.
fn finish_job(monitor: &mut dyn Monitor, id: &str) -> Result<(), Ended> {
    loop {
        let jobs = monitor.run("query-jobs", Value::Null)?;
        let mut jobs = jobs.as_array().into_iter().flatten();
        let Some(job) = jobs.find(|job| job["id"] == id) else {
            return Err(Ended::Failed("its job vanished".to_owned()));
        };
        if job["status"] == "concluded" {
            let error = job["error"].as_str().map(str::to_owned);
            monitor.run("job-dismiss", json!({"id": id}))?;
            return error.map_or(Ok(()), |error| Err(Ended::Failed(error)));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The moment itself.
fn begin(
    monitor: &mut dyn Monitor,
    id: PointId,
    owner: Owner,
    disks: &[PlannedDisk],
) -> Result<(), QemuError> {
    let backups = disks.iter().enumerate().map(|(number, disk)| {
        json!({"type": "blockdev-backup", "data": {
            "job-id": id.scratch(number), "device": disk.device.node, "target": id.scratch(number),
            "sync": "none", "filter-node-name": id.filter(number),
        }})
    });
    // The jobs come first: from there to the transaction's end a disk takes no writes, whatever threads
    // serve it, so that bitmaps and point mean the same moment.
    let bitmaps = disks.iter().flat_map(|disk| bitmaps(id, owner, disk));
    let actions: Vec<_> = backups.chain(bitmaps).collect();
    monitor.run("transaction", json!({"actions": actions}))?;
    Ok(())
}

fn bitmaps(id: PointId, owner: Owner, disk: &PlannedDisk) -> Vec<Value> {
    let node = &disk.device.node;
    let mut actions = vec![json!({"type": "block-dirty-bitmap-add", "data": {
        "node": node, "name": owner.bitmap(id), "granularity": GRANULARITY,
        "persistent": disk.device.keeps_bitmaps,
    }})];
    if let Some(since) = &disk.since {
        let copy = owner.copy(id);
        actions.push(json!({"type": "block-dirty-bitmap-add", "data": {
            "node": node, "name": copy, "granularity": GRANULARITY, "disabled": true,
        }}));
        actions.push(json!({"type": "block-dirty-bitmap-merge", "data": {
            "node": node, "target": copy, "bitmaps": [since],
        }}));
    }
    actions
}

/// Starts the NBD server, on a socket that nobody else can reach.
fn serve(
    monitor: &mut dyn Monitor,
    id: PointId,
    scratch: &ScratchDir,
    server: &mut Server,
) -> Result<ExportSocket, QemuError> {
    let name = format!("{}nbd", id.prefix());
    let mut socket = scratch.socket(&name)?;
    monitor.ask("getfd", json!({"fdname": name}), socket.listener())?;
    let address = json!({"type": "fd", "data": {"str": name}});
    let started = monitor.run("nbd-server-start", json!({"addr": address}));
    *server = match &started {
        Ok(_) => Server::Ours,
        Err(error) if error.is_broken() => Server::Unknown,
        Err(_) => Server::NotOurs,
    };
    if let Err(error) = started {
        // QEMU took it at once, or not at all.
        let _ = monitor.run("closefd", json!({"fdname": name}));
        return Err(error);
    }
    socket.handed_over();
    Ok(socket)
}
