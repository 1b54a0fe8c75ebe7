//! An NBD server of disks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use undercroft_format::nbd::server::offer::Offers;
use undercroft_format::nbd::uri::{NbdUri, Server};

use super::bounds::{self, CONNECTIONS_MAX, HANDSHAKE_MAX, THREADS};
use super::connection;
use super::disk::{Disk, Exported};
use super::error::ExportError;
use super::listen::{Client, Listen, Listener};
use super::negotiate::{Stream, negotiate};
use super::tls::ServerTls;

/// How long to wait after a failure to accept: it may be that there are no file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What to export, and where.
pub struct ExportOptions {
    /// The exports.
    pub exports: Vec<Exported>,
    /// Where to listen.
    pub listen: Listen,
    /// If given, clients have to speak TLS.
    pub tls: Option<ServerTls>,
}

/// A server that runs until it is dropped.
pub struct ExportServer {
    runtime: Option<Runtime>,
    stopping: watch::Sender<bool>,
    /// Ends with the last connection.
    connections: mpsc::Receiver<()>,
    server: Server,
    shared: Arc<Shared>,
}

/// What connections have in common.
struct Shared {
    offers: Arc<Offers>,
    disks: Vec<Disk>,
    tls: Option<ServerTls>,
    all: bounds::Shared,
    places: Arc<Semaphore>,
}

impl ExportServer {
    /// Listens, and serves from then on.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn start(options: ExportOptions) -> Result<Self, ExportError> {
        let list = options.exports.iter().map(Exported::offer).collect();
        let offers = Offers::new(list, options.tls.is_some())?;
        let shared = Arc::new(Shared {
            offers: Arc::new(offers),
            disks: options
                .exports
                .into_iter()
                .map(|export| export.disk)
                .collect(),
            tls: options.tls,
            all: bounds::Shared::default(),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(THREADS)
            .thread_name("undercroft-export")
            .enable_all()
            .build()
            .map_err(ExportError::Threads)?;
        let listener = {
            let _within = runtime.enter();
            Listener::bind(&options.listen)?
        };
        let server = listener.server().map_err(|source| ExportError::Listen {
            place: format!("{:?}", options.listen),
            source,
        })?;
        let (stopping, stopped) = watch::channel(false);
        let (alive, connections) = mpsc::channel(1);
        runtime.spawn(accept(listener, shared.clone(), stopped, alive));
        Ok(Self {
            runtime: Some(runtime),
            stopping,
            connections,
            server,
            shared,
        })
    }

    /// Name and URI of each export.
    pub fn uris(&self) -> Vec<(String, NbdUri)> {
        let offers = self.shared.offers.list().iter();
        let uri = |name: &str| NbdUri {
            server: self.server.clone(),
            export: name.to_owned(),
            tls: self.shared.tls.is_some().then(Default::default),
            connections: None,
            dirty_bitmap: None,
        };
        offers
            .map(|offer| (offer.name.clone(), uri(&offer.name)))
            .collect()
    }

    /// Takes no more clients nor requests, and returns when what is in flight is done, or after `patience`:
    /// false then.
    pub fn stop(mut self, patience: Duration) -> bool {
        let _ = self.stopping.send(true);
        let Some(runtime) = self.runtime.take() else {
            return true;
        };
        let in_time =
            runtime.block_on(async { timeout(patience, self.connections.recv()).await.is_ok() });
        // What hangs in a disk does not hold up the end.
        runtime.shutdown_timeout(Duration::from_millis(100));
        in_time
    }
}

impl Drop for ExportServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(
    listener: Listener,
    shared: Arc<Shared>,
    stopping: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
) {
    let mut stopped = stopping.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopping| *stopping) => return,
        };
        let client = match accepted {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!("a client could not be let in: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(place) = shared.places.clone().try_acquire_owned() else {
            tracing::warn!("a client was turned away: {CONNECTIONS_MAX} are connected");
            continue;
        };
        let (shared, stopping, alive) = (shared.clone(), stopping.clone(), alive.clone());
        tokio::spawn(async move {
            let served = match client {
                Client::Tcp(stream) => serve(stream, &shared, stopping).await,
                Client::Unix(stream) => serve(stream, &shared, stopping).await,
            };
            if let Err(error) = served {
                tracing::info!("a connection ended: {error}");
            }
            drop((place, alive));
        });
    }
}

async fn serve(
    stream: impl Stream + 'static,
    shared: &Shared,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let negotiated = negotiate(stream, shared.offers.clone(), shared.tls.as_ref());
    let settled = tokio::select! {
        settled = timeout(HANDSHAKE_MAX, negotiated) => settled??,
        _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
    };
    let Some(settled) = settled else {
        return Ok(());
    };
    let export = settled.opened.export;
    let (offer, disk) = (&shared.offers.list()[export], shared.disks[export].clone());
    tracing::debug!(export = offer.name, "a client opened an export");
    connection::serve(settled, offer, disk, &shared.all, stopping).await
}
