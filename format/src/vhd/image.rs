//! A VHD that is opened: whatever it says of places is checked against the file before it is believed.
//!
//! The file itself is the caller's: it is asked for through a function that fills a buffer from a place. Of a dynamic
//! disk, both footers have to be there and to tell of the same disk: a file that was cut does not pass for whole.

use std::convert::Infallible;

use super::blocks::{BlockTable, Reserved, TableReader};
use super::error::{Part, Problem, VhdError};
use super::footer::{DiskType, FOOTER_LEN, Footer};
use super::header::{DynamicHeader, ENTRIES_MAX, HEADER_LEN};
use super::locator::{LOCATOR_LEN_MAX, Platform};
use super::{SECTOR_LEN, be32};
use crate::units::{DiskLength, DiskRange};

/// Bytes of a block allocation table that are asked for at once.
const TABLE_PIECE_LEN: usize = 64 << 10;
/// Bytes of the longest head that a stream may have: the largest table, and room around it.
const HEAD_LEN_MAX: u64 = (4 * ENTRIES_MAX as u64) + (1 << 20);
/// Where blocks of a stream end, whose length is not known: behind the last that a table can name.
const STREAM_LEN_MAX: u64 = 1 << 42;

/// What a VHD says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The footer.
    pub footer: Footer,
    /// Size of the disk.
    pub size: DiskLength,
    /// How the disk lies in the file.
    pub content: Content,
}

/// How a disk lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// From the file's start on.
    Fixed,
    /// In blocks.
    Blocks {
        /// The dynamic header.
        header: Box<DynamicHeader>,
        /// The blocks.
        table: BlockTable,
    },
}

/// What the first bytes of a file tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// More bytes are needed: so many from the file's start.
    Needs(u64),
    /// All that stands before the blocks, which come in the disk's order.
    Open(Image),
}

/// A VHD could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError<E> {
    /// It is wrong.
    #[error(transparent)]
    Vhd(#[from] VhdError),
    /// It could not be read.
    #[error("reading {len} bytes at byte {offset}")]
    Read {
        /// From where.
        offset: u64,
        /// How much.
        len: usize,
        /// The caller's error.
        source: E,
    },
}

/// Fills a buffer from a place in the file.
pub type ReadAt<'a, E> = dyn FnMut(&mut [u8], u64) -> Result<(), E> + 'a;

impl Image {
    /// Opens the VHD in a file of `len` bytes.
    ///
    /// Takes 8 bytes of memory for each block that is there, and reads the table once.
    ///
    /// # Errors
    /// What is wrong, and where; whatever reading fails with.
    pub fn open<E>(len: u64, read: &mut ReadAt<'_, E>) -> Result<Self, OpenError<E>> {
        let mut read = |out: &mut [u8], offset: u64| {
            let len = out.len();
            read(out, offset).map_err(|source| OpenError::Read {
                offset,
                len,
                source,
            })
        };
        if len < SECTOR_LEN || !len.is_multiple_of(SECTOR_LEN) {
            return Err(OpenError::Vhd(VhdError {
                part: Part::Footer,
                offset: len.saturating_sub(SECTOR_LEN),
                problem: Problem::FileLength { len },
            }));
        }
        let footer_at = len - SECTOR_LEN;
        let mut sector = [0; FOOTER_LEN];
        read(&mut sector, footer_at)?;
        let footer = Footer::parse(&sector, Part::Footer, footer_at)?;
        let size = footer.disk_size();
        let content = match footer.disk_type {
            DiskType::Fixed => {
                // What a geometry adds to a fixed disk is not in the file.
                let (end, limit) = (footer.current_size, footer_at);
                if end > limit {
                    let problem = Problem::PastEnd { end, limit };
                    return Err(at(Part::Footer, footer_at + 48, problem).into());
                }
                Content::Fixed
            }
            DiskType::Dynamic | DiskType::Differencing => {
                read(&mut sector, 0)?;
                let copy = Footer::parse(&sector, Part::FooterCopy, 0)?;
                check_alike(&footer, &copy, footer_at)?;
                Self::open_blocks(&footer, size, footer_at, &mut read)?
            }
        };
        let size = match content {
            Content::Fixed => DiskLength::new(size.get().min(footer_at)),
            Content::Blocks { .. } => size,
        };
        Ok(Self {
            footer,
            size,
            content,
        })
    }

