//! Frames over a stream, for ordinary threads: whole frames in, whole frames out, nothing longer than
//! its limit in memory.

use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::runtime::Handle;
use undercroft_format::codec::DecodeError;
use undercroft_format::wire::failure::Failure;
use undercroft_format::wire::frame::{Body, FrameType};

use super::bandwidth::Flow;
use super::closing::refusal_of;
use super::manners::{Held, Manners};
use super::partial_frame::PartialFrame;

/// Why a conversation ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The connection is gone.
    #[error("the connection broke: {0}")]
    Read(#[from] quinn::ReadError),
    /// The connection is gone, or the peer takes no more.
    #[error("the connection broke: {0}")]
    Write(#[from] quinn::WriteError),
    /// The connection is gone.
    #[error("the connection broke: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The peer sent what is not a frame.
    #[error("the peer sent a malformed frame")]
    Frame(#[from] DecodeError),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The stream ended where an answer was due.
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
    /// The peer says what went wrong.
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

    /// True if the connection is at fault, so that another one may do better.
    pub fn is_lost(&self) -> bool {
        self.connection_error()
            .is_some_and(|error| refusal_of(error).is_none())
    }
}

/// A frame: its type and body.
pub type Frame = (FrameType, Vec<u8>);

/// Reads the next frame; `None` if the stream ends.
pub async fn read_frame(stream: &mut RecvStream) -> Result<Option<Frame>, StreamError> {
    let mut frame = PartialFrame::default();
    let read = frame.rest(stream, &Manners::default()).await?;
    Ok(read.map(|(frame, _)| frame))
}

/// The error of a read that needs all of its bytes.
pub fn of_exact(error: quinn::ReadExactError) -> StreamError {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => StreamError::Truncated,
        quinn::ReadExactError::ReadError(error) => error.into(),
    }
}

/// Takes a frame for a message of a certain type; a failure ends the conversation.
pub fn expect<B: Body>((kind, body): &Frame) -> Result<B, StreamError> {
    if *kind == B::KIND {
        return Ok(B::decode(body)?);
    }
    Err(match kind {
        FrameType::Failed => StreamError::Failed(Failure::decode(body)?),
        kind => StreamError::Unexpected(*kind),
    })
}

/// A stream's two directions, whatever carries them.
pub trait FrameStream: Send {
    /// The next frame; `None` if the peer ended the stream.
    fn read(&mut self) -> Result<Option<Frame>, StreamError>;

    /// The next frame if it comes within `wait`; a part of one that has come is not lost.
    fn read_within(&mut self, wait: Duration) -> Result<Waited, StreamError>;

    /// Sends whole frames, headers included. Blocks while the peer is slower.
    fn write(&mut self, frames: Vec<u8>) -> Result<(), StreamError>;

    /// Sends frames; true if all of them went within `wait`, else `frames` is what is left.
    fn write_within(&mut self, frames: &mut Bytes, wait: Duration) -> Result<bool, StreamError> {
        let _ = wait;
        self.write(std::mem::take(frames).into()).map(|()| true)
    }

    /// From now on its payload is that of `flow`, where there is a limit of bandwidth.
    fn set_flow(&mut self, flow: Flow) {
        let _ = flow;
    }

    /// Says that nothing more is going to be sent.
    fn finish(&mut self);

    /// Gives the stream up: what was not sent yet is not kept.
    fn give_up(&mut self) {
        self.finish();
    }
}

/// What came within a time.
#[derive(Debug)]
pub enum Waited {
    /// A frame, or the end.
    For(Option<Frame>),
    /// Nothing.
    InVain,
}

/// A stream of a thread that may block.
pub struct Conversation(Carrier);

enum Carrier {
    Quic(Box<QuicStream>),
    Other(Box<dyn FrameStream>),
}

impl Conversation {
    /// A conversation over `stream`, driven by the runtime of `handle`.
    pub fn new(handle: Handle, (send, recv): (SendStream, RecvStream)) -> Self {
        Self(Carrier::Quic(Box::new(QuicStream {
            handle,
            send,
            recv,
            manners: Manners::default(),
            held: None,
            partial: PartialFrame::default(),
        })))
    }

    /// The same, whose peer is waited for as `manners` say; `held` is the memory of a frame that was read.
    pub fn with_manners(mut self, manners: Manners, held: Option<Held>) -> Self {
        if let Carrier::Quic(stream) = &mut self.0 {
            stream.manners = manners;
            stream.held = held;
        }
        self
    }

    /// A conversation over anything that carries frames.
    pub fn over(stream: Box<dyn FrameStream>) -> Self {
        Self(Carrier::Other(stream))
    }

    /// The QUIC stream, if that is what it is over: for those who do without a copy or a thread.
    pub fn into_quic(self) -> Result<QuicStream, Self> {
        match self.0 {
            Carrier::Quic(stream) => Ok(*stream),
            other => Err(Self(other)),
        }
    }

    /// Both directions of the QUIC stream, if that is what it is over: for those who use them at once.
    pub fn quic(&mut self) -> Option<&mut QuicStream> {
        match &mut self.0 {
            Carrier::Quic(stream) => Some(stream),
            Carrier::Other(_) => None,
        }
    }

    fn stream(&mut self) -> &mut dyn FrameStream {
        match &mut self.0 {
            Carrier::Quic(stream) => &mut **stream,
            Carrier::Other(stream) => &mut **stream,
        }
    }

    /// The next frame; `None` if the peer ended the stream.
    pub fn read(&mut self) -> Result<Option<Frame>, StreamError> {
        self.stream().read()
    }

    /// The next frame if it comes within `wait`.
    pub fn read_within(&mut self, wait: Duration) -> Result<Waited, StreamError> {
        self.stream().read_within(wait)
    }

    /// The answer to what was asked.
    pub fn answer<B: Body>(&mut self) -> Result<B, StreamError> {
        let frame = self.read()?.ok_or(StreamError::NoAnswer)?;
        expect(&frame)
    }

    /// Sends bytes that are whole frames, headers included. Blocks while the peer is slower.
    pub fn write(&mut self, frames: Vec<u8>) -> Result<(), StreamError> {
        self.stream().write(frames)
    }

    /// Sends frames; true if all of them went within `wait`, else `frames` is what is left.
    pub fn write_within(
        &mut self,
        frames: &mut Bytes,
        wait: Duration,
    ) -> Result<bool, StreamError> {
        self.stream().write_within(frames, wait)
    }

    /// From now on its payload is that of `flow`, where there is a limit of bandwidth.
    pub fn set_flow(&mut self, flow: Flow) {
        self.stream().set_flow(flow);
    }

    /// Sends a message.
    pub fn say<B: Body>(&mut self, message: &B) -> Result<(), StreamError> {
        self.write(message.frame())
    }

    /// Says that nothing more is going to be sent.
    pub fn finish(&mut self) {
        self.stream().finish();
    }

    /// Gives the stream up: what was not sent yet is not kept.
    pub fn give_up(&mut self) {
        self.stream().give_up();
    }
}

/// A QUIC stream and what drives it.
pub struct QuicStream {
    /// Runs its I/O.
    pub handle: Handle,
    /// To the peer.
    pub send: SendStream,
    /// From the peer.
    pub recv: RecvStream,
    manners: Manners,
    /// Memory of the frame that was read last.
    held: Option<Held>,
    partial: PartialFrame,
}

impl QuicStream {
    async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        // What was read last is done with.
        self.held = None;
        let read = self.partial.rest(&mut self.recv, &self.manners).await?;
        Ok(read.map(|(frame, held)| {
            self.held = held;
            frame
        }))
    }
}

