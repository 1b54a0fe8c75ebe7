//! A proxy's books: which tasks it has, which of them may run, how they ended.
//!
//! A pure state machine: no clock, no threads, no files. The proxy tells it what happened and writes each
//! changed [`Entry`] to a file of its own before anybody hears of the change; after a crash
//! [`Books::recover`] takes the files in again.
//!
//! ```text
//!            submit            start              over
//! (nothing) ───────▶ queued ─────────▶ running ─────────▶ over
//!                      │  ◀─────────────┘ │                ▲
//!                      │      postpone    │ cancel         │
//!                      │                  ▼                │
//!                      │             cancelling ───────────┤
//!                      └───────────────────────────────────┘ cancel
//! ```
//!
//! Invariants, whatever is told: no more tasks run than there are streams; none starts while the proxy is
//! suspended or drains; tasks start in the order in which they came; what is over stays as it is; a task
//! that is not over is never forgotten; an id stands for one task.

use std::collections::BTreeMap;

use crate::codec::{DecodeError, Problem, Reader, checksum, put_string, put_varint};
use crate::id::{SessionId, TaskId};
use crate::trust::envelope::{put_option, read_option};
use crate::trust::name::IdentityName;
use crate::trust::role::Role;
use crate::trust::scope::Scope;

use super::frame::Body;
use super::proxy::{Ending, TaskOver};
use super::task::{PATH_LEN_MAX, TASK_LEN_MAX, Task, read_list};

/// Most tasks that are not over.
pub const LIVE_MAX: usize = 1024;
/// Most bytes that they take together.
pub const LIVE_LEN_MAX: usize = 16 << 20;
/// Most tasks that are over and still known.
pub const HISTORY_MAX: usize = 256;
/// Most bytes that their results take together; the newest is kept whatever its length.
pub const HISTORY_LEN_MAX: usize = 16 << 20;
/// Most paths that a task can have written.
const WRITTEN_MAX: u64 = 4096;
/// Longest file of an entry, in bytes.
pub const ENTRY_LEN_MAX: usize = TASK_LEN_MAX + (25 << 20);
const MAGIC: &[u8] = b"UCTASK\x00\x01";

/// Who submitted a task. What it may touch is asked again while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Who.
    pub name: IdentityName,
    /// What it may do.
    pub role: Role,
    /// To what.
    pub scope: Scope,
}

/// Where a task is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a stream.
    Queued,
    /// It is worked on.
    Running,
    /// It is worked on, and was asked to end.
    Cancelling,
    /// It ended.
    Over,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Queued, Self::Running, Self::Cancelling, Self::Over];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Over => "over",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Queued => 0,
            Self::Running => 1,
            Self::Cancelling => 2,
            Self::Over => 3,
        }
    }
}

/// A task on the books. Times are milliseconds since 1970-01-01 UTC, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: TaskId,
    /// Its place in the order of submission.
    pub order: u64,
    /// Who submitted it.
    pub owner: Owner,
    /// What is to be done.
    pub task: Task,
    /// Where it is.
    pub phase: Phase,
    /// When it came.
    pub submitted_ms: u64,
    /// When it was begun last.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// How often it was begun.
    pub runs: u32,
    /// The session that its last run opened at the repository's server.
    pub session: Option<SessionId>,
    /// Files that its runs have completed: another run may replace them.
    pub written: Vec<String>,
    /// How it ended; there exactly if it is over.
    pub result: Option<TaskOver>,
}

