//! `undercroft backup`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::ingest::backup::{self, BackupReport, backup};
use undercroft_dataplane::progress::{Progress, Waits};
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_format::id::SessionId;
use undercroft_format::wire::failure::FailureCode;

use crate::access;
use crate::backup_job::{self, Request};
use crate::catalog::Catalog;
use crate::failure::{Outcome, Problem, quote, warn};
use crate::lock_end::LockTime;
use crate::progress::Activity;
use crate::remote;
use crate::report::{self, line};
use crate::settings::Settings;
use crate::signals::is_stopping;
use crate::snapshot_view::{SnapshotView, Totals, disk_table};
use crate::units::{Size, Took, count, local_time, ratio, timestamp};
use crate::work::Work;

/// Back up the disks of a virtual machine as one snapshot
///
/// All disks become one snapshot, or none does. A SOURCE is a raw file, a block device, an NBD export as
/// in nbd://HOST[:PORT]/EXPORT, nbds://... (TLS) or nbd+unix:///EXPORT?socket=PATH, or `-` for a stream on
/// standard input. What the repository has already is not stored again, so a backup that was
/// interrupted goes on where it stopped when it is run again.
///
/// With --changed-blocks and --parent only what changed since the parent is read. A bitmap that does not
/// fit leads to a full read and a reason code, never to wrong data.
///
/// JSON: what `undercroft snapshots` prints for a snapshot, and waits (source_percent, cpu_percent,
/// repository_percent), engine, packs, pack_bytes, warnings.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Name of the virtual machine
    #[arg(long, value_name = "NAME")]
    vm: String,
    /// A disk and its label
    #[arg(long = "disk", value_name = "LABEL=SOURCE")]
    disks: Vec<String>,
    /// Disks labelled by their file names without extension
    #[arg(value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// The snapshot that --changed-blocks refers to
    #[arg(long, value_name = "SNAPSHOT")]
    parent: Option<SnapshotSpec>,
    /// What changed since the parent: XAPI's bitmap in base64, a bit per 64 KiB; the label may be left
    /// out if there is one disk
    #[arg(long, value_name = "[LABEL=]FILE")]
    changed_blocks: Vec<String>,
    /// A file with the VM's metadata, stored with the snapshot
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// A word to find or keep the snapshot by
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Where a disk's state came from, as in root:vdi-uuid=3f9c...
    #[arg(long, value_name = "LABEL:KEY=VALUE")]
    lineage: Vec<String>,
    /// Go on with an interrupted session of a repository server: only what it had not finished is read
    #[arg(long, value_name = "SESSION")]
    resume: Option<SessionId>,
    /// Lock the snapshot from the moment it can be seen: nobody can forget it before this time, as in
    /// 2027-01-31 (all of that day) or 2027-01-31T03:00, or for so long from the end of the backup, as in
    /// 12h, 30d or 52w. Can be extended, never shortened
    #[arg(long, value_name = "TIME|DURATION")]
    lock_until: Option<LockTime>,
}

/// How long a server is waited for after a session was interrupted.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long to wait between two tries.
const TRY_EVERY: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    snapshot: SnapshotView<'a>,
    waits: Waits,
    engine: &'a str,
    packs: u64,
    pack_bytes: u64,
    warnings: &'a [String],
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let request = Request {
        vm: args.vm,
        disks: args.disks,
        sources: args.sources,
        changed_blocks: args.changed_blocks,
        metadata: args.metadata,
        tags: args.tags,
        lineage: args.lineage,
        lock: args
            .lock_until
            .map(|time| time.resolve(&settings.time_zone))
            .transpose()?,
    };
    let report = run_through(settings, &request, args.parent.as_ref(), args.resume)?;
    report.warnings.iter().for_each(warn);
    let json = Report {
        snapshot: SnapshotView::fresh(report.id, &report.snapshot, report.locked_until),
        waits: report.waits,
        engine: &report.engine,
        packs: report.packs,
        pack_bytes: report.pack_bytes,
        warnings: &report.warnings,
    };
    report::emit(settings, &json, |text| write(text, settings, &report))?;
    Ok(Outcome::Done)
}

/// Backs up, and goes on where a session was interrupted when its server is back.
fn run_through(
    settings: &Settings,
    request: &Request,
    parent: Option<&SnapshotSpec>,
    mut resume: Option<SessionId>,
) -> anyhow::Result<BackupReport> {
    let asked = resume;
    let mut waiting: Option<Stopwatch> = None;
    let mut unanswered: Option<SessionId> = None;
    loop {
        let error = match attempt(settings, request, parent, resume) {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        if let Some(session) = unanswered_commit(&error) {
            unanswered = Some(session);
            if !backup_job::can_begin_anew(request) {
                let settled = settle(settings, request, session);
                return settled
                    .map_err(|error| open_end(error, session))?
                    .ok_or(error);
            }
        }
        let can_go_on = backup_job::can_begin_anew(request) && !is_stopping();
        match error.chain().find_map(|cause| cause.downcast_ref()) {
            Some(RepositoryError::Interrupted { session, .. }) if can_go_on => {
                warn(format_args!(
                    "session {session} was interrupted; going on as soon as the server answers"
                ));
                resume = Some(*session);
                waiting = Some(Stopwatch::start());
            }
            Some(RepositoryError::Connection(_))
                if can_go_on && waiting.is_some_and(|since| since.elapsed() < PATIENCE) => {}
            // Interrupted for too long: what it stored is found all the same.
            Some(RepositoryError::Remote(failure))
                if can_go_on && resume != asked && failure.code == FailureCode::NoSuchSession =>
            {
                warn("the interrupted session is gone; beginning anew");
                resume = asked;
                unanswered = None;
                continue;
            }
            Some(RepositoryError::Remote(failure))
                if can_go_on && waiting.is_some() && failure.code == FailureCode::Draining => {}
            _ => {
                return Err(match unanswered {
                    Some(session) => open_end(error, session),
                    None => error,
                });
            }
        }
        wait();
    }
}

/// The session whose snapshot may have been published or not.
fn unanswered_commit(error: &anyhow::Error) -> Option<SessionId> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(RepositoryError::Interrupted {
            session,
            is_committing: true,
            ..
        }) => Some(*session),
        _ => None,
    })
}

