//! Snapshots: the roots. One small file each, published by rename, never changed afterwards.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `UCSNAP` 00 01 |
//! | 8 | 4 | length of the body |
//! | 12 | n | body |
//! | 12+n | 32 | authenticator: keyed BLAKE3 of the body under the repository's authentication key |
//! | 44+n | 8 | XXH3-64 of everything before |
//!
//! The checksum can be verified by anyone, the authenticator by whoever has the key. Names, sizes and
//! times are in clear even in an encrypted repository, so that listing, retention and collection work
//! without the key; the VM's metadata is stored as sealed chunks.

use std::collections::HashSet;

use serde::Serialize;

use crate::codec::{DecodeError, Problem, Reader, checksum, put_string, put_varint};
use crate::id::{ChunkId, NodeId, RepositoryId, SessionId, SnapshotId, snapshot_id};
use crate::maptree::Tree;
use crate::reason::Reason;
use crate::units::{DiskLength, SegmentSize};

const MAGIC: &[u8; 8] = b"UCSNAP\0\x01";
/// Version of the body.
const VERSION: u8 = 1;
/// Longest snapshot file, in bytes.
pub const SNAPSHOT_LEN_MAX: u64 = 4 << 20;
/// Longest name of a VM, label or tag, in bytes.
pub const NAME_LEN_MAX: u64 = 255;
/// Longest disk, in bytes: a map tree of segments of the smallest size covers no more.
pub const DISK_LEN_MAX: u64 = 1 << 60;
const DISKS_MAX: u64 = 4096;
const TAGS_MAX: u64 = 256;
const REASONS_MAX: u64 = 64;
const LINEAGE_MAX: u64 = 64;
const TEXT_LEN_MAX: u64 = 4096;
const METADATA_CHUNKS_MAX: u64 = 65_536;
const OVERHEAD: usize = 8 + 4 + 32 + 8;

/// Computes a snapshot's authenticator from its body.
pub type Authenticate<'a> = dyn Fn(&[u8]) -> [u8; 32] + 'a;

/// How a disk of a snapshot came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadMode {
    /// Everything that the source did not call a hole was read.
    Full,
    /// Only changed blocks were read and spliced onto the parent.
    ChangedBlocks,
}

/// What a backup of a disk cost. All in bytes of disk unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskFigures {
    /// Bytes that are not zero extents.
    pub data_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Plaintext bytes of chunks that were new to the repository.
    pub new_bytes: u64,
    /// Bytes that the new chunks take in packs, headers included.
    pub stored_bytes: u64,
    /// Bytes that new segment maps and tree nodes take in packs, headers included.
    pub metadata_bytes: u64,
}

/// One disk at one time: names the root of its map tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskManifest {
    /// Name of the disk within its VM, unique there.
    pub label: String,
    /// Size of the disk.
    pub size: DiskLength,
    /// Size of its segments.
    pub segment_size: SegmentSize,
    /// Offset of the chunker's 4 KiB grid, in bytes, below 4096: see [`crate::partition`].
    pub grid_phase: u16,
    /// Root of the map tree; absent if the disk is all zero.
    pub root: Option<NodeId>,
    /// How it was read.
    pub read_mode: ReadMode,
    /// Why it was read so, and what slowed it down.
    pub reasons: Vec<Reason>,
    /// What was read, in the words of the user: a path, a URL.
    pub source: String,
    /// Where the disk's state came from: pairs such as (`vdi-uuid`, ...), sorted by name.
    pub lineage: Vec<(String, String)>,
    /// What it cost.
    pub figures: DiskFigures,
}

impl DiskManifest {
    /// The map tree.
    pub fn tree(&self) -> Tree {
        Tree {
            root: self.root,
            segments: self.segment_size.segments_of(self.size),
        }
    }
}

/// The VM's metadata: a byte string in chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is: a file name such as `ova.xml`.
    pub name: String,
    /// Bytes in all.
    pub len: u64,
    /// The chunks with their lengths, in order.
    pub chunks: Vec<(ChunkId, u32)>,
}

