//! What can be wrong with VHDs that should be read.

use std::io;

use undercroft_format::vhd::image::OpenError;
use undercroft_format::vhd::uuid::VhdUuid;

/// VHDs cannot be read as a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhdFileError {
    /// No file.
    #[error("opening the VHD {path}")]
    Open {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// No VHD, or one that is damaged.
    #[error("reading the VHD {path}")]
    Image {
        /// The file.
        path: String,
        /// What is wrong, and where.
        source: OpenError<io::Error>,
    },
    /// A differencing disk whose parent is not there.
    #[error(
        "the VHD {child} holds what changed since its parent {parent} ({}), which is not in its directory", called(.names)
    )]
    ParentMissing {
        /// The file.
        child: String,
        /// Who the parent is.
        parent: VhdUuid,
        /// What it may be called.
        names: Vec<String>,
    },
    /// A file in the place of another one's parent.
    #[error("the parent of the VHD {child} is {expected}, but {path} is {found}")]
    OtherParent {
        /// The child.
        child: String,
        /// Who its parent is.
        expected: VhdUuid,
        /// The file in its place.
        path: String,
        /// Who that is.
        found: VhdUuid,
    },
    /// Files below one that has no parent.
    #[error("the VHD {path} is a whole disk and has no parent: {next} cannot be one")]
    NoChild {
        /// The whole disk.
        path: String,
        /// What was named after it.
        next: String,
    },
    /// A whole disk where a difference is expected.
    #[error("the VHD {path} is a whole disk, not what changed since another one")]
    NoDelta {
        /// The file.
        path: String,
    },
    /// A differencing disk without its parent.
    #[error("the VHD {path} holds what changed since its parent, which a stream does not bring")]
    ChildInStream {
        /// What the stream is called.
        path: String,
    },
    /// Too many files, or parents in a circle.
    #[error("the VHD {path} has more than {max} parents, or is its own")]
    Depth {
        /// The first child.
        path: String,
        /// As many as are read.
        max: usize,
    },
}

fn called(names: &[String]) -> String {
    match names {
        [] => "nothing says what it is called".to_owned(),
        names => format!("called {}", names.join(" or ")),
    }
}
