//! The partition tables of a guest's disk: where its partitions lie, and the phase of the grid that chunks follow.
//!
//! [`read_table`] finds partitions as Linux numbers them; [`grid_phase`] looks at the start of a disk alone, and
//! decides nothing but how well a disk deduplicates.

mod gpt;
mod kind;
mod mbr;
mod phase;
mod table;
#[cfg(test)]
mod table_tests;

pub use kind::{Guid, PartitionKind};
pub use phase::{PARTITION_HEAD_LEN, grid_phase};
pub use table::{
    Partition, PartitionNumber, PartitionTable, Scheme, TableError, TableNote, read_table,
};
