//! A lane as the client sees it: what it sent and has not been told of yet.

use std::collections::HashSet;

use parking_lot::Mutex;
use undercroft_format::id::ObjectId;
use undercroft_format::wire::frame::Body;
use undercroft_format::wire::lane::Attach;

use crate::net::conversation::{Conversation, StreamError};

/// Workers rarely meet on one of so many locks.
const SHARDS: usize = 64;

/// Objects that a worker of the session has taken on and whose records the server has not taken in yet.
pub struct Claims(Vec<Mutex<HashSet<ObjectId>>>);

impl Default for Claims {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl Claims {
    fn shard(&self, id: ObjectId) -> &Mutex<HashSet<ObjectId>> {
        &self.0[usize::from(id.as_bytes()[1]) % SHARDS]
    }

    /// Takes an object on; false if another worker has.
    pub fn claim(&self, id: ObjectId) -> bool {
        self.shard(id).lock().insert(id)
    }

    /// True if a worker has taken it on.
    pub fn contains(&self, id: ObjectId) -> bool {
        self.shard(id).lock().contains(&id)
    }

    fn release(&self, id: ObjectId) {
        self.shard(id).lock().remove(&id);
    }
}

/// A stream that carries a session's data.
pub struct Lane {
    stream: Conversation,
    /// Sent since the last answer: an answer says that everything before the question was taken in, and
    /// from then on the server itself knows these objects.
    sent: Vec<ObjectId>,
    /// Nothing was sent since the last answer.
    is_answered: bool,
}

impl Lane {
    /// Attaches a new stream to a session.
    pub fn open(mut stream: Conversation, attach: &Attach) -> Result<Self, StreamError> {
        stream.say(attach)?;
        Ok(Self {
            stream,
            sent: Vec::new(),
            is_answered: false,
        })
    }

    /// True if the server has taken in everything that was sent.
    pub fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// Sends a frame that is not answered, with the records of `ids` in it.
    pub fn send(
        &mut self,
        frame: Vec<u8>,
        ids: impl Iterator<Item = ObjectId>,
    ) -> Result<(), StreamError> {
        self.sent.extend(ids);
        self.is_answered = false;
        let sent = self.stream.write(frame);
        sent.map_err(|error| self.reason(error))
    }

    /// Asks something.
    pub fn ask<Q: Body, A: Body>(
        &mut self,
        question: &Q,
        claims: &Claims,
    ) -> Result<A, StreamError> {
        self.begin_ask(question)?;
        self.end_ask(claims)
    }

    /// Asks something whose answer is waited for later.
    pub fn begin_ask<Q: Body>(&mut self, question: &Q) -> Result<(), StreamError> {
        let sent = self.stream.say(question);
        sent.map_err(|error| self.reason(error))
    }

    /// Waits for the answer.
    pub fn end_ask<A: Body>(&mut self, claims: &Claims) -> Result<A, StreamError> {
        let answer = self.stream.answer()?;
        self.is_answered = true;
        self.sent.drain(..).for_each(|id| claims.release(id));
        Ok(answer)
    }

    /// A server that takes no more has said why.
    fn reason(&mut self, error: StreamError) -> StreamError {
        if !matches!(error, StreamError::Write(quinn::WriteError::Stopped(_))) {
            return error;
        }
        match self
            .stream
            .answer::<undercroft_format::wire::upkeep::Done>()
        {
            Err(why @ StreamError::Failed(_)) => why,
            _ => error,
        }
    }
}
