//! What a daemon shows to those who watch it: figures for Prometheus, and its health.
//!
//! A daemon implements [`Observed`]; [`Endpoint`] serves it over HTTP. `http` is the serving, [`health`] what
//! is said of it, [`exposition`] figures that are read when they are asked for, [`process`] those of the
//! process itself; [`log_limit`] keeps a flood of log lines from filling the disk.
//!
//! Labels have few values, whoever connects: a repository, a role, a reason; never the name of a VM or of a
//! peer, never an id.

pub mod exposition;
pub mod health;
mod http;
pub mod log_limit;
pub mod process;

use std::sync::Arc;

pub use prometheus_client::registry::Registry;

pub use self::health::Complaint;
pub use self::http::{Endpoint, EndpointError};

/// Begins the name of every figure of ours.
pub const PREFIX: &str = "undercroft";

/// A daemon, as others watch it.
pub trait Observed: Send + Sync + 'static {
    /// Adds its figures to `registry`, which gives their names the prefix. Called once.
    fn register(self: Arc<Self>, registry: &mut Registry);

    /// What says that its loops do not run any more. Reads no disk and waits for nothing.
    fn liveness(&self) -> Vec<Complaint>;

    /// What says that it should be given no work. May read the disk.
    fn readiness(&self) -> Vec<Complaint>;
}