    fn open_blocks<E>(
        footer: &Footer,
        size: DiskLength,
        footer_at: u64,
        read: &mut impl FnMut(&mut [u8], u64) -> Result<(), OpenError<E>>,
    ) -> Result<Content, OpenError<E>> {
        let place = footer.header_offset;
        let header_range = region(Part::DynamicHeader, place, HEADER_LEN as u64, footer_at)?;
        let mut bytes = [0; HEADER_LEN];
        read(&mut bytes, place)?;
        let header = DynamicHeader::parse(&bytes, place, size)?;
        let (part, table_at) = (Part::BlockTable, header.table_offset);
        let table_range = region(part, table_at, header.table_len(), footer_at)?;
        let reserved = [
            ("the footer's copy", DiskRange::new(0, SECTOR_LEN)),
            ("the dynamic header", header_range),
            ("the block allocation table", table_range),
        ]
        .map(|(what, range)| Reserved { what, range });
        for taken in &reserved[..2] {
            if !taken.range.intersect(table_range).is_empty() {
                let (other, range) = (taken.what, taken.range);
                return Err(at(part, table_at, Problem::Overlaps { other, range }).into());
            }
        }
        let mut table = TableReader::new(&header, size, footer_at);
        let mut piece = vec![0; TABLE_PIECE_LEN];
        let mut done = 0;
        while done < table.len() {
            let len = (table.len() - done).min(TABLE_PIECE_LEN as u64);
            let piece = &mut piece[..len as usize];
            read(piece, table_at + done)?;
            table.push(piece)?;
            done += len;
        }
        Ok(Content::Blocks {
            table: table.finish(&reserved)?,
            header: Box::new(header),
        })
    }

    /// The VHD that begins with `head`, in a stream. [`check_end`](Self::check_end) has to see its end.
    ///
    /// # Errors
    /// What is wrong, and where; blocks that are in no order.
    pub fn of_head(head: &[u8]) -> Result<Head, VhdError> {
        let Some(sector) = head.first_chunk::<FOOTER_LEN>() else {
            return Ok(Head::Needs(SECTOR_LEN));
        };
        let footer = Footer::parse(sector, Part::FooterCopy, 0)?;
        if footer.disk_type == DiskType::Fixed {
            return Err(at(Part::FooterCopy, 60, Problem::FixedHead));
        }
        let (size, place) = (footer.disk_size(), footer.header_offset);
        let header_range = region(Part::DynamicHeader, place, HEADER_LEN as u64, HEAD_LEN_MAX)?;
        let part = |range: DiskRange| head.get(range.start as usize..range.end as usize);
        let Some(bytes) = part(header_range).and_then(<[u8]>::first_chunk) else {
            return Ok(Head::Needs(header_range.end));
        };
        let header = DynamicHeader::parse(bytes, place, size)?;
        let (table_at, table_len) = (header.table_offset, header.table_len());
        let table_range = region(Part::BlockTable, table_at, table_len, HEAD_LEN_MAX)?;
        let end = header_range.end.max(table_range.end);
        if (head.len() as u64) < end {
            return Ok(Head::Needs(end));
        }
        let mut read = |out: &mut [u8], offset: u64| -> Result<(), OpenError<Infallible>> {
            let offset = offset as usize;
            out.copy_from_slice(&head[offset..offset + out.len()]);
            Ok(())
        };
        let content = Self::open_blocks(&footer, size, STREAM_LEN_MAX, &mut read);
        let content = content.map_err(|error| match error {
            OpenError::Vhd(error) => error,
            OpenError::Read { source, .. } => match source {},
        })?;
        if let Content::Blocks { table, .. } = &content {
            table.check_order(end, table_at)?;
        }
        Ok(Head::Open(Self {
            footer,
            size,
            content,
        }))
    }

