//! Who holds what: the agreement between sessions and a collection, without clocks.
//!
//! The rule: *a session that was told "I have it" holds that chunk until it ends*, and a chunk is held
//! by holding its pack. A collection may remove a pack only if no session holds it and none that held it
//! ended while the collection ran, because such a session's snapshot may have been published after the
//! collection read the snapshots.
//!
//! | event | effect |
//! | --- | --- |
//! | session asks, the pack is condemned | the answer is "I do not have it": the session stores it again |
//! | session asks otherwise | the pack is held by the session |
//! | session seals a pack | held too: nothing published refers to it yet |
//! | session ends | its holds go, or go over to the collection that runs |
//! | collection condemns a pack | refused if anyone holds it |
//! | collection ends | condemned packs are gone, holds that went over to it too |

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use undercroft_format::id::SessionId;

use super::index::PackNumber;

/// The holds on packs of an open repository.
#[derive(Debug, Default)]
pub struct Registry(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<SessionId, HashSet<PackNumber>>,
    collection: Option<Collection>,
}

#[derive(Debug, Default)]
struct Collection {
    condemned: HashSet<PackNumber>,
    inherited: HashSet<PackNumber>,
}

impl Registry {
    /// A session begins.
    pub fn begin(&self, session: SessionId) {
        self.0.lock().sessions.insert(session, HashSet::new());
    }

    /// A session ended, after its snapshot was published if it had one.
    pub fn end(&self, session: SessionId) {
        let mut state = self.0.lock();
        let held = state.sessions.remove(&session).unwrap_or_default();
        if let Some(collection) = &mut state.collection {
            collection.inherited.extend(held);
        }
    }

    /// Sessions that run.
    pub fn sessions(&self) -> usize {
        self.0.lock().sessions.len()
    }

    /// Holds the packs that answer a session's question; answers from condemned packs become `None`.
    pub fn hold(&self, session: SessionId, answers: &mut [Option<PackNumber>]) {
        let mut state = self.0.lock();
        let State {
            sessions,
            collection,
        } = &mut *state;
        let held = sessions
            .get_mut(&session)
            .expect("a session asks between its begin and its end");
        for answer in answers {
            let Some(pack) = *answer else { continue };
            if collection
                .as_ref()
                .is_some_and(|c| c.condemned.contains(&pack))
            {
                *answer = None;
            } else {
                held.insert(pack);
            }
        }
    }

    /// A collection begins, before it reads the packs and the snapshots. False if one runs already.
    pub fn begin_collection(&self) -> bool {
        let mut state = self.0.lock();
        if state.collection.is_some() {
            return false;
        }
        state.collection = Some(Collection::default());
        true
    }

    /// Condemns a pack: from now on nobody is told that the repository has what is in it. False if
    /// somebody holds it.
    pub fn condemn(&self, pack: PackNumber) -> bool {
        let mut state = self.0.lock();
        let held = state.sessions.values().any(|held| held.contains(&pack));
        let collection = state
            .collection
            .as_mut()
            .expect("packs are condemned by a collection");
        if held || collection.inherited.contains(&pack) {
            return false;
        }
        collection.condemned.insert(pack);
        true
    }

    /// The collection is over; what it condemned is gone from the index or may be used again.
    pub fn end_collection(&self) {
        self.0.lock().collection = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId::from_bytes([1; 16]);
    const PACK: PackNumber = PackNumber(1);

    fn ask(registry: &Registry) -> bool {
        let mut answers = [Some(PACK)];
        registry.hold(A, &mut answers);
        answers[0].is_some()
    }

    #[test]
    fn what_a_session_was_told_is_held_until_it_ends() {
        let registry = Registry::default();
        registry.begin(A);
        assert!(ask(&registry));
        assert!(registry.begin_collection());
        assert!(!registry.condemn(PACK));
        registry.end(A);
        assert!(
            !registry.condemn(PACK),
            "its snapshot may be newer than the listing"
        );
        registry.end_collection();
        assert!(registry.begin_collection());
        assert!(registry.condemn(PACK));
    }

    #[test]
    fn a_condemned_pack_is_not_offered() {
        let registry = Registry::default();
        registry.begin(A);
        assert!(registry.begin_collection() && !registry.begin_collection());
        assert!(registry.condemn(PACK));
        assert!(!ask(&registry));
        registry.end_collection();
        assert!(ask(&registry));
    }
}
