//! Frames over a QUIC stream, for ordinary threads: whole frames in, whole frames out, nothing longer than
//! its limit in memory.

use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::runtime::Handle;
use undercroft_format::codec::DecodeError;
use undercroft_format::wire::failure::Failure;
use undercroft_format::wire::frame::{Body, FRAME_HEADER_LEN, FrameHeader, FrameType};

use super::closing::refusal_of;
use super::manners::{Held, Manners};

/// A stream did not carry what the protocol says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The stream or its connection ended.
    #[error("the connection broke: {0}")]
    Read(#[from] quinn::ReadError),
    /// The stream or its connection ended.
    #[error("the connection broke: {0}")]
    Write(#[from] quinn::WriteError),
    /// The connection ended.
    #[error("the connection broke: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// A frame that is none.
    #[error("the peer sent a malformed frame")]
    Frame(#[from] DecodeError),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The stream ended where an answer was expected.
    #[error("the peer ended the stream without an answer")]
    NoAnswer,
    /// Nothing moves where something has to.
    #[error("the peer stopped in the middle of a frame, or does not read what it asked for")]
    Stalled,
    /// The connection's frames take more memory than it has.
    #[error("the frames of one connection are too long together")]
    NoRoom,
    /// A frame that does not belong there.
    #[error("the peer sent a frame that does not belong there: {0:?}")]
    Unexpected(FrameType),
    /// The peer answered that it failed.
    #[error("{}", .0.text)]
    Failed(Failure),
}

impl StreamError {
    /// How the connection ended, if it did.
    pub fn connection_error(&self) -> Option<&quinn::ConnectionError> {
        match self {
            Self::Read(quinn::ReadError::ConnectionLost(error))
            | Self::Write(quinn::WriteError::ConnectionLost(error))
            | Self::Connection(error) => Some(error),
            _ => None,
        }
    }

    /// True if the connection was lost, as opposed to a peer that misbehaved or refused.
    pub fn is_lost(&self) -> bool {
        self.connection_error()
            .is_some_and(|error| refusal_of(error).is_none())
    }
}

/// A frame: its type and its body.
pub type Frame = (FrameType, Vec<u8>);

/// Reads the next frame; `None` at the end of the stream.
pub async fn read_frame(stream: &mut RecvStream) -> Result<Option<Frame>, StreamError> {
    let mut header = [0; FRAME_HEADER_LEN];
    match stream.read_exact(&mut header).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(of_exact(error)),
    }
    let header = FrameHeader::decode(&header)?;
    // The length was checked against the type's limit.
    let mut body = vec![0; header.len as usize];
    stream.read_exact(&mut body).await.map_err(of_exact)?;
    Ok(Some((header.kind, body)))
}

/// The end of a stream within what should have been read whole.
pub fn of_exact(error: quinn::ReadExactError) -> StreamError {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => StreamError::Truncated,
        quinn::ReadExactError::ReadError(error) => error.into(),
    }
}

/// The body of a frame that must be of type `B`; a failure becomes an error.
pub fn expect<B: Body>((kind, body): &Frame) -> Result<B, StreamError> {
    if *kind == B::KIND {
        return Ok(B::decode(body)?);
    }
    Err(match kind {
        FrameType::Failed => StreamError::Failed(Failure::decode(body)?),
        kind => StreamError::Unexpected(*kind),
    })
}

/// Both directions of a stream, for a thread outside the runtime.
pub struct Conversation {
    handle: Handle,
    /// To the peer.
    pub send: SendStream,
    /// From the peer.
    pub recv: RecvStream,
    /// How the peer is waited for.
    pub manners: Manners,
    /// Memory of the last frame that was read.
    held: Option<Held>,
}

impl Conversation {
    /// A stream whose connection `handle`'s runtime drives.
    pub fn new(handle: Handle, (send, recv): (SendStream, RecvStream)) -> Self {
        Self {
            handle,
            send,
            recv,
            manners: Manners::default(),
            held: None,
        }
    }

    /// The same, whose peer is waited for as `manners` say; `held` is the memory of a frame that was read.
    pub fn with_manners(self, manners: Manners, held: Option<Held>) -> Self {
        Self {
            manners,
            held,
            ..self
        }
    }

    /// The runtime.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits for the next frame; `None` at the end of the stream.
    pub fn read(&mut self) -> Result<Option<Frame>, StreamError> {
        // What was read last is done with.
        self.held = None;
        let read = self.handle.block_on(self.manners.read(&mut self.recv))?;
        Ok(read.map(|(frame, held)| {
            self.held = held;
            frame
        }))
    }

    /// Waits for an answer of type `B`.
    pub fn answer<B: Body>(&mut self) -> Result<B, StreamError> {
        let frame = self.read()?.ok_or(StreamError::NoAnswer)?;
        expect(&frame)
    }

    /// Sends a frame; waits while the peer takes no more.
    pub fn write(&mut self, frame: Vec<u8>) -> Result<(), StreamError> {
        self.write_bytes(frame.into())
    }

    /// Sends frames; waits while the peer takes no more.
    pub fn write_bytes(&mut self, frames: Bytes) -> Result<(), StreamError> {
        let sent = self.manners.write(&mut self.send, frames);
        self.handle.block_on(sent)
    }

    /// Sends frames; true if all of them went within `wait`, else `frames` is what is left.
    pub fn write_within(
        &mut self,
        frames: &mut Bytes,
        wait: Duration,
    ) -> Result<bool, StreamError> {
        let sent = self.manners.write_rest(&mut self.send, frames);
        let sent = self
            .handle
            .block_on(async { tokio::time::timeout(wait, sent).await });
        match sent {
            Ok(sent) => sent.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Sends a message.
    pub fn say<B: Body>(&mut self, message: &B) -> Result<(), StreamError> {
        self.write(message.frame())
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        // The stream is gone only if the peer does not want to hear any more.
        let _ = self.send.finish();
    }

    /// Gives the stream up: what was not sent yet is not kept.
    pub fn give_up(&mut self) {
        // It may be over already.
        let _ = self.send.reset(VarInt::from_u32(0));
        let _ = self.recv.stop(VarInt::from_u32(0));
    }
}
