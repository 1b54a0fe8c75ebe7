//! A session from begin to commit, on a stream of its own.

use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};
use crate::id::{SegmentMapId, SessionId, SnapshotId};
use crate::lock::LockEnd;
use crate::snapshot::{DISK_LEN_MAX, NAME_LEN_MAX, SNAPSHOT_LEN_MAX};
use crate::trust::time::UnixMs;
use crate::units::{DiskLength, SegmentNumber, SegmentSize};

use super::frame::{Body, FrameType};
use super::hello::{put_bytes, read_bytes};

/// Most disks of a session.
const DISKS_MAX: u64 = 4096;
/// Most segments named in one frame.
pub const SEGMENTS_MAX: usize = 4096;
/// Highest ordinal of a segment.
pub(super) const NUMBER_MAX: u64 = DISK_LEN_MAX >> SegmentSize::MIN_LOG2;

/// Counts those who went on with a session: only the last one may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A disk, and something that changes when its content does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskState {
    /// Its name within the VM.
    pub label: String,
    /// Its size; 0 for a stream, whose size is not known yet.
    pub size: DiskLength,
    /// Digest of what tells one state of the disk from another.
    pub state: [u8; 32],
}

/// A segment of one of a session's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentPlace {
    /// Ordinal of the disk in the session's request.
    pub disk: u16,
    /// The segment.
    pub number: SegmentNumber,
}

/// A segment whose chunks and map are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoneSegment {
    /// Its map; `None` for zeros.
    pub map: Option<SegmentMapId>,
    /// Bytes of data in it.
    pub data_bytes: u32,
    /// Bytes of data in the parent's segment that it replaces; 0 in a full read.
    pub replaced_bytes: u32,
}

impl DoneSegment {
    /// Appends the encoding.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.map.is_some()));
        if let Some(map) = self.map {
            out.extend_from_slice(map.as_bytes());
        }
        put_varint(out, self.data_bytes.into());
        put_varint(out, self.replaced_bytes.into());
    }

    /// Reads the encoding.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let map = match reader.bool()? {
            false => None,
            true => Some(SegmentMapId::from_bytes(reader.array()?)),
        };
        Ok(Self {
            map,
            data_bytes: read_len(reader, "data bytes")?,
            replaced_bytes: read_len(reader, "replaced bytes")?,
        })
    }
}

/// Reads a number of bytes of one segment.
pub(super) fn read_len(reader: &mut Reader<'_>, field: &'static str) -> Result<u32, DecodeError> {
    Ok(reader.varint(field, 1 << SegmentSize::MAX_LOG2)? as u32)
}

/// Begins a session, or goes on with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Name of the VM.
    pub vm: String,
    /// Its disks, in order.
    pub disks: Vec<DiskState>,
    /// An interrupted session to go on with; its disks must be in the same state.
    pub resume: Option<SessionId>,
    /// How the snapshot is going to be locked: said now, so that what cannot be is refused before any data
    /// is read.
    pub lock: Option<LockEnd>,
}

impl Begin {
    /// Appends the VM and its disks.
    pub fn put_disks(&self, out: &mut Vec<u8>) {
        put_string(out, &self.vm);
        put_varint(out, self.disks.len() as u64);
        for disk in &self.disks {
            put_string(out, &disk.label);
            put_varint(out, disk.size.get());
            out.extend_from_slice(&disk.state);
        }
    }

    /// Reads the VM and its disks.
    pub fn read_disks(reader: &mut Reader<'_>) -> Result<(String, Vec<DiskState>), DecodeError> {
        let vm = reader.string("VM name", NAME_LEN_MAX)?;
        let count = reader.count("disks", DISKS_MAX, 34)?;
        let mut disks = Vec::with_capacity(count);
        for _ in 0..count {
            disks.push(DiskState {
                label: reader.string("disk label", NAME_LEN_MAX)?,
                size: DiskLength::new(reader.varint("disk size", DISK_LEN_MAX)?),
                state: reader.array()?,
            });
        }
        Ok((vm, disks))
    }
}

impl Body for Begin {
    const KIND: FrameType = FrameType::Begin;

    fn put(&self, out: &mut Vec<u8>) {
        self.put_disks(out);
        out.push(u8::from(self.resume.is_some()));
        if let Some(session) = self.resume {
            out.extend_from_slice(session.as_bytes());
        }
        LockEnd::put(self.lock, out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (vm, disks) = Self::read_disks(reader)?;
        let resume = match reader.bool()? {
            false => None,
            true => Some(SessionId::from_bytes(reader.array()?)),
        };
        Ok(Self {
            vm,
            disks,
            resume,
            lock: LockEnd::read(reader)?,
        })
    }
}

/// Segments of one disk that an earlier run of the session finished. Comes before [`Begun`], as often as
/// it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Ordinal of the disk.
    pub disk: u16,
    /// The segments, ascending, at most [`SEGMENTS_MAX`].
    pub segments: Vec<(SegmentNumber, DoneSegment)>,
}

impl Body for Finished {
    const KIND: FrameType = FrameType::Finished;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.disk.to_le_bytes());
        put_segments(
            out,
            self.segments.iter().map(|(number, done)| (*number, *done)),
        );
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            disk: reader.u16()?,
            segments: read_segments(reader, SEGMENTS_MAX as u64)?,
        })
    }
}

/// Appends finished segments, which ascend.
pub(super) fn put_segments(
    out: &mut Vec<u8>,
    segments: impl ExactSizeIterator<Item = (SegmentNumber, DoneSegment)>,
) {
    put_varint(out, segments.len() as u64);
    for (number, done) in segments {
        put_varint(out, number.0);
        done.put(out);
    }
}

