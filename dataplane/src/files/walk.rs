//! All that lies in a directory, and in those below.

use super::error::{FileError, Result};
use super::name::FilePath;
use super::tree::{Bounds, DirectoryEntry, FileTree, Listing};

/// Directories in each other; a walk holds one open file for each where it writes.
pub const DEPTH_MAX: usize = 200;

/// What a walk came to.
pub enum Step<'a> {
    /// A directory begins: what is in it comes next.
    Enter(&'a FilePath),
    /// Something in that directory.
    Entry(&'a FilePath, &'a DirectoryEntry),
    /// Something of that directory cannot be had.
    Fault(&'a FilePath, &'a FileError),
    /// All that is in the directory has come.
    Leave(&'a FilePath),
}

/// Whether a walk goes into a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend {
    /// It does.
    Yes,
    /// It goes on behind it.
    No,
}

/// Goes through the directory `path`; what `visit` says of an [`Entry`](Step::Entry) that is a directory counts.
///
/// Directories that are damaged are [faults](Step::Fault). The walk ends, whatever is on the disk: links are not
/// followed, and it comes to no more than [`FileTree::bounds`].
///
/// # Errors
/// Those of `visit`.
pub fn walk<E>(
    tree: &dyn FileTree,
    path: &FilePath,
    visit: &mut dyn FnMut(Step<'_>) -> std::result::Result<Descend, E>,
) -> std::result::Result<(), E> {
    let mut left = tree.bounds();
    enter(tree, path, 0, &mut left, visit)
}

fn enter<E>(
    tree: &dyn FileTree,
    path: &FilePath,
    depth: usize,
    left: &mut Bounds,
    visit: &mut dyn FnMut(Step<'_>) -> std::result::Result<Descend, E>,
) -> std::result::Result<(), E> {
    visit(Step::Enter(path))?;
    match list(tree, path, depth, left) {
        Ok(listing) => {
            for fault in &listing.faults {
                visit(Step::Fault(path, fault))?;
            }
            for entry in &listing.entries {
                let descend = visit(Step::Entry(path, entry))?;
                let is_directory = entry.info.as_ref().is_ok_and(|info| info.is_directory());
                if is_directory && descend == Descend::Yes {
                    enter(tree, &path.join(&entry.name), depth + 1, left, visit)?;
                }
            }
        }
        Err(error) => drop(visit(Step::Fault(path, &error))?),
    }
    visit(Step::Leave(path))?;
    Ok(())
}

fn list(tree: &dyn FileTree, path: &FilePath, depth: usize, left: &mut Bounds) -> Result<Listing> {
    if depth > DEPTH_MAX {
        return Err(FileError::TooDeep);
    }
    left.directories = left.directories.checked_sub(1).ok_or(FileError::Endless)?;
    let listing = tree.list(path)?;
    let entries = listing.entries.len() as u64;
    left.entries = left
        .entries
        .checked_sub(entries)
        .ok_or(FileError::Endless)?;
    Ok(listing)
}
