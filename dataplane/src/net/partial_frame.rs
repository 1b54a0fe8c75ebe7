//! A frame that comes piece by piece.

use std::time::Duration;

use quinn::RecvStream;
use undercroft_format::wire::frame::{FRAME_HEADER_LEN, FrameHeader, FrameType};

use super::conversation::{Frame, StreamError};
use super::manners::{Held, Manners, PIECE_LEN, is_payload};
use crate::clock::Stopwatch;

/// A frame of which a part has come: reading goes on where it was cut short.
#[derive(Default)]
pub struct PartialFrame {
    header: [u8; FRAME_HEADER_LEN],
    header_len: usize,
    body: Option<(FrameType, Vec<u8>)>,
    body_len: usize,
    held: Option<Held>,
    /// Bytes that came and were not yet taken from a limit of bandwidth.
    owed: usize,
    /// Since when nothing came.
    quiet: Option<Stopwatch>,
}

impl PartialFrame {
    /// Reads what is missing, as `manners` say; `None` if the stream ends before the frame begins. May be
    /// dropped and called again.
    pub async fn rest(
        &mut self,
        stream: &mut RecvStream,
        manners: &Manners,
    ) -> Result<Option<(Frame, Option<Held>)>, StreamError> {
        while self.header_len < FRAME_HEADER_LEN {
            let left = &mut self.header[self.header_len..];
            let read = match self.header_len {
                // Between frames a peer may be silent.
                0 => stream.read(left).await?,
                _ => soon(manners, &mut self.quiet, stream.read(left)).await?,
            };
            match read {
                Some(read) => self.header_len += read,
                None if self.header_len == 0 => return Ok(None),
                None => return Err(StreamError::Truncated),
            }
        }
        if self.body.is_none() {
            let header = FrameHeader::decode(&self.header)?;
            // The length was checked against the type's limit.
            let len = header.len as usize;
            self.held = manners.take_room(len).await?;
            self.body = Some((header.kind, vec![0; len]));
        }
        let (kind, body) = self.body.as_mut().expect("just made");
        let pace = manners.incoming.as_ref().filter(|_| is_payload(*kind));
        loop {
            if let Some(pace) = pace {
                pace.take(self.owed).await;
                self.owed = 0;
            }
            if self.body_len == body.len() {
                break;
            }
            let left = &mut body[self.body_len..];
            let piece = match pace {
                Some(_) => left.len().min(PIECE_LEN),
                None => left.len(),
            };
            let read = soon(manners, &mut self.quiet, stream.read(&mut left[..piece])).await?;
            let read = read.ok_or(StreamError::Truncated)?;
            self.body_len += read;
            self.owed += read;
        }
        let frame = self.body.take();
        let held = self.held.take();
        *self = Self::default();
        Ok(frame.map(|frame| (frame, held)))
    }
}

/// A read that has to bring something before the peer has been quiet for too long.
async fn soon<T>(
    manners: &Manners,
    quiet: &mut Option<Stopwatch>,
    read: impl Future<Output = Result<T, quinn::ReadError>>,
) -> Result<T, StreamError> {
    let Some(stall) = manners.stall else {
        return Ok(read.await?);
    };
    let since = quiet.get_or_insert_with(Stopwatch::start);
    let left: Duration = stall.saturating_sub(since.elapsed());
    let read = tokio::time::timeout(left, read).await;
    let read = read.map_err(|_| StreamError::Stalled)?;
    *quiet = None;
    Ok(read?)
}
