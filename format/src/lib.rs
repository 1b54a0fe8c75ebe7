//! What Undercroft's bytes mean. No files, sockets, clocks or threads.

pub mod chunker;
pub mod id;
pub mod partition;
pub mod units;
