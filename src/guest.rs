//! The disks of a running QEMU guest, as sources of a backup.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use undercroft_dataplane::ingest::backup::{BackupJob, BackupReport, DiskJob};
use undercroft_dataplane::ingest::changes::{ChangedBlocks, NotTold};
use undercroft_dataplane::nbd::NbdOptions;
use undercroft_dataplane::progress::Progress;
use undercroft_dataplane::qemu::QemuError;
use undercroft_dataplane::qemu::guest::Guest;
use undercroft_dataplane::qemu::live::{LivePoint, Outcome};
use undercroft_dataplane::qemu::monitor::QmpClient;
use undercroft_dataplane::qemu::names::{Owner, PointId};
use undercroft_dataplane::qemu::point::{ExportedDisk, PlannedDisk};
use undercroft_dataplane::qemu::scratch::ScratchDir;
use undercroft_dataplane::repository::Repository;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::lineage;
use undercroft_format::qmp::devices::Device;

use crate::backup_job::{check_label, check_metadata_name};
use crate::backup_request::leave_out;
use crate::catalog::Catalog;
use crate::failure::{Problem, one_line, warn};
use crate::nbd_source::{dirty_bitmap, open_export};
use crate::settings::Settings;
use crate::signals;

/// Names, in a disk's lineage, the bitmap that began at the point in time of its state.
const BITMAP: &str = "qemu-bitmap";
/// Names the node that the guest wrote to.
const NODE: &str = "qemu-node";

/// A guest to back up.
#[derive(Clone, Debug)]
pub struct GuestRequest {
    /// Its monitor.
    pub socket: PathBuf,
    /// Where scratch files are made.
    pub scratch: PathBuf,
}

/// The point in time at which a guest is backed up: made when it is first needed, the same for all tries of
/// a backup, taken out of QEMU at its end.
pub struct GuestPoint<'a> {
    request: &'a GuestRequest,
    excluded: &'a [String],
    made: Option<Made>,
}

struct Made {
    point: LivePoint,
    /// The snapshot that the bitmaps were chosen for.
    parent: Option<StoredSnapshot>,
    /// Per disk, the bitmap that began at the parent, if it cannot be used.
    doubts: Vec<Option<Doubt>>,
}

/// Why a bitmap does not tell what changed.
#[derive(Clone, Debug)]
struct Doubt {
    bitmap: String,
    why: &'static str,
}

impl<'a> GuestPoint<'a> {
    /// That of the guest that `request` names, without the disks labelled as `excluded`.
    pub fn new(request: &'a GuestRequest, excluded: &'a [String]) -> Self {
        Self {
            request,
            excluded,
            made: None,
        }
    }

    /// Adds the disks to `job`. If it has no parent, it gets the newest snapshot that a bitmap in the guest
    /// continues.
    pub fn add_to(
        &mut self,
        job: &mut BackupJob,
        settings: &Settings,
        repository: &dyn Repository,
    ) -> anyhow::Result<()> {
        let made = match &mut self.made {
            Some(made) => {
                made.point.check()?;
                made
            }
            made => made.insert(make(
                self.request,
                self.excluded,
                job,
                settings,
                repository,
            )?),
        };
        job.parent = made.parent.clone();
        job.confirm = Some(made.point.confirm());
        for (disk, doubt) in made.point.disks().iter().zip(&made.doubts) {
            let parent = made.parent.as_ref();
            let disk = disk_job(
                &self.request.socket,
                &made.point,
                disk,
                parent,
                doubt.clone(),
            )?;
            job.disks.push(disk);
        }
        if let Some((name, _)) = &job.metadata {
            check_metadata_name(Path::new(name), &job.disks)?;
        }
        Ok(())
    }

    /// Takes everything out of QEMU again, and says so if that was why the backup failed.
    pub fn end(self, ran: anyhow::Result<BackupReport>) -> anyhow::Result<BackupReport> {
        let Some(Made { point, .. }) = self.made else {
            return ran;
        };
        let failure = point.failure();
        let outcome = match ran {
            Ok(_) => Outcome::Published,
            Err(_) => Outcome::Failed,
        };
        for problem in point.release(outcome) {
            warn(format_args!(
                "something of the backup stays in QEMU until the next one: {}",
                one_line(&problem)
            ));
        }
        match (ran, failure) {
            (Err(error), Some(failure)) => Err(error.context(advise(
                Problem::new(format!(
                    "the guest's disks could not be kept as they were: {}",
                    one_line(&*failure)
                )),
                &failure,
            ))),
            (ran, _) => ran,
        }
    }
}

