//! The scrub of one pack: every byte of it is accounted for.
//!
//! A pack whose skeleton (header, table of contents, footer, and the zeros between them) is sound is
//! scrubbed in [slices](PackSkeleton::slices), so that little memory is enough and several workers share
//! one pack. One whose skeleton is not is read whole and searched for records.

use std::ops::Range;

use undercroft_format::codec::{Problem, Reader};
use undercroft_format::id::{PackId, RepositoryId};
use undercroft_format::pack::{FOOTER_LEN, PACK_HEADER_LEN, Toc, TocEntry};

use super::damage::Damage;
use super::error::{RecordProblem, RepositoryError, Result};
use super::fingerprints::Fingerprints;
use super::keys::Keys;
use super::layout;
use super::pack_reader::{check_footer, check_header, check_record, contents_of, read_exact, scan};
use super::record::RecordDecoder;
use super::scrubber::is_damage;
use crate::io::BlockFile;

/// What surrounds the records of a pack, found sound.
#[derive(Debug)]
pub struct PackSkeleton {
    /// The pack.
    pub id: PackId,
    /// Length of the file.
    pub len: u64,
    /// Its records, in order of position.
    pub entries: Vec<TocEntry>,
}

/// Records of a pack that are read together, and the zeros before each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// First byte in the pack.
    pub start: u64,
    /// One past the last byte: where the last record ends.
    pub end: u64,
    /// The records, by their places in the table of contents.
    pub entries: Range<usize>,
}

impl PackSkeleton {
    /// Reads and checks it. An error says only that the pack has to be scrubbed whole.
    pub fn read(file: &dyn BlockFile, repository: RepositoryId, id: PackId) -> Result<Self> {
        let path = layout::pack(id);
        let contents = contents_of(file, repository, id, &path)?;
        let entries = contents.toc.entries;
        let records_end = entries.last().map_or(PACK_HEADER_LEN as u64, TocEntry::end);
        let footer_at = contents.len - FOOTER_LEN as u64;
        for zeros in [
            records_end..contents.toc_position,
            contents.toc_end..footer_at,
        ] {
            let mut bytes = vec![0; (zeros.end - zeros.start) as usize];
            read_exact(file, &mut bytes, zeros.start, &path)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(RepositoryError::damaged(&path)(stray_byte(&bytes)));
            }
        }
        Ok(Self {
            id,
            len: contents.len,
            entries,
        })
    }

    /// The records in slices of at most `len_max` bytes, or of one record that is longer.
    pub fn slices(&self, len_max: u64) -> Vec<Slice> {
        let mut slices: Vec<Slice> = Vec::new();
        let mut at = PACK_HEADER_LEN as u64;
        for (number, entry) in self.entries.iter().enumerate() {
            let end = entry.end();
            match slices.last_mut() {
                Some(slice) if end - slice.start <= len_max => {
                    slice.end = end;
                    slice.entries.end = number + 1;
                }
                _ => slices.push(Slice {
                    start: at,
                    end,
                    entries: number..number + 1,
                }),
            }
            at = end;
        }
        slices
    }

    /// Checks the records of `slice`, whose bytes are `bytes`.
    pub fn scrub(&self, slice: &Slice, bytes: &[u8], mut deep: Option<Deep<'_>>) -> PackFindings {
        let mut findings = PackFindings::new(self.id, self.len);
        let bytes = Span {
            start: slice.start,
            bytes,
        };
        let mut end = slice.start;
        for entry in &self.entries[slice.entries.clone()] {
            findings.padding(bytes, end, u64::from(entry.position));
            findings.record(bytes, *entry, deep.as_mut());
            end = entry.end();
        }
        findings
    }

    /// Checks the records of `slice` one by one, each read by itself.
    ///
    /// # Errors
    /// A read that failed for another reason than that the bytes are lost.
    pub fn scrub_singly(
        &self,
        file: &dyn BlockFile,
        slice: &Slice,
        mut deep: Option<Deep<'_>>,
    ) -> Result<PackFindings> {
        let mut findings = PackFindings::new(self.id, self.len);
        for entry in &self.entries[slice.entries.clone()] {
            let start = u64::from(entry.position);
            let mut bytes = vec![0; entry.info.record_len() as usize];
            match file.read_at(&mut bytes, start) {
                Ok(got) => {
                    bytes.truncate(got);
                    let bytes = Span {
                        start,
                        bytes: &bytes,
                    };
                    findings.record(bytes, *entry, deep.as_mut());
                }
                Err(error) if is_damage(&error) => {
                    findings.bad += 1;
                    findings.damage(Some(start), error);
                }
                Err(error) => {
                    return Err(RepositoryError::io("reading", &layout::pack(self.id))(
                        error,
                    ));
                }
            }
        }
        Ok(findings)
    }
}

