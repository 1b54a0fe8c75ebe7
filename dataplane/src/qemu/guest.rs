//! A guest at its monitor: which disks it has, and from there to a point of them.

use serde_json::{Value, json};
use undercroft_format::qmp::devices::{Device, devices};
use undercroft_format::qmp::message::Version;

use super::error::QemuError;
use super::live::LivePoint;
use super::monitor::Monitor;
use super::names::{Owner, PREFIX, PointId};
use super::point::{self, PlannedDisk};
use super::scratch::ScratchDir;
use super::sweep::{Server, Sweep, sweep};

/// From this version on QEMU's NBD server leaves the end of connections to its main thread.
const SERVES_IO_THREADS: Version = Version { major: 9, minor: 0 };

/// Connects to a guest's monitor, as often as it has to be.
pub type Connect = Box<dyn Fn() -> Result<Box<dyn Monitor>, QemuError> + Send>;

/// A guest. As long as this lives nobody else can use its monitor's socket.
pub struct Guest {
    link: Link,
    devices: Vec<Device>,
    could_write: bool,
}

impl Guest {
    /// Connects to the guest, takes out what an earlier run left that was killed, and asks for the disks.
    ///
    /// # Errors
    /// No connection, or an answer that says no.
    pub fn open(connect: Connect) -> Result<Self, QemuError> {
        let mut link = Link {
            monitor: connect()?,
            connect,
        };
        let left = sweep(
            link.monitor(),
            &Sweep {
                prefix: PREFIX,
                server: Server::Unknown,
                bitmaps: &|_| false,
            },
        );
        if let Some(error) = left.into_iter().next() {
            return Err(error);
        }
        let answer = link.monitor().run("query-block", Value::Null)?;
        let could_write = link.status()? != "io-error";
        Ok(Self {
            link,
            devices: devices(&answer)?,
            could_write,
        })
    }

    /// Its drives that have media.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Makes a point of `disks` named `id`, and watches over it.
    ///
    /// # Errors
    /// What failed first; all that was made until then is taken out again.
    pub fn point(
        mut self,
        id: PointId,
        owner: Owner,
        disks: &[PlannedDisk],
        mut scratch: ScratchDir,
    ) -> Result<LivePoint, QemuError> {
        let monitor = self.link.monitor();
        for disk in disks {
            check_thread(monitor, &disk.device)?;
        }
        let mut server = Server::NotOurs;
        match point::make(monitor, id, owner, disks, &mut scratch, &mut server) {
            Ok(point) => Ok(LivePoint::watch(
                self.link,
                id,
                owner,
                point,
                scratch,
                self.could_write,
            )),
            Err(error) => {
                let begun = owner.bitmap(id);
                for problem in self.link.sweep(&id.prefix(), server, &|name| name == begun) {
                    tracing::warn!(error = %Chain(&problem), "something of a backup stays in QEMU until the next one");
                }
                self.link.resume(self.could_write);
                scratch.empty();
                Err(error)
            }
        }
    }
}

/// Refuses a disk whose export would end QEMU. There, the end of a client's connection is dealt with in the
/// disk's thread, but `nbd_blockdev_client_closed`, as of the fix of CVE-2024-7409, insists on the main one.
fn check_thread(monitor: &mut dyn Monitor, disk: &Device) -> Result<(), QemuError> {
    let version = monitor.version();
    let Some(qdev) = disk.qdev.as_deref().filter(|_| version < SERVES_IO_THREADS) else {
        return Ok(());
    };
    // A disk's own property, or that of the controller whose bus it is on.
    let bus = property(monitor, qdev, "parent_bus")?;
    let controller = bus.as_deref().and_then(|bus| bus.rsplit_once('/'));
    for path in [Some(qdev), controller.map(|(path, _)| path)]
        .into_iter()
        .flatten()
    {
        if let Some(thread) = property(monitor, path, "iothread")? {
            return Err(QemuError::IoThread {
                label: disk.label.clone(),
                thread,
                version,
            });
        }
    }
    Ok(())
}

/// A property of an object, if it has it and it is not empty.
fn property(
    monitor: &mut dyn Monitor,
    path: &str,
    property: &str,
) -> Result<Option<String>, QemuError> {
    match monitor.run("qom-get", json!({"path": path, "property": property})) {
        Ok(value) => Ok(value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)),
        Err(QemuError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A monitor that can be connected to again.
pub(super) struct Link {
    monitor: Box<dyn Monitor>,
    connect: Connect,
}

impl Link {
    pub fn monitor(&mut self) -> &mut dyn Monitor {
        &mut *self.monitor
    }

    /// Sweeps, if need be on a new connection; what is left in the end.
    pub fn sweep(
        &mut self,
        prefix: &str,
        server: Server,
        bitmaps: &dyn Fn(&str) -> bool,
    ) -> Vec<QemuError> {
        let what = Sweep {
            prefix,
            server,
            bitmaps,
        };
        let problems = sweep(self.monitor(), &what);
        if !problems.iter().any(QemuError::is_broken) {
            return problems;
        }
        // The old connection ends first: a monitor serves one at a time.
        self.monitor = Box::new(Nobody);
        match (self.connect)() {
            Ok(monitor) => {
                self.monitor = monitor;
                sweep(self.monitor(), &what)
            }
            Err(error) => vec![error],
        }
    }

    /// The guest's state: `running`, `paused`, `io-error` ...
    pub fn status(&mut self) -> Result<String, QemuError> {
        let status = self.monitor().run("query-status", Value::Null)?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Lets a guest go on that was stopped when a write found no place, if none had failed before the backup: scratch
    /// files are gone now.
    pub fn resume(&mut self, could_write: bool) {
        if could_write && self.status().is_ok_and(|status| status == "io-error") {
            match self.monitor().run("cont", Value::Null) {
                Ok(_) => tracing::warn!("the guest was stopped by a write error; it goes on again"),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "the guest is stopped by a write error");
                }
            }
        }
    }
}

/// In place of a connection that is over.
struct Nobody;

impl Monitor for Nobody {
    fn ask(
        &mut self,
        command: &'static str,
        _: Value,
        _: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<Value, QemuError> {
        let source = std::io::ErrorKind::NotConnected.into();
        Err(QemuError::Connection { command, source })
    }

    fn version(&self) -> Version {
        Version::default()
    }
}

/// An error with its causes, for the log.
pub(super) struct Chain<'a>(pub &'a QemuError);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = std::error::Error::source(self.0);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Whether a job of QEMU, as `query-jobs` tells of it, goes on.
pub(super) fn state_of(jobs: &Value, id: &str) -> String {
    let mut jobs = jobs.as_array().into_iter().flatten();
    let job = jobs.find(|job| job["id"] == json!(id));
    let status = job.and_then(|job| job["status"].as_str());
    status.map_or("ended".to_owned(), |status| format!("is {status}"))
}
