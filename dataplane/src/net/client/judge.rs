//! Deep checks of an encrypted repository behind a server: the server reads and sends sealed chunks, this
//! side opens them.

use parking_lot::{Condvar, Mutex};
use quinn::SendStream;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use undercroft_format::codec::DecodeError;
use undercroft_format::pack::RecordHeader;
use undercroft_format::wire::frame::{Body, FrameType};
use undercroft_format::wire::judge::{Judged, PROBLEM_LEN_MAX, judged_records};
use undercroft_format::wire::message::{Report, Stop};
use undercroft_format::wire::upkeep;

use super::link::parse;
use super::maintenance::{LISTEN_EVERY, advance};
use super::repository::RemoteRepository;
use crate::net::conversation::{Frame, QuicStream, StreamError, expect, read_frame};
use crate::progress::Progress;
use crate::repository::error::{RecordProblem, Result};
use crate::repository::keys::Keys;
use crate::repository::record::RecordDecoder;

/// Batches in memory beyond those that are being looked at.
const BATCHES_AHEAD: usize = 2;

/// Has long work done, and judges what the server sends meanwhile.
pub fn long<Q: Body, R: DeserializeOwned>(
    repository: &RemoteRepository,
    question: &Q,
    keys: &Keys,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<R> {
    let mut stream = repository.link().converse()?;
    stream.say(question)?;
    let QuicStream {
        handle, send, recv, ..
    } = stream.quic().ok_or(StreamError::NoAnswer)?;
    let answers = Answers {
        handle: handle.clone(),
        send: Mutex::new(send),
        failure: Mutex::default(),
    };
    let room = Room::new(threads.current_num_threads() + BATCHES_AHEAD);
    let mut told = upkeep::Progress::default();
    let mut is_stopped = false;
    threads.in_place_scope(|scope| {
        loop {
            let mut next = std::pin::pin!(read_frame(&mut *recv));
            let frame: Frame = loop {
                let waited = handle
                    .block_on(async { tokio::time::timeout(LISTEN_EVERY, next.as_mut()).await });
                match waited {
                    Ok(frame) => break frame?.ok_or(StreamError::NoAnswer)?,
                    Err(_) if progress.is_stopping() && !is_stopped => {
                        is_stopped = true;
                        answers.say(&Stop.frame())?;
                    }
                    Err(_) => {}
                }
            };
            match frame.0 {
                FrameType::Progress => advance(progress, &mut told, expect(&frame)?),
                FrameType::Judge => {
                    let (room, answers) = (&room, &answers);
                    room.take();
                    scope.spawn(move |_| {
                        let judged = judge(&frame.1, keys).map_err(StreamError::from);
                        let said = judged.and_then(|judged| answers.say(&judged.frame()));
                        if let Err(error) = said {
                            answers.failure.lock().get_or_insert(error);
                        }
                        room.give();
                    });
                }
                _ => return parse(&expect::<Report>(&frame)?.json),
            }
            if let Some(error) = answers.failure.lock().take() {
                return Err(error.into());
            }
        }
    })
}

/// Looks at a batch.
fn judge(body: &[u8], keys: &Keys) -> Result<Judged, DecodeError> {
    let (batch, records) = judged_records(body)?;
    let mut decoder = RecordDecoder::default();
    let mut plain = Vec::new();
    let mut problems = Vec::new();
    for (place, (header, payload)) in (0..).zip(records) {
        if let Err(problem) = open(&header, payload, keys, &mut decoder, &mut plain) {
            let mut text = problem.to_string();
            let mut len = text.len().min(PROBLEM_LEN_MAX as usize);
            while !text.is_char_boundary(len) {
                len -= 1;
            }
            text.truncate(len);
            problems.push((place, text));
        }
    }
    Ok(Judged { batch, problems })
}

fn open(
    header: &RecordHeader,
    payload: &[u8],
    keys: &Keys,
    decoder: &mut RecordDecoder,
    plain: &mut Vec<u8>,
) -> Result<(), RecordProblem> {
    header.check_payload(payload)?;
    plain.resize(header.info.plain_len as usize, 0);
    decoder.decode(&header.info, payload, keys, plain)
}

/// Answers of several threads on one stream.
struct Answers<'a> {
    handle: Handle,
    send: Mutex<&'a mut SendStream>,
    failure: Mutex<Option<StreamError>>,
}

impl Answers<'_> {
    fn say(&self, frame: &[u8]) -> Result<(), StreamError> {
        let mut send = self.send.lock();
        Ok(self.handle.block_on(send.write_all(frame))?)
    }
}

/// Room for batches: what a server sends faster than it is looked at, stays with it.
struct Room {
    left: Mutex<usize>,
    given: Condvar,
}

impl Room {
    fn new(batches: usize) -> Self {
        Self {
            left: Mutex::new(batches),
            given: Condvar::new(),
        }
    }

    fn take(&self) {
        let mut left = self.left.lock();
        while *left == 0 {
            self.given.wait(&mut left);
        }
        *left -= 1;
    }

    fn give(&self) {
        *self.left.lock() += 1;
        self.given.notify_one();
    }
}
