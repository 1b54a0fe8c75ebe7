//! The simulated world: its time, its chance, its network, and what can be seen from outside.
//!
//! A network of connections that carry streams of frames. Within a stream frames keep their order; between
//! streams they do not. A connection that breaks has delivered a prefix of each stream, another one of each,
//! and its ends notice at different times.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use undercroft_dataplane::net::client::Dial;
use undercroft_dataplane::net::conversation::{Frame, FrameStream, StreamError, Waited};
use undercroft_format::wire::frame::{FRAME_HEADER_LEN, FrameHeader, FrameType};

use super::books::Books;
use super::support::Rng;

/// Bytes that a stream takes before its writer has to wait.
const WINDOW: usize = 256 << 10;
/// Servers look up from reading no more often than this, or idle sessions would be most of a run.
const PATIENCE_MIN_MS: u64 = 1000;
/// Lines of the trace that are kept.
const TRACE_LINES: usize = 120;

pub type ActorNumber = usize;
pub type StreamNumber = usize;
pub type ConnectionNumber = usize;

/// Thrown through an actor that dies.
pub struct Killed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What an actor waits for.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    Sleep {
        until: u64,
    },
    Read {
        stream: StreamNumber,
        side: Side,
        deadline: Option<u64>,
    },
    Write {
        stream: StreamNumber,
    },
}

enum Item {
    Frame(Frame),
    End,
}

#[derive(Default)]
struct Direction {
    queue: VecDeque<(u64, Item)>,
    bytes: usize,
    last_at: u64,
    is_finished: bool,
    /// When the writer learns that the reader wants no more.
    stopped_at: Option<u64>,
}

struct Stream {
    connection: ConnectionNumber,
    to_server: Direction,
    to_client: Direction,
}

impl Stream {
    fn written_by(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Client => &mut self.to_server,
            Side::Server => &mut self.to_client,
        }
    }
}

struct Connection {
    /// Whose backup it is for.
    attempt: u64,
    /// What its client pushes does not always get onto the wire.
    is_careless: bool,
    owner: ActorNumber,
    delay_ms: u64,
    /// When client and server notice that it is broken.
    broken: Option<[u64; 2]>,
}

pub struct State {
    pub now: u64,
    pub rng: Rng,
    pub current: ActorNumber,
    pub waits: BTreeMap<ActorNumber, Wait>,
    pub killed: BTreeSet<ActorNumber>,
    pub books: Books,
    /// Streams that nobody serves yet.
    pub incoming: Vec<StreamNumber>,
    pub is_server_up: bool,
    /// True from the moment of a power failure within a server's step.
    pub is_server_mute: Box<dyn Fn() -> bool + Send>,
    connections: Vec<Connection>,
    streams: Vec<Stream>,
    trace: VecDeque<String>,
    trace_hash: blake3::Hasher,
    is_loud: bool,
}

/// Shared by everything that acts.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