/// One VM at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The repository that it belongs to.
    pub repository: RepositoryId,
    /// The session that made it: makes every snapshot's id unique.
    pub session: SessionId,
    /// When the backup began, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// Name of the VM.
    pub vm: String,
    /// Free words, sorted, each once.
    pub tags: Vec<String>,
    /// The snapshot whose maps were spliced or compared.
    pub parent: Option<SnapshotId>,
    /// The disks, in the order in which they were given.
    pub disks: Vec<DiskManifest>,
    /// The VM's metadata.
    pub metadata: Option<Metadata>,
}

impl Snapshot {
    /// The disk labelled `label`.
    pub fn disk(&self, label: &str) -> Option<&DiskManifest> {
        self.disks.iter().find(|disk| disk.label == label)
    }

    /// The bytes that a snapshot's id and authenticator cover.
    pub fn encode_body(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(self.repository.as_bytes());
        out.extend_from_slice(self.session.as_bytes());
        put_varint(&mut out, self.created_ms);
        put_varint(&mut out, self.duration_ms);
        put_string(&mut out, &self.vm);
        put_varint(&mut out, self.tags.len() as u64);
        for tag in &self.tags {
            put_string(&mut out, tag);
        }
        put_option(&mut out, self.parent.as_ref().map(|id| &id.as_bytes()[..]));
        put_varint(&mut out, self.disks.len() as u64);
        for disk in &self.disks {
            encode_disk(&mut out, disk);
        }
        out.push(self.metadata.is_some() as u8);
        if let Some(metadata) = &self.metadata {
            put_string(&mut out, &metadata.name);
            put_varint(&mut out, metadata.len);
            put_varint(&mut out, metadata.chunks.len() as u64);
            for (chunk, len) in &metadata.chunks {
                out.extend_from_slice(chunk.as_bytes());
                put_varint(&mut out, u64::from(*len));
            }
        }
        out
    }

    /// The file and the id. `authenticate` computes the keyed BLAKE3 of the body.
    pub fn encode(&self, authenticate: impl FnOnce(&[u8]) -> [u8; 32]) -> (SnapshotId, Vec<u8>) {
        let body = self.encode_body();
        let mut out = Vec::with_capacity(body.len() + OVERHEAD);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        out.extend_from_slice(&authenticate(&body));
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        (snapshot_id(&body), out)
    }

    /// Reads a snapshot file: the snapshot, its id, and whether `authenticate` (if the key is at hand)
    /// gave the stored authenticator.
    ///
    /// # Errors
    /// Damage, a newer version, a wrong authenticator, or anything that is not canonical.
    pub fn decode(
        bytes: &[u8],
        authenticate: Option<&Authenticate<'_>>,
    ) -> Result<(SnapshotId, Self), DecodeError> {
        let mut reader = Reader::new("snapshot", bytes);
        reader.magic(MAGIC)?;
        let len = reader.u32()?;
        let limit = SNAPSHOT_LEN_MAX - OVERHEAD as u64;
        if u64::from(len) > limit {
            return Err(reader.error(Problem::Limit {
                field: "body length",
                value: len.into(),
                limit,
            }));
        }
        let body = reader.take(len as usize)?;
        let authenticator: [u8; 32] = reader.array()?;
        let covered = &bytes[..reader.offset()];
        if reader.u64()? != checksum(covered) {
            return Err(reader.error(Problem::Checksum));
        }
        if let Some(authenticate) = authenticate
            && blake3::Hash::from(authenticate(body)) != blake3::Hash::from(authenticator)
        {
            return Err(reader.error(Problem::Invalid(
                "authenticator: not written by a holder of this repository's key",
            )));
        }
        reader.finish()?;
        Ok((snapshot_id(body), Self::decode_body(body)?))
    }