impl Entry {
    /// The file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(self.id.as_bytes());
        put_varint(&mut out, self.order);
        put_string(&mut out, self.owner.name.as_str());
        out.push(self.owner.role.code());
        self.owner.scope.put(&mut out);
        self.task.put(&mut out);
        out.push(self.phase.code());
        put_varint(&mut out, self.submitted_ms);
        for time in [self.started_ms, self.ended_ms] {
            put_option(&mut out, time.as_ref(), |out, time| put_varint(out, *time));
        }
        put_varint(&mut out, self.runs.into());
        put_option(&mut out, self.session.as_ref(), |out, session| {
            out.extend_from_slice(session.as_bytes());
        });
        put_varint(&mut out, self.written.len() as u64);
        self.written
            .iter()
            .for_each(|path| put_string(&mut out, path));
        if let Some(result) = &self.result {
            result.put(&mut out);
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const OBJECT: &str = "file of a task";
        let mut reader = Reader::new(OBJECT, bytes);
        if bytes.len() > ENTRY_LEN_MAX {
            return Err(reader.error(Problem::Limit {
                field: "length",
                value: bytes.len() as u64,
                limit: ENTRY_LEN_MAX as u64,
            }));
        }
        reader.magic(MAGIC)?;
        let Some((covered, sum)) = bytes.split_last_chunk::<8>() else {
            return Err(reader.error(Problem::Truncated { needed: 8 }));
        };
        if checksum(covered) != u64::from_le_bytes(*sum) {
            return Err(reader.error(Problem::Checksum));
        }
        let mut reader = Reader::new(OBJECT, covered);
        reader.magic(MAGIC)?;
        let mut entry = Self {
            id: TaskId::from_bytes(reader.array()?),
            order: reader.varint("order", u64::MAX)?,
            owner: Owner {
                name: IdentityName::read(&mut reader)?,
                role: Role::read(&mut reader)?,
                scope: Scope::read(&mut reader)?,
            },
            task: Task::read(&mut reader)?,
            phase: read_phase(&mut reader)?,
            submitted_ms: reader.varint("time", u64::MAX)?,
            started_ms: read_time(&mut reader)?,
            ended_ms: read_time(&mut reader)?,
            runs: reader.varint("runs", u32::MAX.into())? as u32,
            session: read_option(&mut reader, |reader| {
                Ok(SessionId::from_bytes(reader.array()?))
            })?,
            written: read_list(&mut reader, "files written", WRITTEN_MAX, 1, |reader| {
                reader.string("file written", PATH_LEN_MAX)
            })?,
            result: None,
        };
        if entry.phase == Phase::Over {
            entry.result = Some(TaskOver::read(&mut reader)?);
        }
        reader.finish()?;
        Ok(entry)
    }

    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Cancelling)
    }

    /// About the bytes of memory that its task takes.
    fn task_len(&self) -> usize {
        let mut bytes = Vec::new();
        self.task.put(&mut bytes);
        bytes.len()
    }

    fn result_len(&self) -> usize {
        let result = self.result.as_ref();
        result.map_or(0, |result| result.json.len() + result.text.len())
    }
}

fn read_phase(reader: &mut Reader<'_>) -> Result<Phase, DecodeError> {
    let at = reader.clone();
    let code = reader.u8()?;
    let phase = Phase::ALL.into_iter().find(|phase| phase.code() == code);
    phase.ok_or_else(|| at.error(Problem::Invalid("phase of a task")))
}

fn read_time(reader: &mut Reader<'_>) -> Result<Option<u64>, DecodeError> {
    read_option(reader, |reader| reader.varint("time", u64::MAX))
}

/// Why a task is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The id stands for another task, or for one of somebody else.
    #[error("task {0} is another one: choose another id")]
    OtherTask(TaskId),
    /// An administrator suspended the proxy.
    #[error("the proxy is suspended: it takes no tasks until it is resumed")]
    Suspended,
    /// The proxy shuts down.
    #[error("the proxy is shutting down: try again when it is back")]
    Draining,
    /// There are too many tasks.
    #[error("the proxy has as many tasks as it can keep: try again when some have ended")]
    Full,
}

/// What a wish to cancel came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It had not begun, and is over now.
    AtOnce,
    /// It runs: whoever runs it has to be told.
    Running,
    /// It was over already.
    WasOver,
    /// There is none.
    Unknown,
}

