//! A proxy: runs backups and restores on the machine that can reach the disks, for whoever is enrolled.
//!
//! [`agent`] keeps, with what its threads have in `shared`, the [books](undercroft_format::wire::books), writes them to [`mod@task_files`], and gives
//! each task that may run to a [`Worker`] on a thread of its own; [`server`] lets peers in and answers them;
//! [`client`] is the other end. [`status`] is what an administrator is told, [`machine`] what the agent
//! tells of the machine. `figures` counts, `watched` shows that and more to those who watch the proxy.

pub mod agent;
pub mod client;
mod figures;
mod follow;
mod live;
pub mod machine;
mod permission;
pub mod run;
pub mod server;
mod shared;
pub mod status;
pub mod task_files;
mod watched;

pub use agent::{Agent, AgentError, AgentOptions};
pub use client::{FollowEvent, Following, ProxyLink};
pub use run::{TaskRun, Worker};
pub use server::{ProxyError, ProxyOptions, ProxyServer};