    /// Whether `last`, the last sector of a stream, which begins at `offset`, is the footer of this VHD.
    ///
    /// # Errors
    /// It is not: the stream was cut.
    pub fn check_end(&self, last: &[u8; FOOTER_LEN], offset: u64) -> Result<(), VhdError> {
        let footer = Footer::parse(last, Part::Footer, offset)?;
        check_alike(&footer, &self.footer, offset)
    }

    /// True if what is not there is the parent's.
    pub fn is_differencing(&self) -> bool {
        self.footer.disk_type == DiskType::Differencing
    }

    /// The header of a dynamic or differencing disk.
    pub fn header(&self) -> Option<&DynamicHeader> {
        match &self.content {
            Content::Fixed => None,
            Content::Blocks { header, .. } => Some(header),
        }
    }

    /// The paths that name the parent: first those from the child's directory. What names nothing is left out: Xen's
    /// exports have locators without a name.
    ///
    /// # Errors
    /// Whatever reading fails with; a locator that lies outside of the file, which has `len` bytes.
    pub fn parent_paths<E>(
        &self,
        len: u64,
        read: &mut ReadAt<'_, E>,
    ) -> Result<Vec<String>, OpenError<E>> {
        let Some(header) = self.header().filter(|_| self.is_differencing()) else {
            return Ok(Vec::new());
        };
        let mut paths = Vec::new();
        for (number, locator) in (0..).zip(&header.locators) {
            if matches!(locator.platform, Platform::None | Platform::Other(_)) {
                continue;
            }
            let part = Part::ParentLocator(number);
            let (offset, wanted) = (locator.offset, locator.len.min(LOCATOR_LEN_MAX));
            region(part, offset, wanted.into(), len - SECTOR_LEN)?;
            let mut bytes = vec![0; wanted as usize];
            read(&mut bytes, offset).map_err(|source| OpenError::Read {
                offset,
                len: bytes.len(),
                source,
            })?;
            paths.extend(locator.path(&bytes));
        }
        paths.extend(
            (!header.parent_name.is_empty()).then(|| header.parent_name.replace('\\', "/")),
        );
        paths.sort_by_key(|path| !path.starts_with('.'));
        Ok(paths)
    }
}

/// True if the last sector of a file is the footer of a VHD.
pub fn ends_like_vhd(last: &[u8; FOOTER_LEN]) -> bool {
    Footer::is_like(last) && super::checksum(last, 64) == be32(last, 64)
}

fn at(part: Part, offset: u64, problem: Problem) -> VhdError {
    VhdError {
        part,
        offset,
        problem,
    }
}

/// `len` bytes at `offset` of the file, which have to end before `limit` and not to be the footer's copy.
fn region(part: Part, offset: u64, len: u64, limit: u64) -> Result<DiskRange, VhdError> {
    let end = offset.saturating_add(len);
    if end > limit {
        return Err(at(part, offset, Problem::PastEnd { end, limit }));
    }
    if !offset.is_multiple_of(SECTOR_LEN) {
        return Err(at(part, offset, Problem::Unaligned));
    }
    if offset < SECTOR_LEN {
        let (other, range) = ("the footer's copy", DiskRange::new(0, SECTOR_LEN));
        return Err(at(part, offset, Problem::Overlaps { other, range }));
    }
    Ok(DiskRange::new(offset, end))
}

/// The end of a file may be that of another one.
fn check_alike(footer: &Footer, copy: &Footer, footer_at: u64) -> Result<(), VhdError> {
    let differs = [
        (
            footer.header_offset != copy.header_offset,
            16,
            "data offset",
        ),
        (footer.current_size != copy.current_size, 48, "current size"),
        (footer.geometry != copy.geometry, 56, "geometry"),
        (footer.disk_type != copy.disk_type, 60, "type"),
        (footer.uuid != copy.uuid, 68, "UUID"),
    ];
    match differs.into_iter().find(|(differs, ..)| *differs) {
        None => Ok(()),
        Some((_, offset, field)) => Err(at(
            Part::Footer,
            footer_at + offset,
            Problem::Differs { field },
        )),
    }
}
