//! A proxy, as its clients see it.

use undercroft_format::id::TaskId;
use undercroft_format::wire::frame::{Body, FrameType};
use undercroft_format::wire::proxy::{
    Accepted, CancelTask, Follow, ListTasks, ShowTask, Submit, Suspend, TaskNote, TaskOver,
    TaskProgress,
};
use undercroft_format::wire::task::Task;
use undercroft_format::wire::upkeep::{Done, Report, Status};

use super::status::{ProxyStatus, TaskDetails, TaskStatus};
use crate::net::client::link::parse;
use crate::net::client::{Link, LinkOptions};
use crate::net::conversation::{Conversation, StreamError, expect};
use crate::repository::error::Result;

/// A connection to a proxy.
pub struct ProxyLink {
    link: Link,
}

/// What one hears who follows a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowEvent {
    /// A warning.
    Note(TaskNote),
    /// How far it is.
    Progress(TaskProgress),
    /// It is over. Nothing follows.
    Over(TaskOver),
}

/// A task that is followed.
pub struct Following {
    stream: Conversation,
}

impl ProxyLink {
    /// Connects.
    pub fn connect(options: LinkOptions) -> Result<Self> {
        Ok(Self {
            link: Link::connect(options)?,
        })
    }

    /// The connection.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Submits a task; true if the proxy did not have it before. The same again changes nothing.
    pub fn submit(&self, id: TaskId, task: &Task) -> Result<bool> {
        let submit = Submit {
            id,
            task: task.clone(),
        };
        let Accepted { is_new } = self.link.ask(&submit)?;
        Ok(is_new)
    }

    /// Follows a task of which so many notes are known.
    pub fn follow(&self, id: TaskId, notes_seen: u32) -> Result<Following> {
        let mut stream = self.link.converse()?;
        stream.say(&Follow { id, notes_seen })?;
        Ok(Following { stream })
    }

    /// Ends a task as soon as that leaves everything clean.
    pub fn cancel(&self, id: TaskId) -> Result<()> {
        let Done = self.link.ask(&CancelTask { id })?;
        Ok(())
    }

    /// The tasks that may be seen.
    pub fn list(&self) -> Result<Vec<TaskStatus>> {
        self.inquire(&ListTasks)
    }

    /// All that is known of a task.
    pub fn show(&self, id: TaskId) -> Result<TaskDetails> {
        self.inquire(&ShowTask { id })
    }

    /// What the proxy does.
    pub fn status(&self) -> Result<ProxyStatus> {
        self.inquire(&Status)
    }

    /// Has the proxy take no tasks, or take them again.
    pub fn suspend(&self, is_suspended: bool) -> Result<()> {
        let Done = self.link.ask(&Suspend { is_suspended })?;
        Ok(())
    }

    fn inquire<Q: Body, R: serde::de::DeserializeOwned>(&self, question: &Q) -> Result<R> {
        let Report { json } = self.link.ask(question)?;
        parse(&json)
    }
}

impl Following {
    /// Waits for what comes next: at most a moment while the connection is good.
    pub fn hear(&mut self) -> Result<FollowEvent> {
        let frame = self.stream.read()?.ok_or(StreamError::NoAnswer)?;
        Ok(match frame.0 {
            FrameType::TaskNote => FollowEvent::Note(expect(&frame)?),
            FrameType::TaskProgress => FollowEvent::Progress(expect(&frame)?),
            _ => FollowEvent::Over(expect(&frame)?),
        })
    }
}
