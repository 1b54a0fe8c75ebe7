//! An XVA as the source of a VM's disks: one stream, read once, in its own order.
//!
//! [`archive`] opens one and reads what stands before the disks; [`unpack`] takes the compression off;
//! [`read_ahead`] reads plain files past the page cache; [`http`] fetches from servers; `segments` makes the
//! blocks of a disk into segments, which then go the way of any disk's. What an XVA leaves out is never read.

pub mod archive;
pub mod http;
pub mod pump;
pub mod read_ahead;
pub(crate) mod segments;
pub mod unpack;
