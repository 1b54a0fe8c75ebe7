//! What Undercroft's bytes mean. No files, sockets, clocks or threads.

pub mod id;
pub mod units;
