//! Conversations that run, each on a thread: so many in all, and so many of one identity.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use undercroft_format::wire::failure::{Failure, FailureCode};

use crate::clock::Stopwatch;

/// Conversations at once: each has a thread.
pub const CONVERSATIONS_MAX: usize = 1024;
/// Of them, those of one identity: four connections full of streams.
pub const OF_IDENTITY_MAX: usize = 256;

/// Counts conversations.
#[derive(Default)]
pub struct Conversations {
    running: Mutex<Running>,
    ended: Condvar,
}

#[derive(Default)]
struct Running {
    total: usize,
    of_identity: HashMap<String, usize>,
}

impl Conversations {
    /// Counts a conversation of `identity` until what is returned is dropped.
    ///
    /// # Errors
    /// [`FailureCode::Busy`] if there are too many.
    pub fn begin(self: &Arc<Self>, identity: &str) -> Result<Busy, Failure> {
        let mut running = self.running.lock();
        let of_identity = running.of_identity.get(identity).copied().unwrap_or(0);
        if running.total >= CONVERSATIONS_MAX || of_identity >= OF_IDENTITY_MAX {
            let text = match of_identity >= OF_IDENTITY_MAX {
                true => format!("{identity} has {of_identity} conversations: try again later"),
                false => "the server has too many conversations: try again later".to_owned(),
            };
            return Err(Failure::new(FailureCode::Busy, text));
        }
        running.total += 1;
        running
            .of_identity
            .insert(identity.to_owned(), of_identity + 1);
        Ok(Busy {
            conversations: self.clone(),
            identity: identity.to_owned(),
        })
    }

    /// Waits until none runs, but not longer than `at_most`.
    pub fn wait_for_all(&self, at_most: Duration) {
        let clock = Stopwatch::start();
        let mut running = self.running.lock();
        while running.total > 0 && clock.elapsed() < at_most {
            self.ended
                .wait_for(&mut running, Duration::from_millis(100));
        }
    }
}

/// A conversation that runs.
pub struct Busy {
    conversations: Arc<Conversations>,
    identity: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut running = self.conversations.running.lock();
        running.total -= 1;
        match running.of_identity.get_mut(&self.identity) {
            Some(1) | None => drop(running.of_identity.remove(&self.identity)),
            Some(count) => *count -= 1,
        }
        self.conversations.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_cannot_take_every_thread() {
        let conversations = Arc::<Conversations>::default();
        let mut greedy: Vec<_> = (0..OF_IDENTITY_MAX)
            .map(|_| conversations.begin("greedy").expect("there is room"))
            .collect();
        let refused = conversations.begin("greedy").err().expect("too many");
        assert_eq!(refused.code, FailureCode::Busy);
        drop(conversations.begin("modest").expect("there is room"));
        greedy.pop();
        greedy.push(conversations.begin("greedy").expect("there is room again"));
        drop(greedy);
        assert!(conversations.running.lock().of_identity.is_empty());
        conversations.wait_for_all(Duration::from_secs(60));
    }
}
