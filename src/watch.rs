//! How daemons are watched: figures and health over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use undercroft_dataplane::observe::{Endpoint, EndpointError, Observed};

use crate::daemon::parse_listen;
use crate::logging::limit_floods;

/// Options of every daemon.
#[derive(clap::Args, Clone, Debug)]
pub struct WatchArgs {
    /// Serve /metrics (for Prometheus), /health/live and /health/ready over HTTP there
    ///
    /// Off unless given. There is no TLS and no password: give a loopback address or one of a management
    /// network. What is shown names repositories and roles, no VMs and no peers. Port 0 takes any.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_parser = parse_listen,
        env = "UNDERCROFT_METRICS",
        hide_env_values = true
    )]
    metrics: Option<SocketAddr>,
}

impl WatchArgs {
    /// Shows the daemon, if that was asked for, until what is returned is dropped. Its log is bounded from now
    /// on, whether it is shown or not.
    pub fn open(&self, observed: Arc<dyn Observed>) -> Result<Option<Endpoint>, EndpointError> {
        let log = limit_floods();
        let open = |address| Endpoint::open(address, observed, log);
        self.metrics.map(open).transpose()
    }
}
