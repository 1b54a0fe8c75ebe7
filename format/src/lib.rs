//! What Undercroft's bytes mean. No files, sockets, clocks or threads.

pub mod codec;
pub mod extent;
pub mod id;
pub mod maptree;
pub mod pack;
pub mod segment;
pub mod units;
