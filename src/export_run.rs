//! An export from its request to its end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use signal_hook::iterator::Signals;
use undercroft_dataplane::nbd::export::disk::Disk;
use undercroft_dataplane::nbd::export::{
    ExportError, ExportOptions, ExportServer, Exported, Listen, ServerTls,
};
use undercroft_dataplane::overlay::disk::OverlayDisk;
use undercroft_dataplane::view::{DiskView, View, ViewOptions};
use undercroft_format::id::SnapshotId;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::wire::frame::FrameType;

use crate::access::{self, PinnedRead};
use crate::daemon;
use crate::disk_spec::DiskSpec;
use crate::failure::{Outcome, Problem, quote, warn};
use crate::live_restore::{Filler, Live, remove_state};
use crate::logging;
use crate::overlay_source::open_overlay;
use crate::settings::{Key, Settings};
use crate::units::Size;

/// How long requests in flight are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to export, and where.
pub struct Request {
    pub spec: DiskSpec,
    pub listen: Listen,
    pub name: Option<String>,
    pub tls: Option<TlsFiles>,
    pub insecure: bool,
    pub overlay: Option<PathBuf>,
    pub discard: bool,
    /// The disk is restored meanwhile.
    pub live: Option<Live>,
    pub cache_len: u64,
}

/// Files of TLS.
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

/// What is said with `--json`, a line each.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Said<'a> {
    Listening {
        snapshot: SnapshotId,
        exports: &'a [Listed],
    },
    /// With a disk that is restored: all of it is in its place.
    Restored {
        target: String,
    },
    Stopping,
}

/// An export that can be reached.
#[derive(Serialize)]
struct Listed {
    disk: String,
    name: String,
    uri: String,
    size: u64,
    read_only: bool,
}

/// Exports until a signal comes.
pub fn run(settings: &Settings, request: Request) -> anyhow::Result<Outcome> {
    check_secure(&request)?;
    let tls = request
        .tls
        .as_ref()
        .map(|files| ServerTls::read(&files.certificate, &files.key, files.client_ca.as_deref()));
    let tls = tls.transpose()?;
    let signals = daemon::signals()?;
    let json = settings.json;
    let specs = [request.spec.snapshot.clone()];
    let read = access::read_pinned(settings, &[FrameType::Fetch], Key::Needed, &specs)?;
    let disks = choose(&read, &request)?;
    let view = View::new(ViewOptions {
        cache_len: request.cache_len,
        ..ViewOptions::default()
    })?;
    let snapshot = read.snapshots[0].id;
    let stored = &read.snapshots[0];
    let overlay = match (&request.overlay, &request.live) {
        (None, None) => None,
        (Some(path), _) => Some(open_overlay(path, None, &read, &disks[0])?),
        (None, Some(live)) => Some(live.open(&read, &disks[0], settings.local_root()?)?),
    };
    let mut written = None;
    let mut exports = Vec::new();
    for disk in &disks {
        let repository = read.repository.clone();
        let opened = DiskView::new(&view, repository, snapshot, disk.clone(), None)?;
        exports.push(Exported {
            name: request.name.clone().unwrap_or_else(|| disk.label.clone()),
            description: format!(
                "disk {} of snapshot {} of {}",
                disk.label,
                snapshot.short(),
                stored.snapshot.vm
            ),
            disk: match &overlay {
                None => Disk::ReadOnly(Arc::new(opened)),
                Some(file) => {
                    let overlay = file.overlay.clone();
                    let disk = Arc::new(OverlayDisk::new(overlay, Arc::new(opened)));
                    written = Some(disk.clone());
                    Disk::Writable(disk)
                }
            },
        });
    }
    let server = ExportServer::start(ExportOptions {
        exports,
        listen: request.listen,
        tls,
    })
    .map_err(explain)?;
    // A guest that is refused asks again and again.
    logging::limit_floods();
    tell(settings, snapshot, &disks, overlay.is_some(), &server)?;
    let filler = match (written, request.live) {
        (Some(disk), Some(live)) => Some(Filler::start(disk, move || say_restored(json, &live))?),
        _ => None,
    };
    attend(settings, signals)?;
    let is_filled = filler.map(Filler::stop).transpose()?;
    if !server.stop(PATIENCE) {
        warn("requests in flight did not end in time, and were given up");
    }
    if let Some(file) = overlay {
        match request.discard {
            true => file.discard()?,
            false if is_filled == Some(true) => {
                file.overlay
                    .flush()
                    .context("making the restored disk durable")?;
                remove_state(file);
            }
            false => file
                .overlay
                .flush()
                .context("making durable what was written to the overlay")?,
        }
    }
    // Until here a collection leaves the snapshot alone.
    drop(read);
    if is_filled == Some(false) {
        let problem = Problem::new("the disk is not restored: the export was ended before");
        return Err(problem
            .hint("run the same again to go on where it was")
            .into());
    }
    Ok(Outcome::Done)
}

