//! The threads that fetch: many chunks with few reads, each decoded and checked against its id.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use undercroft_format::extent::Extent;

use super::cache::{Announced, Found};
use super::disk::Core;
use super::queue::{Answer, Job, Task, WantedChunk};
use super::{Cause, Shared};
use crate::repository::error::{RepositoryError, Result};
use crate::repository::records::{Batch, Fetch, Wanted};
use crate::restore::decode::SegmentDecoder;

/// Chunks fetched at once, however small.
const BATCH_CHUNKS_MAX: usize = 512;

/// One thread's share of the work.
pub struct Fetcher {
    shared: Arc<Shared>,
    decoder: SegmentDecoder,
}

impl Fetcher {
    /// A thread's share of what `shared` has to do.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            decoder: SegmentDecoder::default(),
        }
    }

    /// Works until there is nothing more to come.
    pub fn run(mut self) {
        let mut next = self.shared.queue.take();
        while let Some(job) = next {
            next = self.run_at_repository(job);
        }
    }

    /// Does `job` and all that follow of the same repository, with one queue of I/O; returns the first of another.
    fn run_at_repository(&mut self, job: Job) -> Option<Job> {
        let repository = job.core.repository.clone();
        let records = repository.objects().records();
        let pool = self.shared.fetched.clone();
        let mut fetch = match records.fetch(&**repository.engine(), &pool) {
            Ok(fetch) => fetch,
            Err(error) => {
                refuse(job, error);
                return self.shared.queue.take();
            }
        };
        let mut next = Some(job);
        while let Some(job) = next {
            if !Arc::ptr_eq(&job.core.repository, &repository) {
                return Some(job);
            }
            self.run_job(job, &mut *fetch);
            next = self.shared.queue.take();
        }
        None
    }

    fn run_job(&mut self, job: Job, fetch: &mut dyn Fetch) {
        let core = &*job.core;
        match job.task {
            Task::Chunks {
                wanted,
                first,
                answer,
            } => {
                // Whoever waited may have gone.
                self.chunks(core, &wanted, fetch, |place, got| {
                    let _ = answer.send((first + place, got));
                });
            }
            Task::Ask(ask) => ask(core),
            Task::Ahead(range) => {
                let mut wanted: Vec<WantedChunk> = Vec::new();
                // What cannot be read is met again by who reads it.
                let _ = core.each_extent_patiently(range, |_, extent| {
                    if let Extent::Data { chunk, offset, len } = extent
                        && !self.shared.cache.holds(chunk)
                    {
                        wanted.push((chunk, offset.saturating_add(len)));
                    }
                    Ok(())
                });
                self.chunks(core, &wanted, fetch, |_, _| {});
            }
        }
    }

    fn chunks(
        &mut self,
        core: &Core,
        wanted: &[WantedChunk],
        fetch: &mut dyn Fetch,
        mut answer: impl FnMut(usize, Answer),
    ) {
        let mut first = 0;
        for wanted in wanted.chunks(BATCH_CHUNKS_MAX) {
            self.batch(core, wanted, fetch, |place, got| answer(first + place, got));
            first += wanted.len();
        }
    }

    /// Fetches what nobody else does. Waits for nobody while it has announced something.
    fn batch(
        &mut self,
        core: &Core,
        wanted: &[WantedChunk],
        fetch: &mut dyn Fetch,
        mut answer: impl FnMut(usize, Answer),
    ) {
        let shared = self.shared.clone();
        let mut announced: Vec<Option<Announced<'_>>> = Vec::with_capacity(wanted.len());
        let mut batch = Batch::default();
        for (place, (chunk, plain_len_min)) in wanted.iter().enumerate() {
            announced.push(None);
            match shared.cache.find(*chunk, Duration::ZERO) {
                Found::Plain(plain) => answer(place, Answer::Plain(plain)),
                Found::Elsewhere => answer(place, Answer::Elsewhere),
                Found::Absent(guard) => {
                    announced[place] = Some(guard);
                    batch.wanted.push(Wanted {
                        id: (*chunk).into(),
                        tag: place,
                        plain_len_min: *plain_len_min,
                        located: None,
                        fetched: None,
                    });
                }
            }
        }
        if batch.wanted.is_empty() {
            return;
        }
        let buffer = match fetch.prepare(&mut batch) {
            Ok(()) if batch.fetch_len > 0 => {
                let buffer = shared.fetched.acquire(batch.fetch_len);
                fetch.submit(std::mem::take(&mut batch), buffer);
                let (fetched, buffer) = fetch.wait().expect("one batch is under way");
                batch = fetched;
                Some(buffer)
            }
            // Each is asked for alone, which tells why.
            Ok(()) | Err(_) => None,
        };
        for wanted in &batch.wanted {
            let announced = announced[wanted.tag].take();
            let announced = announced.expect("each was announced once");
            match self.decode(core, wanted, buffer.as_deref()) {
                Ok(plain) => {
                    shared.heard();
                    let plain: Bytes = shared.cache.keep(announced, plain);
                    answer(wanted.tag, Answer::Plain(plain));
                }
                Err(error) => {
                    drop(announced);
                    answer(wanted.tag, Answer::Failed(error.into()));
                }
            }
        }
    }

    fn decode(
        &mut self,
        core: &Core,
        wanted: &Wanted,
        fetched: Option<&[u8]>,
    ) -> Result<Vec<u8>, RepositoryError> {
        let objects = core.repository.objects();
        if wanted.fetched.is_some()
            && let Ok(plain) = self
                .decoder
                .decode_whole(wanted, fetched, objects, &core.keys)
        {
            return Ok(plain);
        }
        // A collection may have moved it since it was looked up, or its neighbour cannot be read.
        self.decoder.decode_alone(wanted.id, objects, &core.keys)
    }
}

fn refuse(job: Job, error: RepositoryError) {
    if let Task::Chunks {
        wanted,
        first,
        answer,
    } = job.task
    {
        let mut error = Some(error);
        for place in 0..wanted.len() {
            let cause = error.take().map_or(Cause::Fetcher, Cause::Repository);
            let _ = answer.send((first + place, Answer::Failed(cause)));
        }
    }
}
