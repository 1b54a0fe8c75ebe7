//! Asks QEMU over its QMP socket, one command after the other.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with, sockopt,
};
use serde_json::Value;
use undercroft_format::qmp::QmpError;
use undercroft_format::qmp::frames::Frames;
use undercroft_format::qmp::message::{Message, Version, command};

use super::error::QemuError;
use crate::clock::Stopwatch;

/// For a greeting: it comes at once, unless another program is connected.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// For an answer: a transaction waits until all writes in flight are done, on slow storage, too.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest wait without a look at the clock.
const WAIT: Duration = Duration::from_millis(500);

/// Carries out commands.
pub trait Monitor: Send {
    /// Asks for `command` and waits for its answer. `file` goes along with it, for the commands that take
    /// one.
    ///
    /// # Errors
    /// [`QemuError::Refused`] if QEMU said no; after anything that [`is_broken`](QemuError::is_broken) it
    /// is open whether the command was carried out.
    fn ask(
        &mut self,
        command: &'static str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QemuError>;

    /// QEMU's version.
    fn version(&self) -> Version;
}

impl dyn Monitor + '_ {
    /// Asks for a command that takes no file.
    pub fn run(&mut self, command: &'static str, arguments: Value) -> Result<Value, QemuError> {
        self.ask(command, arguments, None)
    }
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct QmpClient {
    stream: UnixStream,
    frames: Frames,
    version: Version,
    last_id: u64,
    is_broken: bool,
}

impl QmpClient {
    /// Connects to the monitor at `socket`.
    ///
    /// # Errors
    /// No connection, no greeting, or no QMP.
    pub fn connect(socket: &Path) -> Result<Self, QemuError> {
        let connecting = |source| QemuError::Connect {
            socket: socket.to_owned(),
            source,
        };
        let stream = connect_unix(socket).map_err(connecting)?;
        stream.set_read_timeout(Some(WAIT)).map_err(connecting)?;
        let mut client = Self {
            stream,
            frames: Frames::default(),
            version: Version::default(),
            last_id: 0,
            is_broken: false,
        };
        const GREETING: &str = "greet";
        client.version = loop {
            match client.message(GREETING, GREETING_TIMEOUT) {
                Ok(Message::Greeting(version)) => break version,
                Ok(_) => {}
                Err(QemuError::NoAnswer { seconds, .. }) => {
                    return Err(QemuError::NoGreeting {
                        socket: socket.to_owned(),
                        seconds,
                    });
                }
                Err(error) => return Err(error),
            }
        };
        client.ask("qmp_capabilities", Value::Null, None)?;
        Ok(client)
    }

    fn exchange(
        &mut self,
        name: &'static str,
        arguments: &Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QemuError> {
        self.last_id += 1;
        let id = self.last_id;
        let bytes = command(name, arguments, id);
        send(&mut self.stream, &bytes, file).map_err(|source| QemuError::Connection {
            command: name,
            source,
        })?;
        loop {
            match self.message(name, ANSWER_TIMEOUT)? {
                Message::Return { id: of, value } if of == Some(id) => return Ok(value),
                // What QEMU could not read has no number.
                Message::Error { id: of, refusal } if of.is_none_or(|of| of == id) => {
                    return Err(QemuError::Refused {
                        command: name,
                        source: refusal,
                    });
                }
                _ => {}
            }
        }
    }

    /// The next message.
    fn message(&mut self, command: &'static str, timeout: Duration) -> Result<Message, QemuError> {
        let clock = Stopwatch::start();
        let protocol = |source: QmpError| QemuError::Protocol { command, source };
        let mut bytes = [0; 16 << 10];
        loop {
            if let Some(frame) = self.frames.next_frame().map_err(protocol)? {
                return Message::of(frame).map_err(protocol);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    return Err(QemuError::Connection {
                        command,
                        source: io::ErrorKind::UnexpectedEof.into(),
                    });
                }
                Ok(count) => self.frames.feed(&bytes[..count]),
                Err(error) if is_pause(&error) => {}
                Err(source) => return Err(QemuError::Connection { command, source }),
            }
            if clock.elapsed() > timeout {
                let seconds = timeout.as_secs();
                return Err(QemuError::NoAnswer { command, seconds });
            }
        }
    }
}

impl Monitor for QmpClient {
    fn ask(
        &mut self,
        command: &'static str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QemuError> {
        if self.is_broken {
            let source = io::ErrorKind::NotConnected.into();
            return Err(QemuError::Connection { command, source });
        }
        let answer = self.exchange(command, &arguments, file);
        match &answer {
            Ok(_) => tracing::debug!(command, %arguments, "QEMU did as asked"),
            Err(error) => {
                tracing::debug!(command, %arguments, %error, "QEMU did not do as asked");
                self.is_broken |= error.is_broken();
            }
        }
        answer
    }

    fn version(&self) -> Version {
        self.version
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Connects, but not for ever: a monitor that is in use lets only a few wait.
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let kind = SocketType::STREAM;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(GREETING_TIMEOUT))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Sends `bytes`, the first of them with `file`.
fn send(stream: &mut UnixStream, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(file) = file else {
        return stream.write_all(bytes);
    };
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(
        ancillary.push(SendAncillaryMessage::ScmRights(&files)),
        "the space is made for one file"
    );
    let pieces = [IoSlice::new(bytes)];
    let sent = sendmsg(&*stream, &pieces, &mut ancillary, SendFlags::NOSIGNAL)?;
    stream.write_all(&bytes[sent..])
}
