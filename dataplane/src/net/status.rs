//! What a server tells an administrator.

use serde::{Deserialize, Serialize};

/// What a server does at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ServerStatus {
    /// The program and its version.
    pub program: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Who is connected.
    pub connections: Vec<ConnectionStatus>,
    /// The repositories that are open.
    pub repositories: Vec<String>,
    /// Sessions of all of them.
    pub sessions: u64,
    /// The server is shutting down.
    pub is_draining: bool,
    /// Limits of bandwidth.
    #[serde(default)]
    pub limits: Vec<LimitStatus>,
}

/// A limit of bandwidth.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LimitStatus {
    /// `in` to the server, or `out` of it.
    pub direction: String,
    /// The rate that holds now; none if none of the rules does.
    pub bytes_per_second: Option<u64>,
    /// All rules, as they are written.
    pub rules: Vec<String>,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ConnectionStatus {
    /// Who.
    pub peer: String,
    /// Its role.
    pub role: String,
    /// From where.
    pub address: String,
    /// To which repository; none if it only asks.
    pub repository: Option<String>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SessionStatus {
    /// Its id.
    pub session: String,
    /// The repository.
    pub repository: String,
    /// The VM that is backed up.
    pub vm: String,
    /// Who began it, or went on with it last; none since the server started.
    pub peer: Option<String>,
    /// A client is connected.
    pub is_attached: bool,
    /// How many clients have held it.
    pub epoch: u64,
    /// Segments that are done and durable.
    pub finished_segments: u64,
    /// Segments that are done but not durable yet.
    pub pending_segments: u64,
    /// Bytes of payloads taken in since the server started.
    pub pushed_bytes: u64,
}
