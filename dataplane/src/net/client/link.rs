//! The connections to a server.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::runtime::{Handle, Runtime};
use undercroft_format::config::Config;
use undercroft_format::wire::VERSION;
use undercroft_format::wire::frame::Body;
use undercroft_format::wire::hello::{Create, Hello, Open, Opened, Renew, Renewed, Welcome};
use undercroft_format::wire::upkeep::{Done, Report};

use crate::net::address::{RepositoryName, ServerAddress};
use crate::net::conversation::{Conversation, FrameStream, StreamError};
use crate::net::transport;
use crate::net::trust::message::MESSAGE_LEN_MAX;
use crate::repository::error::{RepositoryError, Result};

/// Threads that drive sockets and connections.
const NET_THREADS: usize = 2;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long saying goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

/// How to reach a server.
pub struct LinkOptions {
    /// Where it is.
    pub address: ServerAddress,
    /// Whom to trust, and who this is.
    pub tls: rustls::ClientConfig,
    /// The name in the server's certificate.
    pub server_name: String,
    /// The program and its version.
    pub program: String,
    /// Connections: more than one core carries the traffic of several.
    pub connections: usize,
}

/// A server cannot be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Its name is not known.
    #[error("looking {address} up")]
    Resolve {
        /// The address.
        address: ServerAddress,
        /// The cause.
        source: io::Error,
    },
    /// A socket cannot be had.
    #[error("opening a socket")]
    Socket(#[source] io::Error),
    /// Nobody answers, or nobody that is trusted.
    #[error("connecting to {address}")]
    Connect {
        /// The address.
        address: ServerAddress,
        /// The cause.
        source: quinn::ConnectionError,
    },
    /// Nobody answers.
    #[error("connecting to {address}: nobody answers")]
    Silent {
        /// The address.
        address: ServerAddress,
    },
    /// The server speaks another version.
    #[error("the server speaks version {0} of the protocol, this program version {VERSION}")]
    Version(u16),
}

/// Connections to one server.
pub struct Link {
    connections: Vec<Linked>,
    next: AtomicUsize,
    runtime: Option<Runtime>,
    dial: Option<Box<dyn Dial>>,
}

/// Opens streams to a server's repository over something else than QUIC.
pub trait Dial: Send + Sync {
    /// A new stream, on the connection of that number.
    fn open_stream(&self, connection: usize) -> Result<Box<dyn FrameStream>, StreamError>;
}

struct Linked {
    connection: Connection,
    /// The first stream.
    control: Mutex<Conversation>,
    endpoint: Endpoint,
}

impl Link {
    /// Connects.
    pub fn connect(options: LinkOptions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NET_THREADS)
            .thread_name("undercroft-net")
            .enable_all()
            .build()
            .map_err(|error| lost(LinkError::Socket(error)))?;
        let config = transport::client_config(options.tls.clone())
            .map_err(|error| lost(LinkError::Socket(error)))?;
        let addresses = resolve(&options.address)?;
        let mut connections = Vec::new();
        for _ in 0..options.connections.max(1) {
            connections.push(connect_one(&runtime, &config, &addresses, &options)?);
        }
        Ok(Self {
            connections,
            next: AtomicUsize::new(0),
            runtime: Some(runtime),
            dial: None,
        })
    }

    /// Goes through `dial`, which has a repository open.
    pub fn over(dial: Box<dyn Dial>) -> Self {
        Self {
            connections: Vec::new(),
            next: AtomicUsize::new(0),
            runtime: None,
            dial: Some(dial),
        }
    }

    /// Opens a repository on every connection.
    pub fn open(&self, name: &RepositoryName) -> Result<Config> {
        let open = Open {
            name: name.to_string(),
        };
        let mut config = Vec::new();
        for linked in &self.connections {
            let mut control = linked.control.lock();
            control.say(&open)?;
            config = control.answer::<Opened>()?.config;
        }
        Ok(Config::decode(&config).map_err(StreamError::from)?)
    }

    /// Makes a repository.
    pub fn create(&self, name: &RepositoryName, config: &Config) -> Result<()> {
        let create = Create {
            name: name.to_string(),
            config: config.encode(),
        };
        let mut control = self.connections[0].control.lock();
        control.say(&create)?;
        let Done = control.answer()?;
        Ok(())
    }

    /// Has a certificate renewed.
    pub fn renew(&self, request: &[u8]) -> Result<Vec<u8>> {
        let renew = Renew {
            request: request.to_vec(),
        };
        let mut control = self.connections[0].control.lock();
        control.say(&renew)?;
        Ok(control.answer::<Renewed>()?.answer)
    }

    /// Asks something about the server itself.
    pub fn inquire<Q: Body, R: serde::de::DeserializeOwned>(&self, question: &Q) -> Result<R> {
        let mut control = self.connections[0].control.lock();
        control.say(question)?;
        parse(&control.answer::<Report>()?.json)
    }

    /// Asks one question about the repository.
    pub fn ask<Q: Body, A: Body>(&self, question: &Q) -> Result<A> {
        let mut stream = self.converse()?;
        stream.say(question)?;
        stream.finish();
        Ok(stream.answer()?)
    }

    /// A new stream, on the connection whose turn it is.
    pub fn converse(&self) -> Result<Conversation, StreamError> {
        self.converse_on(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A new stream, on the connection whose turn it is.
    pub async fn open_stream(&self) -> Result<(SendStream, RecvStream), StreamError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        Ok(self.connections[number].connection.open_bi().await?)
    }

    /// A new stream on a certain connection.
    pub fn converse_on(&self, number: usize) -> Result<Conversation, StreamError> {
        if let Some(dial) = &self.dial {
            return Ok(Conversation::over(dial.open_stream(number)?));
        }
        let linked = &self.connections[number % self.connections.len()];
        let handle = self.handle().clone();
        let stream = handle.block_on(linked.connection.open_bi())?;
        Ok(Conversation::new(handle, stream))
    }

    /// What a connection's path is like.
    pub fn path_stats(&self, number: usize) -> quinn::PathStats {
        self.connections[number].connection.stats().path
    }

    /// Connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The runtime that drives the connections.
    pub fn handle(&self) -> &Handle {
        let runtime = self.runtime.as_ref();
        runtime.expect("it runs until the link is dropped").handle()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for linked in &self.connections {
            linked.connection.close(VarInt::from_u32(0), b"done");
        }
        if let Some(runtime) = self.runtime.take() {
            // Without this, the server would learn of the end only by a timeout.
            for linked in &self.connections {
                let _ = runtime.block_on(async {
                    tokio::time::timeout(CLOSE_TIMEOUT, linked.endpoint.wait_idle()).await
                });
            }
            self.connections.clear();
            runtime.shutdown_background();
        }
    }
}

