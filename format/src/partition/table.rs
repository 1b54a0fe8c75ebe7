//! Whatever table a disk has: which one counts, and which of its entries lie on the disk.
//!
//! As Linux does (block/partitions/efi.c, block/partitions/msdos.c), a GPT counts if the MBR protects it, also one
//! that lists other partitions beside (hybrid). Unlike Linux, the GPT at the disk's end serves when the first is
//! damaged.

use std::fmt;

use thiserror::Error;

use super::gpt::{self, Absent, HeaderPlace};
use super::kind::PartitionKind;
use super::mbr::{self, MBR_LEN, MBR_TYPE_PROTECTIVE, MbrEntry};
use crate::file_system;
use crate::units::{DiskLength, DiskRange};

/// Sectors that disks have.
const SECTOR_LENS: [u64; 2] = [512, 4096];

/// Reads from the disk, or says why not.
pub(super) type Read<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), String> + 'a;

/// Which partition of a disk, as Linux counts: `sda3` is 3. Logical partitions begin with 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionNumber(u32);

impl PartitionNumber {
    /// Wraps a number; there is no 0.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PartitionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A partition that lies on its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub number: PartitionNumber,
    /// Where it lies; not empty.
    pub range: DiskRange,
    /// What its table says that it is for.
    pub kind: PartitionKind,
    /// Its name, which only a GPT has. It comes from the guest, and may hold any character.
    pub name: String,
}

/// Which kind of table a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// None: the disk is empty, or one file system from its start.
    Whole,
    /// A master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "none",
            Self::Mbr => "MBR",
            Self::Gpt => "GPT",
        })
    }
}

/// The partitions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionTable {
    /// Which kind of table this is.
    pub scheme: Scheme,
    /// Those that can be read, by number. Two may share bytes.
    pub partitions: Vec<Partition>,
    /// What is wrong with the table, in the order in which it was found.
    pub notes: Vec<TableNote>,
}

/// Something wrong with a table that leaves the rest of it as it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TableNote {
    /// The first GPT does not serve.
    #[error("the GPT at the disk's start is damaged ({cause}); its copy at the end was taken")]
    CopyTaken {
        /// What is wrong with it.
        cause: String,
    },
    /// There was a GPT, says the MBR.
    #[error("both copies of the GPT are damaged; only what the MBR lists was taken")]
    OnlyHybrid,
    /// An entry cannot be true.
    #[error(
        "partition {number} is left out: its sectors {first} to {last} do not lie on the disk, which has {sectors}"
    )]
    NotOnDisk {
        /// Which.
        number: PartitionNumber,
        /// First sector.
        first: u64,
        /// Last sector.
        last: u64,
        /// Sectors of the disk.
        sectors: u64,
    },
    /// A chain of extended partitions that leads nowhere.
    #[error("the list of logical partitions ends at sector {sector}: {cause}")]
    BrokenChain {
        /// The link.
        sector: u64,
        /// What is wrong with it.
        cause: String,
    },
    /// A chain of extended partitions that comes back, or has more links than anybody's.
    #[error("the list of logical partitions has no end: sector {sector} was not followed again")]
    EndlessChain {
        /// The link.
        sector: u64,
    },
}

/// No table can be made out.
#[derive(Debug, Error)]
pub enum TableError<E> {
    /// The first sector cannot be read, and there is no GPT at the end.
    #[error(
        "the disk's first sector cannot be read, and no copy of a partition table is at its end"
    )]
    Unreadable(#[source] E),
    /// An MBR protects a GPT that is not there.
    #[error("the MBR says that there is a GPT, but {first}, and at the disk's end {copy}")]
    GptLost {
        /// What was found at the start.
        first: String,
        /// And at the end.
        copy: String,
    },
}

/// An entry of a table, unchecked.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) number: PartitionNumber,
    /// First sector.
    pub(super) first: u64,
    /// Last sector.
    pub(super) last: u64,
    pub(super) kind: PartitionKind,
    pub(super) name: String,
}

/// The partition table of a disk of `size`, of which `read` fills a buffer from an offset on; it is asked for nothing
/// past the end, for at most 1 MiB at once, and at most some 300 times.
///
/// Without a table the whole disk counts, and `partitions` is empty.
///
/// # Errors
/// [`TableError`]: where it would be wrong to say that there are no partitions.
pub fn read_table<E: fmt::Display>(
    size: DiskLength,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<PartitionTable, TableError<E>> {
    let whole = PartitionTable {
        scheme: Scheme::Whole,
        partitions: Vec::new(),
        notes: Vec::new(),
    };
    if size.get() < MBR_LEN as u64 {
        return Ok(whole);
    }
    let mut record = [0; MBR_LEN];
    let first = read(0, &mut record);
    let mut bounded = |offset: u64, out: &mut [u8]| {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > size.get()) {
            return Err("it lies past the disk's end".to_owned());
        }
        read(offset, out).map_err(|error| error.to_string())
    };
    if let Err(error) = first {
        return match read_gpt(size, &mut bounded) {
            Gpt::Found(table) => Ok(table),
            Gpt::None { .. } => Err(TableError::Unreadable(error)),
        };
    }
    let Some(entries) = mbr::entries(&record) else {
        return Ok(whole);
    };
    if entries
        .iter()
        .all(|entry| entry.kind != MBR_TYPE_PROTECTIVE)
    {
        return Ok(read_mbr(size, &entries, &mut bounded).unwrap_or(whole));
    }
    match read_gpt(size, &mut bounded) {
        Gpt::Found(table) => Ok(table),
        Gpt::None { first, copy } => {
            let hybrid = read_mbr(size, &entries, &mut bounded);
            let mut table = hybrid.ok_or(TableError::GptLost { first, copy })?;
            table.notes.insert(0, TableNote::OnlyHybrid);
            Ok(table)
        }
    }
}