fn make(
    request: &GuestRequest,
    excluded: &[String],
    job: &BackupJob,
    settings: &Settings,
    repository: &dyn Repository,
) -> anyhow::Result<Made> {
    let failed = |doing: String| {
        move |error: QemuError| {
            let problem = advise(Problem::new(doing), &error);
            anyhow::Error::new(error).context(problem)
        }
    };
    let catalog = Catalog::read(settings, repository)?;
    let scratch = ScratchDir::open(&request.scratch)
        .map_err(failed("opening the scratch directory".to_owned()))?;
    // From here on a signal must not end the process at once: the guest would be left with a job that keeps
    // all it overwrites.
    signals::stop_cleanly(Arc::<Progress>::default()).context("watching for signals")?;
    let monitor = request.socket.clone();
    let guest = Guest::open(Box::new(move || {
        Ok(Box::new(QmpClient::connect(&monitor)?))
    }));
    let socket = request.socket.display();
    let guest = guest.map_err(failed(format!(
        "asking the guest at {socket} for its disks"
    )))?;
    let devices = choose(guest.devices(), excluded)?;
    let parent = job.parent.clone();
    let parent = parent.or_else(|| find_parent(&catalog, &job.vm, &devices));
    let (disks, doubts): (Vec<_>, Vec<_>) = devices
        .into_iter()
        .map(|device| {
            let (since, doubt) = match since(&device, parent.as_ref()) {
                Ok(since) => (since, None),
                Err(doubt) => (None, Some(doubt)),
            };
            (PlannedDisk { device, since }, doubt)
        })
        .unzip();
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| anyhow::anyhow!("the system has no random bytes: {error}"))?;
    let owner = Owner::new(repository.config().repository.as_bytes(), &job.vm);
    let point = guest.point(PointId::from_bytes(id), owner, &disks, scratch);
    let point = point.map_err(failed(format!(
        "making a point in time of the guest at {socket}"
    )))?;
    if signals::is_stopping() {
        return Err(Problem::new("stopped on request: no snapshot was published").into());
    }
    Ok(Made {
        point,
        parent,
        doubts,
    })
}

/// The disks to back up: those that the guest can write to.
fn choose(devices: &[Device], excluded: &[String]) -> anyhow::Result<Vec<Device>> {
    let devices = leave_out(devices.to_vec(), excluded, |device| &device.label)?;
    let mut chosen: Vec<Device> = Vec::new();
    for device in devices {
        if device.is_removable || device.is_read_only {
            tracing::info!(
                disk = device.label,
                file = device.file,
                "left out: the guest cannot write to it, or it is removable"
            );
            continue;
        }
        check_label(&device.label)?;
        if chosen.iter().any(|known| known.label == device.label) {
            return Err(Problem::new(format!(
                "two disks of the guest would be labelled {}",
                device.label
            ))
            .hint("give their devices ids of their own on QEMU's command line")
            .into());
        }
        chosen.push(device);
    }
    if chosen.is_empty() {
        return Err(Problem::new("the guest has no disk to back up")
            .hint("read-only disks and removable media are left out, and what --exclude-disk names")
            .into());
    }
    Ok(chosen)
}

/// The newest snapshot of the VM that a bitmap in the guest continues, else the newest that named one.
fn find_parent(catalog: &Catalog, vm: &str, devices: &[Device]) -> Option<StoredSnapshot> {
    let of_vm = || {
        let snapshots = catalog.snapshots.iter().rev();
        snapshots.filter(|stored| stored.snapshot.vm == vm)
    };
    let continued = of_vm().find(|stored| {
        let mut devices = devices.iter();
        devices.any(|device| matches!(since(device, Some(stored)), Ok(Some(_))))
    });
    let named = || {
        of_vm().find(|stored| {
            let mut labels = devices.iter().map(|device| &*device.label);
            labels.any(|label| lineage_of(stored, label, BITMAP).is_some())
        })
    };
    continued.or_else(named).cloned()
}

