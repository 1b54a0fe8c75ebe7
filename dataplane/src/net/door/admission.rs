//! From a packet of a stranger to an enrolled peer.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming};
use rustls::pki_types::CertificateDer;

use super::Handler;
use crate::net::closing::Closing;
use crate::net::conversation::StreamError;
use crate::net::distrust::distrust;
use crate::net::trust::message::MESSAGE_LEN_MAX;
use crate::net::trust::tls::{Admitted, Protocols, admit};
use crate::net::trust::{Authority, EnrolRequest, Side};

/// Connections at once, enrolled or not.
const CONNECTIONS_MAX: usize = 1024;
/// How long a handshake may take, and an enrolment after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// What decides on who comes in.
pub(super) struct Admission<H> {
    pub authority: Arc<Authority>,
    pub protocols: Protocols,
    pub handler: Arc<H>,
}

impl<H: Handler> Admission<H> {
    /// Takes connections until the endpoint is closed.
    pub async fn accept(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            if endpoint.open_connections() > CONNECTIONS_MAX {
                incoming.refuse();
            } else if !incoming.remote_address_validated()
                && endpoint.open_connections() > CONNECTIONS_MAX / 4
            {
                // A flood from forged addresses costs a round trip, not a handshake.
                let _ = incoming.retry();
            } else {
                tokio::spawn(self.clone().admit(incoming));
            }
        }
    }

    async fn admit(self: Arc<Self>, incoming: Incoming) {
        let address = incoming.remote_address();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming);
        let connection = match handshake.await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let reason = match distrust(Side::Server, &error) {
                    Some(distrust) => distrust.to_string(),
                    None => error.to_string(),
                };
                return tracing::warn!(%address, reason, "a handshake failed");
            }
            Err(_) => return tracing::warn!(%address, "a handshake took too long"),
        };
        let protocol = connection
            .handshake_data()
            .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
            .and_then(|data| data.protocol);
        let chain = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
        let chain = chain.as_ref().map(|chain| &chain[..]);
        match admit(&self.authority, self.protocols, protocol.as_deref(), chain) {
            Ok(Admitted::Peer(peer)) => self.handler.clone().serve(connection, peer).await,
            Ok(Admitted::ToEnrol) => {
                if let Err(error) = enrol(&connection, self.authority.clone()).await {
                    tracing::warn!(%address, %error, "an enrolment broke off");
                }
            }
            Err(why) => {
                tracing::warn!(%address, %why, "a peer is not let in");
                connection.close(Closing::NotAdmitted.code(), why.to_string().as_bytes());
            }
        }
    }
}

/// Answers the one request of a peer that has no certificate yet.
async fn enrol(connection: &Connection, authority: Arc<Authority>) -> Result<(), StreamError> {
    let exchange = async {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let request = recv.read_to_end(MESSAGE_LEN_MAX).await;
        let request = request.map_err(|_| StreamError::Truncated)?;
        let answered = tokio::task::spawn_blocking(move || {
            EnrolRequest::decode(&request).map(|request| authority.enrol(&request).encode())
        });
        let answer = answered.await.expect("an answer does not panic")?;
        send.write_all(&answer).await?;
        // The peer closes the connection when it has read the answer.
        let _ = send.finish();
        connection.closed().await;
        Ok(())
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, exchange)
        .await
        .unwrap_or(Err(StreamError::NoAnswer))
}
