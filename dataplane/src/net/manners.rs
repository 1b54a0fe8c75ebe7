//! How a peer is waited for: how long, with how much memory, and how fast.
//!
//! Between two frames a peer may be silent as long as its connection lives. Within one, something has to
//! move: whoever stops there, or does not read what it asked for, is given up. What frames of a connection
//! take while they arrive and are worked on is bounded for all of its streams together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use undercroft_format::wire::frame::FrameType;

use super::bandwidth::{Flow, Pace};
use super::conversation::{Frame, StreamError};
use super::partial_frame::PartialFrame;

/// Bytes of the frames of one connection that are being received or worked on: every lane of a busy client
/// has a run of records there, and the longest frame fits three times.
pub const FRAMES_LEN_MAX: usize = 32 << 20;
/// A piece of a frame that moves at once where there is a limit of bandwidth.
pub(super) const PIECE_LEN: usize = 64 << 10;
/// Memory of frames is counted in such units.
const UNIT: usize = 1 << 10;

/// Memory for the frames of one connection.
#[derive(Clone)]
pub struct FrameRoom(Arc<Semaphore>);

/// The part of it that a frame takes; given back when it is dropped.
pub type Held = OwnedSemaphorePermit;

impl Default for FrameRoom {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(FRAMES_LEN_MAX / UNIT)))
    }
}

impl FrameRoom {
    /// Waits for room; not for ever, because those who have it may wait for bytes for which those who want
    /// it have left no window.
    async fn take(&self, len: usize, at_most: Duration) -> Result<Held, StreamError> {
        let units = u32::try_from(len.div_ceil(UNIT)).map_err(|_| StreamError::NoRoom)?;
        if units as usize > FRAMES_LEN_MAX / UNIT {
            return Err(StreamError::NoRoom);
        }
        let held = tokio::time::timeout(at_most, self.0.clone().acquire_many_owned(units)).await;
        held.ok()
            .and_then(|held| held.ok())
            .ok_or(StreamError::NoRoom)
    }
}

/// How the streams of a connection are read and written. The default waits for ever and limits nothing.
#[derive(Clone, Default)]
pub struct Manners {
    /// How long nothing may move where something has to.
    pub stall: Option<Duration>,
    /// Where frames are kept.
    pub room: Option<FrameRoom>,
    /// The limit on payload that comes.
    pub incoming: Option<Pace>,
    /// The limit on payload that goes.
    pub outgoing: Option<Pace>,
}

impl Manners {
    /// The same, with its payload counted as that of `flow`.
    pub fn set_flow(&mut self, flow: Flow) {
        for pace in [&mut self.incoming, &mut self.outgoing]
            .into_iter()
            .flatten()
        {
            pace.flow = flow;
        }
    }

    /// Reads the next frame; `None` at the end of the stream.
    pub async fn read(
        &self,
        stream: &mut RecvStream,
    ) -> Result<Option<(Frame, Option<Held>)>, StreamError> {
        PartialFrame::default().rest(stream, self).await
    }

    /// Memory for a frame that is going to be received.
    pub(super) async fn take_room(&self, len: usize) -> Result<Option<Held>, StreamError> {
        let Some(room) = &self.room else {
            return Ok(None);
        };
        // Sooner than those who have it are given up: they may be waiting for this stream.
        let at_most = self.stall.map_or(Duration::MAX, |stall| stall / 4);
        Ok(Some(room.take(len, at_most).await?))
    }

    /// Sends frames; waits while the peer takes no more.
    pub async fn write(&self, stream: &mut SendStream, frames: Bytes) -> Result<(), StreamError> {
        let mut rest = frames;
        self.write_rest(stream, &mut rest).await
    }

    /// Sends frames, or what was left of them when it was cancelled: `rest` says what is left.
    pub async fn write_rest(
        &self,
        stream: &mut SendStream,
        rest: &mut Bytes,
    ) -> Result<(), StreamError> {
        let is_payload = rest.get(4).and_then(|code| FrameType::from_code(*code));
        let pace = self.outgoing.as_ref();
        let pace = pace
            .filter(|_| is_payload.is_some_and(self::is_payload))
            .filter(|pace| !pace.throttle.rules().rules().is_empty());
        while !rest.is_empty() {
            let mut piece = rest.clone();
            if let Some(pace) = pace {
                piece.truncate(PIECE_LEN);
                pace.take(piece.len()).await;
            }
            while !piece.is_empty() {
                let written = stream.write_chunks(std::slice::from_mut(&mut piece));
                let written = self.soon(async { Ok(written.await?) }).await?;
                let _ = rest.split_to(written.bytes);
            }
        }
        Ok(())
    }

    /// A step in which something has to move.
    async fn soon<T>(
        &self,
        step: impl Future<Output = Result<T, StreamError>>,
    ) -> Result<T, StreamError> {
        match self.stall {
            None => step.await,
            Some(stall) => tokio::time::timeout(stall, step)
                .await
                .unwrap_or(Err(StreamError::Stalled)),
        }
    }
}

/// What limits of bandwidth are for.
pub(super) fn is_payload(kind: FrameType) -> bool {
    matches!(
        kind,
        FrameType::Push | FrameType::Record | FrameType::Unfetched
    )
}
