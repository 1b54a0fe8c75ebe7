//! Deep work on a repository whose key the server does not have: the client, who has it, looks at sealed
//! chunks while this side reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::SendStream;
use serde::Serialize;
use tokio::runtime::Handle;
use undercroft_format::pack::RecordHeader;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::frame::{Body, FrameType};
use undercroft_format::wire::judge::{JudgeBuilder, Judged};
use undercroft_format::wire::upkeep;

use super::connection::{Conversing, Ending};
use super::repository_figures::Work;
use super::upkeep::report;
use crate::clock::Stopwatch;
use crate::net::conversation::{QuicStream, StreamError, expect, read_frame};
use crate::net::convert::failure_of;
use crate::progress::Progress;
use crate::repository::LocalRepository;
use crate::repository::error::{RepositoryError, Result as RepositoryResult};
use crate::repository::judge::Judge;

/// How long the end of the work may go unnoticed.
const LISTEN_EVERY: Duration = Duration::from_millis(20);
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Threads that wait for a client. Not those of other work: a client may let them wait.
const THREADS: usize = 3;

/// Does `work`, which asks the client about sealed chunks.
pub fn long<R: Serialize + Send>(
    on: &mut Conversing,
    kind: Work,
    work: impl FnOnce(
        &Arc<LocalRepository>,
        &dyn Judge,
        &rayon::ThreadPool,
        &Progress,
    ) -> RepositoryResult<R>
    + Send,
) -> Ending {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .thread_name(|number| format!("undercroft-judge-{number}"))
        .build();
    let pool = pool.map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))?;
    let progress = Arc::<Progress>::default();
    on.shared.long_work(&progress);
    on.served.figures().works(kind, &progress);
    let repository = on.served.repository().clone();
    let QuicStream {
        handle, send, recv, ..
    } = on.stream.quic().ok_or(StreamError::NoAnswer)?;
    let client = Client {
        handle: handle.clone(),
        send: Mutex::new(send),
        waiting: Mutex::default(),
    };
    let result = std::thread::scope(|scope| {
        let worker = std::thread::Builder::new()
            .name("upkeep".into())
            .spawn_scoped(scope, || work(&repository, &client, &pool, &progress))
            .expect("the system can start a thread");
        let mut told = Stopwatch::start();
        let ended = loop {
            let mut next = std::pin::pin!(read_frame(&mut *recv));
            let frame = loop {
                if worker.is_finished() {
                    break None;
                }
                if told.elapsed() >= TELL_EVERY {
                    told = Stopwatch::start();
                    if let Err(error) = client.tell(&progress) {
                        break Some(Err(error));
                    }
                }
                let waited = handle
                    .block_on(async { tokio::time::timeout(LISTEN_EVERY, next.as_mut()).await });
                if let Ok(frame) = waited {
                    break Some(frame);
                }
            };
            match frame {
                None => break Ok(()),
                Some(Ok(Some((FrameType::Stop, _)))) => progress.stop(),
                Some(Ok(Some(frame))) => {
                    if let Err(error) = expect(&frame).and_then(|judged| client.answered(judged)) {
                        break Err(error);
                    }
                }
                Some(Ok(None)) => break Err(StreamError::NoAnswer),
                Some(Err(error)) => break Err(error),
            }
        };
        if ended.is_err() {
            progress.stop();
            client.close();
        }
        let result = worker.join().expect("upkeep does not panic");
        ended.map(|()| result)
    });
    let outcome = match &result {
        Ok(Ok(_)) => "done",
        Ok(Err(_)) | Err(_) => "failed",
    };
    on.served.figures().worked(kind, outcome, 1);
    let result = result?.map_err(|error| failure_of(&error))?;
    report(on, &result)
}

/// The client at the other end of a stream.
struct Client<'a> {
    handle: Handle,
    send: Mutex<&'a mut SendStream>,
    waiting: Mutex<Waiting>,
}

/// Batches that have not been answered.
#[derive(Default)]
struct Waiting {
    next: u32,
    batches: HashMap<u32, (usize, SyncSender<Judged>)>,
    is_closed: bool,
}

impl Client<'_> {
    fn say(&self, frame: &[u8]) -> Result<(), StreamError> {
        let mut send = self.send.lock();
        Ok(self.handle.block_on(send.write_all(frame))?)
    }

    fn tell(&self, progress: &Progress) -> Result<(), StreamError> {
        let progress = upkeep::Progress {
            total_bytes: progress.total_bytes.get(),
            done_bytes: progress.done_bytes.get(),
            read_bytes: progress.read_bytes.get(),
            stored_bytes: progress.stored_bytes.get(),
        };
        self.say(&progress.frame())
    }

    /// Gives an answer to whoever waits for it.
    fn answered(&self, judged: Judged) -> Result<(), StreamError> {
        let batch = self.waiting.lock().batches.remove(&judged.batch);
        let (records, waits) = batch.ok_or(StreamError::Unexpected(FrameType::Judged))?;
        let last = judged.problems.last();
        if last.is_some_and(|(place, _)| *place as usize >= records) {
            return Err(StreamError::Unexpected(FrameType::Judged));
        }
        // Whoever asked is there until it is answered.
        let _ = waits.send(judged);
        Ok(())
    }

    /// Nobody is going to answer any more.
    fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.is_closed = true;
        waiting.batches.clear();
    }
}

impl Judge for Client<'_> {
    fn judge(&self, records: &[(RecordHeader, &[u8])]) -> RepositoryResult<Vec<(usize, String)>> {
        let (answer, waits) = sync_channel(1);
        let number = {
            let mut waiting = self.waiting.lock();
            if waiting.is_closed {
                return Err(RepositoryError::Cancelled);
            }
            let number = waiting.next;
            waiting.next = number.wrapping_add(1);
            waiting.batches.insert(number, (records.len(), answer));
            number
        };
        let mut batch = JudgeBuilder::new(number);
        for (header, payload) in records {
            batch.push(header, payload);
        }
        self.say(&batch.finish())?;
        let judged: Judged = waits.recv().map_err(|_| RepositoryError::Cancelled)?;
        let problems = judged.problems.into_iter();
        Ok(problems
            .map(|(place, text)| (place as usize, text))
            .collect())
    }
}
