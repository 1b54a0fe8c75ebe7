//! Who holds what: the agreement between sessions and a collection, without clocks.
//!
//! The rule: *a session that was told "I have it" holds that chunk until it ends*, and a chunk is held
//! by holding its pack. A collection may remove a pack only if no session holds it and none that held it
//! ended while the collection ran, because such a session's snapshot may have been published after the
//! collection read the snapshots. The same goes for the snapshot that a session splices onto: what did
//! not change since is never asked for, so the whole parent is held.
//!
//! | event | effect |
//! | --- | --- |
//! | session asks, the pack is condemned or removed | the answer is "I do not have it": the session stores it again |
//! | session asks otherwise | the pack is held by the session |
//! | session creates a pack | held too, before anyone can see it: nothing published refers to it yet |
//! | session pins its parent | a collection marks what it refers to |
//! | session ends | its holds go, or go over to the collection that runs |
//! | collection condemns a pack | refused if anyone holds it |
//! | collection ends | condemned packs are gone, holds that went over to it too |

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use undercroft_format::id::{PackId, SessionId};

use super::index::PackNumber;
use super::snapshots::StoredSnapshot;

/// The holds on packs of an open repository.
#[derive(Debug, Default)]
pub struct Registry(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<SessionId, Holds>,
    collection: Option<Collection>,
    /// Packs that collections removed. A session may have found one in the index just before, and on a
    /// full disk the index may be unable to forget it; numbers are never given twice.
    removed: HashSet<PackNumber>,
}

#[derive(Debug, Default)]
struct Holds {
    /// Packs that the session was told of.
    found: HashSet<PackNumber>,
    /// Packs that it writes or wrote.
    written: HashSet<PackId>,
    /// Snapshots that it splices onto.
    parents: Vec<StoredSnapshot>,
}

#[derive(Debug, Default)]
struct Collection {
    condemned: HashSet<PackNumber>,
    inherited: Holds,
}

impl Holds {
    fn holds(&self, id: PackId, number: Option<PackNumber>) -> bool {
        self.written.contains(&id) || number.is_some_and(|number| self.found.contains(&number))
    }
}

impl Registry {
    /// A session begins.
    pub fn begin(&self, session: SessionId) {
        self.0.lock().sessions.insert(session, Holds::default());
    }

    /// A session ended, after its snapshot was published if it had one.
    pub fn end(&self, session: SessionId) {
        let mut state = self.0.lock();
        let held = state.sessions.remove(&session).unwrap_or_default();
        if let Some(collection) = &mut state.collection {
            let inherited = &mut collection.inherited;
            inherited.found.extend(held.found);
            inherited.written.extend(held.written);
            inherited.parents.extend(held.parents);
        }
    }

    /// Sessions that run.
    pub fn sessions(&self) -> usize {
        self.0.lock().sessions.len()
    }

    /// Holds the packs that answer a session's question; answers from packs that are condemned or gone
    /// become `None`.
    pub fn hold(&self, session: SessionId, answers: &mut [Option<PackNumber>]) {
        let mut state = self.0.lock();
        let State {
            sessions,
            collection,
            removed,
        } = &mut *state;
        let held = session_of(sessions, session);
        for answer in answers {
            let Some(pack) = *answer else { continue };
            let condemned = collection
                .as_ref()
                .is_some_and(|c| c.condemned.contains(&pack));
            if condemned || removed.contains(&pack) {
                *answer = None;
            } else {
                held.found.insert(pack);
            }
        }
    }

    /// Holds a pack that a session is going to write; called before its file is created.
    pub fn writes(&self, session: SessionId, pack: PackId) {
        let mut state = self.0.lock();
        session_of(&mut state.sessions, session)
            .written
            .insert(pack);
    }

    /// Holds all that a snapshot refers to. The session must look afterwards whether the snapshot is
    /// still published: if it is, no collection that could have missed the pin has missed the snapshot.
    pub fn pin(&self, session: SessionId, parent: StoredSnapshot) {
        let mut state = self.0.lock();
        session_of(&mut state.sessions, session)
            .parents
            .push(parent);
    }

