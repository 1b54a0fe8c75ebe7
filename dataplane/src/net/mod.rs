//! The repository behind a server: its address, and trust between the two ends.

pub mod address;
pub mod trust;
