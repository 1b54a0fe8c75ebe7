//! Who is inside: counted by the limiter, and asked again from time to time whether they still may be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quinn::Connection;

use super::limiter::{Limiter, Limits, Refused, Source, Verdict};
use crate::clock::Stopwatch;
use crate::net::closing::Closing;
use crate::net::trust::{Authority, PeerIdentity, Refusal};

/// How often it is asked whether those inside are still let in: so long somebody revoked goes on at most.
const REVIEW_EVERY: Duration = Duration::from_secs(2);

/// The books of a running door.
pub(super) struct Guests {
    clock: Stopwatch,
    limiter: Mutex<Limiter>,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    next: u64,
    peers: BTreeMap<u64, (Connection, PeerIdentity)>,
}

impl Guests {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            clock: Stopwatch::start(),
            limiter: Mutex::new(Limiter::new(limits, 0)),
            inside: Mutex::default(),
        })
    }

    /// Decides on somebody who knocks; with [`Verdict::Begin`] there is a place, which is given back when
    /// it is dropped.
    pub fn knock(self: &Arc<Self>, source: Source, is_proven: bool) -> (Verdict, Option<Place>) {
        let now_ms = self.clock.elapsed().as_millis() as u64;
        let verdict = self.limiter.lock().knock(source, is_proven, now_ms);
        let place = (verdict == Verdict::Begin).then(|| Place {
            guests: self.clone(),
            source,
            inside: None,
        });
        (verdict, place)
    }

    /// Closes the connections of those who are let in no more, again and again.
    pub async fn review(self: Arc<Self>, authority: Arc<Authority>) {
        let mut interval = tokio::time::interval(REVIEW_EVERY);
        loop {
            interval.tick().await;
            let (guests, authority) = (self.clone(), authority.clone());
            // The registry is read from its file.
            let reviewed = tokio::task::spawn_blocking(move || guests.review_once(&authority));
            // What it panics with is on standard error; the next review may do better.
            let _ = reviewed.await;
        }
    }

    fn review_once(&self, authority: &Authority) {
        let peers: Vec<_> = self.inside.lock().peers.values().cloned().collect();
        for (connection, peer) in peers {
            match authority.admit(&peer) {
                Ok(()) => {}
                // What cannot be read says nothing about anybody; it is logged where it is met.
                Err(Refusal::Unavailable) => {}
                Err(why) => {
                    let address = connection.remote_address();
                    tracing::warn!(peer = %peer.name, %address, reason = %why, "a connection is ended");
                    Closing::Revoked.close(&connection, &why.to_string());
                }
            }
        }
    }
}

/// A place at the door, and then inside.
pub(super) struct Place {
    guests: Arc<Guests>,
    source: Source,
    inside: Option<(u64, String)>,
}

impl Place {
    /// Somebody is let in.
    ///
    /// # Errors
    /// If the identity has too many connections.
    pub fn let_in(&mut self, connection: &Connection, peer: &PeerIdentity) -> Result<(), Refused> {
        let name = peer.name.to_string();
        self.guests.limiter.lock().admitted(self.source, &name)?;
        let mut inside = self.guests.inside.lock();
        let number = inside.next;
        inside.next += 1;
        inside
            .peers
            .insert(number, (connection.clone(), peer.clone()));
        self.inside = Some((number, name));
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let inside = self.inside.take();
        if let Some((number, _)) = &inside {
            self.guests.inside.lock().peers.remove(number);
        }
        let identity = inside.as_ref().map(|(_, name)| name.as_str());
        self.guests.limiter.lock().left(self.source, identity);
    }
}