/// A part of a disk's lineage in a snapshot.
fn lineage_of<'a>(stored: &'a StoredSnapshot, label: &str, key: &str) -> Option<&'a str> {
    let lineage = &stored.snapshot.disk(label)?.lineage;
    let pair = lineage.iter().find(|(known, _)| known == key);
    pair.map(|(_, value)| value.as_str())
}

/// The bitmap that began at the disk's state in the parent, if that names one.
fn since(device: &Device, parent: Option<&StoredSnapshot>) -> Result<Option<String>, Doubt> {
    let named = parent.and_then(|parent| lineage_of(parent, &device.label, BITMAP));
    let Some(name) = named else {
        return Ok(None);
    };
    let why = match device.bitmap(name) {
        None => "the guest does not have it",
        Some(bitmap) if !bitmap.is_whole => "it missed writes: it is inconsistent or disabled",
        Some(bitmap) if bitmap.is_busy => "something else in QEMU uses it",
        Some(_) => return Ok(Some(name.to_owned())),
    };
    Err(Doubt {
        bitmap: name.to_owned(),
        why,
    })
}

fn disk_job(
    socket: &Path,
    point: &LivePoint,
    disk: &ExportedDisk,
    parent: Option<&StoredSnapshot>,
    doubt: Option<Doubt>,
) -> anyhow::Result<DiskJob> {
    let uri = PathBuf::from(point.uri(disk));
    let lost = point.lost();
    let options = NbdOptions {
        is_stopping: Arc::new(move || signals::is_stopping() || lost.load(Ordering::Relaxed)),
    };
    let source = open_export(&uri, options.clone())
        .with_context(|| format!("opening the export of disk {}", disk.label))?;
    let mut lineage = vec![
        (BITMAP.to_owned(), disk.bitmap.clone()),
        (NODE.to_owned(), disk.node.clone()),
        (lineage::SNAPSHOT.to_owned(), point.id().to_string()),
    ];
    let changed = dirty_bitmap(&uri, &source, options).map(|(_, changed)| changed);
    if changed.is_some()
        && let Some(base) =
            parent.and_then(|parent| lineage_of(parent, &disk.label, lineage::SNAPSHOT))
    {
        lineage.push((lineage::BASE.to_owned(), base.to_owned()));
    }
    lineage.sort();
    let doubted = doubt.map(|Doubt { bitmap, why }| {
        ChangedBlocks::asked(move || {
            Err(NotTold {
                what: format!("dirty bitmap {bitmap:?}"),
                source: why.into(),
            })
        })
    });
    Ok(DiskJob {
        label: disk.label.clone(),
        source,
        source_name: format!("qmp:{}/{}", socket.display(), disk.label),
        changed_blocks: changed.or(doubted),
        lineage,
        state: [0; 32],
    })
}

/// Adds what to do about it.
fn advise(problem: Problem, error: &QemuError) -> Problem {
    match error {
        QemuError::Connect { .. } | QemuError::NoGreeting { .. } => problem.hint(
            "QEMU needs a QMP socket of its own for backups: -qmp unix:PATH,server=on,wait=off",
        ),
        QemuError::Scratch { source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            problem.hint("name a directory that is there: --qmp-scratch DIR")
        }
        QemuError::Scratch { .. } | QemuError::ScratchFull { .. } => problem
            .hint("name a directory on a file system with more room: --qmp-scratch DIR"),
        QemuError::Refused {
            command: "nbd-server-start",
            ..
        } => problem.hint(
            "QEMU has one NBD server, and another backup or a migration uses it: try again when it is done",
        ),
        QemuError::IoThread { label, .. } => problem
            .hint(format!("leave it out: --exclude-disk {label}"))
            .hint("or give its device no iothread=, or run the guest with QEMU 9.0 or newer"),
        error if error.is_unknown_command() => {
            problem.hint("QEMU 5.2 or newer can be backed up so")
        }
        _ => problem,
    }
}
