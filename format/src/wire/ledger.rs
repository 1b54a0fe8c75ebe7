//! What a server remembers of a session: who holds it, and which segments are finished.
//!
//! A state machine without I/O: times come in as milliseconds of any monotonic clock, and what has to be
//! stored comes out as bytes. The rules:
//!
//! - Each begin or resume gives out a new [`Epoch`]; a message under an older one is refused, so that of
//!   two clients that believe to hold a session only the newer one can do anything.
//! - A segment that a client calls done is *pending* until the server has made durable everything that its
//!   map names; then it is *finished*, acknowledged, and part of the file.
//! - A session without a connection lives on for its lease, then it is over: its commit fails. No clock
//!   decides more than that.
//!
//! The file, in `sessions/<id>`:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `UCSESS` 00 01 |
//! | 8 | 16 | session id |
//! | 24 | 8 | epoch |
//! | 32 | n | VM name, number of disks, and per disk label, size, state |
//! | | n | per disk: number of finished segments, and per segment number, map, data bytes, replaced bytes |
//! | | 8 | XXH3-64 of everything before |

use std::collections::BTreeMap;

use crate::codec::{DecodeError, Problem, Reader, checksum};
use crate::id::SessionId;
use crate::units::SegmentNumber;

use super::session::{
    Begin, DiskState, DoneSegment, Epoch, SegmentPlace, put_segments, read_segments,
};

const MAGIC: &[u8; 8] = b"UCSESS\0\x01";
/// Longest file, in bytes: some five million finished segments.
pub const LEDGER_LEN_MAX: u64 = 256 << 20;

/// Why a session does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// A newer client goes on with it.
    #[error("session {0} was taken over: another client goes on with it")]
    Fenced(SessionId),
    /// It was committed, abandoned, or its lease lapsed.
    #[error("session {0} is over: it ended, or its lease lapsed while no client was connected")]
    Over(SessionId),
    /// A disk changed since it began.
    #[error("disk {label:?} is not in the state in which session {session} began")]
    DiskChanged {
        /// The session.
        session: SessionId,
        /// The disk.
        label: String,
    },
    /// Other disks, or another VM.
    #[error("session {0} is a backup of other disks")]
    OtherDisks(SessionId),
    /// A segment of a disk that the session does not have.
    #[error("session {session} has no disk number {disk}")]
    NoSuchDisk {
        /// The session.
        session: SessionId,
        /// The ordinal.
        disk: u16,
    },
}

/// Finished segments of a disk.
pub type DoneSegments = BTreeMap<SegmentNumber, DoneSegment>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Attached,
    Detached { since_ms: u64 },
    Nobody,
}

/// The books of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    session: SessionId,
    vm: String,
    disks: Vec<DiskState>,
    epoch: Epoch,
    holder: Holder,
    finished: Vec<DoneSegments>,
    pending: BTreeMap<SegmentPlace, DoneSegment>,
}

impl Ledger {
    /// A new session, attached under the first epoch.
    pub fn begin(session: SessionId, request: &Begin) -> Self {
        Self {
            session,
            vm: request.vm.clone(),
            disks: request.disks.clone(),
            epoch: Epoch(1),
            holder: Holder::Attached,
            finished: vec![DoneSegments::new(); request.disks.len()],
            pending: BTreeMap::new(),
        }
    }

    /// Goes on with the session under a new epoch; whoever held it is fenced off.
    pub fn resume(&mut self, request: &Begin) -> Result<Epoch, LedgerError> {
        let session = self.session;
        if self.holder == Holder::Nobody {
            return Err(LedgerError::Over(session));
        }
        if request.vm != self.vm || request.disks.len() != self.disks.len() {
            return Err(LedgerError::OtherDisks(session));
        }
        for (now, then) in request.disks.iter().zip(&self.disks) {
            if now.label != then.label {
                return Err(LedgerError::OtherDisks(session));
            }
            if now != then {
                let label = now.label.clone();
                return Err(LedgerError::DiskChanged { session, label });
            }
        }
        self.epoch.0 += 1;
        self.holder = Holder::Attached;
        Ok(self.epoch)
    }

