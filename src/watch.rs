//! How daemons are watched: figures and health over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use undercroft_dataplane::observe::{Endpoint, EndpointError, Observed};

/// Options of every daemon.
#[derive(clap::Args, Clone, Debug)]
pub struct WatchArgs {
    /// Serve /metrics (for Prometheus), /health/live and /health/ready over HTTP there
    ///
    /// Off unless given. There is no TLS and no password: give a loopback address or one of a management
    /// network. What is shown names repositories and roles, no VMs and no peers. Port 0 takes any.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

impl WatchArgs {
    /// Shows the daemon, if that was asked for, until what is returned is dropped.
    pub fn open(&self, observed: Arc<dyn Observed>) -> Result<Option<Endpoint>, EndpointError> {
        let open = |address| Endpoint::open(address, observed, Vec::new());
        self.metrics.map(open).transpose()
    }
}