/// Bytes of a pack from `start` on.
#[derive(Clone, Copy)]
struct Span<'a> {
    start: u64,
    bytes: &'a [u8],
}

impl<'a> Span<'a> {
    fn from(&self, position: u64) -> &'a [u8] {
        &self.bytes[(position - self.start) as usize..]
    }
}

/// What the scrub of a pack found.
#[derive(Debug)]
pub struct PackFindings {
    /// The pack.
    pub id: PackId,
    /// Bytes read.
    pub len: u64,
    /// Records checked.
    pub records: u64,
    /// Records that are what was written; kept only of a pack that has damage, where a repair needs them.
    pub good: Vec<TocEntry>,
    /// Records that are not.
    pub bad: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// Decodes records too.
pub struct Deep<'a> {
    /// Opens seals and makes ids.
    pub keys: &'a Keys,
    /// The thread's decoder.
    pub decoder: &'a mut RecordDecoder,
    /// Space for a plaintext.
    pub plain: &'a mut Vec<u8>,
}

/// Checks the whole file of sealed pack `id`.
pub fn scrub_pack(
    bytes: &[u8],
    repository: RepositoryId,
    id: PackId,
    mut deep: Option<Deep<'_>>,
) -> PackFindings {
    let mut findings = PackFindings::new(id, bytes.len() as u64);
    let whole = Span { start: 0, bytes };
    if let Err(error) = check_header(bytes, repository, id) {
        findings.damage(Some(0), error);
    }
    match read_table(bytes, id) {
        Ok((entries, toc_position)) => {
            let mut end = PACK_HEADER_LEN as u64;
            for entry in entries {
                let start = u64::from(entry.position);
                findings.padding(whole, end, start);
                findings.record(whole, entry, deep.as_mut());
                end = entry.end();
            }
            findings.padding(whole, end, toc_position);
        }
        Err((position, error)) => {
            findings.damage(Some(position), error);
            let mut found = Vec::new();
            let stopped = scan(bytes, id, bytes.len() as u64, |record| {
                found.push(TocEntry {
                    info: record.header.info,
                    position: record.position as u32,
                });
            });
            for entry in found {
                findings.record(whole, entry, deep.as_mut());
            }
            // Where the table begins is unknown: the first byte that is no record may be its first.
            drop(stopped);
        }
    }
    findings
}

/// The table of contents, and where it begins. Checks the zeros around it.
fn read_table(
    bytes: &[u8],
    id: PackId,
) -> std::result::Result<(Vec<TocEntry>, u64), (u64, undercroft_format::codec::DecodeError)> {
    let len = bytes.len() as u64;
    let footer_at = len.saturating_sub(FOOTER_LEN as u64);
    let footer = check_footer(bytes, len, id).map_err(|error| (footer_at, error))?;
    let start = footer.toc_position as usize;
    let end = start + footer.toc_len();
    let toc = Toc::decode(&bytes[start..end], &footer).map_err(|e| (footer.toc_position, e))?;
    if let Some(stray) = bytes[end..footer_at as usize]
        .iter()
        .position(|byte| *byte != 0)
    {
        let at = (end + stray) as u64;
        return Err((at, stray_byte(bytes)));
    }
    Ok((toc.entries, footer.toc_position))
}

fn stray_byte(bytes: &[u8]) -> undercroft_format::codec::DecodeError {
    Reader::new("pack padding", bytes).error(Problem::NotCanonical("padding is not zero"))
}

