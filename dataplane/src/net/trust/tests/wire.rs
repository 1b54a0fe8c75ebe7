//! TLS connections pumped by hand.

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, Connection, ServerConnection};

use super::super::*;

/// How a handshake ended at both ends.
pub struct Wire {
    pub client: Connection,
    pub server: Connection,
    pub client_error: Option<rustls::Error>,
    pub server_error: Option<rustls::Error>,
}

/// A connection that did not come to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed {
    pub at_client: Option<HandshakeError>,
    pub at_server: Option<HandshakeError>,
    pub closed: Option<AdmitError>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Failed {}

impl Wire {
    /// Shakes hands with `authority`'s server.
    pub fn connect(authority: &Arc<Authority>, config: ClientConfig) -> Self {
        let name = SERVER_NAME.try_into().unwrap();
        let server = server_config(authority, tls::REPOSITORY).unwrap();
        let mut wire = Self {
            client: ClientConnection::new(Arc::new(config), name)
                .unwrap()
                .into(),
            server: ServerConnection::new(Arc::new(server)).unwrap().into(),
            client_error: None,
            server_error: None,
        };
        wire.pump();
        wire
    }

    /// Moves bytes until neither end has any, alerts included.
    pub fn pump(&mut self) {
        loop {
            let sent = forward(&mut self.client, &mut self.server, &mut self.server_error);
            let answered = forward(&mut self.server, &mut self.client, &mut self.client_error);
            if !sent && !answered {
                return;
            }
        }
    }

    /// Who the server takes the client for.
    pub fn admit(&self, authority: &Authority) -> Result<Admitted, Failed> {
        let failed = |closed| Failed {
            at_client: meaning(Side::Client, self.client_error.as_ref()),
            at_server: meaning(Side::Server, self.server_error.as_ref()),
            closed,
        };
        if self.client_error.is_some() || self.server_error.is_some() {
            return Err(failed(None));
        }
        let (alpn, chain) = (self.server.alpn_protocol(), self.server.peer_certificates());
        admit(authority, tls::REPOSITORY, alpn, chain).map_err(|error| failed(Some(error)))
    }

    pub fn send(&mut self, from: Side, bytes: &[u8]) -> Vec<u8> {
        let (sender, receiver) = match from {
            Side::Client => (&mut self.client, &mut self.server),
            Side::Server => (&mut self.server, &mut self.client),
        };
        sender.writer().write_all(bytes).unwrap();
        forward(sender, receiver, &mut None);
        let mut received = vec![0; bytes.len()];
        receiver.reader().read_exact(&mut received).unwrap();
        received
    }
}

/// Connects, sends a request, has the server answer it, and gives the answer.
pub fn exchange(
    authority: &Arc<Authority>,
    config: ClientConfig,
    request: &[u8],
) -> Result<Vec<u8>, Failed> {
    let mut wire = Wire::connect(authority, config);
    let admitted = wire.admit(authority)?;
    let request = wire.send(Side::Client, request);
    let answer = match admitted {
        Admitted::ToEnrol => authority.enrol(&EnrolRequest::decode(&request).unwrap()),
        Admitted::Peer(peer) => authority.renew(&peer, &RenewRequest::decode(&request).unwrap()),
    };
    Ok(wire.send(Side::Server, &answer.encode()))
}

fn meaning(side: Side, error: Option<&rustls::Error>) -> Option<HandshakeError> {
    error.map(|error| {
        HandshakeError::of(side, error).unwrap_or_else(|| panic!("{side:?}: {error:?}"))
    })
}

fn forward(from: &mut Connection, to: &mut Connection, error: &mut Option<rustls::Error>) -> bool {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() && error.is_none() {
        to.read_tls(&mut rest).unwrap();
        *error = to.process_new_packets().err();
    }
    !bytes.is_empty()
}
