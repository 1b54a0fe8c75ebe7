//! What hypervisors hand over.

pub mod cbt;
pub mod changed;
pub mod extents;