/// Without TLS whoever reaches the port reads the disks.
fn check_secure(request: &Request) -> anyhow::Result<()> {
    match &request.listen {
        Listen::Tcp(address)
            if !is_loopback(address) && request.tls.is_none() && !request.insecure =>
        {
            Err(Problem::usage(format!(
                "{address} is not loopback: whoever reaches it could read the disks"
            ))
            .hint("let clients speak TLS: --tls-cert FILE --tls-key FILE")
            .hint("listen on this machine alone: --nbd localhost, or --nbd unix:PATH")
            .hint("on a network that nobody else is on: --insecure")
            .into())
        }
        _ => Ok(()),
    }
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The disks that are asked for.
fn choose(read: &PinnedRead, request: &Request) -> anyhow::Result<Vec<DiskManifest>> {
    let snapshot = &read.snapshots[0].snapshot;
    let labels = || {
        let labels: Vec<_> = snapshot
            .disks
            .iter()
            .map(|disk| disk.label.as_str())
            .collect();
        labels.join(", ")
    };
    let disks = match &request.spec.disk {
        None => snapshot.disks.clone(),
        Some(label) => match snapshot.disk(label) {
            Some(disk) => vec![disk.clone()],
            None => {
                return Err(Problem::usage(format!(
                    "snapshot {} has no disk {label}",
                    read.snapshots[0].id.short()
                ))
                .hint(format!("its disks are: {}", labels()))
                .into());
            }
        },
    };
    if disks.is_empty() {
        return Err(Problem::new("the snapshot has no disks: there is nothing to export").into());
    }
    if request.live.is_some() && disks.len() > 1 {
        return Err(Problem::usage(format!(
            "--live restores one disk, and the snapshot has {} ({})",
            disks.len(),
            labels()
        ))
        .hint("choose one: --disk LABEL")
        .into());
    }
    if request.overlay.is_some() && disks.len() > 1 {
        return Err(Problem::usage(format!(
            "an overlay is of one disk, and the snapshot has {} ({})",
            disks.len(),
            labels()
        ))
        .hint(format!("name one, as in {}:DISK", request.spec))
        .into());
    }
    if request.name.is_some() && disks.len() > 1 {
        return Err(
            Problem::usage("--name is for one disk, and the snapshot has several")
                .hint(format!(
                    "name one, as in {}:DISK; they are: {}",
                    request.spec,
                    labels()
                ))
                .into(),
        );
    }
    Ok(disks)
}

fn explain(error: ExportError) -> anyhow::Error {
    let hint = match &error {
        ExportError::SocketInUse(path) => format!(
            "stop it, or listen elsewhere: --nbd unix:{}",
            quote(&path.with_extension("other").display().to_string())
        ),
        ExportError::NoSocket(_) => "name a path where nothing is yet: --nbd unix:PATH".to_owned(),
        ExportError::Listen { .. } => {
            "another address, as in --nbd localhost:0, or a socket: --nbd unix:PATH".to_owned()
        }
        ExportError::Offer(_) => "choose another name: --name NAME".to_owned(),
        _ => return error.into(),
    };
    let problem = Problem::new(error.to_string()).hint(hint);
    match error {
        ExportError::Listen { source, .. } => anyhow::Error::new(source).context(problem),
        _ => problem.into(),
    }
}

fn tell(
    settings: &Settings,
    snapshot: SnapshotId,
    disks: &[DiskManifest],
    writable: bool,
    server: &ExportServer,
) -> anyhow::Result<()> {
    let listed: Vec<Listed> = disks
        .iter()
        .zip(server.uris())
        .map(|(disk, (name, uri))| Listed {
            disk: disk.label.clone(),
            name,
            uri: uri.to_string(),
            size: disk.size.get(),
            read_only: !writable,
        })
        .collect();
    if settings.json {
        return daemon::say(&serde_json::to_string(&Said::Listening {
            snapshot,
            exports: &listed,
        })?);
    }
    for export in &listed {
        daemon::say(&format!(
            "Exporting disk {} ({}) of {} as {}",
            export.disk,
            Size(export.size),
            snapshot.short(),
            export.uri
        ))?;
    }
    Ok(())
}

fn say_restored(json: bool, live: &Live) {
    let target = live.target.display().to_string();
    let said = match json {
        true => serde_json::to_string(&Said::Restored { target }).unwrap_or_default(),
        false => format!("All of the disk is in {target}; it goes on being exported from there"),
    };
    // Whoever does not listen any more need not know.
    let _ = daemon::say(&said);
}

/// Waits for a signal; another one ends the process at once.
fn attend(settings: &Settings, mut signals: Signals) -> anyhow::Result<()> {
    signals.forever().next();
    match settings.json {
        true => daemon::say(&serde_json::to_string(&Said::Stopping)?)?,
        false => daemon::say("Finishing the requests in flight; once more to end at once")?,
    }
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            signal_hook::low_level::exit(128 + signal);
        }
    });
    Ok(())
}