/// The books.
#[derive(Clone, Debug)]
pub struct Books {
    streams: usize,
    is_suspended: bool,
    is_draining: bool,
    entries: BTreeMap<TaskId, Entry>,
    next_order: u64,
}

impl Books {
    /// Empty ones of a proxy that runs `streams` tasks at once.
    pub fn new(streams: usize, is_suspended: bool) -> Self {
        Self {
            streams,
            is_suspended,
            is_draining: false,
            entries: BTreeMap::new(),
            next_order: 0,
        }
    }

    /// Takes in what was written before the proxy ended: what was running waits again, before all that came
    /// later. Returns the tasks that were asked to end.
    pub fn recover(&mut self, entries: impl IntoIterator<Item = Entry>) -> Vec<TaskId> {
        let mut to_cancel = Vec::new();
        for mut entry in entries {
            self.next_order = self.next_order.max(entry.order.saturating_add(1));
            if entry.phase == Phase::Cancelling {
                to_cancel.push(entry.id);
            }
            if entry.is_running() {
                entry.phase = Phase::Queued;
            }
            self.entries.insert(entry.id, entry);
        }
        to_cancel
    }

    /// Takes a task; true if it was not there before.
    ///
    /// # Errors
    /// [`Refusal`]: nothing changed.
    pub fn submit(
        &mut self,
        id: TaskId,
        task: Task,
        owner: Owner,
        now_ms: u64,
    ) -> Result<bool, Refusal> {
        if let Some(known) = self.entries.get(&id) {
            return match known.task == task && known.owner.name == owner.name {
                true => Ok(false),
                false => Err(Refusal::OtherTask(id)),
            };
        }
        if self.is_draining {
            return Err(Refusal::Draining);
        }
        if self.is_suspended {
            return Err(Refusal::Suspended);
        }
        let entry = Entry {
            id,
            order: self.next_order,
            owner,
            task,
            phase: Phase::Queued,
            submitted_ms: now_ms,
            started_ms: None,
            ended_ms: None,
            runs: 0,
            session: None,
            written: Vec::new(),
            result: None,
        };
        let (count, len) = self.live().fold((0, 0), |(count, len), entry| {
            (count + 1, len + entry.task_len())
        });
        if count >= LIVE_MAX || len + entry.task_len() > LIVE_LEN_MAX {
            return Err(Refusal::Full);
        }
        self.next_order += 1;
        self.entries.insert(id, entry);
        Ok(true)
    }

    /// Takes back what was just submitted: nobody has heard of it.
    pub fn retract(&mut self, id: TaskId) {
        let queued = |entry: &Entry| entry.phase == Phase::Queued && entry.runs == 0;
        if self.entries.get(&id).is_some_and(queued) {
            self.entries.remove(&id);
        }
    }

    /// Begins the next task, if one may begin.
    pub fn start(&mut self, now_ms: u64) -> Option<&Entry> {
        if self.is_suspended || self.is_draining || self.running() >= self.streams {
            return None;
        }
        let queued = |entry: &&mut Entry| entry.phase == Phase::Queued;
        let next = self.entries.values_mut().filter(queued);
        let next = next.min_by_key(|entry| entry.order)?;
        next.phase = Phase::Running;
        next.started_ms = Some(now_ms);
        next.runs = next.runs.saturating_add(1);
        Some(next)
    }

    /// A task's run opened a session. False if there is no such run.
    pub fn opened(&mut self, id: TaskId, session: SessionId) -> bool {
        let running = self.running_entry(id);
        running.is_some_and(|entry| entry.session.replace(session) != Some(session))
    }

    /// A task's run completed a file. False if there is no such run, or it is known.
    pub fn wrote(&mut self, id: TaskId, path: &str) -> bool {
        let Some(entry) = self.running_entry(id) else {
            return false;
        };
        let is_new = !entry.written.iter().any(|known| known == path);
        if is_new && (entry.written.len() as u64) < WRITTEN_MAX {
            entry.written.push(path.to_owned());
        }
        is_new
    }

