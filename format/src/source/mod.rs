//! What hypervisors hand over.

pub mod cbt;