    fn decode_body(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("snapshot body", body);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(reader.error(Problem::Version {
                found: version.into(),
                newest: VERSION.into(),
            }));
        }
        let repository = RepositoryId::from_bytes(reader.array()?);
        let session = SessionId::from_bytes(reader.array()?);
        let created_ms = reader.varint("creation time", u64::MAX)?;
        let duration_ms = reader.varint("duration", u64::MAX)?;
        let vm = reader.string("VM name", NAME_LEN_MAX)?;
        let tags: Vec<String> = (0..reader.count("number of tags", TAGS_MAX, 1)?)
            .map(|_| reader.string("tag", NAME_LEN_MAX))
            .collect::<Result<_, _>>()?;
        if !tags.is_sorted_by(|a, b| a < b) {
            return Err(reader.error(Problem::NotCanonical("tags out of order")));
        }
        let parent = match reader.bool()? {
            true => Some(SnapshotId::from_bytes(reader.array()?)),
            false => None,
        };
        let disks: Vec<DiskManifest> = (0..reader.count("number of disks", DISKS_MAX, 8)?)
            .map(|_| decode_disk(&mut reader))
            .collect::<Result<_, _>>()?;
        let mut labels = HashSet::with_capacity(disks.len());
        if !disks.iter().all(|disk| labels.insert(&disk.label)) {
            return Err(reader.error(Problem::Invalid("disk label: two disks have it")));
        }
        let metadata = match reader.bool()? {
            true => Some(decode_metadata(&mut reader)?),
            false => None,
        };
        reader.finish()?;
        Ok(Self {
            repository,
            session,
            created_ms,
            duration_ms,
            vm,
            tags,
            parent,
            disks,
            metadata,
        })
    }
}

fn put_option(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    out.push(bytes.is_some() as u8);
    out.extend_from_slice(bytes.unwrap_or_default());
}

fn encode_disk(out: &mut Vec<u8>, disk: &DiskManifest) {
    put_string(out, &disk.label);
    put_varint(out, disk.size.get());
    out.push(disk.segment_size.log2());
    out.extend_from_slice(&disk.grid_phase.to_le_bytes());
    put_option(out, disk.root.as_ref().map(|id| &id.as_bytes()[..]));
    out.push(match disk.read_mode {
        ReadMode::Full => 1,
        ReadMode::ChangedBlocks => 2,
    });
    put_varint(out, disk.reasons.len() as u64);
    out.extend(disk.reasons.iter().map(|reason| reason.code()));
    put_string(out, &disk.source);
    put_varint(out, disk.lineage.len() as u64);
    for (name, value) in &disk.lineage {
        put_string(out, name);
        put_string(out, value);
    }
    let figures = &disk.figures;
    for value in [
        figures.data_bytes,
        figures.read_bytes,
        figures.new_bytes,
        figures.stored_bytes,
        figures.metadata_bytes,
    ] {
        put_varint(out, value);
    }
}

fn decode_disk(reader: &mut Reader<'_>) -> Result<DiskManifest, DecodeError> {
    let label = reader.string("disk label", NAME_LEN_MAX)?;
    let size = DiskLength::new(reader.varint("disk size", DISK_LEN_MAX)?);
    let segment_size = SegmentSize::from_log2(reader.u8()?)
        .ok_or_else(|| reader.error(Problem::Invalid("segment size")))?;
    let grid_phase = reader.u16()?;
    if grid_phase >= 4096 {
        return Err(reader.error(Problem::Invalid("grid phase")));
    }
    let root = match reader.bool()? {
        true => Some(NodeId::from_bytes(reader.array()?)),
        false => None,
    };
    let read_mode = match reader.u8()? {
        1 => ReadMode::Full,
        2 => ReadMode::ChangedBlocks,
        _ => return Err(reader.error(Problem::Invalid("read mode"))),
    };
    let reasons = (0..reader.count("number of reasons", REASONS_MAX, 1)?)
        .map(|_| {
            let code = reader.u8()?;
            Reason::from_code(code).ok_or_else(|| reader.error(Problem::Invalid("reason code")))
        })
        .collect::<Result<_, _>>()?;
    let source = reader.string("source", TEXT_LEN_MAX)?;
    let lineage: Vec<(String, String)> = (0..reader.count("lineage entries", LINEAGE_MAX, 2)?)
        .map(|_| {
            Ok((
                reader.string("lineage name", NAME_LEN_MAX)?,
                reader.string("lineage value", TEXT_LEN_MAX)?,
            ))
        })
        .collect::<Result<_, DecodeError>>()?;
    if !lineage.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(reader.error(Problem::NotCanonical("lineage out of order")));
    }
    let mut figure = || reader.varint("figure", u64::MAX);
    let figures = DiskFigures {
        data_bytes: figure()?,
        read_bytes: figure()?,
        new_bytes: figure()?,
        stored_bytes: figure()?,
        metadata_bytes: figure()?,
    };
    Ok(DiskManifest {
        label,
        size,
        segment_size,
        grid_phase,
        root,
        read_mode,
        reasons,
        source,
        lineage,
        figures,
    })
}