/// `None` if no entry is used: boot sectors of file systems look like this.
fn read_mbr(
    size: DiskLength,
    entries: &[MbrEntry; 4],
    read: &mut Read<'_>,
) -> Option<PartitionTable> {
    let mut notes = Vec::new();
    let sector_len = mbr_sector_len(size, entries, read);
    let found = mbr::partitions(entries, sector_len, read, &mut notes);
    // A partition at sector 0 would hold its own table. `mkfs.fat` writes one into a file system without a table.
    let is_table = |found: &Found| found.first > 0;
    let found: Vec<_> = found.into_iter().filter(is_table).collect();
    if found.is_empty() && notes.is_empty() {
        return None;
    }
    Some(checked(Scheme::Mbr, size, sector_len, found, notes))
}

/// An MBR does not say how long its sectors are: as long as a file system is found where a partition begins.
fn mbr_sector_len(size: DiskLength, entries: &[MbrEntry; 4], read: &mut Read<'_>) -> u64 {
    let [usual, large] = SECTOR_LENS;
    let used = || {
        entries
            .iter()
            .filter(|entry| entry.kind != 0 && entry.first > 0)
    };
    let all_fit = used().all(|entry| (entry.first + entry.sectors) * large <= size.get());
    let mut holds = |entry: &MbrEntry, sector_len: u64| {
        let start = entry.first * sector_len;
        let len =
            DiskLength::new((entry.sectors * sector_len).min(size.get().saturating_sub(start)));
        if entry.is_extended() {
            let mut record = [0; MBR_LEN];
            return read(start, &mut record).is_ok() && mbr::entries(&record).is_some();
        }
        let found = file_system::detect(len, |offset, out| read(start + offset, out));
        matches!(found, Ok(Some(_)))
    };
    if all_fit
        && !used().any(|entry| holds(entry, usual))
        && used().any(|entry| holds(entry, large))
    {
        large
    } else {
        usual
    }
}

enum Gpt {
    Found(PartitionTable),
    None { first: String, copy: String },
}

fn read_gpt(size: DiskLength, read: &mut Read<'_>) -> Gpt {
    let mut try_at = |sector_of: fn(u64) -> u64| {
        let mut cause = "none is there".to_owned();
        for sector_len in SECTOR_LENS {
            let sectors = size.get() / sector_len;
            let place = HeaderPlace {
                sector: sector_of(sectors),
                sector_len,
                sectors,
            };
            match gpt::partitions(place, read) {
                Ok(found) => return Ok((sector_len, found)),
                Err(Absent::NoSignature) => {}
                Err(Absent::Damaged(what)) => cause = what,
            }
        }
        Err(cause)
    };
    let first = match try_at(|_| 1) {
        Ok((sector_len, found)) => {
            return Gpt::Found(checked(Scheme::Gpt, size, sector_len, found, Vec::new()));
        }
        Err(cause) => cause,
    };
    match try_at(|sectors| sectors.saturating_sub(1)) {
        Ok((sector_len, found)) => {
            let notes = vec![TableNote::CopyTaken { cause: first }];
            Gpt::Found(checked(Scheme::Gpt, size, sector_len, found, notes))
        }
        Err(copy) => Gpt::None { first, copy },
    }
}

/// Those of `found` that lie on the disk; the others become notes.
fn checked(
    scheme: Scheme,
    size: DiskLength,
    sector_len: u64,
    found: Vec<Found>,
    mut notes: Vec<TableNote>,
) -> PartitionTable {
    let sectors = size.get() / sector_len;
    let mut partitions = Vec::new();
    for Found {
        number,
        first,
        last,
        kind,
        name,
    } in found
    {
        if 0 < first && first <= last && last < sectors {
            let range = DiskRange::new(first * sector_len, (last + 1) * sector_len);
            partitions.push(Partition {
                number,
                range,
                kind,
                name,
            });
        } else {
            notes.push(TableNote::NotOnDisk {
                number,
                first,
                last,
                sectors,
            });
        }
    }
    partitions.sort_by_key(|partition| partition.number);
    PartitionTable {
        scheme,
        partitions,
        notes,
    }
}
