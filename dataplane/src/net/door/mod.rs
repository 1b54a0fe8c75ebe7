//! The door of a daemon: a socket that others connect to, from the first packet to a peer that is known.
//!
//! What comes after that is the daemon's own: it gives the door a [`Handler`] for admitted peers. Peers
//! that are yet to be enrolled are dealt with here. `admission` is the way in, [`limiter`] decides who may try it and
//! how often, `guests` sees to it that those inside still may be, `figures` counts, `reset_key` is a secret that
//! outlives the process.

mod admission;
mod figures;
mod guests;
pub mod limiter;
mod rate;
mod reset_key;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use quinn::{Connection, Endpoint};
use tokio::runtime::Handle;

use self::admission::Admission;
pub use self::figures::DoorFigures;
use self::guests::Guests;
pub use self::limiter::Limits;
pub use self::rate::Rate;
use super::closing::Closing;
use super::transport::{self, ServerSide};
use super::trust::tls::{Protocols, server_config};
use super::trust::{Authority, PeerIdentity, TrustError};

/// Serves peers that were let in.
pub trait Handler: Send + Sync + 'static {
    /// Serves one connection until it ends.
    fn serve(
        self: Arc<Self>,
        connection: Connection,
        peer: PeerIdentity,
    ) -> impl Future<Output = ()> + Send;
}

/// How a door is made.
pub struct DoorOptions {
    /// Where it listens; port 0 takes any.
    pub listen: SocketAddr,
    /// What is spoken there.
    pub protocols: Protocols,
    /// The file of the secret for resets: made if there is none, the same whenever this daemon runs.
    pub reset_key: PathBuf,
    /// Whom it keeps out.
    pub limits: Limits,
}

/// A daemon cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoorError {
    /// The socket cannot be had.
    #[error("listening on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The settings of TLS do not fit QUIC.
    #[error("setting TLS up")]
    Tls(#[source] io::Error),
    /// The secret for resets cannot be kept.
    #[error("keeping the store's secret for resets")]
    ResetKey(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The authority does not do.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// A socket that lets peers in.
pub struct Door {
    endpoint: Endpoint,
    figures: DoorFigures,
}

impl Door {
    /// Listens, and gives `handler` the peers that `authority` knows. `runtime` drives it all.
    ///
    /// # Errors
    /// [`DoorError`].
    pub fn open<H: Handler>(
        options: DoorOptions,
        authority: Arc<Authority>,
        handler: Arc<H>,
        runtime: &Handle,
    ) -> Result<Self, DoorError> {
        let tls = server_config(&authority, options.protocols)?;
        let config =
            transport::server_config(tls, options.limits.unfinished).map_err(DoorError::Tls)?;
        let reset_key = reset_key::load_or_make(&options.reset_key)?;
        let address = options.listen;
        let endpoint = {
            let _entered = runtime.enter();
            transport::endpoint(address, Some(ServerSide { config, reset_key }))
                .map_err(|source| DoorError::Listen { address, source })?
        };
        let figures = DoorFigures::default();
        let guests = Guests::new(options.limits);
        runtime.spawn(guests.clone().review(authority.clone()));
        let admission = Admission {
            authority,
            protocols: options.protocols,
            handler,
            figures: figures.clone(),
            guests,
        };
        runtime.spawn(Arc::new(admission).accept(endpoint.clone()));
        Ok(Self { endpoint, figures })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// What it counts.
    pub fn figures(&self) -> &DoorFigures {
        &self.figures
    }

    /// Lets nobody in any more, and closes every connection: the daemon shuts down.
    pub fn close(&self) {
        let text = b"the server is shutting down";
        self.endpoint.close(Closing::ShuttingDown.code(), text);
    }
}