fn decode_metadata(reader: &mut Reader<'_>) -> Result<Metadata, DecodeError> {
    let name = reader.string("metadata name", NAME_LEN_MAX)?;
    let len = reader.varint("metadata length", u64::MAX)?;
    let chunks: Vec<(ChunkId, u32)> = (0..reader.count("chunks", METADATA_CHUNKS_MAX, 33)?)
        .map(|_| {
            let chunk = ChunkId::from_bytes(reader.array()?);
            Ok((
                chunk,
                reader.varint("chunk length", u32::MAX.into())? as u32,
            ))
        })
        .collect::<Result<_, DecodeError>>()?;
    if chunks.iter().map(|(_, len)| u64::from(*len)).sum::<u64>() != len {
        return Err(reader.error(Problem::Invalid("metadata length")));
    }
    Ok(Metadata { name, len, chunks })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Snapshot {
        Snapshot {
            repository: RepositoryId::from_bytes([1; 16]),
            session: SessionId::from_bytes([2; 16]),
            created_ms: 1_760_000_000_000,
            duration_ms: 4_200,
            vm: "web01".into(),
            tags: vec!["daily".into(), "prod".into()],
            parent: Some(SnapshotId::from_bytes([3; 16])),
            disks: vec![DiskManifest {
                label: "root".into(),
                size: DiskLength::new(4 << 30),
                segment_size: SegmentSize::DEFAULT,
                grid_phase: 3584,
                root: Some(NodeId::from_bytes([4; 32])),
                read_mode: ReadMode::ChangedBlocks,
                reasons: vec![Reason::Grown],
                source: "/images/web01.raw".into(),
                lineage: vec![("vdi-uuid".into(), "1234".into())],
                figures: DiskFigures {
                    data_bytes: 5,
                    read_bytes: 6,
                    new_bytes: 7,
                    stored_bytes: 8,
                    metadata_bytes: 9,
                },
            }],
            metadata: Some(Metadata {
                name: "ova.xml".into(),
                len: 10,
                chunks: vec![(ChunkId::from_bytes([5; 32]), 10)],
            }),
        }
    }

    fn key(body: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&[9; 32], body).as_bytes()
    }

    #[test]
    fn snapshots_round_trip() {
        let snapshot = example();
        let (id, bytes) = snapshot.encode(key);
        assert_eq!(Snapshot::decode(&bytes, Some(&key)), Ok((id, snapshot)));
    }

    #[test]
    fn a_snapshot_of_another_key_is_refused() {
        let (_, bytes) = example().encode(|body| *blake3::hash(body).as_bytes());
        assert!(Snapshot::decode(&bytes, None).is_ok());
        assert!(Snapshot::decode(&bytes, Some(&key)).is_err());
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_found() {
        let (_, bytes) = example().encode(key);
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << (place % 8);
            assert!(Snapshot::decode(&damaged, None).is_err(), "byte {place}");
            assert!(Snapshot::decode(&bytes[..place], None).is_err());
        }
    }

    #[test]
    fn two_disks_of_one_label_and_disks_beyond_a_tree_are_refused() {
        let mut twice = example();
        twice.disks.push(twice.disks[0].clone());
        assert!(Snapshot::decode_body(&twice.encode_body()).is_err());
        let mut huge = example();
        huge.disks[0].segment_size = SegmentSize::from_log2(SegmentSize::MIN_LOG2).unwrap();
        huge.disks[0].size = DiskLength::new(DISK_LEN_MAX);
        assert_eq!(crate::maptree::levels(huge.disks[0].tree().segments), 5);
        assert!(Snapshot::decode_body(&huge.encode_body()).is_ok());
        huge.disks[0].size = DiskLength::new(DISK_LEN_MAX + 1);
        assert!(Snapshot::decode_body(&huge.encode_body()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_body_decodes_is_canonical(place: prop::sample::Index, byte: u8) {
            let mut body = example().encode_body();
            let place = place.index(body.len());
            body[place] = byte;
            if let Ok(snapshot) = Snapshot::decode_body(&body) {
                prop_assert_eq!(snapshot.encode_body(), body);
            }
        }
    }
}
