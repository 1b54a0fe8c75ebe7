//! From an address to an open export, blocking with time limits.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use undercroft_format::nbd::negotiation::{Export, Negotiation, Step, Wanted};
use undercroft_format::nbd::uri::{NbdUri, Server};

use super::error::NbdError;
use super::status::Status;
use super::tls::Tls;
use super::transport::{Socket, Transport};

/// For one address: hosts have some that cannot be reached from everywhere.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For each answer while an export is opened: a XenServer host plugs in a device meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How to reach an export, again and again.
#[derive(Debug)]
pub(super) struct Endpoint {
    uri: NbdUri,
    tls: Option<Tls>,
    status: Status,
}

/// An open export on a new connection that does not block.
pub(super) struct Opened {
    pub transport: Transport,
    pub export: Export,
    /// What came behind the negotiation.
    pub rest: Vec<u8>,
}

impl Endpoint {
    /// Where `uri` leads, to be asked for `status`.
    pub fn new(uri: NbdUri, status: Status) -> Result<Self, NbdError> {
        let host = match &uri.server {
            Server::Tcp { host, .. } => Some(host.as_str()),
            Server::Unix { .. } => None,
        };
        let tls = uri.tls.as_ref();
        let tls = tls
            .map(|parameters| Tls::new(parameters, host))
            .transpose()?;
        Ok(Self { uri, tls, status })
    }

    pub fn status(&self) -> Status {
        self.status
    }

    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }

    pub fn server(&self) -> String {
        match &self.uri.server {
            Server::Tcp { host, port } => format!("{host}:{port}"),
            Server::Unix { socket } => socket.clone(),
        }
    }

    /// Connects and opens the export.
    pub fn open(&self) -> Result<Opened, NbdError> {
        let socket = self.connect().map_err(|source| NbdError::Connect {
            server: self.server(),
            source,
        })?;
        let handshake = |source| NbdError::Handshake {
            server: self.server(),
            export: self.uri.shown_export(),
            source: timed_out(source),
        };
        let negotiation = |source| NbdError::Negotiation {
            server: self.server(),
            export: self.uri.shown_export(),
            source,
        };
        socket.set_timeouts(ANSWER_TIMEOUT).map_err(handshake)?;
        let mut transport = Transport::Plain(socket);
        let mut machine = Negotiation::new(Wanted {
            export: self.uri.export.clone(),
            tls: self.tls.is_some(),
            dirty_bitmap: match self.status {
                Status::Data => None,
                Status::Dirty => self.uri.dirty_bitmap.clone(),
            },
        });
        let mut bytes = [0; 4096];
        let export = loop {
            let mut output = &machine.take_output()[..];
            while !output.is_empty() {
                match transport.send(output).map_err(handshake)? {
                    0 => return Err(handshake(io::ErrorKind::TimedOut.into())),
                    sent => output = &output[sent..],
                }
            }
            let read = transport
                .read_into(&mut bytes, &mut [])
                .map_err(handshake)?;
            if read == 0 {
                return Err(negotiation(machine.closed()));
            }
            match machine.feed(&bytes[..read]).map_err(negotiation)? {
                Step::Continue => {}
                Step::StartTls => {
                    let tls = self.tls.as_ref().expect("asked only if it is set up");
                    transport = transport.start_tls(tls).map_err(handshake)?;
                    machine.tls_established();
                }
                Step::Open(export) => break export,
            }
        };
        transport.set_nonblocking(true).map_err(handshake)?;
        Ok(Opened {
            transport,
            export,
            rest: machine.into_rest(),
        })
    }

    fn connect(&self) -> io::Result<Socket> {
        let (host, port) = match &self.uri.server {
            Server::Unix { socket } => return UnixStream::connect(socket).map(Socket::Unix),
            Server::Tcp { host, port } => (host.as_str(), *port),
        };
        let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        // xapi-nbd lists addresses of both families and listens on IPv4 alone.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    // A server that vanished is noticed while nothing is asked of it, too.
                    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                    return Ok(Socket::Tcp(stream));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// A blocking call that took too long says "try again".
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}
