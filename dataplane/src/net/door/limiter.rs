//! Who may knock, how often, and how many are inside: decisions alone, with time given from outside.
//!
//! An address that was not proven to be its sender's own can be forged, so that it is held against the
//! address only as long as that costs the true owner no more than a round trip: before it costs more, the
//! address has to be proven (QUIC's Retry). The tables have a fixed size whatever arrives: what has nothing
//! open is forgotten, the longest untouched first.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::rate::{Bucket, Rate};

/// Where packets come from, as far as one owner is told from another: an IPv4 address, an IPv6 network of
/// 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// An IPv4 address, mapped into IPv6 or not.
    V4(u32),
    /// The first half of an IPv6 address: one owner has all of the other half.
    V6(u64),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.into()),
            IpAddr::V6(address) => Self::V6((u128::from(address) >> 64) as u64),
        }
    }
}

/// What a door puts up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes begun from one source.
    pub source_handshakes: Rate,
    /// Handshakes begun in all.
    pub handshakes: Rate,
    /// Connections from one source that are not let in yet.
    pub source_unfinished: usize,
    /// Connections that are not let in yet: each may hold memory of the server.
    pub unfinished: usize,
    /// Connections from one source.
    pub source_connections: usize,
    /// Connections of one identity.
    pub identity_connections: usize,
    /// Connections in all, let in or not.
    pub connections: usize,
    /// Sources that are remembered though nothing of theirs is open.
    pub idle_sources: usize,
}

impl Limits {
    /// Limits of a door that has room for so many connections.
    pub fn for_connections(connections: usize) -> Self {
        let share =
            |divisor: usize, least: usize| (connections / divisor).max(least).min(connections);
        Self {
            source_handshakes: Rate {
                per_second: 100,
                burst: 400,
            },
            handshakes: Rate {
                per_second: 400,
                burst: 1600,
            },
            source_unfinished: share(16, 64),
            unfinished: share(4, 64),
            source_connections: share(2, 16),
            identity_connections: share(4, 16),
            connections,
            idle_sources: 4096,
        }
    }
}

/// Connections that a door has room for, unless it is told otherwise.
pub const CONNECTIONS_DEFAULT: usize = 1024;

impl Default for Limits {
    fn default() -> Self {
        Self::for_connections(CONNECTIONS_DEFAULT)
    }
}

/// Why somebody has to stay outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many handshakes from one source.
    #[error("too many handshakes from one address")]
    SourceRate,
    /// Too many handshakes.
    #[error("too many handshakes")]
    Rate,
    /// Too many from one source that are not let in yet.
    #[error("too many unfinished handshakes from one address")]
    SourceUnfinished,
    /// Too many that are not let in yet.
    #[error("too many unfinished handshakes")]
    Unfinished,
    /// Too many connections from one source.
    #[error("too many connections from one address")]
    SourceConnections,
    /// Too many connections of one identity.
    #[error("too many connections of one identity")]
    IdentityConnections,
    /// Too many connections.
    #[error("too many connections")]
    Connections,
}

/// What is done with somebody who knocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The handshake may begin; it is counted until [`Limiter::admitted`] and [`Limiter::left`] say
    /// otherwise.
    Begin,
    /// The address has to be proven first.
    Prove,
    /// It stays outside.
    Refuse(Refused),
}

/// The books of a door. Times are milliseconds since any moment, and never go back.
#[derive(Debug)]
pub struct Limiter {
    limits: Limits,
    handshakes: Bucket,
    unfinished: usize,
    connections: usize,
    sources: HashMap<Source, Entry>,
    /// Sources with nothing open, by when they were touched last.
    idle: BTreeMap<u64, Source>,
    touches: u64,
    identities: HashMap<String, usize>,
}

#[derive(Debug)]
struct Entry {
    handshakes: Bucket,
    unfinished: usize,
    connections: usize,
    touched: u64,
}

impl Limiter {
    /// Empty books, at `now_ms`.
    pub fn new(limits: Limits, now_ms: u64) -> Self {
        Self {
            handshakes: Bucket::full(limits.handshakes, now_ms),
            limits,
            unfinished: 0,
            connections: 0,
            sources: HashMap::new(),
            idle: BTreeMap::new(),
            touches: 0,
            identities: HashMap::new(),
        }
    }

