//! What a proxy tells of itself and its tasks, as JSON.

use serde::{Deserialize, Serialize};

/// What a proxy does at the moment, and what it could do.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct ProxyStatus {
    /// The program and its version.
    pub program: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// It takes and begins no tasks until it is resumed.
    pub is_suspended: bool,
    /// It shuts down.
    pub is_draining: bool,
    /// Cores that it may use.
    pub cores: u64,
    /// The machine's memory, or what the proxy may use of it.
    pub memory_total_bytes: u64,
    /// What of it is to be had.
    pub memory_available_bytes: u64,
    /// Memory of the proxy itself.
    pub resident_bytes: u64,
    /// The most that was.
    pub resident_max_bytes: u64,
    /// Tasks that can run at once.
    pub streams: u64,
    /// Tasks that run.
    pub streams_busy: u64,
    /// Tasks that can begin now: none while the proxy is suspended or shuts down.
    pub streams_free: u64,
    /// Tasks that wait for a stream.
    pub queued: u64,
    /// Bytes of the tasks that run, per second.
    pub rate_bytes_per_s: f64,
    /// Below which directories tasks may read.
    pub reads: Vec<String>,
    /// Below which directories they may write.
    pub writes: Vec<String>,
}

/// A task. Times are milliseconds since 1970-01-01 UTC.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct TaskStatus {
    /// Its id.
    pub task: String,
    /// `backup` or `restore`.
    pub kind: String,
    /// The VM; of a restore, the snapshot as it was named.
    pub subject: String,
    /// The repository.
    pub repository: String,
    /// Who submitted it.
    pub owner: String,
    /// `queued`, `running`, `cancelling`, or how it ended: `done`, `damage`, `failed`, `cancelled`.
    pub state: String,
    /// When it came.
    pub submitted_ms: u64,
    /// When it was begun last.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// How often it was begun.
    pub runs: u32,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// Its session at the repository's server.
    pub session: Option<String>,
    /// Bytes that it will go through, as far as known.
    pub total_bytes: u64,
    /// Bytes gone through.
    pub done_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes of new chunks.
    pub new_bytes: u64,
    /// Bytes written.
    pub stored_bytes: u64,
    /// Bytes read or written per second, whichever is more, over the last seconds.
    pub rate_bytes_per_s: f64,
}

/// All that is known of a task.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct TaskDetails {
    /// As it is listed.
    pub status: TaskStatus,
    /// What is read or written: labels and paths on the proxy's machine.
    pub paths: Vec<(String, String)>,
    /// Warnings since the proxy started.
    pub notes: Vec<String>,
    /// Its report, or what is told of its failure.
    pub result: Option<serde_json::Value>,
    /// Its report as text.
    pub text: String,
}

/// What is told of a failure: the line that the command prints with `--json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TaskFailure {
    /// What failed.
    pub error: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What to do. Commands stand in backquotes.
    pub hints: Vec<String>,
    /// Of the command.
    pub exit_code: u8,
}

impl TaskFailure {
    /// A failure without causes.
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            exit_code: 1,
            ..Self::default()
        }
    }

    /// The JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and a number have a JSON")
    }
}