    /// Whether whoever was given `epoch` may still do something.
    pub fn check(&self, epoch: Epoch) -> Result<(), LedgerError> {
        if self.holder == Holder::Nobody {
            return Err(LedgerError::Over(self.session));
        }
        if epoch != self.epoch {
            return Err(LedgerError::Fenced(self.session));
        }
        Ok(())
    }

    /// The client of `epoch` lost its connection: the lease begins to run.
    pub fn detach(&mut self, epoch: Epoch, now_ms: u64) {
        if epoch == self.epoch && self.holder == Holder::Attached {
            self.holder = Holder::Detached { since_ms: now_ms };
        }
    }

    /// Ends the session if it has been detached for longer than `lease_ms`; true if it is over.
    pub fn lapse(&mut self, now_ms: u64, lease_ms: u64) -> bool {
        if let Holder::Detached { since_ms } = self.holder
            && now_ms.saturating_sub(since_ms) > lease_ms
        {
            self.holder = Holder::Nobody;
        }
        self.holder == Holder::Nobody
    }

    /// Ends the session: nothing is accepted any more.
    pub fn end(&mut self, epoch: Epoch) -> Result<(), LedgerError> {
        self.check(epoch)?;
        self.holder = Holder::Nobody;
        Ok(())
    }

    /// Notes that a client called a segment done.
    pub fn done(
        &mut self,
        epoch: Epoch,
        place: SegmentPlace,
        done: DoneSegment,
    ) -> Result<(), LedgerError> {
        self.check(epoch)?;
        let session = self.session;
        let disk = place.disk;
        let finished = self
            .finished
            .get(usize::from(disk))
            .ok_or(LedgerError::NoSuchDisk { session, disk })?;
        if finished.get(&place.number) != Some(&done) {
            self.pending.insert(place, done);
        }
        Ok(())
    }

    /// Segments that wait to be made durable.
    pub fn pending(&self) -> Vec<(SegmentPlace, DoneSegment)> {
        self.pending
            .iter()
            .map(|(place, done)| (*place, *done))
            .collect()
    }

    /// Notes what has become durable, and returns what that finished: to be acknowledged once the file
    /// says so.
    pub fn settle(&mut self, durable: &[(SegmentPlace, DoneSegment)]) -> Vec<SegmentPlace> {
        let mut settled = Vec::new();
        for (place, done) in durable {
            // It may have been done again, differently, meanwhile.
            if self.pending.get(place) == Some(done) {
                self.pending.remove(place);
                self.finished[usize::from(place.disk)].insert(place.number, *done);
                settled.push(*place);
            }
        }
        settled
    }

