//! Frames over a stream, for ordinary threads: whole frames in, whole frames out, nothing longer than
//! its limit in memory.

use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::runtime::Handle;
use undercroft_format::codec::DecodeError;
use undercroft_format::wire::failure::Failure;
use undercroft_format::wire::frame::{Body, FRAME_HEADER_LEN, FrameHeader, FrameType};

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
    /// A frame that does not belong there.
    #[error("the peer sent a frame that does not belong there: {0:?}")]
    Unexpected(FrameType),
    /// The peer says what went wrong.
    #[error("{}", .0.text)]
    Failed(Failure),
}

impl StreamError {
    /// True if the connection is at fault, so that another one may do better.
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Read(quinn::ReadError::ConnectionLost(_))
                | Self::Write(quinn::WriteError::ConnectionLost(_))
                | Self::Connection(_)
        )
    }
}

/// A frame: its type and body.
pub type Frame = (FrameType, Vec<u8>);

/// Reads the next frame; `None` if the stream ends.
pub async fn read_frame(stream: &mut RecvStream) -> Result<Option<Frame>, StreamError> {
    PartialFrame::default().rest(stream).await
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

    /// Says that nothing more is going to be sent.
    fn finish(&mut self);
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
    Quic(QuicStream),
    Other(Box<dyn FrameStream>),
}

impl Conversation {
    /// A conversation over `stream`, driven by the runtime of `handle`.
    pub fn new(handle: Handle, (send, recv): (SendStream, RecvStream)) -> Self {
        Self(Carrier::Quic(QuicStream {
            handle,
            send,
            recv,
            partial: PartialFrame::default(),
        }))
    }

    /// A conversation over anything that carries frames.
    pub fn over(stream: Box<dyn FrameStream>) -> Self {
        Self(Carrier::Other(stream))
    }

    /// The QUIC stream, if that is what it is over: for those who do without a copy or a thread.
    pub fn into_quic(self) -> Result<QuicStream, Self> {
        match self.0 {
            Carrier::Quic(stream) => Ok(stream),
            other => Err(Self(other)),
        }
    }

    fn stream(&mut self) -> &mut dyn FrameStream {
        match &mut self.0 {
            Carrier::Quic(stream) => stream,
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

    /// Sends a message.
    pub fn say<B: Body>(&mut self, message: &B) -> Result<(), StreamError> {
        self.write(message.frame())
    }

    /// Says that nothing more is going to be sent.
    pub fn finish(&mut self) {
        self.stream().finish();
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
    partial: PartialFrame,
}

impl FrameStream for QuicStream {
    fn read(&mut self) -> Result<Option<Frame>, StreamError> {
        self.handle.block_on(self.partial.rest(&mut self.recv))
    }

    fn read_within(&mut self, wait: Duration) -> Result<Waited, StreamError> {
        let rest = self.partial.rest(&mut self.recv);
        let waited = self
            .handle
            .block_on(async { tokio::time::timeout(wait, rest).await });
        Ok(match waited {
            Ok(frame) => Waited::For(frame?),
            Err(_) => Waited::InVain,
        })
    }

    fn write(&mut self, frames: Vec<u8>) -> Result<(), StreamError> {
        let sent = self.send.write_chunk(Bytes::from(frames));
        Ok(self.handle.block_on(sent)?)
    }

    fn finish(&mut self) {
        // The stream is gone only if the peer does not want to hear any more.
        let _ = self.send.finish();
    }
}

/// A frame of which a part has come: reading goes on where it was cut short.
#[derive(Default)]
struct PartialFrame {
    header: [u8; FRAME_HEADER_LEN],
    header_len: usize,
    body: Option<(FrameType, Vec<u8>)>,
    body_len: usize,
}

impl PartialFrame {
    /// Reads what is missing; may be dropped and called again.
    async fn rest(&mut self, stream: &mut RecvStream) -> Result<Option<Frame>, StreamError> {
        while self.header_len < FRAME_HEADER_LEN {
            match stream.read(&mut self.header[self.header_len..]).await? {
                Some(read) => self.header_len += read,
                None if self.header_len == 0 => return Ok(None),
                None => return Err(StreamError::Truncated),
            }
        }
        let (_, body) = match &mut self.body {
            Some(body) => body,
            None => {
                let header = FrameHeader::decode(&self.header)?;
                // The length was checked against the type's limit.
                let body = vec![0; header.len as usize];
                self.body.insert((header.kind, body))
            }
        };
        while self.body_len < body.len() {
            match stream.read(&mut body[self.body_len..]).await? {
                Some(read) => self.body_len += read,
                None => return Err(StreamError::Truncated),
            }
        }
        (self.header_len, self.body_len) = (0, 0);
        Ok(self.body.take())
    }
}
