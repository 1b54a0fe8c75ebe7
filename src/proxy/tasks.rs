//! From requests to tasks, and back on the proxy.

use std::path::{Path, PathBuf};

use anyhow::Context;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::repository::open::Location;
use undercroft_format::id::SessionId;
use undercroft_format::wire::task::{BackupTask, RestoreTask, Task, TaskDisk};

use crate::backup_job::{DiskRequest, Request, is_stdin};
use crate::failure::Problem;
use crate::nbd_source::is_nbd;
use crate::restore_run::{self, Form};
use crate::restore_target::Format;
use crate::settings::Settings;
use crate::vhd_source::check_no_vhd;

/// The task that `request` is.
pub fn backup(
    settings: &Settings,
    request: Request,
    parent: Option<&SnapshotSpec>,
    resume: Option<SessionId>,
) -> anyhow::Result<Task> {
    if let Some(xva) = &request.xva {
        return Err(Problem::usage(format!(
            "the XVA {} cannot be backed up by a proxy: it reads disks one by one",
            xva.shown()
        ))
        .hint("back it up without --proxy")
        .into());
    }
    if request.guest.is_some() {
        return Err(Problem::usage(
            "--qmp: a proxy reads only files and block devices of its machine",
        )
        .hint("back the guest up without --proxy, on the machine where it runs")
        .into());
    }
    let disks = request.disks.into_iter().map(|disk| {
        check_no_vhd(&disk)?;
        let source = match disk.source.to_str().filter(|_| is_nbd(&disk.source)) {
            Some(uri) => uri.to_owned(),
            None => path_text(&disk.source)?,
        };
        Ok(TaskDisk {
            source,
            changed_blocks: disk.changed_blocks.as_deref().map(path_text).transpose()?,
            label: disk.label,
            lineage: disk.lineage,
        })
    });
    checked(Task::Backup(BackupTask {
        repository: repository(settings)?,
        vm: request.vm,
        disks: disks.collect::<anyhow::Result<_>>()?,
        parent: parent.map(ToString::to_string),
        metadata: request.metadata.as_deref().map(path_text).transpose()?,
        tags: request.tags,
        resume,
        lock: request.lock,
        audit: request.audit,
        time_zone: time_zone(settings),
    }))
}

/// The task that `request` is.
pub fn restore(settings: &Settings, request: &restore_run::Request) -> anyhow::Result<Task> {
    if request.form != Form::Disks(Format::Raw) {
        return Err(Problem::usage("a proxy restores raw disks only")
            .hint("leave out --proxy; or restore raw disks and make images or XVAs of them later")
            .into());
    }
    if is_nbd(Path::new(&request.to)) {
        return Err(Problem::usage(
            "a proxy restores to files and devices of its machine, not to NBD exports",
        )
        .hint("leave out --proxy")
        .into());
    }
    checked(Task::Restore(RestoreTask {
        repository: repository(settings)?,
        snapshot: request.snapshot.to_string(),
        disk: request.disk.clone(),
        target: target_text(&request.to)?,
        overwrite: request.overwrite,
        allow_damage: request.allow_damage,
        verify: request.verify,
        dry_run: request.dry_run,
        time_zone: time_zone(settings),
    }))
}

/// The request that a task is.
pub fn backup_request(task: &BackupTask) -> Request {
    let disks = task.disks.iter().map(|disk| DiskRequest {
        label: disk.label.clone(),
        is_labelled: true,
        source: PathBuf::from(&disk.source),
        is_delta: false,
        overlay: None,
        changed_blocks: disk.changed_blocks.as_ref().map(PathBuf::from),
        lineage: disk.lineage.clone(),
    });
    Request {
        vm: task.vm.clone(),
        disks: disks.collect(),
        xva: None,
        excluded: Vec::new(),
        guest: None,
        metadata: task.metadata.as_ref().map(PathBuf::from),
        tags: task.tags.clone(),
        lock: task.lock,
        audit: task.audit,
    }
}

/// The request that a task is.
pub fn restore_request(task: &RestoreTask) -> anyhow::Result<restore_run::Request> {
    Ok(restore_run::Request {
        snapshot: task.snapshot.parse()?,
        disk: task.disk.clone(),
        to: task.target.clone(),
        form: Form::Disks(Format::Raw),
        overwrite: task.overwrite,
        allow_damage: task.allow_damage,
        verify: task.verify,
        dry_run: task.dry_run,
        vhd_since: None,
    })
}

fn checked(task: Task) -> anyhow::Result<Task> {
    task.check()
        .context(Problem::usage("this is too much for one task of a proxy"))?;
    Ok(task)
}

/// Only what both machines reach.
fn repository(settings: &Settings) -> anyhow::Result<String> {
    match settings.location()? {
        Location::Remote(address) => Ok(address.to_string()),
        Location::Local(root) => Err(Problem::usage(format!(
            "the repository {} is a directory: a proxy works with repositories behind a server",
            root.display()
        ))
        .hint("name it by --repo quic://HOST:PORT/NAME")
        .into()),
    }
}

fn time_zone(settings: &Settings) -> Option<String> {
    settings.time_zone.iana_name().map(str::to_owned)
}

fn target_text(target: &str) -> anyhow::Result<String> {
    // What ends in a slash means a directory.
    path_text(Path::new(target))?;
    Ok(target.to_owned())
}

fn path_text(path: &Path) -> anyhow::Result<String> {
    if is_stdin(path) {
        return Err(Problem::usage(
            "a proxy has no standard input or output: name a file or a device of its machine",
        )
        .hint("or run the command where the data are, without --proxy")
        .into());
    }
    let text = path.to_str().ok_or_else(|| {
        Problem::usage(format!(
            "the path {} is not UTF-8: a proxy cannot be told of it",
            path.display()
        ))
    })?;
    if !path.is_absolute() {
        return Err(Problem::usage(format!(
            "the path {text} is relative: a proxy has no current directory of yours"
        ))
        .hint("give the absolute path on the proxy's machine")
        .into());
    }
    Ok(text.to_owned())
}
