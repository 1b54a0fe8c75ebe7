//! The connections to a server.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::{Connection, Endpoint};
use tokio::runtime::{Handle, Runtime};
use undercroft_format::config::Config;
use undercroft_format::wire::VERSION;
use undercroft_format::wire::frame::Body;
use undercroft_format::wire::hello::{Create, Hello, Open, Opened, Renew, Renewed, Welcome};
use undercroft_format::wire::upkeep::{Done, Report};

use crate::net::address::{RepositoryName, ServerAddress};
use crate::net::bandwidth::{Flow, Pace, Rules, Throttle};
use crate::net::closing::{Closing, refusal_of};
use crate::net::conversation::{Conversation, FrameStream, StreamError};
use crate::net::distrust::{distrust, distrust_on_stream};
use crate::net::manners::Manners;
use crate::net::transport;
use crate::net::trust::message::MESSAGE_LEN_MAX;
use crate::net::trust::{HandshakeError, NoAnswer, Side};
use crate::repository::Traffic;
use crate::repository::error::{RepositoryError, Result};

/// Threads that drive sockets and connections.
const NET_THREADS: usize = 2;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long saying goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
const CLOSE_POLL: Duration = Duration::from_micros(200);

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
    /// How much of a path it may take.
    pub limits: LinkLimits,
}

/// Limits of bandwidth, for all connections together.
#[derive(Clone, Debug, Default)]
pub struct LinkLimits {
    /// Of records that go to the server.
    pub upload: Rules,
    /// Of records that come from it.
    pub download: Rules,
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
    /// The two ends do not trust each other.
    #[error("connecting to {address}")]
    Distrust {
        /// The address.
        address: ServerAddress,
        /// Why.
        source: HandshakeError,
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
    upload: Arc<Throttle>,
    download: Arc<Throttle>,
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
    control: Mutex<Control>,
    _endpoint: Endpoint,
}

/// The first stream.
struct Control {
    stream: Conversation,
    /// The server has answered the greeting. Nobody waits for that alone.
    is_welcome: bool,
    address: ServerAddress,
}

impl Control {
    /// Asks; the answers come in the order of the questions.
    fn say<B: Body>(&mut self, message: &B) -> Result<()> {
        let said = self.stream.say(message);
        said.map_err(|error| self.failed(error))
    }

    fn answer<B: Body>(&mut self) -> Result<B> {
        if !self.is_welcome {
            let welcome: Welcome = self.answer_next()?;
            if welcome.version != VERSION {
                return Err(lost(LinkError::Version(welcome.version)));
            }
            self.is_welcome = true;
        }
        self.answer_next()
    }

    fn answer_next<B: Body>(&mut self) -> Result<B> {
        let answer = self.stream.answer();
        answer.map_err(|error| self.failed(error))
    }

    /// What is said first meets a refusal of this side's certificate.
    fn failed(&self, error: StreamError) -> RepositoryError {
        match distrust_on_stream(&error) {
            Some(source) => lost(LinkError::Distrust {
                address: self.address.clone(),
                source,
            }),
            None => error.into(),
        }
    }

    fn ask<Q: Body, A: Body>(&mut self, question: &Q) -> Result<A> {
        self.say(question)?;
        self.answer()
    }
}

impl Link {
    /// Connects, and greets without waiting for the answer: whoever asks something first meets it.
    pub fn connect(options: LinkOptions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NET_THREADS)
            .thread_name("undercroft-net")
            .enable_all()
            .build()
            .map_err(|error| lost(LinkError::Socket(error)))?;
        let config = transport::client_config(options.tls.clone())
            .map_err(|error| lost(LinkError::Socket(error)))?;
        let options = Arc::new(options);
        let addresses = resolve(&options.address)?;
        // All at once: far away, each costs round trips.
        let connecting: Vec<_> = (0..options.connections.max(1))
            .map(|_| {
                let (config, addresses) = (config.clone(), addresses.clone());
                let (options, handle) = (options.clone(), runtime.handle().clone());
                runtime.spawn(async move {
                    let (endpoint, connection) = connect_one(&config, &addresses, &options).await?;
                    greet(handle, endpoint, connection, &options).await
                })
            })
            .collect();
        let connections = connecting.into_iter().map(|connecting| {
            let connected = runtime.block_on(connecting);
            connected.expect("connecting does not panic")
        });
        let connections = connections.collect::<Result<_>>()?;
        Ok(Self {
            connections,
            next: AtomicUsize::new(0),
            upload: Throttle::new(options.limits.upload.clone()),
            download: Throttle::new(options.limits.download.clone()),
            runtime: Some(runtime),
            dial: None,
        })
    }

