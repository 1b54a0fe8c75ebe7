//! XVA: a VM as one stream, the way XenServer and XCP-ng export and import it.
//!
//! An XVA is a tar archive of `ova.xml` and then, disk after disk, of blocks that are each followed by a
//! checksum; it may be compressed as a whole, which is not seen here. [`reader`] takes the bytes of one apart,
//! with [`tar`](mod@tar) for the headers, [`ova_xml`] for the description and [`blocks`] for where the blocks lie;
//! [`writer`] puts one together and [`compose`] makes its description.
//!
//! Source: xapi-project/xen-api, `ocaml/xapi/export.ml`, `import.ml` and `stream_vdi.ml`, read in 2026.

pub mod blocks;
pub mod checksum;
pub mod compose;
pub mod ova_xml;
pub mod reader;
#[cfg(test)]
mod reader_tests;
pub mod tar;
pub mod writer;
pub mod xmlrpc;

pub use self::checksum::ChecksumKind;
pub use self::ova_xml::{Disk, OvaXml, Reference};
pub use self::reader::{Description, Event, XvaError, XvaReader};