/// The failure of a run that cannot tell whether it published its snapshot.
fn open_end(error: anyhow::Error, session: SessionId) -> anyhow::Error {
    error.context(
        Problem::new(
            "the connection broke while the snapshot was being published, and the server could not be asked whether it was",
        )
        .hint(format!("the same command tells with --resume {session}")),
    )
}

/// Finds out what became of a commit whose source cannot be read again.
fn settle(
    settings: &Settings,
    request: &Request,
    session: SessionId,
) -> anyhow::Result<Option<BackupReport>> {
    warn(format_args!(
        "the connection broke before the server said whether the snapshot was published; asking it again"
    ));
    remote::again(|| {
        access::ingest(settings, "backup", |repository| {
            let mut job = backup_job::plan_without_streams(settings, request.clone())?;
            backup_job::complete_states(&mut job);
            job.resume = Some(session);
            match backup::settle(repository, &job) {
                Err(RepositoryError::Remote(failure))
                    if failure.code == FailureCode::NoSuchSession =>
                {
                    Ok(None)
                }
                settled => Ok(settled?),
            }
        })
    })
}

/// Waits a moment, or until the user asks to stop.
fn wait() {
    let clock = Stopwatch::start();
    while clock.elapsed() < TRY_EVERY && !is_stopping() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn attempt(
    settings: &Settings,
    request: &Request,
    parent: Option<&SnapshotSpec>,
    resume: Option<SessionId>,
) -> anyhow::Result<BackupReport> {
    let mut job = backup_job::plan(settings, request.clone())?;
    access::ingest(settings, "backup", |repository| {
        if let Some(spec) = parent {
            let catalog = Catalog::read(settings, &**repository)?;
            let parent = catalog.resolve(spec).map_err(|error| {
                error.context(Problem::new("the parent cannot be had").hint(
                    "without --parent the disks are read in full, and only what is new is stored",
                ))
            })?;
            catalog.warn_unreadable();
            job.parent = Some(parent.clone());
        }
        backup_job::complete_states(&mut job);
        job.resume = resume;
        let work = Work::start(
            settings,
            Activity {
                name: "backup",
                total_bytes: backup_job::disk_bytes(&job),
            },
        )?;
        let vm = job.vm.clone();
        backup(repository.clone(), job, &work.threads, &work.progress)
            .map_err(|error| explain(error, &vm, &work.progress))
    })
}

fn explain(error: RepositoryError, vm: &str, progress: &Progress) -> anyhow::Error {
    let kept = match progress.kept_bytes.get() {
        0 => "no snapshot was published".to_owned(),
        bytes => format!(
            "no snapshot was published; {} of new data stay stored for the next run to find",
            Size(bytes)
        ),
    };
    if !matches!(error, RepositoryError::Cancelled) && !is_stopping() {
        return anyhow::Error::new(error).context(format!("backing up {vm}: {kept}"));
    }
    let words: Vec<String> = std::env::args().skip(1).map(|word| quote(&word)).collect();
    let stopped = Problem::new(format!("stopped on request: {kept}"))
        // Not in backquotes: these words name the repository already.
        .hint(format!(
            "to go on, run again: undercroft {}",
            words.join(" ")
        ));
    match progress.kept_bytes.get() {
        0 => stopped,
        _ => stopped.hint("to give the space back instead: `undercroft gc`"),
    }
    .into()
}

fn write(text: &mut String, settings: &Settings, report: &BackupReport) {
    let snapshot = &report.snapshot;
    let totals = Totals::of(snapshot);
    line!(text, "Snapshot {} of {}", report.id, snapshot.vm);
    if let Some(until) = report.locked_until {
        let until = local_time(timestamp(until.as_millis()), &settings.time_zone);
        line!(text, "Locked until {until}");
    }
    disk_table(snapshot).write(text);
    line!(
        text,
        "{} of data, {} new, {} stored in {}: dedup ratio {}",
        Size(totals.data_bytes),
        Size(totals.new_bytes),
        Size(report.pack_bytes),
        count(report.packs, "pack"),
        ratio(totals.data_bytes, totals.added()),
    );
    line!(
        text,
        "Took {} with {}; waited for: source {:.0} %, cpu {:.0} %, repository {:.0} %",
        Took(Duration::from_millis(snapshot.duration_ms)),
        report.engine,
        report.waits.source_percent,
        report.waits.cpu_percent,
        report.waits.repository_percent,
    );
}
