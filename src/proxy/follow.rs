//! Following a task to its end: what is shown is what a local run would show.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::net::address::ProxyAddress;
use undercroft_dataplane::net::distrust::distrust_in;
use undercroft_dataplane::net::proxy::status::TaskFailure;
use undercroft_dataplane::net::proxy::{FollowEvent, ProxyLink};
use undercroft_dataplane::progress::{Counter, Progress};
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_format::id::TaskId;
use undercroft_format::wire::failure::FailureCode;
use undercroft_format::wire::proxy::{Ending, TaskOver, TaskProgress};
use undercroft_format::wire::task::Task;

use crate::failure::{Outcome, Reported, warn};
use crate::progress::Activity;
use crate::remote;
use crate::report;
use crate::runner::{Runner, Terminal};
use crate::settings::Settings;
use crate::work::{Watched, Work};

/// How long a proxy is waited for that does not answer any more.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long to wait between two tries.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// Follows a task of `proxy` to its end; Ctrl-C cancels it.
pub fn follow(
    settings: &Settings,
    proxy: &ProxyAddress,
    link: ProxyLink,
    id: TaskId,
    task: &Task,
) -> anyhow::Result<Outcome> {
    let mut follower = Follower {
        settings,
        kind: task.kind(),
        id,
        shown: Shown::start(settings, task.kind())?,
        notes_seen: 0,
        is_cancelled: false,
    };
    let mut link = Some(link);
    let mut alone: Option<Stopwatch> = None;
    loop {
        let error = match follower.listen(&mut link, proxy, &mut alone) {
            Ok(over) => {
                drop(follower);
                return conclude(settings, over);
            }
            Err(error) => error,
        };
        if !is_passing(&error) {
            return Err(error);
        }
        let since = *alone.get_or_insert_with(|| {
            warn(format_args!(
                "the connection to {proxy} broke; task {id} goes on there, and is followed when it is back"
            ));
            Stopwatch::start()
        });
        // Whoever asks to stop now cannot be heard by the proxy.
        if since.elapsed() > PATIENCE || follower.shown.progress().is_stopping() {
            return Err(error.context(format!(
                "task {id} of {proxy} is followed no longer; it may go on there"
            )));
        }
        link = None;
        thread::sleep(TRY_EVERY);
    }
}

/// Whether another try may be better.
fn is_passing(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        // Waiting does not make the two trust each other.
        Some(RepositoryError::Connection(cause)) => distrust_in(&**cause).is_none(),
        Some(RepositoryError::Remote(failure)) => failure.code == FailureCode::Draining,
        _ => false,
    }
}

/// Prints what a task came to.
fn conclude(settings: &Settings, over: TaskOver) -> anyhow::Result<Outcome> {
    let outcome = match over.ending {
        Ending::Done => Outcome::Done,
        Ending::Damage => Outcome::Damage,
        Ending::Warned => Outcome::Warned,
        Ending::Failed | Ending::Cancelled => {
            let failure = serde_json::from_str(&over.json);
            let mut failure = failure.unwrap_or_else(|_| TaskFailure::new(over.json));
            if over.ending == Ending::Cancelled {
                failure.hints.extend(Terminal.how_to_go_on());
            }
            return Err(Reported(failure).into());
        }
    };
    let result = match settings.json {
        true => over.json,
        false => over.text,
    };
    report::print(result.as_bytes())?;
    Ok(outcome)
}

/// One who follows a task over any number of connections.
struct Follower<'a> {
    settings: &'a Settings,
    kind: &'static str,
    id: TaskId,
    shown: Shown,
    notes_seen: u32,
    is_cancelled: bool,
}

impl Follower<'_> {
    /// Follows over one connection.
    fn listen(
        &mut self,
        link: &mut Option<ProxyLink>,
        proxy: &ProxyAddress,
        alone: &mut Option<Stopwatch>,
    ) -> anyhow::Result<TaskOver> {
        let link = match link {
            Some(link) => link,
            None => link.insert(remote::connect_to_proxy(proxy)?),
        };
        let mut following = link.follow(self.id, self.notes_seen)?;
        // What is said is said on this connection only once.
        let mut is_asked = false;
        loop {
            if !is_asked && (self.is_cancelled || self.shown.progress().is_stopping()) {
                self.is_cancelled = true;
                is_asked = true;
                link.cancel(self.id)?;
            }
            let event = following.hear()?;
            *alone = None;
            match event {
                FollowEvent::Note(note) => {
                    self.notes_seen += 1;
                    warn(note.text);
                }
                FollowEvent::Progress(progress) => {
                    if !self.shown.take(&progress) {
                        self.shown = Shown::start(self.settings, self.kind)?;
                        self.shown.take(&progress);
                    }
                }
                FollowEvent::Over(over) => return Ok(over),
            }
        }
    }
}

/// The progress of one run of the task, shown as if it were local.
struct Shown {
    work: Watched,
    last: TaskProgress,
}

impl Shown {
    fn start(settings: &Settings, name: &'static str) -> anyhow::Result<Self> {
        let activity = Activity {
            name,
            total_bytes: 0,
        };
        Ok(Self {
            work: Work::watched(settings, activity)?,
            last: TaskProgress::default(),
        })
    }

    fn progress(&self) -> &Arc<Progress> {
        &self.work.progress
    }

    /// Shows `now`; false if it is that of another run, whose figures began anew.
    fn take(&mut self, now: &TaskProgress) -> bool {
        let last = &self.last;
        if now.done_bytes < last.done_bytes || now.read_bytes < last.read_bytes {
            return false;
        }
        let progress = &self.work.progress;
        let add = |counter: &Counter, now: u64, last: u64| counter.add(now.saturating_sub(last));
        add(&progress.total_bytes, now.total_bytes, last.total_bytes);
        add(&progress.done_bytes, now.done_bytes, last.done_bytes);
        add(&progress.read_bytes, now.read_bytes, last.read_bytes);
        add(&progress.new_bytes, now.new_bytes, last.new_bytes);
        add(&progress.stored_bytes, now.stored_bytes, last.stored_bytes);
        self.last = now.clone();
        true
    }
}