/// Reads finished segments, which ascend.
pub(super) fn read_segments(
    reader: &mut Reader<'_>,
    limit: u64,
) -> Result<Vec<(SegmentNumber, DoneSegment)>, DecodeError> {
    let count = reader.count("segments", limit, 4)?;
    let mut segments: Vec<(SegmentNumber, DoneSegment)> = Vec::with_capacity(count);
    for _ in 0..count {
        let at = reader.clone();
        let number = read_number(reader)?;
        if segments.last().is_some_and(|(last, _)| *last >= number) {
            return Err(at.error(Problem::NotCanonical("segments do not ascend")));
        }
        segments.push((number, DoneSegment::read(reader)?));
    }
    Ok(segments)
}

/// Reads a time, or none.
fn read_until(reader: &mut Reader<'_>) -> Result<Option<UnixMs>, DecodeError> {
    let at = reader.clone();
    match LockEnd::read(reader)? {
        None => Ok(None),
        Some(LockEnd::At(time)) => Ok(Some(time)),
        Some(LockEnd::After(_)) => Err(at.error(Problem::Invalid("end of a lock"))),
    }
}

/// Reads the ordinal of a segment.
pub(super) fn read_number(reader: &mut Reader<'_>) -> Result<SegmentNumber, DecodeError> {
    Ok(SegmentNumber(reader.varint("segment", NUMBER_MAX)?))
}

/// The session is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its id.
    pub session: SessionId,
    /// The client's turn.
    pub epoch: Epoch,
    /// A snapshot that is likely to be much alike, and stays until the session ends: what it holds need
    /// not be asked for.
    pub reference: Option<SnapshotId>,
}

impl Body for Begun {
    const KIND: FrameType = FrameType::Begun;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.session.as_bytes());
        put_varint(out, self.epoch.0);
        out.push(u8::from(self.reference.is_some()));
        if let Some(id) = self.reference {
            out.extend_from_slice(id.as_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            session: SessionId::from_bytes(reader.array()?),
            epoch: Epoch(reader.varint("epoch", u64::MAX)?),
            reference: match reader.bool()? {
                false => None,
                true => Some(SnapshotId::from_bytes(reader.array()?)),
            },
        })
    }
}

/// Keeps all that a snapshot refers to until the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// Whether the snapshot was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// False if it was forgotten already.
    pub is_there: bool,
}

/// Segments that are durable: whoever goes on with the session need not read them again. Comes whenever
/// the server has made something durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// At most [`SEGMENTS_MAX`].
    pub places: Vec<SegmentPlace>,
}

/// Publishes the session's snapshot, once every lane was flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// How it is locked, from the moment when it can be seen.
    pub lock: Option<LockEnd>,
    /// The snapshot's file.
    pub snapshot: Vec<u8>,
}

/// Ends the session without a snapshot; what was stored stays for the next one to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandon;

/// The server is going to shut down: what the client has begun it may finish, and then goes on with the
/// session when the server is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining;

/// The session is over; after a commit, the snapshot is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Packs that the session wrote.
    pub packs: u64,
    /// Bytes of them.
    pub pack_bytes: u64,
    /// Until when the snapshot is locked.
    pub locked_until: Option<UnixMs>,
}

/// Answers a [`Begin`] that wants to go on with a session which has published its snapshot: whoever sent
/// [`Commit`] and lost the answer learns it this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// How the session ended. Of packs it says nothing if the server was restarted since.
    pub ended: Ended,
}

impl Body for Published {
    const KIND: FrameType = FrameType::Published;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.snapshot.as_bytes());
        self.ended.put(out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            snapshot: SnapshotId::from_bytes(reader.array()?),
            ended: Ended::read(reader)?,
        })
    }
}

impl Body for Pin {
    const KIND: FrameType = FrameType::Pin;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.snapshot.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            snapshot: SnapshotId::from_bytes(reader.array()?),
        })
    }
}

impl Body for Pinned {
    const KIND: FrameType = FrameType::Pinned;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.is_there.into());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            is_there: reader.bool()?,
        })
    }
}

impl Body for Acknowledged {
    const KIND: FrameType = FrameType::Acknowledged;

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.places.len() as u64);
        for place in &self.places {
            out.extend_from_slice(&place.disk.to_le_bytes());
            put_varint(out, place.number.0);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.count("segments", SEGMENTS_MAX as u64, 3)?;
        let mut places = Vec::with_capacity(count);
        for _ in 0..count {
            let disk = reader.u16()?;
            let number = read_number(reader)?;
            places.push(SegmentPlace { disk, number });
        }
        Ok(Self { places })
    }
}

impl Body for Commit {
    const KIND: FrameType = FrameType::Commit;

    fn put(&self, out: &mut Vec<u8>) {
        LockEnd::put(self.lock, out);
        put_bytes(out, &self.snapshot);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            lock: LockEnd::read(reader)?,
            snapshot: read_bytes(reader, "snapshot length", SNAPSHOT_LEN_MAX)?,
        })
    }
}

impl Body for Abandon {
    const KIND: FrameType = FrameType::Abandon;

    fn put(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

impl Body for Draining {
    const KIND: FrameType = FrameType::Draining;

    fn put(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

impl Body for Ended {
    const KIND: FrameType = FrameType::Ended;

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.packs);
        put_varint(out, self.pack_bytes);
        LockEnd::put(self.locked_until.map(LockEnd::At), out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            packs: reader.varint("packs", u64::MAX)?,
            pack_bytes: reader.varint("pack bytes", u64::MAX)?,
            locked_until: read_until(reader)?,
        })
    }
}
