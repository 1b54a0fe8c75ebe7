//! Why a file cannot be had.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use undercroft_format::file_system::FileSystemKind;

/// Of this module.
pub type Result<T> = std::result::Result<T, FileError>;

/// Why something inside a disk cannot be had.
#[derive(Clone, Debug, Error)]
pub enum FileError {
    /// There is nothing of that name.
    #[error("there is no such file")]
    NotFound,
    /// Something that was to be a directory is something else.
    #[error("it is not a directory")]
    NotADirectory,
    /// Something that was to be a file is something else.
    #[error("it is not a file")]
    NotAFile,
    /// Links that lead to links, more than 40 times.
    #[error("its links lead to each other")]
    TooManyLinks,
    /// A path of more than 4096 bytes.
    #[error("its path is longer than 4096 bytes")]
    TooLong,
    /// A name that is none: empty, a dot, with a slash or a NUL.
    #[error("it has a name that no file can have")]
    BadName,
    /// A name that comes twice, or that the place where it is to be written does not take.
    #[error("nothing of that name can be made: {0}")]
    Unnameable(String),
    /// Bytes of the disk cannot be read.
    #[error("{0}")]
    Unreadable(Arc<io::Error>),
    /// What is on the disk makes no sense.
    #[error("the file system is damaged: {0}")]
    Damaged(String),
    /// The file system has something that its reader does not know.
    #[error("the file system cannot be read here: {0}")]
    Unsupported(String),
    /// There is no reader for this kind.
    #[error("{kind} cannot be read here")]
    NoReader {
        /// The kind.
        kind: FileSystemKind,
    },
    /// Directories in each other, more than anybody makes.
    #[error("it lies more than 200 directories deep")]
    TooDeep,
    /// A tree with more directories than there is room for on the disk.
    #[error("the file system is damaged: its directories lead to each other")]
    Endless,
}

impl FileError {
    /// Whether this is damage: other files may still be had.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Unreadable(_)
                | Self::Damaged(_)
                | Self::Endless
                | Self::TooDeep
                | Self::BadName
                | Self::Unnameable(_)
        )
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(Arc::new(error))
    }
}
