//! The scrub of one pack held in memory: every byte of it is accounted for.

use undercroft_format::codec::{Problem, Reader};
use undercroft_format::id::{PackId, RepositoryId};
use undercroft_format::pack::{FOOTER_LEN, PACK_HEADER_LEN, Toc, TocEntry};

use super::damage::Damage;
use super::error::RecordProblem;
use super::fingerprints::Fingerprints;
use super::keys::Keys;
use super::layout;
use super::pack_reader::{check_footer, check_header, check_record, scan};
use super::record::RecordDecoder;

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
    if let Err(error) = check_header(bytes, repository, id) {
        findings.damage(Some(0), error);
    }
    match read_table(bytes, id) {
        Ok((entries, toc_position)) => {
            let mut end = PACK_HEADER_LEN as u64;
            for entry in entries {
                let start = u64::from(entry.position);
                findings.padding(bytes, end, start);
                findings.record(bytes, entry, deep.as_mut());
                end = entry.end();
            }
            findings.padding(bytes, end, toc_position);
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
                findings.record(bytes, entry, deep.as_mut());
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
) -> Result<(Vec<TocEntry>, u64), (u64, undercroft_format::codec::DecodeError)> {
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

    fn padding(&mut self, bytes: &[u8], start: u64, end: u64) {
        let between = &bytes[start as usize..end as usize];
        if let Some(stray) = between.iter().position(|byte| *byte != 0) {
            self.damage(Some(start + stray as u64), stray_byte(bytes));
        }
    }

    fn record(&mut self, bytes: &[u8], entry: TocEntry, deep: Option<&mut Deep<'_>>) {
        match check(bytes, self.id, &entry, deep) {
            Ok(()) => self.good.push(entry),
            Err(problem) => {
                self.bad += 1;
                let text = format!("{:?} {}: {problem}", entry.info.kind, entry.info.id);
                self.damage(Some(u64::from(entry.position)), text);
            }
        }
    }
}

fn check(
    bytes: &[u8],
    pack: PackId,
    entry: &TocEntry,
    deep: Option<&mut Deep<'_>>,
) -> Result<(), RecordProblem> {
    let position = u64::from(entry.position);
    let record = &bytes[entry.position as usize..];
    let payload = check_record(record, pack, position, &entry.info)?;
    if let Some(deep) = deep {
        deep.plain.resize(entry.info.plain_len as usize, 0);
        deep.decoder
            .decode(&entry.info, payload, deep.keys, deep.plain)?;
    }
    Ok(())
}