    /// A task's run ended. Returns the tasks that are forgotten for it.
    pub fn over(&mut self, id: TaskId, result: TaskOver, now_ms: u64) -> Vec<TaskId> {
        if let Some(entry) = self.running_entry(id) {
            entry.end(result, now_ms);
        }
        self.forget()
    }

    /// A task's run ended because the proxy shuts down: the task waits again, unless it was asked to end.
    /// False if it was.
    pub fn postpone(&mut self, id: TaskId) -> bool {
        match self.entries.get_mut(&id) {
            Some(entry) if entry.phase == Phase::Running => {
                entry.phase = Phase::Queued;
                true
            }
            _ => false,
        }
    }

    /// Asks a task to end; one that waits is over at once, with this `result`. Returns the tasks that are
    /// forgotten for it, too.
    pub fn cancel(
        &mut self,
        id: TaskId,
        result: TaskOver,
        now_ms: u64,
    ) -> (Cancelled, Vec<TaskId>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return (Cancelled::Unknown, Vec::new());
        };
        match entry.phase {
            Phase::Queued => {
                entry.end(result, now_ms);
                (Cancelled::AtOnce, self.forget())
            }
            Phase::Running | Phase::Cancelling => {
                entry.phase = Phase::Cancelling;
                (Cancelled::Running, Vec::new())
            }
            Phase::Over => (Cancelled::WasOver, Vec::new()),
        }
    }

    /// Takes and begins no tasks, or does so again. What runs goes on.
    pub fn set_suspended(&mut self, is_suspended: bool) {
        self.is_suspended = is_suspended;
    }

    /// Takes and begins no tasks any more.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// A task.
    pub fn get(&self, id: TaskId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// All tasks, in the order in which they came.
    pub fn entries(&self) -> Vec<&Entry> {
        let mut all: Vec<_> = self.entries.values().collect();
        all.sort_by_key(|entry| entry.order);
        all
    }

    /// Tasks in a phase.
    pub fn count(&self, phase: Phase) -> usize {
        let entries = self.entries.values();
        entries.filter(|entry| entry.phase == phase).count()
    }

    /// Tasks that are worked on.
    pub fn running(&self) -> usize {
        let entries = self.entries.values();
        entries.filter(|entry| entry.is_running()).count()
    }

    /// Tasks that can run at once.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// An administrator suspended the proxy.
    pub fn is_suspended(&self) -> bool {
        self.is_suspended
    }

    /// The proxy shuts down.
    pub fn is_draining(&self) -> bool {
        self.is_draining
    }

    fn live(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.entries.values();
        entries.filter(|entry| entry.phase != Phase::Over)
    }

    fn running_entry(&mut self, id: TaskId) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&id);
        entry.filter(|entry| entry.is_running())
    }

    /// Keeps the history within its bounds: what ended first goes first.
    fn forget(&mut self) -> Vec<TaskId> {
        let over = self.entries.values();
        let mut over: Vec<_> = over
            .filter(|entry| entry.phase == Phase::Over)
            .map(|entry| (entry.ended_ms, entry.order, entry.id, entry.result_len()))
            .collect();
        over.sort();
        let (mut count, mut len) = (0, 0);
        let mut forgotten = Vec::new();
        for (_, _, id, result_len) in over.into_iter().rev() {
            count += 1;
            len += result_len;
            if count > HISTORY_MAX || (count > 1 && len > HISTORY_LEN_MAX) {
                self.entries.remove(&id);
                forgotten.push(id);
            }
        }
        forgotten
    }
}

impl Entry {
    fn end(&mut self, result: TaskOver, now_ms: u64) {
        self.phase = Phase::Over;
        self.ended_ms = Some(now_ms);
        self.result = Some(result);
    }
}

/// The result of a task that ended otherwise than by its own report.
pub fn ended(ending: Ending, json: String) -> TaskOver {
    TaskOver {
        ending,
        json,
        text: String::new(),
    }
}

#[cfg(test)]
mod tests;