    /// Goes through `dial`, which has a repository open.
    pub fn over(dial: Box<dyn Dial>) -> Self {
        Self {
            connections: Vec::new(),
            next: AtomicUsize::new(0),
            upload: Throttle::new(Rules::default()),
            download: Throttle::new(Rules::default()),
            runtime: None,
            dial: Some(dial),
        }
    }

    /// Opens a repository on every connection.
    pub fn open(&self, name: &RepositoryName) -> Result<Config> {
        let open = Open {
            name: name.to_string(),
        };
        for linked in &self.connections {
            linked.control.lock().say(&open)?;
        }
        let mut config = Vec::new();
        for linked in &self.connections {
            config = linked.control.lock().answer::<Opened>()?.config;
        }
        Ok(Config::decode(&config).map_err(StreamError::from)?)
    }

    /// Makes a repository.
    pub fn create(&self, name: &RepositoryName, config: &Config) -> Result<()> {
        let create = Create {
            name: name.to_string(),
            config: config.encode(),
        };
        let Done = self.connections[0].control.lock().ask(&create)?;
        Ok(())
    }

    /// Has a certificate renewed.
    pub fn renew(&self, request: &[u8]) -> Result<Vec<u8>> {
        let renew = Renew {
            request: request.to_vec(),
        };
        let renewed: Renewed = self.connections[0].control.lock().ask(&renew)?;
        Ok(renewed.answer)
    }

    /// Asks something about the server itself.
    pub fn inquire<Q: Body, R: serde::de::DeserializeOwned>(&self, question: &Q) -> Result<R> {
        let report: Report = self.connections[0].control.lock().ask(question)?;
        parse(&report.json)
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

    /// A new stream on a certain connection.
    pub fn converse_on(&self, number: usize) -> Result<Conversation, StreamError> {
        if let Some(dial) = &self.dial {
            return Ok(Conversation::over(dial.open_stream(number)?));
        }
        let linked = &self.connections[number % self.connections.len()];
        let handle = self
            .handle()
            .expect("it runs until the link is dropped")
            .clone();
        let stream = handle.block_on(linked.connection.open_bi())?;
        let throttle = self.upload.clone();
        let flow = Flow::default();
        let manners = Manners {
            outgoing: Some(Pace { throttle, flow }),
            ..Manners::default()
        };
        Ok(Conversation::new(handle, stream).with_manners(manners, None))
    }

    /// The limit on what comes.
    pub fn download(&self) -> Pace {
        let throttle = self.download.clone();
        let flow = Flow::default();
        Pace { throttle, flow }
    }

    /// The runtime, if there is one.
    pub fn runtime(&self) -> Option<&Handle> {
        self.runtime.as_ref().map(Runtime::handle)
    }

    /// What a connection carried, and what its path is like.
    pub fn stats(&self, number: usize) -> quinn::ConnectionStats {
        self.connections[number].connection.stats()
    }

    /// What all connections carried.
    pub fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        for linked in &self.connections {
            let stats = linked.connection.stats();
            traffic.sent_bytes += stats.udp_tx.bytes;
            traffic.received_bytes += stats.udp_rx.bytes;
        }
        traffic
    }

    /// Connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The runtime that drives the connections, if they are QUIC's.
    pub fn handle(&self) -> Option<&Handle> {
        self.runtime.as_ref().map(Runtime::handle)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let connections = self.connections.iter().map(|linked| &linked.connection);
            runtime.block_on(close(connections));
            self.connections.clear();
            runtime.shutdown_background();
        }
    }
}

