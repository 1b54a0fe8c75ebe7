//! A backup from its request to its report, whoever asked for it.

use std::time::Duration;

use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::ingest::backup::{self, BackupReport, backup};
use undercroft_dataplane::net::conversation::StreamError;
use undercroft_dataplane::net::distrust::distrust_in;
use undercroft_dataplane::progress::{Progress, Waits};
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_format::id::SessionId;
use undercroft_format::reason::Reason;
use undercroft_format::wire::failure::FailureCode;

use crate::access;
use crate::audit_view::AuditView;
use crate::backup_job::{self, Request};
use crate::catalog::Catalog;
use crate::failure::{Outcome, Problem, warn};
use crate::guest::GuestPoint;
use crate::overlay_source;
use crate::progress::Activity;
use crate::remote;
use crate::report::line;
use crate::runner::Runner;
use crate::settings::Settings;
use crate::snapshot_view::{SnapshotView, Totals, disk_table};
use crate::units::{Size, Took, count, local_time, ratio, timestamp};
use crate::vhd_source;

/// How long a server is waited for after a session was interrupted.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long to wait between two tries.
const TRY_EVERY: Duration = Duration::from_secs(2);

/// The report in JSON.
#[derive(Serialize)]
pub struct Report<'a> {
    #[serde(flatten)]
    snapshot: SnapshotView<'a>,
    waits: Waits,
    engine: &'a str,
    packs: u64,
    pack_bytes: u64,
    /// With a server only.
    #[serde(skip_serializing_if = "Option::is_none")]
    wire_bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wire_bytes_received: Option<u64>,
    warnings: &'a [String],
    audits: Vec<AuditView<'a>>,
}

impl<'a> Report<'a> {
    /// Of a backup that is done.
    pub fn of(report: &'a BackupReport) -> Self {
        Self {
            snapshot: SnapshotView::fresh(report.id, &report.snapshot, report.locked_until),
            waits: report.waits,
            engine: &report.engine,
            packs: report.packs,
            pack_bytes: report.pack_bytes,
            wire_bytes_sent: report.traffic.map(|traffic| traffic.sent_bytes),
            wire_bytes_received: report.traffic.map(|traffic| traffic.received_bytes),
            warnings: &report.warnings,
            audits: report.audits.iter().map(AuditView::of).collect(),
        }
    }
}

/// Which session to go on with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resume {
    /// The one that was asked for: if that cannot be, it is a failure.
    pub asked: Option<SessionId>,
    /// The one that an earlier run left: if that cannot be, the backup begins anew.
    pub left: Option<SessionId>,
}

/// Backs up, and goes on where a session was interrupted when its server is back.
pub fn run_through(
    settings: &Settings,
    request: &Request,
    parent: Option<&SnapshotSpec>,
    resume: Resume,
    runner: &dyn Runner,
) -> anyhow::Result<BackupReport> {
    let Some(guest) = &request.guest else {
        return try_through(settings, request, parent, resume, runner, None);
    };
    // One point in time serves all tries.
    let mut guest = GuestPoint::new(guest, &request.excluded);
    let ran = try_through(settings, request, parent, resume, runner, Some(&mut guest));
    guest.end(ran)
}

