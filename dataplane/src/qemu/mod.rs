//! Disks of a running QEMU guest, as they were at one moment, through its monitor (QMP).
//!
//! [`monitor`] asks and waits for answers, [`guest`] finds the disks, [`point`] makes a consistent point of
//! all of them and exports it over NBD, [`live`] watches over it while it is read and gives it up in the
//! end, `sweep` takes out of QEMU what was put in, [`scratch`] lends QEMU files and a socket, [`names`] says how
//! all of it is called.
//!
//! # How a point is made
//!
//! Each disk gets a *scratch image*: an overlay in a file of ours whose backing is the disk itself. One
//! transaction then starts a backup job per disk that copies what the guest overwrites to the scratch image
//! first (`blockdev-backup` with `sync=none`), so that scratch images go on showing the moment of the
//! transaction, and adds a bitmap per disk that records what is written from that moment on. Exports of the
//! scratch images are read over NBD.
//!
//! # What bitmaps are for
//!
//! A bitmap that began at one point tells the next backup what to read. It is never cleared or disabled: at
//! the next point a copy of it is made in the transaction, and the export tells that copy's ranges. The
//! snapshot names the bitmap that began at its point. So the bitmaps of the last snapshot and of the backup
//! under way are both there until the snapshot is published, and whatever breaks off leaves one that is
//! still true: the old one if there is no snapshot, the new one if there is.
//!
//! Every name in QEMU begins with `undercroft-`. Source of the sequence: `docs/interop/bitmaps.rst` and
//! `docs/interop/live-block-operations.rst` of QEMU.

pub mod error;
pub mod guest;
pub mod live;
pub mod monitor;
pub mod names;
pub mod point;
pub mod scratch;
mod sweep;

#[cfg(test)]
mod fake;

pub use error::QemuError;
