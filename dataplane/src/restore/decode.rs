//! Decoding: records into the bytes of a segment, each checked against its id.

use undercroft_format::extent::Extent;
use undercroft_format::id::ObjectId;
use undercroft_format::pack::ObjectKind;
use undercroft_format::units::DiskRange;

use super::plan::{SegmentPlan, Use};
use crate::ingest::chunker::is_zero;
use crate::repository::error::{RecordProblem, RepositoryError, Result};
use crate::repository::keys::Keys;
use crate::repository::lookup::Located;
use crate::repository::objects::{Objects, corrupt};
use crate::repository::pack_reader::check_record;
use crate::repository::record::RecordDecoder;
use crate::repository::records::{Fetched, Wanted};

/// Parts of a disk that could not be decoded, and the one reason why.
#[derive(Debug)]
pub struct Undecoded {
    /// The parts.
    pub ranges: Vec<DiskRange>,
    /// Why.
    pub error: RepositoryError,
}

/// Decodes segments. One per thread.
#[derive(Default)]
pub struct SegmentDecoder {
    records: RecordDecoder,
    payload: Vec<u8>,
    plain: Vec<u8>,
}

/// What to write of a segment after it was decoded, as ranges from the segment's start.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Bytes of the buffer to be written, in order.
    pub write: Vec<DiskRange>,
    /// Ranges that must read as zero, in order.
    pub zero: Vec<DiskRange>,
    /// Bytes that were right already.
    pub equal_bytes: u64,
    /// What could not be decoded; these ranges of the buffer hold nothing of use.
    pub undecoded: Vec<Undecoded>,
}

impl Outcome {
    /// That of a segment which cannot be gone on with, because of what is no damage.
    fn given_up(undecoded: Undecoded) -> Self {
        Self {
            undecoded: vec![undecoded],
            ..Self::default()
        }
    }
}

impl SegmentDecoder {
    /// Decodes a segment into `out`, from records in `fetched` or read now. Zero extents are left to
    /// whoever writes. Damage costs what is damaged; any other error, which the next chunk would meet as
    /// well, the segment.
    pub fn decode(
        &mut self,
        plan: &SegmentPlan,
        fetched: Option<&[u8]>,
        objects: &Objects,
        keys: &Keys,
        out: &mut [u8],
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut damaged = Vec::new();
        for wanted in &plan.batch.wanted {
            let uses = &plan.uses[wanted.tag];
            if let Err(error) = self.chunk(wanted, uses, fetched, objects, keys, out) {
                if !error.is_damage() {
                    return Outcome::given_up(undecoded(plan, uses, error));
                }
                for place in uses {
                    damaged.push(local(place.at, place.len));
                }
                outcome.undecoded.push(undecoded(plan, uses, error));
            }
        }
        for (at, extent) in plan.map.placed() {
            let range = local(at, extent.len());
            match extent {
                Extent::Zero { .. } => push(&mut outcome.zero, range),
                Extent::Data { .. } if damaged.contains(&range) => {}
                Extent::Data { .. } => push(&mut outcome.write, range),
            }
        }
        outcome
    }

    /// Compares a segment with what the target holds in `out`, and puts what differs into it.
    pub fn decode_differing(
        &mut self,
        plan: &SegmentPlan,
        objects: &Objects,
        keys: &Keys,
        out: &mut [u8],
    ) -> Outcome {
        let mut outcome = Outcome::default();
        for (at, extent) in plan.map.placed() {
            if matches!(extent, Extent::Zero { .. }) {
                let range = local(at, extent.len());
                if is_zero(&out[range.start as usize..range.end as usize]) {
                    outcome.equal_bytes += range.len();
                } else {
                    push(&mut outcome.zero, range);
                }
            }
        }
        for wanted in &plan.batch.wanted {
            let uses = &plan.uses[wanted.tag];
            let mut differing = Vec::new();
            for place in uses {
                let bytes = &out[place.at as usize..(place.at + place.len) as usize];
                // Only the whole chunk has its id.
                if place.offset == 0 && ObjectId::from(keys.chunk_id(bytes)) == wanted.id {
                    outcome.equal_bytes += u64::from(place.len);
                } else {
                    differing.push(*place);
                }
            }
            if differing.is_empty() {
                continue;
            }
            match self.plain(wanted, uses, objects, keys) {
                Ok(plain) => {
                    for place in differing {
                        let new =
                            &plain[place.offset as usize..(place.offset + place.len) as usize];
                        let old = &mut out[place.at as usize..(place.at + place.len) as usize];
                        if old == new {
                            outcome.equal_bytes += u64::from(place.len);
                        } else {
                            old.copy_from_slice(new);
                            outcome.write.push(local(place.at, place.len));
                        }
                    }
                }
                Err(error) if error.is_damage() => {
                    outcome.undecoded.push(undecoded(plan, uses, error));
                }
                Err(error) => return Outcome::given_up(undecoded(plan, uses, error)),
            }
        }
        outcome.write.sort_unstable();
        let sorted = std::mem::take(&mut outcome.write);
        for range in sorted {
            push(&mut outcome.write, range);
        }
        outcome
    }

