//! How `quinn` is set up on both sides.
//!
//! The kernel takes up to ten packets of a batch as one datagram of at most 65,507 bytes and cuts it (GSO).
//! A path whose packets are longer than a tenth of that would make every batch fail with `EMSGSIZE`, and
//! the connection would fall back to the shortest packets for good; so MTU discovery stops short of it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustix::net::sockopt;

/// Packets that `quinn` gives to the kernel at once.
const BATCH_PACKETS: u16 = 10;
/// Longest payload of a UDP datagram over IPv4, in bytes.
const DATAGRAM_LEN_MAX: u16 = 65_507;
/// Bytes of a packet to begin with: what every path carries (RFC 9000 section 14). Packets of a handshake
/// that are too long for a tunnel would be lost in silence, again and again; a path that carries longer ones
/// is found within a few round trips.
const MTU_FIRST: u16 = 1200;
/// Bytes of a packet that discovery stops at.
pub const MTU_LAST: u16 = 6500;
const _: () = assert!(MTU_LAST <= DATAGRAM_LEN_MAX / BATCH_PACKETS);

/// Bytes of the kernel's buffers per socket: a burst of a whole window fits.
const SOCKET_BUFFER_LEN: usize = 8 << 20;
/// Bytes that a peer may send before they are read, per connection and per stream: what fills a gigabit
/// over 30 ms. It bounds what a fast client makes the server hold.
pub const CONNECTION_WINDOW: u32 = 4 << 20;
const STREAM_WINDOW: u32 = 2 << 20;
/// Bytes sent but not acknowledged, per connection.
pub const SEND_WINDOW: u64 = 8 << 20;
/// Bytes that may be on their way before the first is acknowledged. The usual ten packets would make a small
/// backup over 50 ms wait four times; and `quinn` never ends a connection whose window is full of
/// MTU probes.
const FIRST_WINDOW: u64 = 128 << 10;
/// Streams of a connection at once: lanes, fetches and a few questions.
const STREAMS_MAX: u32 = 64;
/// The same before a peer is known: what an enrolment needs.
const STRANGER_WINDOW: u32 = 64 << 10;
const STRANGER_STREAMS: u32 = 1;
/// Bytes of packets that arrive before the door has looked at their connection, per connection and in all.
const KNOCK_LEN_MAX: u64 = 32 << 10;
const KNOCKS_LEN_MAX: u64 = 4 << 20;
/// A connection without a sign of life is given up: a partition of a minute does not cost a session.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Well below the shortest time for which a NAT remembers.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What both sides of a connection agree to.
fn transport() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MTU_LAST);
    let mut config = TransportConfig::default();
    let mut congestion = CubicConfig::default();
    congestion.initial_window(FIRST_WINDOW);
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("two minutes fit");
    config
        .initial_mtu(MTU_FIRST)
        .mtu_discovery_config(Some(discovery))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(SEND_WINDOW)
        .congestion_controller_factory(Arc::new(congestion))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE));
    config
}

/// A server's settings: until [`widen`] is called, a peer can make it hold little. So many connections at
/// most wait until the door looks at them.
pub fn server_config(tls: rustls::ServerConfig, waiting: usize) -> io::Result<ServerConfig> {
    let crypto =
        quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut transport = transport();
    transport
        .receive_window(VarInt::from_u32(STRANGER_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_STREAMS));
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(waiting)
        .incoming_buffer_size(KNOCK_LEN_MAX)
        .incoming_buffer_size_total(KNOCKS_LEN_MAX);
    Ok(config)
}

/// Gives a peer that was let in the room that it needs to work.
pub fn widen(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
}

/// A client's settings.
pub fn client_config(tls: rustls::ClientConfig) -> io::Result<ClientConfig> {
    let crypto =
        quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

/// A server: its settings, and the secret by which a new process tells the peers of a dead one that their
/// connections are gone (RFC 9000 section 10.3). Without it they would wait for the idle timeout.
pub struct ServerSide {
    /// The settings.
    pub config: ServerConfig,
    /// The secret; the same for every process that serves a store.
    pub reset_key: [u8; RESET_KEY_LEN],
}

/// Bytes of the secret for resets.
pub const RESET_KEY_LEN: usize = 32;

/// An endpoint on a socket of its own, within a tokio runtime.
pub fn endpoint(address: SocketAddr, server: Option<ServerSide>) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    // Beyond the system's limit only where that is allowed; less is slower, not wrong.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_LEN)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_LEN));
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_LEN);
    let mut config = EndpointConfig::default();
    if let Some(server) = &server {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &server.reset_key);
        // Packets of connections that the dead process made must look like ones that this process could
        // have made, or they would be passed over in silence.
        let mut ids = [0; 8];
        ids.copy_from_slice(&hmac::sign(&key, b"connection ids").as_ref()[..8]);
        let ids = u64::from_le_bytes(ids);
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
        config.reset_key(Arc::new(key));
    }
    config
        .max_udp_payload_size(MTU_LAST)
        .expect("the last MTU is a valid one");
    Endpoint::new(
        config,
        server.map(|server| server.config),
        socket,
        Arc::new(TokioRuntime),
    )
}
