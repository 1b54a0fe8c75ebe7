//! How a task goes, step by step, for one who follows it.

use std::time::Duration;

use undercroft_format::id::TaskId;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::proxy::{TaskNote, TaskOver, TaskProgress};

use super::agent::{Agent, look_after};
use crate::net::trust::PeerIdentity;

/// A follower is told at least so often.
const STEP: Duration = Duration::from_millis(250);

/// What a follower is told next.
pub enum Step {
    /// Warnings, in order.
    Notes(Vec<TaskNote>),
    /// How far it is.
    Progress(TaskProgress),
    /// It is over. Nothing follows.
    Over(TaskOver),
}

impl Agent {
    /// What one who has seen so many notes is told next. If nothing is new it takes a moment.
    pub(super) fn step(
        &self,
        peer: &PeerIdentity,
        id: TaskId,
        notes_seen: usize,
        wait: bool,
    ) -> Result<Step, Failure> {
        let mut state = self.0.state();
        if wait {
            let is_over = look_after(&state, peer, id)?.result.is_some();
            let notes = state.notes.get(&id).map_or(0, Vec::len);
            if !is_over && notes <= notes_seen {
                self.0.changed.wait_for(&mut state, STEP);
            }
        }
        let entry = look_after(&state, peer, id)?;
        let notes = state
            .notes
            .get(&id)
            .and_then(|notes| notes.get(notes_seen..));
        if let Some(notes) = notes.filter(|notes| !notes.is_empty()) {
            let texts = notes.iter().cloned();
            return Ok(Step::Notes(texts.map(|text| TaskNote { text }).collect()));
        }
        if let Some(result) = &entry.result {
            return Ok(Step::Over(result.clone()));
        }
        if state.books.is_draining() {
            let text = "the proxy is shutting down: the task goes on when it is back";
            return Err(Failure::new(FailureCode::Draining, text));
        }
        let status = self.0.status_of(&state, entry);
        Ok(Step::Progress(TaskProgress {
            is_running: state.live.contains_key(&id),
            waits_for: status.waits_for.unwrap_or_default(),
            total_bytes: status.total_bytes,
            done_bytes: status.done_bytes,
            read_bytes: status.read_bytes,
            new_bytes: status.new_bytes,
            stored_bytes: status.stored_bytes,
        }))
    }
}
