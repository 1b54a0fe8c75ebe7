//! From a packet of a stranger to an enrolled peer.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming};
use rustls::pki_types::CertificateDer;
use undercroft_format::codec::DecodeError;

use super::Handler;
use super::figures::{DoorFigures, Enrolment, Handshake};
use super::guests::{Guests, Place};
use super::limiter::Verdict;
use crate::net::closing::Closing;
use crate::net::conversation::StreamError;
use crate::net::distrust::distrust;
use crate::net::transport;
use crate::net::trust::message::MESSAGE_LEN_MAX;
use crate::net::trust::tls::{Admitted, Protocols, admit};
use crate::net::trust::{Answer, Authority, EnrolRequest, Side};

/// How long a handshake may take, and an enrolment after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection may linger after all was said, for the last words to arrive.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// What decides on who comes in.
pub(super) struct Admission<H> {
    pub authority: Arc<Authority>,
    pub protocols: Protocols,
    pub handler: Arc<H>,
    pub figures: DoorFigures,
    pub guests: Arc<Guests>,
}

impl<H: Handler> Admission<H> {
    /// Takes connections until the endpoint is closed.
    pub async fn accept(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let address = incoming.remote_address();
            let is_proven = incoming.remote_address_validated();
            let (verdict, place) = self.guests.knock(address.ip().into(), is_proven);
            match (verdict, place) {
                (Verdict::Begin, Some(place)) => {
                    tokio::spawn(self.clone().admit(incoming, place));
                }
                // A forged address costs a packet, not a handshake.
                (Verdict::Prove, _) => {
                    self.figures.handshake(Handshake::Retried);
                    drop(incoming.retry());
                }
                (Verdict::Refuse(reason), _) => {
                    self.figures.handshake(Handshake::Refused);
                    tracing::warn!(%address, %reason, "a connection is refused");
                    incoming.refuse();
                }
                (Verdict::Begin, None) => unreachable!("who may begin has a place"),
            }
        }
    }

    async fn admit(self: Arc<Self>, incoming: Incoming, mut place: Place) {
        let address = incoming.remote_address();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming);
        let connection = match handshake.await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                self.figures.handshake(Handshake::Failed);
                let reason = match distrust(Side::Server, &error) {
                    Some(distrust) => distrust.to_string(),
                    None => error.to_string(),
                };
                return tracing::warn!(%address, reason, "a handshake failed");
            }
            Err(_) => {
                self.figures.handshake(Handshake::TimedOut);
                let reason = "it took too long";
                return tracing::warn!(%address, reason, "a handshake failed");
            }
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
            Ok(Admitted::Peer(peer)) => match place.let_in(&connection, &peer) {
                Ok(()) => {
                    self.figures.handshake(Handshake::Admitted);
                    let _counted = self.figures.connection(&connection, peer.role);
                    transport::widen(&connection);
                    self.handler.clone().serve(connection.clone(), peer).await;
                }
                Err(reason) => {
                    self.figures.handshake(Handshake::Refused);
                    tracing::warn!(%address, peer = %peer.name, %reason, "a connection is refused");
                    Closing::TooMany.close(&connection, &format!("{reason}: try again later"));
                }
            },
            Ok(Admitted::ToEnrol) => {
                self.figures.handshake(Handshake::ToEnrol);
                let figures = self.figures.clone();
                if let Err(error) = enrol(&connection, self.authority.clone(), figures).await {
                    self.figures.enrolment(Enrolment::Broken);
                    tracing::warn!(%address, reason = %error, "an enrolment broke off");
                }
            }
            Err(why) => {
                self.figures.handshake(Handshake::NotAdmitted);
                tracing::warn!(%address, reason = %why, "a peer is not let in");
                Closing::NotAdmitted.close(&connection, &why.to_string());
            }
        }
        // As long as the connection lives, it keeps its place.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, connection.closed()).await;
        Closing::Done.close(&connection, "done");
    }
}

/// Answers the one request of a peer that has no certificate yet.
async fn enrol(
    connection: &Connection,
    authority: Arc<Authority>,
    figures: DoorFigures,
) -> Result<(), StreamError> {
    let address = connection.remote_address();
    let exchange = async {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let request = recv.read_to_end(MESSAGE_LEN_MAX).await;
        let request = request.map_err(|_| StreamError::Truncated)?;
        let answered = tokio::task::spawn_blocking(move || {
            let request = EnrolRequest::decode(&request)?;
            let answer = authority.enrol(&request);
            match &answer {
                Answer::Granted(_) => {
                    figures.enrolment(Enrolment::Granted);
                    tracing::info!(%address, peer = %request.name, role = %request.role, "enrolled");
                }
                Answer::Refused(refusal) => {
                    figures.enrolment(Enrolment::Refused);
                    tracing::warn!(%address, peer = %request.name, reason = %refusal, "an enrolment is refused");
                }
            }
            Ok::<_, DecodeError>(answer.encode())
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