impl FrameStream for QuicStream {
    fn read(&mut self) -> Result<Option<Frame>, StreamError> {
        self.handle.clone().block_on(self.next())
    }

    fn read_within(&mut self, wait: Duration) -> Result<Waited, StreamError> {
        let handle = self.handle.clone();
        let waited = handle.block_on(async { tokio::time::timeout(wait, self.next()).await });
        Ok(match waited {
            Ok(frame) => Waited::For(frame?),
            Err(_) => Waited::InVain,
        })
    }

    fn write(&mut self, frames: Vec<u8>) -> Result<(), StreamError> {
        let sent = self.manners.write(&mut self.send, Bytes::from(frames));
        self.handle.block_on(sent)
    }

    fn write_within(&mut self, frames: &mut Bytes, wait: Duration) -> Result<bool, StreamError> {
        let sent = self.manners.write_rest(&mut self.send, frames);
        let sent = self
            .handle
            .block_on(async { tokio::time::timeout(wait, sent).await });
        match sent {
            Ok(sent) => sent.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    fn set_flow(&mut self, flow: Flow) {
        self.manners.set_flow(flow);
    }

    fn finish(&mut self) {
        // The stream is gone only if the peer does not want to hear any more.
        let _ = self.send.finish();
    }

    fn give_up(&mut self) {
        // It may be over already.
        let _ = self.send.reset(VarInt::from_u32(0));
        let _ = self.recv.stop(VarInt::from_u32(0));
    }
}
