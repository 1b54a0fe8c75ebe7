//! The writer of XVAs: byte for byte what xapi would write, apart from times, which are all 1970.
//!
//! One [`DiskEncoder`] per disk, in the order of [`in_order`], between [`description_member`] and [`END`]. What
//! comes out depends on what goes in alone. Source: xapi-project/xen-api, `ocaml/xapi/stream_vdi.ml` and
//! `ocaml/xapi-aux/tar_helpers.ml`.

use super::blocks::XVA_BLOCK_LEN;
use super::checksum::ChecksumKind;
use super::ova_xml::{Disk, Reference};
use super::tar::{TAR_BLOCK_LEN, v7_header};
use crate::units::DiskLength;

/// What ends an archive.
pub const END: [u8; 2 * TAR_BLOCK_LEN] = [0; 2 * TAR_BLOCK_LEN];
const BLOCK_LEN: usize = XVA_BLOCK_LEN as usize;

/// `ova.xml` as the member that begins an archive.
pub fn description_member(text: &[u8]) -> Vec<u8> {
    let mut member = v7_header("ova.xml", text.len() as u64).to_vec();
    member.extend_from_slice(text);
    member.resize(member.len().next_multiple_of(TAR_BLOCK_LEN), 0);
    member
}

/// The order in which xapi demands the disks: that of their names' bytes, `Ref:10` before `Ref:9`.
pub fn in_order(disks: &mut [Disk]) {
    disks.sort_by(|a, b| a.reference.cmp(&b.reference));
}

/// Whether blocks of zeros may be left out of disks that are written in this order.
///
/// xapi takes what a number left out stands for from the first block of the first disk, for all disks. If that
/// one is shorter than 1 MiB, every block has to be there.
pub fn may_omit_zeros(disks: &[Disk]) -> bool {
    let sizes = disks.iter().map(|disk| disk.virtual_size.get());
    let first = sizes.into_iter().find(|size| *size > 0);
    first.is_none_or(|size| size >= XVA_BLOCK_LEN)
}

/// Makes a disk into its members. Bytes come in order, as data or as zeros.
pub struct DiskEncoder {
    reference: Reference,
    size: u64,
    checksums: ChecksumKind,
    omit_zeros: bool,
    number: u64,
    /// Bytes of the current block that are there.
    filled: usize,
    /// Header, block, padding, header of the checksum, checksum.
    members: Vec<u8>,
}

impl DiskEncoder {
    /// For the disk that `reference` names.
    pub fn new(
        reference: Reference,
        size: DiskLength,
        checksums: ChecksumKind,
        omit_zeros: bool,
    ) -> Self {
        Self {
            reference,
            size: size.get(),
            checksums,
            omit_zeros,
            number: 0,
            filled: 0,
            members: vec![0; TAR_BLOCK_LEN + BLOCK_LEN + 2 * TAR_BLOCK_LEN],
        }
    }

    /// Adds data. `emit` gets members as they are complete, and its errors end the call.
    pub fn data<E>(
        &mut self,
        mut bytes: &[u8],
        emit: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(self.room()));
            let at = TAR_BLOCK_LEN + self.filled;
            self.members[at..at + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
            self.emit_full(emit)?;
        }
        Ok(())
    }

    /// Adds zeros.
    pub fn zeros<E>(
        &mut self,
        mut len: u64,
        emit: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while len > 0 {
            if self.filled == 0 && self.may_omit() {
                let whole = (len / XVA_BLOCK_LEN).min(self.last_number() - self.number);
                self.number += whole;
                len -= whole * XVA_BLOCK_LEN;
                if whole > 0 {
                    continue;
                }
            }
            let now = len.min(self.room() as u64) as usize;
            let at = TAR_BLOCK_LEN + self.filled;
            self.members[at..at + now].fill(0);
            self.filled += now;
            len -= now as u64;
            self.emit_full(emit)?;
        }
        Ok(())
    }

    /// Checks that the whole disk was added.
    ///
    /// # Panics
    /// If it was not.
    pub fn finish(self) {
        let added = self.number * XVA_BLOCK_LEN + self.filled as u64;
        let complete = self.size.next_multiple_of(XVA_BLOCK_LEN);
        assert!(
            self.filled == 0 && added == complete,
            "{added} of {} bytes of disk {}",
            self.size,
            self.reference
        );
    }

    fn last_number(&self) -> u64 {
        self.size.div_ceil(XVA_BLOCK_LEN).saturating_sub(1)
    }

    /// The first block and the last are always there.
    fn may_omit(&self) -> bool {
        self.omit_zeros && self.number > 0 && self.number < self.last_number()
    }

    fn block_len(&self) -> usize {
        let start = self.number * XVA_BLOCK_LEN;
        let left = self.size.checked_sub(start).filter(|left| *left > 0);
        left.expect("no more is added than the disk has")
            .min(XVA_BLOCK_LEN) as usize
    }

    fn room(&self) -> usize {
        self.block_len() - self.filled
    }

    /// Emits the current block if it is full, unless it can be left out.
    fn emit_full<E>(&mut self, emit: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let len = self.block_len();
        if self.filled < len {
            return Ok(());
        }
        let payload = TAR_BLOCK_LEN..TAR_BLOCK_LEN + len;
        let block = &self.members[payload.clone()];
        if !self.may_omit() || !is_zero(block) {
            let digits = self.checksums.of(block);
            let name = format!("{}/{:08}", self.reference, self.number);
            let checksum_name = format!("{name}{}", self.checksums.suffix());
            self.members[..payload.start].copy_from_slice(&v7_header(&name, len as u64));
            let end = payload.end.next_multiple_of(TAR_BLOCK_LEN);
            self.members[payload.end..end].fill(0);
            let (header, text) = self.members[end..].split_at_mut(TAR_BLOCK_LEN);
            header.copy_from_slice(&v7_header(&checksum_name, digits.len() as u64));
            text[..digits.len()].copy_from_slice(digits.as_bytes());
            text[digits.len()..TAR_BLOCK_LEN].fill(0);
            emit(&self.members[..end + 2 * TAR_BLOCK_LEN])?;
        }
        self.number += 1;
        self.filled = 0;
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Without an early end in the inner loop it becomes vector code.
    bytes
        .chunks(4096)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}
