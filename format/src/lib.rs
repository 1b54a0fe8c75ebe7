//! What Undercroft's bytes mean: no files, sockets, clocks or threads.
//!
//! A disk is cut into fixed segments; a [`segment`] map lists the [`extent`]s of one, [`maptree`]s hold
//! the maps of a disk together, and a [`snapshot`] names the trees of one VM at one time. All of these,
//! and the chunks they point at, lie as records in [`pack`]s. [`config`] says how a repository was set
//! up. `docs/format.md` in the repository shows the same byte by byte, with the reasons.
//!
//! In the order in which data flows:
//!
//! - [`units`], [`id`]: positions, lengths and names as types
//! - [`source`]: what hypervisors hand over; [`xva`]: VMs as one stream; [`vhd`], [`qcow2`]: disks in files; [`nbd`]:
//!   how disks are read over the network; [`qmp`]: how QEMU is asked
//! - [`ranges`]: what an increment reads; [`lineage`]: whether it begins at its parent; [`audit`]: what of the rest
//!   is looked at all the same
//! - [`partition`], [`chunker`]: where the chunker's grid lies and how chunks are cut; where partitions lie
//! - [`file_system`]: what a disk or a partition holds
//! - [`extent`], [`segment`], [`maptree`]: what a disk holds; the merge
//! - [`pack`]: records at rest
//! - [`snapshot`], [`lock`], [`config`], [`reason`]: the roots and the set-up
//! - [`overlay`]: what was written to an export
//! - [`wire`]: what proxies and repository servers say to each other
//! - [`trust`]: tokens, enrolment, and the names, roles and scopes of peers
//! - [`codec`]: how all of them are written

pub mod audit;
pub mod chunker;
pub mod codec;
pub mod config;
pub mod extent;
pub mod file_system;
pub mod id;
pub mod lineage;
pub mod lock;
pub mod maptree;
pub mod nbd;
pub mod overlay;
pub mod pack;
pub mod partition;
pub mod qcow2;
pub mod qmp;
pub mod ranges;
pub mod reason;
pub mod segment;
pub mod snapshot;
pub mod source;
pub mod trust;
pub mod units;
pub mod vhd;
pub mod wire;
pub mod xva;