    fn chunk(
        &mut self,
        wanted: &Wanted,
        uses: &[Use],
        fetched: Option<&[u8]>,
        objects: &Objects,
        keys: &Keys,
        out: &mut [u8],
    ) -> Result<()> {
        let (located, payload) = payload(wanted, fetched, objects, &mut self.payload)?;
        let info = located.info;
        let problem = |problem| corrupt(located, problem);
        let whole = uses
            .iter()
            .position(|place| place.offset == 0 && place.len == info.plain_len);
        if let Some(first) = whole {
            // The usual case: straight to where the bytes go.
            let at = uses[first].at as usize;
            let len = info.plain_len as usize;
            self.records
                .decode(&info, payload, keys, &mut out[at..at + len])
                .map_err(problem)?;
            for place in uses.iter().skip(first + 1).chain(&uses[..first]) {
                let start = at + place.offset as usize;
                check_use(located, place)?;
                out.copy_within(start..start + place.len as usize, place.at as usize);
            }
            return Ok(());
        }
        self.plain.resize(info.plain_len as usize, 0);
        self.records
            .decode(&info, payload, keys, &mut self.plain)
            .map_err(problem)?;
        for place in uses {
            check_use(located, place)?;
            let bytes = &self.plain[place.offset as usize..(place.offset + place.len) as usize];
            out[place.at as usize..(place.at + place.len) as usize].copy_from_slice(bytes);
        }
        Ok(())
    }

    /// The plaintext of a chunk, from its record in `fetched` or read now.
    pub fn decode_whole(
        &mut self,
        wanted: &Wanted,
        fetched: Option<&[u8]>,
        objects: &Objects,
        keys: &Keys,
    ) -> Result<Vec<u8>> {
        let (located, payload) = payload(wanted, fetched, objects, &mut self.payload)?;
        let mut plain = vec![0; located.info.plain_len as usize];
        self.records
            .decode(&located.info, payload, keys, &mut plain)
            .map_err(|problem| corrupt(located, problem))?;
        Ok(plain)
    }

    /// The plaintext of chunk `id`, read now.
    pub fn decode_alone(
        &mut self,
        id: ObjectId,
        objects: &Objects,
        keys: &Keys,
    ) -> Result<Vec<u8>> {
        let wanted = Wanted {
            id,
            tag: 0,
            plain_len_min: 0,
            located: None,
            fetched: None,
        };
        self.decode_whole(&wanted, None, objects, keys)
    }

    /// The plaintext of a chunk that covers all its uses.
    fn plain(
        &mut self,
        wanted: &Wanted,
        uses: &[Use],
        objects: &Objects,
        keys: &Keys,
    ) -> Result<&[u8]> {
        let (located, payload) = payload(wanted, None, objects, &mut self.payload)?;
        self.plain.resize(located.info.plain_len as usize, 0);
        self.records
            .decode(&located.info, payload, keys, &mut self.plain)
            .map_err(|problem| corrupt(located, problem))?;
        for place in uses {
            check_use(located, place)?;
        }
        Ok(&self.plain)
    }
}

/// A chunk's payload: from what was fetched, or read now into `scratch`.
fn payload<'a>(
    wanted: &Wanted,
    fetched: Option<&'a [u8]>,
    objects: &Objects,
    scratch: &'a mut Vec<u8>,
) -> Result<(Located, &'a [u8])> {
    if let (Some(bytes), Some(place), Some(located)) = (fetched, wanted.fetched, wanted.located) {
        let payload = match place {
            Fetched::Record(at) => {
                let record = &bytes[at..at + located.info.record_len() as usize];
                check_record(record, located.pack, located.position, &located.info)
                    .map_err(|problem| corrupt(located, problem))?
            }
            Fetched::Payload(at) => &bytes[at..at + located.info.stored_len as usize],
        };
        return Ok((located, payload));
    }
    let (located, payload) = objects.records().payload(wanted.id, ObjectKind::Chunk)?;
    *scratch = payload;
    Ok((located, scratch))
}

/// A map may name more of a chunk than there is only if it is damaged in a way that its id does not
/// show: written so by a faulty or hostile program.
fn check_use(located: Located, place: &Use) -> Result<()> {
    let end = place.offset.checked_add(place.len);
    if end.is_some_and(|end| end <= located.info.plain_len) {
        return Ok(());
    }
    Err(corrupt(located, RecordProblem::OtherObject))
}

fn local(at: u32, len: u32) -> DiskRange {
    DiskRange::new(u64::from(at), u64::from(at) + u64::from(len))
}

fn push(ranges: &mut Vec<DiskRange>, range: DiskRange) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

fn undecoded(plan: &SegmentPlan, uses: &[Use], error: RepositoryError) -> Undecoded {
    let ranges = uses.iter().map(|place| {
        let start = plan.range.start + u64::from(place.at);
        DiskRange::new(start, start + u64::from(place.len))
    });
    Undecoded {
        ranges: ranges.collect(),
        error,
    }
}

/// An error with its causes, as one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
