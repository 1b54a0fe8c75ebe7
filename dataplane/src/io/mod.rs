//! Disks: the memory their bytes pass through, the files, and what drives them.
//!
//! - [`buffer`]: the arena all disk bytes pass through, which bounds a run's memory
//! - [`file`](mod@file): the trait of a place bytes are kept; [`os_file`]: a file or device of the system, also direct
//! - [`engine`]: transfers between buffers and files, and the traits of what carries them out;
//!   [`choose`](mod@choose): which one a run gets
//! - [`uring`], [`posix`]: the two real engines
//! - [`storage`]: the repository's name space; [`local`]: in a directory of the system
//! - [`sim`]: files, names and an engine in memory, with faults and power failures
//!
//! `unsafe` is allowed here and in the SIMD kernels, nowhere else. It rests on one rule: memory lent to the
//! kernel belongs to a queue, which gives it back, or is dropped, only when the kernel has let go of it.

pub mod buffer;
pub mod choose;
mod depth;
pub mod engine;
pub mod file;
mod granules;
pub mod local;
pub mod os_file;
pub mod posix;
mod request;
mod schedule;
pub mod sim;
mod slab;
pub mod storage;
pub mod uring;

#[cfg(test)]
mod tests;

pub use buffer::{Buffer, BufferPool};
pub use choose::{EngineRequest, choose};
pub use engine::{
    Direction, Done, Engine, EngineChoice, EngineError, EngineKind, Piece, Queue, REQUEST_LEN_MAX,
    Transfer, TransferError, WRITE_REQUEST_LEN_MAX,
};
pub use file::BlockFile;
pub use local::{LocalStorage, create_private_dir};
pub use os_file::{OsFile, PRIVATE_FILE};
pub use sim::{SimEngine, SimFile, SimOp, SimStorage};
pub use storage::{Entry, Storage};
