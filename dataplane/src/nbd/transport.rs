//! The bytes of a connection: a socket, in clear or under TLS. Blocking with time limits while an export is
//! opened, never blocking after.

use std::io::{self, BufReader, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustls::ClientConnection;

use super::tls::Tls;

/// Ciphertext taken from the socket at once: several records.
const TLS_READ_LEN: usize = 128 << 10;

/// A socket of either family.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Blocking calls fail after this long; zero is not allowed.
    pub fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout);
        match self {
            Self::Tcp(socket) => socket
                .set_read_timeout(timeout)
                .and_then(|()| socket.set_write_timeout(timeout)),
            Self::Unix(socket) => socket
                .set_read_timeout(timeout)
                .and_then(|()| socket.set_write_timeout(timeout)),
        }
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(nonblocking),
            Self::Unix(socket) => socket.set_nonblocking(nonblocking),
        }
    }

    fn shutdown(&self) {
        // The other side may have been faster.
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(out),
            Self::Unix(socket) => socket.read(out),
        }
    }

    fn read_vectored(&mut self, out: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read_vectored(out),
            Self::Unix(socket) => socket.read_vectored(out),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection's bytes.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<TlsTransport>),
}

#[derive(Debug)]
pub(super) struct TlsTransport {
    session: ClientConnection,
    socket: BufReader<Socket>,
}

/// The socket as TLS wants it: reads ahead, writes at once.
struct Ciphertext<'a>(&'a mut BufReader<Socket>);

impl Read for Ciphertext<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Ciphertext<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport {
    /// Goes on under TLS, which is established when this returns.
    pub fn start_tls(self, tls: &Tls) -> io::Result<Self> {
        let Self::Plain(socket) = self else {
            return Err(io::Error::other("TLS was begun twice"));
        };
        let session = ClientConnection::new(tls.config.clone(), tls.name.clone())
            .map_err(io::Error::other)?;
        let mut transport = TlsTransport {
            session,
            socket: BufReader::with_capacity(TLS_READ_LEN, socket),
        };
        while transport.session.is_handshaking() {
            let mut ciphertext = Ciphertext(&mut transport.socket);
            transport.session.complete_io(&mut ciphertext)?;
        }
        Ok(Self::Tls(Box::new(transport)))
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.socket.get_ref(),
        }
    }

    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket().set_nonblocking(nonblocking)
    }

    /// Fills `first`, then `second`, with what there is; 0 at the end of the connection.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is nothing yet.
    pub fn read_into(&mut self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let tls = match self {
            Self::Plain(socket) => loop {
                let mut places = [IoSliceMut::new(first), IoSliceMut::new(second)];
                match socket.read_vectored(&mut places) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => return result,
                }
            },
            Self::Tls(tls) => tls,
        };
        let out = if first.is_empty() { second } else { first };
        loop {
            match tls.session.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            match tls.session.read_tls(&mut tls.socket) {
                Ok(0) => return Ok(0),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            tls.session
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Sends what can be sent of `bytes` and says how much was taken.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] never: then nothing was taken.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match self {
            Self::Plain(socket) if bytes.is_empty() => {
                let _ = socket;
                return Ok(0);
            }
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => {
                let taken = match bytes.is_empty() {
                    true => Ok(0),
                    false => tls.session.writer().write(bytes),
                };
                while tls.session.wants_write() {
                    match tls.session.write_tls(tls.socket.get_mut()) {
                        Ok(_) => {}
                        Err(error) if is_later(&error) => break,
                        Err(error) => return Err(error),
                    }
                }
                taken
            }
        };
        match taken {
            Err(error) if is_later(&error) => Ok(0),
            taken => taken,
        }
    }

    /// True if TLS holds something that the socket had no room for.
    pub fn wants_write(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// Sends `last` and says goodbye, waiting no longer than `timeout`; failures are nobody's concern any more.
    pub fn close(mut self, last: &[u8], timeout: Duration) {
        let _ = self.socket().set_timeouts(timeout);
        let _ = self.set_nonblocking(false);
        let mut rest = last;
        while !rest.is_empty() {
            match self.send(rest) {
                Ok(sent) if sent > 0 => rest = &rest[sent..],
                _ => return,
            }
        }
        if let Self::Tls(tls) = &mut self {
            tls.session.send_close_notify();
            let _ = self.send(&[]);
        }
        self.socket().shutdown();
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