fn try_through(
    settings: &Settings,
    request: &Request,
    parent: Option<&SnapshotSpec>,
    resume: Resume,
    runner: &dyn Runner,
    mut guest: Option<&mut GuestPoint<'_>>,
) -> anyhow::Result<BackupReport> {
    let asked = resume.asked;
    let mut resume = resume.left.or(asked);
    let mut waiting: Option<Stopwatch> = None;
    let mut unanswered: Option<SessionId> = None;
    loop {
        runner.waits_for(None);
        let tried = attempt(
            settings,
            request,
            parent,
            resume,
            runner,
            guest.as_deref_mut(),
        );
        let error = match tried {
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
        let can_go_on = backup_job::can_begin_anew(request) && !runner.is_stopping();
        match error.chain().find_map(|cause| cause.downcast_ref()) {
            Some(RepositoryError::Interrupted { session, .. }) if can_go_on => {
                warn(format_args!(
                    "session {session} was interrupted; going on as soon as the server answers"
                ));
                resume = Some(*session);
                waiting = Some(Stopwatch::start());
            }
            // Waiting does not make the two trust each other.
            Some(RepositoryError::Connection(cause)) if distrust_in(&**cause).is_some() => {
                return Err(error);
            }
            Some(RepositoryError::Connection(_))
                if can_go_on && waiting.is_some_and(|since| since.elapsed() < PATIENCE) => {}
            // Before the session was there: nothing is lost but the way to the server.
            Some(RepositoryError::Connection(cause))
                if can_go_on && waiting.is_none() && broke(&**cause) =>
            {
                warn("the connection broke; beginning anew as soon as the server answers");
                waiting = Some(Stopwatch::start());
            }
            // Interrupted for too long, or the disk changed meanwhile: what it stored is found all the same.
            Some(RepositoryError::Remote(failure))
                if can_go_on && resume != asked && is_gone(failure.code) =>
            {
                warn("the interrupted session cannot be gone on with; beginning anew");
                resume = asked;
                unanswered = None;
                continue;
            }
            Some(RepositoryError::Remote(failure))
                if can_go_on
                    && waiting.is_some_and(|since| since.elapsed() < PATIENCE)
                    && matches!(failure.code, FailureCode::Draining | FailureCode::Busy) => {}
            _ => {
                return Err(match unanswered {
                    Some(session) => open_end(error, session),
                    None => error,
                });
            }
        }
        runner.waits_for(Some("the repository's server"));
        wait(runner);
    }
}

/// True if a connection was there and broke, as opposed to one that could not be made.
fn broke(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let error: Option<&StreamError> = cause.downcast_ref();
    error.is_some_and(StreamError::is_lost)
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

fn is_gone(code: FailureCode) -> bool {
    matches!(code, FailureCode::NoSuchSession | FailureCode::DisksChanged)
}

/// Waits a moment, or until somebody asks to stop.
fn wait(runner: &dyn Runner) {
    let clock = Stopwatch::start();
    while clock.elapsed() < TRY_EVERY && !runner.is_stopping() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn attempt(
    settings: &Settings,
    request: &Request,
    parent: Option<&SnapshotSpec>,
    resume: Option<SessionId>,
    runner: &dyn Runner,
    guest: Option<&mut GuestPoint<'_>>,
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
            runner.may_use(&parent.snapshot.vm)?;
            job.parent = Some(parent.clone());
            vhd_source::settle_deltas(&mut job, &request.disks, &catalog)?;
        }
        overlay_source::check_parent(&job, &request.disks, repository.config().repository)?;
        if let Some(guest) = guest {
            guest.add_to(&mut job, settings, &**repository)?;
        }
        backup_job::complete_states(&mut job);
        job.resume = resume;
        let work = runner.start(
            settings,
            Activity {
                name: "backup",
                total_bytes: backup_job::disk_bytes(&job),
            },
        )?;
        let vm = job.vm.clone();
        let repository = runner.repository(repository);
        backup(repository, job, &work.threads, &work.progress)
            .map_err(|error| explain(error, &vm, &work.progress, runner))
    })
}

fn explain(
    error: RepositoryError,
    vm: &str,
    progress: &Progress,
    runner: &dyn Runner,
) -> anyhow::Error {
    let kept = match progress.kept_bytes.get() {
        0 => "no snapshot was published".to_owned(),
        bytes => format!(
            "no snapshot was published; {} of new data stay stored for the next run to find",
            Size(bytes)
        ),
    };
    if !matches!(error, RepositoryError::Cancelled) && !runner.is_stopping() {
        return anyhow::Error::new(error).context(format!("backing up {vm}: {kept}"));
    }
    let mut stopped = Problem::new(format!("stopped on request: {kept}"));
    if let Some(hint) = runner.how_to_go_on() {
        stopped = stopped.hint(hint);
    }
    match progress.kept_bytes.get() {
        0 => stopped,
        _ => stopped.hint("to give the space back instead: `undercroft gc`"),
    }
    .into()
}

/// What a backup came to: it is done, but what told the changes of a disk, or its zeros, may have lied.
pub fn outcome(report: &BackupReport) -> Outcome {
    let mut disks = report.snapshot.disks.iter();
    let differs = report.audits.iter().any(|audit| audit.mismatch.is_some());
    match differs || disks.any(|disk| disk.reasons.contains(&Reason::HolesUntrue)) {
        true => Outcome::Warned,
        false => Outcome::Done,
    }
}

/// Adds the report as text.
pub fn write(text: &mut String, settings: &Settings, report: &BackupReport) {
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
    for audit in &report.audits {
        AuditView::of(audit).write(text);
    }
}