    /// Somebody knocks; `is_proven` if the address is known to be the sender's own.
    pub fn knock(&mut self, source: Source, is_proven: bool, now_ms: u64) -> Verdict {
        let limits = self.limits;
        if !is_proven && self.is_crowded(now_ms) {
            return Verdict::Prove;
        }
        if self.connections >= limits.connections {
            return Verdict::Refuse(Refused::Connections);
        }
        if self.unfinished >= limits.unfinished {
            return Verdict::Refuse(Refused::Unfinished);
        }
        let entry = self.entry(source, now_ms);
        let verdict = entry.knock(&limits, is_proven, now_ms);
        if verdict == Verdict::Begin && !self.handshakes.take(now_ms) {
            return self.settle(source, Verdict::Refuse(Refused::Rate));
        }
        if verdict == Verdict::Begin {
            let entry = self.entry(source, now_ms);
            entry.handshakes.take(now_ms);
            entry.unfinished += 1;
            entry.connections += 1;
            self.unfinished += 1;
            self.connections += 1;
        }
        self.settle(source, verdict)
    }

    /// Above this mark every address is proven before it costs more than one packet.
    fn is_crowded(&self, now_ms: u64) -> bool {
        self.connections >= self.limits.connections / 4
            || self.unfinished >= self.limits.unfinished / 4
            || self.handshakes.is_below_half(now_ms)
    }

    /// A connection whose handshake was begun is let in as `identity`.
    ///
    /// # Errors
    /// [`Refused::IdentityConnections`]: it counts as not let in until [`left`](Self::left) is called.
    pub fn admitted(&mut self, source: Source, identity: &str) -> Result<(), Refused> {
        let of_identity = self.identities.get(identity).copied().unwrap_or(0);
        if of_identity >= self.limits.identity_connections {
            return Err(Refused::IdentityConnections);
        }
        self.identities.insert(identity.to_owned(), of_identity + 1);
        self.unfinished -= 1;
        let entry = self.sources.get_mut(&source);
        entry.expect("what is open is remembered").unfinished -= 1;
        Ok(())
    }

    /// A connection whose handshake was begun is over; `identity` is as what it was let in, if it was.
    pub fn left(&mut self, source: Source, identity: Option<&str>) {
        self.connections -= 1;
        let entry = self.sources.get_mut(&source);
        let entry = entry.expect("what is open is remembered");
        entry.connections -= 1;
        match identity {
            None => {
                entry.unfinished -= 1;
                self.unfinished -= 1;
            }
            Some(identity) => match self.identities.get_mut(identity) {
                Some(1) | None => drop(self.identities.remove(identity)),
                Some(count) => *count -= 1,
            },
        }
        self.settle(source, ());
    }

    /// Connections in all, and those of them that are not let in yet.
    pub fn open(&self) -> (usize, usize) {
        (self.connections, self.unfinished)
    }

    /// Sources that are remembered: at most [`Limits::connections`] and [`Limits::idle_sources`].
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    fn entry(&mut self, source: Source, now_ms: u64) -> &mut Entry {
        self.touches += 1;
        let touched = self.touches;
        let rate = self.limits.source_handshakes;
        let entry = self.sources.entry(source).or_insert_with(|| Entry {
            handshakes: Bucket::full(rate, now_ms),
            unfinished: 0,
            connections: 0,
            touched,
        });
        self.idle.remove(&entry.touched);
        entry.touched = touched;
        entry
    }

    /// Notes a source with nothing open as one that can be forgotten.
    fn settle<T>(&mut self, source: Source, verdict: T) -> T {
        if let Some(entry) = self.sources.get(&source)
            && entry.connections == 0
        {
            self.idle.insert(entry.touched, source);
            if self.idle.len() > self.limits.idle_sources
                && let Some((_, oldest)) = self.idle.pop_first()
            {
                self.sources.remove(&oldest);
            }
        }
        verdict
    }
}

impl Entry {
    fn knock(&self, limits: &Limits, is_proven: bool, now_ms: u64) -> Verdict {
        let is_strained = self.handshakes.is_below_half(now_ms)
            || self.unfinished >= limits.source_unfinished / 2
            || self.connections >= limits.source_connections / 2;
        if !is_proven && is_strained {
            return Verdict::Prove;
        }
        if self.connections >= limits.source_connections {
            return Verdict::Refuse(Refused::SourceConnections);
        }
        if self.unfinished >= limits.source_unfinished {
            return Verdict::Refuse(Refused::SourceUnfinished);
        }
        if !self.handshakes.has_one(now_ms) {
            return Verdict::Refuse(Refused::SourceRate);
        }
        Verdict::Begin
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