impl World {
    pub fn new(seed: u64, is_loud: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            now: 1,
            rng: Rng(seed),
            current: 0,
            waits: BTreeMap::new(),
            killed: BTreeSet::new(),
            books: Books::default(),
            incoming: Vec::new(),
            is_server_up: false,
            is_server_mute: Box::new(|| false),
            connections: Vec::new(),
            streams: Vec::new(),
            trace: VecDeque::new(),
            trace_hash: blake3::Hasher::new(),
            is_loud,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    pub fn below(&self, end: u64) -> u64 {
        self.lock().rng.below(end)
    }

    /// True once in `times`.
    pub fn once_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn note(&self, line: impl FnOnce() -> String) {
        self.lock().note(line());
    }

    /// Lets others act until what is waited for may have happened.
    pub fn pause(&self, wait: Wait) {
        {
            let mut state = self.lock();
            let me = state.current;
            state.waits.insert(me, wait);
        }
        #[expect(
            deprecated,
            reason = "a scope cannot be passed through the code under test"
        )]
        generator::yield_with(());
        let mut state = self.lock();
        let me = state.current;
        state.waits.remove(&me);
        if state.killed.contains(&me) {
            drop(state);
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    pub fn sleep(&self, ms: u64) {
        let until = self.lock().now + ms;
        self.pause(Wait::Sleep { until });
    }

    /// Connects to the server for a backup; `None` if nobody answers.
    pub fn connect(&self, attempt: u64, is_careless: bool, count: usize) -> Option<SimDial> {
        let delay = self.below(20);
        self.sleep(delay);
        let mut state = self.lock();
        if !state.is_server_up {
            return None;
        }
        let connections = (0..count)
            .map(|_| state.connect(attempt, is_careless))
            .collect();
        Some(SimDial {
            world: self.clone(),
            connections,
        })
    }
}

impl State {
    pub fn note(&mut self, line: String) {
        let line = format!("{:>8} {line}", self.now);
        self.trace_hash.update(line.as_bytes());
        if self.is_loud {
            println!("{line}");
        }
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    pub fn trace(&self) -> impl Iterator<Item = &String> {
        self.trace.iter()
    }

    pub fn trace_hash(&self) -> blake3::Hash {
        self.trace_hash.finalize()
    }

    fn connect(&mut self, attempt: u64, is_careless: bool) -> ConnectionNumber {
        let delay_ms = match self.rng.below(6) {
            0 => 500,
            1 => 50,
            _ => 4,
        };
        self.connections.push(Connection {
            attempt,
            is_careless,
            owner: self.current,
            delay_ms,
            broken: None,
        });
        self.connections.len() - 1
    }

    /// Connections that still carry frames.
    pub fn whole_connections(&self, of: Option<ActorNumber>) -> Vec<ConnectionNumber> {
        let all = self.connections.iter().enumerate();
        all.filter(|(_, connection)| {
            connection.broken.is_none() && of.is_none_or(|of| of == connection.owner)
        })
        .map(|(number, _)| number)
        .collect()
    }

    /// Breaks a connection: what is on its way arrives in part. `notice_ms` says at most how long the
    /// client and the server take to notice.
    pub fn break_connection(&mut self, number: ConnectionNumber, notice_ms: [u64; 2]) {
        if self.connections[number].broken.is_some() {
            return;
        }
        let notice = notice_ms.map(|ms| self.now + self.rng.below(ms + 1));
        self.connections[number].broken = Some(notice);
        self.note(format!("connection {number} breaks, noticed at {notice:?}"));
        let State { streams, rng, .. } = self;
        for stream in streams.iter_mut().filter(|s| s.connection == number) {
            for side in [Side::Client, Side::Server] {
                let direction = stream.written_by(side);
                let arriving = rng.below(direction.queue.len() as u64 + 1);
                direction.queue.truncate(arriving as usize);
            }
        }
    }

    fn has_noticed(&self, connection: ConnectionNumber, side: Side) -> bool {
        self.notices_at(connection, side)
            .is_some_and(|at| at <= self.now)
    }

    fn notices_at(&self, connection: ConnectionNumber, side: Side) -> Option<u64> {
        let broken = self.connections[connection].broken?;
        Some(broken[usize::from(side == Side::Server)])
    }

    /// When something that an actor waits for has happened, as far as that is known.
    pub fn ready_at(&mut self, wait: Wait) -> Option<u64> {
        match wait {
            Wait::Sleep { until } => Some(until),
            Wait::Read {
                stream,
                side,
                deadline,
            } => {
                let connection = self.streams[stream].connection;
                let notice = self.notices_at(connection, side);
                let direction = self.streams[stream].written_by(side.other());
                let arrival = direction.queue.front().map(|(at, _)| *at);
                [arrival, notice, deadline].into_iter().flatten().min()
            }
            Wait::Write { stream } => {
                let connection = self.streams[stream].connection;
                let notice = self.notices_at(connection, Side::Client);
                let direction = &self.streams[stream].to_server;
                let room = (direction.bytes <= WINDOW).then_some(0);
                [room, notice, direction.stopped_at]
                    .into_iter()
                    .flatten()
                    .min()
            }
        }
    }

    fn try_read(
        &mut self,
        number: StreamNumber,
        side: Side,
    ) -> Option<Result<Option<Frame>, StreamError>> {
        let now = self.now;
        let direction = self.streams[number].written_by(side.other());
        if direction.queue.front().is_some_and(|(at, _)| *at <= now) {
            if matches!(direction.queue[0].1, Item::End) {
                return Some(Ok(None));
            }
            let (_, item) = direction.queue.pop_front().expect("just seen");
            if let Item::Frame(frame) = item {
                direction.bytes -= frame.1.len();
                let attempt = self.connections[self.streams[number].connection].attempt;
                if frame.0 == FrameType::Begun {
                    self.books.heard_begun.insert(attempt);
                }
                self.note(format!(
                    "{side:?} reads {:?} of {} on {number}",
                    frame.0,
                    frame.1.len()
                ));
                return Some(Ok(Some(frame)));
            }
        }
        let connection = self.streams[number].connection;
        self.has_noticed(connection, side).then(|| {
            Err(StreamError::Read(quinn::ReadError::ConnectionLost(
                quinn::ConnectionError::TimedOut,
            )))
        })
    }

    fn push(&mut self, number: StreamNumber, side: Side, item: Item) {
        let connection = &self.connections[self.streams[number].connection];
        if connection.broken.is_some() {
            return;
        }
        let delay = self.rng.below(connection.delay_ms + 1);
        // Now and then a loss holds a stream up.
        let delay = delay + 3000 * u64::from(self.rng.below(40) == 0);
        let now = self.now;
        let direction = self.streams[number].written_by(side);
        direction.last_at = direction.last_at.max(now + delay);
        if let Item::Frame((_, body)) = &item {
            direction.bytes += body.len();
        }
        let at = direction.last_at;
        direction.queue.push_back((at, item));
    }
}

/// Opens streams to the simulated server.
pub struct SimDial {
    world: World,
    connections: Vec<ConnectionNumber>,
}

impl Dial for SimDial {
    fn open_stream(&self, connection: usize) -> Result<Box<dyn FrameStream>, StreamError> {
        let mut state = self.world.lock();
        let connection = self.connections[connection % self.connections.len()];
        if state.has_noticed(connection, Side::Client) {
            return Err(StreamError::Connection(quinn::ConnectionError::TimedOut));
        }
        let number = state.streams.len();
        state.streams.push(Stream {
            connection,
            to_server: Direction::default(),
            to_client: Direction::default(),
        });
        if state.connections[connection].broken.is_none() {
            state.incoming.push(number);
        }
        Ok(Box::new(SimStream {
            world: self.world.clone(),
            number,
            side: Side::Client,
        }))
    }
}

impl Drop for SimDial {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        for connection in &self.connections {
            state.break_connection(*connection, [0, 50]);
        }
    }
}

/// One end of a stream.
pub struct SimStream {
    pub world: World,
    pub number: StreamNumber,
    pub side: Side,
}

impl SimStream {
    fn read_until(&mut self, deadline: Option<u64>) -> Result<Waited, StreamError> {
        loop {
            {
                let mut state = self.world.lock();
                if let Some(read) = state.try_read(self.number, self.side) {
                    return Ok(Waited::For(read?));
                }
                if deadline.is_some_and(|deadline| deadline <= state.now) {
                    return Ok(Waited::InVain);
                }
            }
            self.world.pause(Wait::Read {
                stream: self.number,
                side: self.side,
                deadline,
            });
        }
    }

