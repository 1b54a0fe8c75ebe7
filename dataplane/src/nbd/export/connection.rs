//! A client with an open export: its requests in, its replies out.

use std::io::{self, IoSlice};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::timeout;
use undercroft_format::nbd::server::offer::Offer;
use undercroft_format::nbd::server::replies::put_error;
use undercroft_format::nbd::server::requests::{Incoming, Request, Requests};
use undercroft_format::nbd::wire::Command;

use super::bounds::{Bytes, Room, STALLED_AFTER, Shared};
use super::disk::Disk;
use super::negotiate::Settled;
use super::reply::Reply;
use super::work::{self, Worker};

/// Bytes of requests taken from the connection at once.
const READ_LEN: usize = 64 << 10;
/// Replies that are ready together go out together, up to this many bytes.
const JOIN_LEN: usize = 256 << 10;
/// Pieces that go out at once: more would be cut by the system.
const SLICES_MAX: usize = 512;

/// A reply on its way, and the room that it takes.
type Outgoing = (Reply, Room);

/// Serves `settled` until it says goodbye, or `stopping` turns true: what is in flight then is still done.
///
/// # Errors
/// What is wrong with the client, or with the connection.
pub(super) async fn serve(
    settled: Settled,
    offer: &Offer,
    disk: Disk,
    all: &Shared,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(settled.stream);
    let (replies, outgoing) = unbounded_channel();
    let incoming = Reading {
        reader,
        buffer: settled.rest,
        at: 0,
        requests: Requests::new(offer, settled.opened),
        bytes: Bytes::new(&all.bytes),
        replies,
        worker: Arc::new(Worker {
            disk,
            opened: settled.opened,
            buffers: all.buffers.clone(),
        }),
    };
    let mut writing = tokio::spawn(write(writer, outgoing));
    let read = tokio::select! {
        read = incoming.run(stopping) => read,
        // It ends first only where the client takes nothing any more.
        written = &mut writing => return written.map_err(io::Error::other)?,
    };
    let written = writing.await.map_err(io::Error::other)?;
    read.and(written)
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut outgoing: UnboundedReceiver<Outgoing>,
) -> io::Result<()> {
    while let Some(first) = outgoing.recv().await {
        let (mut len, mut replies) = (first.0.len(), vec![first]);
        while len < JOIN_LEN
            && replies.len() < SLICES_MAX
            && let Ok(more) = outgoing.try_recv()
        {
            len += more.0.len();
            replies.push(more);
        }
        let mut slices: Vec<_> = replies
            .iter()
            .flat_map(|(reply, _)| reply.slices())
            .collect();
        write_all(&mut writer, &mut slices).await?;
        if outgoing.is_empty() {
            timeout(STALLED_AFTER, writer.flush()).await??;
        }
    }
    let _ = timeout(STALLED_AFTER, writer.shutdown()).await;
    Ok(())
}

/// Writes all of `slices`; fails when the client takes nothing for too long.
async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    mut slices: &mut [IoSlice<'_>],
) -> io::Result<()> {
    while slices.iter().any(|slice| !slice.is_empty()) {
        let written = timeout(STALLED_AFTER, writer.write_vectored(slices)).await;
        let stalled = |_| io::Error::new(io::ErrorKind::TimedOut, "the client takes no replies");
        match written.map_err(stalled)?? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            len => IoSlice::advance_slices(&mut slices, len),
        }
    }
    Ok(())
}

struct Reading<R> {
    reader: R,
    /// Bytes that came; those before `at` were looked at.
    buffer: Vec<u8>,
    at: usize,
    requests: Requests,
    bytes: Bytes,
    replies: UnboundedSender<Outgoing>,
    worker: Arc<Worker>,
}

/// What to do next.
enum Next {
    Serve(Request),
    Refuse(Reply),
    Read,
    End,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) -> io::Result<()> {
        let stopped = async move {
            // Whoever would say so is gone: that is the same.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        tokio::select! {
            ended = self.requests() => ended,
            () = stopped => Ok(()),
        }
    }

    async fn requests(&mut self) -> io::Result<()> {
        loop {
            match self.next()? {
                Next::End => return Ok(()),
                Next::Read => {
                    if !self.fill().await? {
                        return Ok(());
                    }
                }
                Next::Refuse(reply) => {
                    let room = self.bytes.room(0).await;
                    // If the other half ended, this one is about to.
                    let _ = self.replies.send((reply, room));
                }
                Next::Serve(request) => self.begin(request).await?,
            }
        }
    }

    fn next(&mut self) -> io::Result<Next> {
        let mut input = &self.buffer[self.at..];
        let before = input.len();
        let next = match self.requests.next(&mut input) {
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            Ok(None) => Next::Read,
            Ok(Some(Incoming::Disconnect)) => Next::End,
            Ok(Some(Incoming::Request(request))) => Next::Serve(request),
            // The bytes of writes are taken by whoever begins them.
            Ok(Some(Incoming::Payload(_))) => unreachable!("payloads are read into place"),
            Ok(Some(Incoming::Refused {
                cookie,
                command,
                errno,
                text,
            })) => {
                tracing::debug!(%command, %errno, "a request is refused: {text}");
                let mut reply = Vec::new();
                put_error(
                    &mut reply,
                    self.worker.opened.structured,
                    cookie,
                    errno,
                    text,
                    None,
                );
                Next::Refuse(Reply::new(reply))
            }
        };
        self.at += before - input.len();
        Ok(next)
    }

    /// False at the end of the connection.
    async fn fill(&mut self) -> io::Result<bool> {
        self.buffer.clear();
        self.at = 0;
        self.buffer.reserve(READ_LEN);
        Ok(self.reader.read_buf(&mut self.buffer).await? > 0)
    }

    /// Takes in what belongs to `request`, and gives it to a thread.
    async fn begin(&mut self, request: Request) -> io::Result<()> {
        let carries = matches!(request.command, Command::Read | Command::Write);
        let room = self.bytes.room(if carries { request.len } else { 0 }).await;
        let payload = match request.command {
            Command::Write => self.payload(request.len).await?,
            _ => Vec::new(),
        };
        let (worker, replies) = (self.worker.clone(), self.replies.clone());
        tokio::task::spawn_blocking(move || {
            let reply = work::serve(&worker, &request, &payload);
            // A client that is gone waits for nothing.
            let _ = replies.send((reply, room));
        });
        Ok(())
    }

    async fn payload(&mut self, len: u32) -> io::Result<Vec<u8>> {
        let mut payload = Vec::with_capacity(len as usize);
        if len == 0 {
            return Ok(payload);
        }
        let held = &self.buffer[self.at..];
        let held = &held[..held.len().min(len as usize)];
        payload.extend_from_slice(held);
        self.at += held.len();
        let mut rest = (&mut self.reader).take(u64::from(len) - payload.len() as u64);
        while rest.limit() > 0 {
            if rest.read_buf(&mut payload).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.requests.payload_arrived(len);
        Ok(payload)
    }
}
