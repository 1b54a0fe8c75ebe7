//! Disk to repository: the stages that a backup's bytes pass, in their order.

pub mod chunker;