    /// Whether a writer may go on; `None` if it has to wait.
    fn may_write(&self) -> Option<Result<(), StreamError>> {
        let mut state = self.world.lock();
        let connection = state.streams[self.number].connection;
        let now = state.now;
        if state.has_noticed(connection, self.side) {
            let lost = quinn::WriteError::ConnectionLost(quinn::ConnectionError::TimedOut);
            return Some(Err(StreamError::Write(lost)));
        }
        let direction = state.streams[self.number].written_by(self.side);
        if direction.stopped_at.is_some_and(|at| at <= now) {
            let stopped = quinn::WriteError::Stopped(quinn::VarInt::from_u32(0));
            return Some(Err(StreamError::Write(stopped)));
        }
        // What a server says is short, or asked for one at a time.
        (self.side == Side::Server || direction.bytes <= WINDOW).then_some(Ok(()))
    }
}

impl FrameStream for SimStream {
    fn read(&mut self) -> Result<Option<Frame>, StreamError> {
        match self.read_until(None)? {
            Waited::For(frame) => Ok(frame),
            Waited::InVain => unreachable!("there was no deadline"),
        }
    }

    fn read_within(&mut self, wait: Duration) -> Result<Waited, StreamError> {
        let wait = (wait.as_millis() as u64).max(PATIENCE_MIN_MS);
        let deadline = self.world.lock().now + wait;
        self.read_until(Some(deadline))
    }

    fn write(&mut self, frames: Vec<u8>) -> Result<(), StreamError> {
        let mut rest = &frames[..];
        while !rest.is_empty() {
            loop {
                match self.may_write() {
                    Some(may) => break may?,
                    None => self.world.pause(Wait::Write {
                        stream: self.number,
                    }),
                }
            }
            let (header, body) = rest.split_at(FRAME_HEADER_LEN);
            let header = FrameHeader::decode(header).expect("what is sent is a frame");
            let (body, after) = body.split_at(header.len as usize);
            rest = after;
            let mut state = self.world.lock();
            if self.side == Side::Server && (state.is_server_mute)() {
                continue;
            }
            let frame = (header.kind, body.to_vec());
            let connection = state.streams[self.number].connection;
            let attempt = state.connections[connection].attempt;
            if self.side == Side::Server {
                state.books.server_says(self.number, attempt, &frame);
            } else {
                state.books.client_says(self.number, &frame);
                if state.connections[connection].is_careless
                    && frame.0 == FrameType::Push
                    && state.rng.below(4) == 0
                {
                    state.note(format!("attempt {attempt} leaves a Push out"));
                    continue;
                }
            }
            state.note(format!(
                "{:?} of attempt {attempt} writes {:?} of {} on {}",
                self.side,
                frame.0,
                frame.1.len(),
                self.number
            ));
            state.push(self.number, self.side, Item::Frame(frame));
        }
        Ok(())
    }

    fn finish(&mut self) {
        let mut state = self.world.lock();
        let direction = state.streams[self.number].written_by(self.side);
        if !std::mem::replace(&mut direction.is_finished, true) {
            state.push(self.number, self.side, Item::End);
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.finish();
        let mut state = self.world.lock();
        let at = state.now + state.rng.below(30);
        let (number, side) = (self.number, self.side);
        let direction = state.streams[number].written_by(side.other());
        direction.stopped_at = Some(at);
        direction.queue.clear();
        direction.bytes = 0;
    }
}