/// Sends the request of a machine without a certificate and returns the answer.
pub fn exchange(options: &LinkOptions, request: &[u8]) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| lost(LinkError::Socket(error)))?;
    let config = transport::client_config(options.tls.clone())
        .map_err(|error| lost(LinkError::Socket(error)))?;
    let mut failure = LinkError::Silent {
        address: options.address.clone(),
    };
    for address in resolve(&options.address)? {
        match connect_to(&runtime, &config, address, options) {
            Ok((endpoint, connection)) => {
                let answer = runtime.block_on(exchange_over(&connection, request))?;
                connection.close(VarInt::from_u32(0), b"done");
                runtime.block_on(async {
                    let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
                });
                return Ok(answer);
            }
            Err(error) => failure = error,
        }
    }
    Err(lost(failure))
}

async fn exchange_over(connection: &Connection, request: &[u8]) -> Result<Vec<u8>, StreamError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(request).await?;
    // The stream is there: it was just written to.
    let _ = send.finish();
    let answer = recv.read_to_end(MESSAGE_LEN_MAX).await;
    answer.map_err(|error| match error {
        quinn::ReadToEndError::Read(error) => error.into(),
        quinn::ReadToEndError::TooLong => StreamError::Truncated,
    })
}

/// Reads a report.
pub fn parse<R: serde::de::DeserializeOwned>(json: &str) -> Result<R> {
    serde_json::from_str(json).map_err(|error| RepositoryError::Connection(error.into()))
}

fn lost(error: LinkError) -> RepositoryError {
    RepositoryError::Connection(Box::new(error))
}

fn resolve(address: &ServerAddress) -> Result<Vec<SocketAddr>> {
    let resolve = || -> io::Result<Vec<SocketAddr>> {
        let found: Vec<_> = (address.host.as_str(), address.port)
            .to_socket_addrs()?
            .collect();
        if found.is_empty() {
            return Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
        }
        Ok(found)
    };
    resolve().map_err(|source| {
        lost(LinkError::Resolve {
            address: address.clone(),
            source,
        })
    })
}

/// The first address that answers.
fn connect_one(
    runtime: &Runtime,
    config: &quinn::ClientConfig,
    addresses: &[SocketAddr],
    options: &LinkOptions,
) -> Result<Linked> {
    let mut failure = LinkError::Silent {
        address: options.address.clone(),
    };
    for address in addresses {
        match connect_to(runtime, config, *address, options) {
            Ok((endpoint, connection)) => {
                return greet(runtime, endpoint, connection, &options.program);
            }
            Err(error) => failure = error,
        }
    }
    Err(lost(failure))
}

fn connect_to(
    runtime: &Runtime,
    config: &quinn::ClientConfig,
    to: SocketAddr,
    options: &LinkOptions,
) -> Result<(Endpoint, Connection), LinkError> {
    let from: SocketAddr = match to {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let address = || options.address.clone();
    let _entered = runtime.enter();
    let endpoint = transport::endpoint(from, None).map_err(LinkError::Socket)?;
    let connecting = endpoint
        .connect_with(config.clone(), to, &options.server_name)
        .map_err(|error| LinkError::Socket(io::Error::other(error)))?;
    let connected =
        runtime.block_on(async { tokio::time::timeout(CONNECT_TIMEOUT, connecting).await });
    match connected {
        Ok(Ok(connection)) => Ok((endpoint, connection)),
        Ok(Err(source)) => Err(LinkError::Connect {
            address: address(),
            source,
        }),
        Err(_) => Err(LinkError::Silent { address: address() }),
    }
}

fn greet(
    runtime: &Runtime,
    endpoint: Endpoint,
    connection: Connection,
    program: &str,
) -> Result<Linked> {
    let stream = runtime.block_on(connection.open_bi());
    let mut control =
        Conversation::new(runtime.handle().clone(), stream.map_err(StreamError::from)?);
    control.say(&Hello::ours(program))?;
    let welcome: Welcome = control.answer()?;
    if welcome.version != VERSION {
        return Err(lost(LinkError::Version(welcome.version)));
    }
    Ok(Linked {
        connection,
        control: Mutex::new(control),
        endpoint,
    })
}
