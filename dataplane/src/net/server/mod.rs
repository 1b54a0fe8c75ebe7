//! The repository server: owns every repository of a store and serves them to enrolled peers.
//!
//! `listener` lets connections in, `connection` says who is there and which repository they want; then
//! each stream is a conversation on a thread of its own: `session` and `lane` take backups in,
//! `reference` says what a backup need not send, `fetch` and `roots` give records and snapshots out,
//! `upkeep` does long work, with `judge` where that takes a key. `served` is a repository with its sessions,
//! `kept_session` one of them, `published` what ended ones came to, `check` looks at every record and
//! `commit` at every snapshot before they count. `unplugged` is all of this without sockets. `figures` and
//! `repository_figures` count what is done, `watched` shows it.

mod access;
mod bounds;
mod check;
mod commit;
mod connection;
mod conversations;
mod fetch;
mod fetch_room;
mod figures;
mod judge;
mod kept_session;
mod lane;
mod listener;
mod published;
mod reference;
mod repository_figures;
mod roots;
mod served;
mod session;
mod take_up;
mod unplugged;
mod upkeep;
mod watched;

pub use bounds::{CONNECTION_LEN_MAX, ServerLimits};
pub use kept_session::CheckpointPolicy;
pub use listener::{Server, ServerError, ServerOptions};
pub use unplugged::UnpluggedServer;
