//! VHDs as disks: their holes are never read, and the sectors that are there are read straight from the file.
//!
//! - [`layer`]: one file; [`disk`]: a file and its parents as one disk
//! - [`chain`]: which files belong together
//! - [`delta`]: differencing files as what changed since a snapshot
//! - [`piped`]: a VHD that comes as a stream
//! - [`error`]: what can be wrong with them

pub mod chain;
pub mod delta;
pub mod disk;
pub mod error;
pub mod layer;
pub mod piped;
