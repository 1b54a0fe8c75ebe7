//! From a disk to chunks in the repository.
//!
//! ```text
//! source > reader > chunker > hasher > prober > compressor > pusher
//! ```
//!
//! [`source`] says what there is to read, [`changes`] what of it changed, [`reader`] fills buffers with a
//! segment's bytes, a [`worker`] takes a filled segment through the other stages while it is in its cache, and
//! [`backup`] wires them for the disks of a VM and publishes the snapshot. An [`xva`] is the source of all disks
//! of its VM at once. `plan` decides whether changed blocks are used, an [`audit`] looks whether they told the
//! truth, a `hole_audit` whether a server did that told of zeros. A segment is the unit of work: segments do
//! not depend on each other, so that any number of workers gives the same maps.

pub mod audit;
pub mod backup;
pub mod changes;
pub mod chunker;
mod hole_audit;
pub mod in_order;
mod plan;
pub mod reader;
pub mod source;
pub mod store_nodes;
pub mod worker;
pub mod xva;
