//! Maps that were asked for before they are needed.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, channel};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use undercroft_format::id::ObjectId;

use crate::net::conversation::StreamError;
use crate::repository::lookup::Located;

/// A record's place and payload.
pub type Fetched = (Located, Vec<u8>);

/// Maps on their way, and those that came last.
#[derive(Default)]
pub struct ExpectedMaps(Mutex<State>);

#[derive(Default)]
struct State {
    on_their_way: VecDeque<OnTheirWay>,
    here: HashMap<ObjectId, Fetched>,
}

struct OnTheirWay {
    /// Ascending.
    ids: Vec<ObjectId>,
    maps: Receiver<Vec<Fetched>>,
}

/// Fetches at once; the oldest is given up for a newer one.
const FETCHES_MAX: usize = 2;

impl ExpectedMaps {
    /// Lets `fetched` bring the maps `ids`, which ascend.
    pub fn fetch(
        &self,
        handle: &Handle,
        ids: Vec<ObjectId>,
        fetched: impl FnOnce() -> Result<Vec<Fetched>, StreamError> + Send + 'static,
    ) {
        let (done, maps) = channel();
        handle.spawn_blocking(move || {
            // What does not come is asked for alone, which tells why.
            let _ = done.send(fetched().unwrap_or_default());
        });
        let mut state = self.0.lock();
        if state.on_their_way.len() == FETCHES_MAX {
            state.on_their_way.pop_front();
        }
        state.on_their_way.push_back(OnTheirWay { ids, maps });
    }

    /// Map `id`, waited for if it is on its way; `None` if it was not expected or does not come. What was
    /// to be taken before it is then over.
    pub fn get(&self, id: ObjectId) -> Option<Fetched> {
        let mut state = self.0.lock();
        if let Some(found) = state.here.get(&id) {
            return Some(found.clone());
        }
        let mut fetches = state.on_their_way.iter();
        let fetch = fetches.position(|fetch| fetch.ids.binary_search(&id).is_ok())?;
        let fetch = state.on_their_way.drain(..=fetch).next_back()?;
        let maps = fetch.maps.recv().unwrap_or_default();
        state.here = maps
            .into_iter()
            .map(|(located, payload)| (located.info.id, (located, payload)))
            .collect();
        state.here.get(&id).cloned()
    }
}
