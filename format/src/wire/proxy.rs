//! What is said to a proxy: tasks in, how they go out.
//!
//! Lists, figures and results travel as the JSON and the text that the command line prints; what either
//! side decides by has fields of its own.

use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};
use crate::id::TaskId;

use super::frame::{Body, FrameType};
use super::task::Task;

/// Longest warning, and longest word on what a task waits for, in bytes.
pub const NOTE_LEN_MAX: u64 = 4096;
const WAIT_LEN_MAX: u64 = 256;
/// Longest result, as JSON and as text, in bytes each.
pub const RESULT_LEN_MAX: u64 = 4 << 20;

/// Asks to run a task. The same again is answered as before and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit {
    /// Its name, chosen at random by the client.
    pub id: TaskId,
    /// What to do.
    pub task: Task,
}

/// The task is on the books, and stays there whatever happens to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// It was not there before.
    pub is_new: bool,
}

/// Asks how a task goes: answered by [`TaskNote`] and [`TaskProgress`] as often as the proxy likes, then by
/// [`TaskOver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The task.
    pub id: TaskId,
    /// Warnings of it that the client has already.
    pub notes_seen: u32,
}

/// A warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskNote {
    /// In words.
    pub text: String,
}

/// How far a task is. The figures begin anew when the proxy begins the task anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskProgress {
    /// It is being worked on.
    pub is_running: bool,
    /// What it waits for, in words.
    pub waits_for: String,
    /// Bytes that it will go through, as far as known.
    pub total_bytes: u64,
    /// Bytes gone through.
    pub done_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes of new chunks.
    pub new_bytes: u64,
    /// Bytes written.
    pub stored_bytes: u64,
}

/// How a task can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was done.
    Done,
    /// It was done, but stored data is damaged.
    Damage,
    /// It failed.
    Failed,
    /// Somebody ended it.
    Cancelled,
    /// It was done, but something that was relied on turned out to be wrong.
    Warned,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Done,
        Self::Damage,
        Self::Failed,
        Self::Cancelled,
        Self::Warned,
    ];

    /// The byte that stands for it.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Damage => 1,
            Self::Failed => 2,
            Self::Cancelled => 3,
            Self::Warned => 4,
        }
    }

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Damage => "damage",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Warned => "warned",
        }
    }
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskOver {
    /// In a word.
    pub ending: Ending,
    /// The report of the command; of a failure, what is printed of it with `--json`.
    pub json: String,
    /// The report as text; nothing of a failure.
    pub text: String,
}

/// Asks to end a task as soon as that leaves everything clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelTask {
    /// The task.
    pub id: TaskId,
}

/// Asks for the tasks that the caller may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListTasks;

/// Asks for all that is known of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShowTask {
    /// The task.
    pub id: TaskId,
}

/// Asks the proxy to take and begin no tasks, or to do so again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspend {
    /// No tasks.
    pub is_suspended: bool,
}

impl Body for Submit {
    const KIND: FrameType = FrameType::Submit;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id.as_bytes());
        self.task.put(out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: TaskId::from_bytes(reader.array()?),
            task: Task::read(reader)?,
        })
    }
}

impl Body for Accepted {
    const KIND: FrameType = FrameType::Accepted;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.is_new.into());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            is_new: reader.bool()?,
        })
    }
}

impl Body for Follow {
    const KIND: FrameType = FrameType::Follow;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id.as_bytes());
        put_varint(out, self.notes_seen.into());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: TaskId::from_bytes(reader.array()?),
            notes_seen: reader.varint("notes", u32::MAX.into())? as u32,
        })
    }
}

impl Body for TaskNote {
    const KIND: FrameType = FrameType::TaskNote;

    fn put(&self, out: &mut Vec<u8>) {
        put_string(out, &self.text);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            text: reader.string("note", NOTE_LEN_MAX)?,
        })
    }
}

impl Body for TaskProgress {
    const KIND: FrameType = FrameType::TaskProgress;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.is_running.into());
        put_string(out, shortened(&self.waits_for, WAIT_LEN_MAX));
        for figure in [
            self.total_bytes,
            self.done_bytes,
            self.read_bytes,
            self.new_bytes,
            self.stored_bytes,
        ] {
            put_varint(out, figure);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            is_running: reader.bool()?,
            waits_for: reader.string("what a task waits for", WAIT_LEN_MAX)?,
            total_bytes: reader.varint("total bytes", u64::MAX)?,
            done_bytes: reader.varint("done bytes", u64::MAX)?,
            read_bytes: reader.varint("read bytes", u64::MAX)?,
            new_bytes: reader.varint("new bytes", u64::MAX)?,
            stored_bytes: reader.varint("stored bytes", u64::MAX)?,
        })
    }
}

impl Body for TaskOver {
    const KIND: FrameType = FrameType::TaskOver;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.ending.code());
        put_string(out, &self.json);
        put_string(out, &self.text);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        let code = reader.u8()?;
        let ending = Ending::ALL
            .into_iter()
            .find(|ending| ending.code() == code)
            .ok_or_else(|| at.error(Problem::Invalid("ending of a task")))?;
        Ok(Self {
            ending,
            json: reader.string("result", RESULT_LEN_MAX)?,
            text: reader.string("result", RESULT_LEN_MAX)?,
        })
    }
}

macro_rules! of_task {
    ($($name:ident,)*) => {$(
        impl Body for $name {
            const KIND: FrameType = FrameType::$name;

            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.id.as_bytes());
            }

            fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self {
                    id: TaskId::from_bytes(reader.array()?),
                })
            }
        }
    )*};
}

of_task! {
    CancelTask,
    ShowTask,
}

impl Body for ListTasks {
    const KIND: FrameType = FrameType::ListTasks;

    fn put(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

impl Body for Suspend {
    const KIND: FrameType = FrameType::Suspend;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.is_suspended.into());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            is_suspended: reader.bool()?,
        })
    }
}

/// The beginning of `text` that takes at most `limit` bytes.
pub fn shortened(text: &str, limit: u64) -> &str {
    let mut len = text.len().min(limit as usize);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    &text[..len]
}
