//! Long work, with progress and the wish to stop; and figures.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::frame::FrameType;
use undercroft_format::wire::upkeep::{self, Collect, Done, Repair, Report, Verify};

use super::connection::{Broken, Conversing, Ending};
use super::judge;
use super::repository_figures::Work;
use crate::net::conversation::{StreamError, Waited};
use crate::net::convert::failure_of;
use crate::net::trust::Verb;
use crate::progress::Progress;
use crate::repository::LocalRepository;
use crate::repository::error::Result as RepositoryResult;
use crate::repository::judge::Depth;
use crate::repository::maintenance::Maintenance;
use crate::repository::repair::repair_at;
use crate::repository::verify::{VerifyOptions, verify_at};

/// How long a wish to stop, or the end of the work, may go unnoticed.
const LISTEN_EVERY: Duration = Duration::from_millis(20);
/// Progress is told once in so many times.
const TELL_EVERY: u32 = 25;

/// Gives back space.
pub fn collect(on: &mut Conversing, request: Collect) -> Ending {
    on.caller.check_repository(Verb::Collect)?;
    let options = parse(&request.json)?;
    long(on, Work::Collect, move |repository, _, progress| {
        repository.collect(&options, progress)
    })
}

/// Checks what is stored.
pub fn verify(on: &mut Conversing, request: Verify) -> Ending {
    on.caller.check_repository(Verb::Verify)?;
    let options: VerifyOptions = parse(&request.json)?;
    if options.deep && on.served.keys().is_none() {
        return judge::long(
            on,
            Work::Verify,
            move |repository, judge, threads, progress| {
                verify_at(
                    repository,
                    &options,
                    Depth::Judged(judge),
                    threads,
                    progress,
                )
            },
        );
    }
    long(on, Work::Verify, move |repository, threads, progress| {
        repository.verify(&options, threads, progress)
    })
}

/// Sets damage aside.
pub fn repair(on: &mut Conversing, request: Repair) -> Ending {
    on.caller.check_repository(Verb::Repair)?;
    if request.is_deep && on.served.keys().is_none() {
        tracing::warn!("a repair sets aside what only the peer's key shows");
        return judge::long(
            on,
            Work::Repair,
            move |repository, judge, threads, progress| {
                repair_at(repository, Depth::Judged(judge), threads, progress)
            },
        );
    }
    long(on, Work::Repair, move |repository, threads, progress| {
        repository.repair(request.is_deep, threads, progress)
    })
}

/// Says whether the caller may begin such a conversation.
pub fn may(on: &mut Conversing, first: FrameType) -> Ending {
    let caller = &on.caller;
    match first {
        FrameType::Fetch => caller.check_role(Verb::ReadData),
        FrameType::Forget => caller.check_role(Verb::Forget),
        FrameType::Protect => caller.check_role(Verb::Protect),
        FrameType::Lock => caller.check_role(Verb::LockUntil),
        FrameType::Collect => caller.check_repository(Verb::Collect),
        FrameType::Verify => caller.check_repository(Verb::Verify),
        FrameType::Repair => caller.check_repository(Verb::Repair),
        FrameType::Stats => caller.check_repository(Verb::Stats),
        kind => return Err(StreamError::Unexpected(kind).into()),
    }?;
    Ok(on.stream.say(&Done)?)
}

/// Gives figures.
pub fn stats(on: &mut Conversing) -> Ending {
    on.caller.check_repository(Verb::Stats)?;
    let stats = on
        .served
        .repository()
        .stats()
        .map_err(|error| failure_of(&error))?;
    report(on, &stats)
}

/// Gives the bytes of all packs.
pub fn pack_bytes(on: &mut Conversing) -> Ending {
    on.caller.check_role(Verb::Verify)?;
    let bytes = on.served.repository().pack_bytes();
    let bytes = bytes.map_err(|error| failure_of(&error))?;
    report(on, &bytes)
}

/// Does `work` on a thread of its own while this one tells of its progress and listens for a wish to stop.
fn long<R: Serialize + Send>(
    on: &mut Conversing,
    kind: Work,
    work: impl FnOnce(&Arc<LocalRepository>, &rayon::ThreadPool, &Progress) -> RepositoryResult<R>
    + Send,
) -> Ending {
    let progress = Arc::<Progress>::default();
    on.shared.long_work(&progress);
    on.served.figures().works(kind, &progress);
    let repository = on.served.repository().clone();
    let shared = on.shared.clone();
    let result = std::thread::scope(|scope| {
        let worker = std::thread::Builder::new()
            .name("upkeep".into())
            .spawn_scoped(scope, || work(&repository, shared.threads(), &progress))
            .expect("the system can start a thread");
        let mut times = 0_u32;
        while !worker.is_finished() {
            times = times.wrapping_add(1);
            let told = listen(on, &progress).and_then(|()| {
                if times.is_multiple_of(TELL_EVERY) {
                    tell(on, &progress)
                } else {
                    Ok(())
                }
            });
            if told.is_err() {
                // Nobody waits for the result any more.
                progress.stop();
                break;
            }
        }
        worker.join().expect("upkeep does not panic")
    });
    let outcome = match &result {
        Ok(_) => "done",
        Err(_) => "failed",
    };
    on.served.figures().worked(kind, outcome, 1);
    let result = result.map_err(|error| failure_of(&error))?;
    report(on, &result)
}

/// Waits a while for a wish to stop.
fn listen(on: &mut Conversing, progress: &Progress) -> Result<(), StreamError> {
    match on.stream.read_within(LISTEN_EVERY)? {
        Waited::For(Some((FrameType::Stop, _))) => progress.stop(),
        Waited::For(Some((kind, _))) => return Err(StreamError::Unexpected(kind)),
        Waited::For(None) => std::thread::sleep(LISTEN_EVERY),
        Waited::InVain => {}
    }
    Ok(())
}

fn tell(on: &mut Conversing, progress: &Progress) -> Result<(), StreamError> {
    on.stream.say(&upkeep::Progress {
        total_bytes: progress.total_bytes.get(),
        done_bytes: progress.done_bytes.get(),
        read_bytes: progress.read_bytes.get(),
        stored_bytes: progress.stored_bytes.get(),
    })
}

/// Sends a report.
pub fn report<R: Serialize>(on: &mut Conversing, report: &R) -> Result<(), Broken> {
    let json = serde_json::to_string(report).map_err(|error| {
        Failure::new(FailureCode::Failed, format!("writing the report: {error}"))
    })?;
    if json.len() > FrameType::Report.body_len_max() as usize {
        let text = "the report is too long to be sent: run the command on the server's machine";
        return Err(Failure::new(FailureCode::Failed, text).into());
    }
    Ok(on.stream.say(&Report { json })?)
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, Failure> {
    serde_json::from_str(json)
        .map_err(|error| Failure::new(FailureCode::Protocol, format!("the options: {error}")))
}