/// Ends connections and waits until that was sent: without hearing of it, the server would hold them for open
/// until a timeout. What is far away is not waited for.
async fn close<'c>(connections: impl Iterator<Item = &'c Connection>) {
    let sent = |connection: &Connection| connection.stats().udp_tx.datagrams;
    let closing: Vec<_> = connections
        .map(|connection| {
            Closing::Done.close(connection, "done");
            // Nothing but the end is sent from here on. Had it gone out before this line, the answer, which
            // comes at once, would say so.
            (connection, sent(connection))
        })
        .collect();
    let closed = async {
        for (connection, sent_before) in closing {
            while sent(connection) == sent_before
                && connection.stats().frame_rx.connection_close == 0
            {
                tokio::time::sleep(CLOSE_POLL).await;
            }
        }
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
}

/// Sends the request of a machine without a certificate and returns the answer.
pub fn exchange(options: &LinkOptions, request: &[u8]) -> Result<Vec<u8>, NoAnswer> {
    let no_socket = |error| NoAnswer::unsent(lost(LinkError::Socket(error)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(no_socket)?;
    let config = transport::client_config(options.tls.clone()).map_err(no_socket)?;
    let mut failure = LinkError::Silent {
        address: options.address.clone(),
    };
    for address in resolve(&options.address).map_err(NoAnswer::unsent)? {
        match runtime.block_on(connect_to(&config, address, options)) {
            Ok((_endpoint, connection)) => {
                let answer = runtime
                    .block_on(exchange_over(&connection, request))
                    .map_err(|error| NoAnswer::lost(RepositoryError::from(error)))?;
                runtime.block_on(close(std::iter::once(&connection)));
                return Ok(answer);
            }
            Err(error) => failure = error,
        }
    }
    Err(NoAnswer::unsent(lost(failure)))
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
    if let LinkError::Connect { source, .. } = &error
        && let Some(failure) = refusal_of(source)
    {
        return RepositoryError::Remote(failure);
    }
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
async fn connect_one(
    config: &quinn::ClientConfig,
    addresses: &[SocketAddr],
    options: &LinkOptions,
) -> Result<(Endpoint, Connection)> {
    let mut failure = LinkError::Silent {
        address: options.address.clone(),
    };
    for address in addresses {
        match connect_to(config, *address, options).await {
            Ok(connected) => return Ok(connected),
            Err(error) => failure = error,
        }
    }
    Err(lost(failure))
}

async fn connect_to(
    config: &quinn::ClientConfig,
    to: SocketAddr,
    options: &LinkOptions,
) -> Result<(Endpoint, Connection), LinkError> {
    let from: SocketAddr = match to {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let address = || options.address.clone();
    let endpoint = transport::endpoint(from, None).map_err(LinkError::Socket)?;
    let connecting = endpoint
        .connect_with(config.clone(), to, &options.server_name)
        .map_err(|error| LinkError::Socket(io::Error::other(error)))?;
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok((endpoint, connection)),
        Ok(Err(source)) => Err(match distrust(Side::Client, &source) {
            Some(source) => LinkError::Distrust {
                address: address(),
                source,
            },
            None => LinkError::Connect {
                address: address(),
                source,
            },
        }),
        Err(_) => Err(LinkError::Silent { address: address() }),
    }
}

async fn greet(
    handle: Handle,
    endpoint: Endpoint,
    connection: Connection,
    options: &LinkOptions,
) -> Result<Linked> {
    let (mut send, recv) = connection.open_bi().await.map_err(StreamError::from)?;
    let hello = Hello::ours(&options.program).frame();
    send.write_all(&hello).await.map_err(StreamError::from)?;
    Ok(Linked {
        connection,
        control: Mutex::new(Control {
            stream: Conversation::new(handle, (send, recv)),
            is_welcome: false,
            address: options.address.clone(),
        }),
        _endpoint: endpoint,
    })
}