    /// Forgets a finished segment that lost something: it has to be read again.
    pub fn unfinish(&mut self, place: SegmentPlace) {
        if let Some(finished) = self.finished.get_mut(usize::from(place.disk)) {
            finished.remove(&place.number);
        }
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The VM.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// The disks, in order.
    pub fn disks(&self) -> &[DiskState] {
        &self.disks
    }

    /// Who may go on.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// True if a client is connected, as far as known.
    pub fn is_attached(&self) -> bool {
        self.holder == Holder::Attached
    }

    /// The finished segments, by disk.
    pub fn finished(&self) -> &[DoneSegments] {
        &self.finished
    }

    /// The file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(self.session.as_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        let request = Begin {
            vm: self.vm.clone(),
            disks: self.disks.clone(),
            resume: None,
            lock: None,
        };
        request.put_disks(&mut out);
        for finished in &self.finished {
            put_segments(
                &mut out,
                finished.iter().map(|(number, done)| (*number, *done)),
            );
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the file: the session is detached since `now_ms`.
    pub fn decode(bytes: &[u8], now_ms: u64) -> Result<Self, DecodeError> {
        let body = bytes.len().saturating_sub(8);
        let mut reader = Reader::new("session file", &bytes[..body]);
        reader.magic(MAGIC)?;
        let mut tail = Reader::new("session file", &bytes[body..]);
        if tail.u64()? != checksum(&bytes[..body]) {
            return Err(reader.error(Problem::Checksum));
        }
        let session = SessionId::from_bytes(reader.array()?);
        let epoch = Epoch(reader.u64()?);
        let (vm, disks) = Begin::read_disks(&mut reader)?;
        let mut finished = Vec::with_capacity(disks.len());
        for _ in &disks {
            let segments = read_segments(&mut reader, LEDGER_LEN_MAX)?;
            finished.push(segments.into_iter().collect());
        }
        reader.finish()?;
        Ok(Self {
            session,
            vm,
            disks,
            epoch,
            holder: Holder::Detached { since_ms: now_ms },
            finished,
            pending: BTreeMap::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SegmentMapId;
    use crate::units::DiskLength;

    const ID: SessionId = SessionId::from_bytes([7; 16]);

    fn request() -> Begin {
        Begin {
            vm: "vm".into(),
            disks: vec![DiskState {
                label: "root".into(),
                size: DiskLength::new(1 << 30),
                state: [1; 32],
            }],
            resume: None,
            lock: None,
        }
    }

    fn place(number: u64) -> SegmentPlace {
        SegmentPlace {
            disk: 0,
            number: SegmentNumber(number),
        }
    }

    fn segment(id: u8) -> DoneSegment {
        DoneSegment {
            map: Some(SegmentMapId::from_bytes([id; 32])),
            data_bytes: 5,
            replaced_bytes: 0,
        }
    }

    #[test]
    fn only_the_newest_client_gets_anything_done() {
        let mut ledger = Ledger::begin(ID, &request());
        let old = ledger.epoch();
        let new = ledger.resume(&request()).unwrap();
        assert_eq!(
            ledger.done(old, place(0), segment(1)),
            Err(LedgerError::Fenced(ID))
        );
        assert_eq!(ledger.end(old), Err(LedgerError::Fenced(ID)));
        ledger.detach(old, 5);
        assert!(
            ledger.is_attached(),
            "the old client's connection does not matter any more"
        );
        assert_eq!(ledger.done(new, place(0), segment(1)), Ok(()));
        assert_eq!(ledger.end(new), Ok(()));
        assert_eq!(ledger.check(new), Err(LedgerError::Over(ID)));
        assert_eq!(ledger.resume(&request()), Err(LedgerError::Over(ID)));
    }

    #[test]
    fn a_lapsed_lease_ends_the_session() {
        let mut ledger = Ledger::begin(ID, &request());
        let epoch = ledger.epoch();
        assert!(
            !ledger.lapse(u64::MAX, 10),
            "a connected client has no deadline"
        );
        ledger.detach(epoch, 100);
        assert!(!ledger.lapse(110, 10));
        assert!(ledger.lapse(111, 10));
        assert_eq!(ledger.check(epoch), Err(LedgerError::Over(ID)));
    }

    #[test]
    fn only_what_is_durable_is_finished_and_survives() {
        let mut ledger = Ledger::begin(ID, &request());
        let epoch = ledger.epoch();
        ledger.done(epoch, place(1), segment(1)).unwrap();
        ledger.done(epoch, place(2), segment(2)).unwrap();
        let stale = (place(2), segment(9));
        assert_eq!(ledger.settle(&[(place(1), segment(1)), stale]), [place(1)]);
        let read = Ledger::decode(&ledger.encode(), 0).unwrap();
        assert_eq!(read.finished()[0].len(), 1);
        assert!(read.pending().is_empty() && !read.is_attached());
        assert_eq!(ledger.pending(), [(place(2), segment(2))]);
    }

    #[test]
    fn changed_disks_are_not_resumed() {
        let mut ledger = Ledger::begin(ID, &request());
        let mut changed = request();
        changed.disks[0].state = [2; 32];
        assert!(matches!(
            ledger.resume(&changed),
            Err(LedgerError::DiskChanged { .. })
        ));
        changed = request();
        changed.vm = "other".into();
        assert_eq!(ledger.resume(&changed), Err(LedgerError::OtherDisks(ID)));
        assert_eq!(
            ledger.epoch(),
            Epoch(1),
            "a refused resume fences nobody off"
        );
    }

    #[test]
    fn a_flipped_byte_is_found() {
        let mut ledger = Ledger::begin(ID, &request());
        ledger.done(ledger.epoch(), place(1), segment(1)).unwrap();
        ledger.settle(&[(place(1), segment(1))]);
        let bytes = ledger.encode();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Ledger::decode(&flipped, 0).is_err(), "byte {at}");
        }
        assert!(Ledger::decode(&bytes[..4], 0).is_err());
    }
}