impl PackFindings {
    /// Nothing found yet.
    pub fn new(id: PackId, len: u64) -> Self {
        Self {
            id,
            len,
            records: 0,
            good: Vec::new(),
            bad: 0,
            damage: Vec::new(),
        }
    }

    /// Notes damage at `position` of the pack.
    pub fn damage(&mut self, position: Option<u64>, problem: impl std::fmt::Display) {
        self.damage.push(Damage {
            path: layout::pack(self.id),
            position,
            problem: problem.to_string(),
        });
    }

    /// Notes the good records in `good`, and forgets them if nothing else is wrong with the pack: a
    /// repository may have more of them than memory.
    pub fn note_good(&mut self, good: &mut Fingerprints) {
        self.records = self.good.len() as u64 + self.bad;
        for entry in &self.good {
            good.insert(&entry.info.id);
        }
        if self.damage.is_empty() {
            self.good = Vec::new();
        }
    }

    /// Takes in what another slice of the same pack showed.
    pub fn merge(&mut self, other: Self) {
        self.good.extend(other.good);
        self.bad += other.bad;
        self.damage.extend(other.damage);
    }

    fn padding(&mut self, bytes: Span<'_>, start: u64, end: u64) {
        let between = &bytes.from(start)[..(end - start) as usize];
        if let Some(stray) = between.iter().position(|byte| *byte != 0) {
            self.damage(Some(start + stray as u64), stray_byte(between));
        }
    }

    fn record(&mut self, bytes: Span<'_>, entry: TocEntry, deep: Option<&mut Deep<'_>>) {
        match check(bytes, self.id, &entry, deep) {
            Ok(()) => self.good.push(entry),
            Err(problem) => self.bad_record(&entry, problem),
        }
    }

    /// Notes that a record is not what was written.
    pub fn bad_record(&mut self, entry: &TocEntry, problem: impl std::fmt::Display) {
        self.bad += 1;
        let text = format!("{:?} {}: {problem}", entry.info.kind, entry.info.id);
        self.damage(Some(u64::from(entry.position)), text);
    }
}

fn check(
    bytes: Span<'_>,
    pack: PackId,
    entry: &TocEntry,
    deep: Option<&mut Deep<'_>>,
) -> std::result::Result<(), RecordProblem> {
    let position = u64::from(entry.position);
    let payload = check_record(bytes.from(position), pack, position, &entry.info)?;
    if let Some(deep) = deep {
        deep.plain.resize(entry.info.plain_len as usize, 0);
        deep.decoder
            .decode(&entry.info, payload, deep.keys, deep.plain)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use undercroft_format::id::ObjectId;
    use undercroft_format::pack::{Encoding, ObjectKind, RecordInfo};

    use super::*;

    fn skeleton(payloads: &[u32]) -> PackSkeleton {
        let mut position = PACK_HEADER_LEN as u32;
        let entries = payloads.iter().map(|stored_len| {
            let info = RecordInfo {
                id: ObjectId::from_bytes([1; 32]),
                kind: ObjectKind::Chunk,
                encoding: Encoding::RAW,
                stored_len: *stored_len,
                plain_len: *stored_len,
            };
            let entry = TocEntry { info, position };
            position += info.record_len();
            entry
        });
        PackSkeleton {
            id: PackId::from_bytes([2; 16]),
            len: 1 << 20,
            entries: entries.collect(),
        }
    }

    #[test]
    fn slices_cover_all_records_once_and_stay_short() {
        let pack = skeleton(&[10_000, 20_000, 30_000, 90_000, 5, 0, 40_000]);
        let slices = pack.slices(65_000);
        let records: Vec<_> = slices.iter().map(|slice| slice.entries.clone()).collect();
        assert_eq!(records, [0..3, 3..4, 4..7]);
        let mut at = PACK_HEADER_LEN as u64;
        for slice in &slices {
            assert_eq!(slice.start, at);
            at = slice.end;
        }
        assert_eq!(at, pack.entries.last().unwrap().end());
        assert!(slices[1].end - slices[1].start > 65_000);
    }

    #[test]
    fn a_pack_without_records_has_no_slices() {
        assert_eq!(skeleton(&[]).slices(65_000), []);
    }
}