    /// Takes back the pins of a session: what it pinned was not published any more.
    pub fn unpin(&self, session: SessionId) {
        let mut state = self.0.lock();
        session_of(&mut state.sessions, session).parents.clear();
    }

    /// Snapshots that sessions pinned, those included that ended while the collection ran. To be read
    /// after the published snapshots.
    pub fn pinned(&self) -> Vec<StoredSnapshot> {
        let state = self.0.lock();
        let inherited = state.collection.iter().map(|c| &c.inherited);
        let held = state.sessions.values().chain(inherited);
        held.flat_map(|held| held.parents.iter().cloned()).collect()
    }

    /// The packs that sessions hold or wrote, those included that ended while the collection ran;
    /// `number_of` knows the numbers of packs that were written.
    pub fn held(&self, number_of: impl Fn(PackId) -> Option<PackNumber>) -> HashSet<PackNumber> {
        let state = self.0.lock();
        let inherited = state.collection.iter().map(|c| &c.inherited);
        let holds = state.sessions.values().chain(inherited);
        holds
            .flat_map(|held| {
                let written = held.written.iter().filter_map(|id| number_of(*id));
                held.found.iter().copied().chain(written)
            })
            .collect()
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

    /// Condemns a pack, with its number if the index knows it: from now on nobody is told that the
    /// repository has what is in it. False if somebody holds it.
    pub fn condemn(&self, id: PackId, number: Option<PackNumber>) -> bool {
        let mut state = self.0.lock();
        let held = state.sessions.values().any(|held| held.holds(id, number));
        let collection = state
            .collection
            .as_mut()
            .expect("packs are condemned by a collection");
        if held || collection.inherited.holds(id, number) {
            return false;
        }
        collection.condemned.extend(number);
        true
    }

    /// A condemned pack is removed: it stays condemned for ever.
    pub fn removed(&self, number: PackNumber) {
        self.0.lock().removed.insert(number);
    }

    /// The collection is over; what it condemned is gone from the index or may be used again.
    pub fn end_collection(&self) {
        self.0.lock().collection = None;
    }
}

fn session_of(sessions: &mut HashMap<SessionId, Holds>, session: SessionId) -> &mut Holds {
    sessions
        .get_mut(&session)
        .expect("a session asks between its begin and its end")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId::from_bytes([1; 16]);
    const PACK: PackNumber = PackNumber(1);
    const ID: PackId = PackId::from_bytes([2; 16]);

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
        assert!(!registry.condemn(ID, Some(PACK)));
        registry.end(A);
        assert!(
            !registry.condemn(ID, Some(PACK)),
            "its snapshot may be newer than the listing"
        );
        registry.end_collection();
        assert!(registry.begin_collection());
        assert!(registry.condemn(ID, Some(PACK)));
    }

    #[test]
    fn a_condemned_pack_is_not_offered() {
        let registry = Registry::default();
        registry.begin(A);
        assert!(registry.begin_collection() && !registry.begin_collection());
        assert!(registry.condemn(ID, Some(PACK)));
        assert!(!ask(&registry));
        registry.end_collection();
        assert!(ask(&registry));
    }

    #[test]
    fn a_removed_pack_is_never_offered_again() {
        let registry = Registry::default();
        registry.begin(A);
        assert!(registry.begin_collection());
        assert!(registry.condemn(ID, Some(PACK)));
        registry.removed(PACK);
        registry.end_collection();
        assert!(!ask(&registry), "it was found before it was removed");
    }

    #[test]
    fn a_pack_is_held_by_its_writer_before_the_index_knows_it() {
        let registry = Registry::default();
        registry.begin(A);
        registry.writes(A, ID);
        assert!(registry.begin_collection());
        assert!(!registry.condemn(ID, None) && !registry.condemn(ID, Some(PACK)));
        registry.end(A);
        assert!(!registry.condemn(ID, None));
        registry.end_collection();
        assert!(registry.begin_collection() && registry.condemn(ID, None));
    }
}
