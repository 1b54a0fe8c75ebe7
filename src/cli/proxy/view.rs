//! A task as `tasks` and `show` print it.

use jiff::Timestamp;
use serde::Serialize;
use undercroft_dataplane::net::proxy::status::TaskStatus;

use crate::units::{Size, timestamp};

/// A task in JSON. Sizes are in bytes.
#[derive(Serialize)]
pub struct TaskView<'a> {
    task: &'a str,
    kind: &'a str,
    /// The VM; of a restore the snapshot as it was named.
    subject: &'a str,
    repository: &'a str,
    owner: &'a str,
    state: &'a str,
    submitted: Timestamp,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    runs: u32,
    waits_for: Option<&'a str>,
    session: Option<&'a str>,
    total_bytes: u64,
    done_bytes: u64,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    rate_bytes_per_s: f64,
}

impl<'a> TaskView<'a> {
    pub fn of(status: &'a TaskStatus) -> Self {
        Self {
            task: &status.task,
            kind: &status.kind,
            subject: &status.subject,
            repository: &status.repository,
            owner: &status.owner,
            state: &status.state,
            submitted: timestamp(status.submitted_ms),
            started: status.started_ms.map(timestamp),
            ended: status.ended_ms.map(timestamp),
            runs: status.runs,
            waits_for: status.waits_for.as_deref(),
            session: status.session.as_deref(),
            total_bytes: status.total_bytes,
            done_bytes: status.done_bytes,
            read_bytes: status.read_bytes,
            new_bytes: status.new_bytes,
            stored_bytes: status.stored_bytes,
            rate_bytes_per_s: status.rate_bytes_per_s,
        }
    }
}

/// How far a task is, in a cell.
pub fn done_of(status: &TaskStatus) -> String {
    match status.total_bytes {
        0 => "-".to_owned(),
        total => format!("{} of {}", Size(status.done_bytes), Size(total)),
    }
}
