//! What goes wrong on a simulated disk, and when: chosen failures, and the moment the power goes.

use std::io;

use rustix::io::Errno;

/// A kind of operation, to make one of them fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SimOp {
    /// Opening an existing file.
    Open,
    /// Creating a file.
    Create,
    /// Reading from a file.
    Read,
    /// Writing to a file.
    Write,
    /// Changing a file's length.
    SetLen,
    /// Zeroing a range of a file.
    Punch,
    /// Making a file durable.
    Sync,
    /// Making a directory's names durable.
    SyncDir,
    /// Listing a directory.
    List,
    /// Renaming.
    Rename,
    /// Removing a file or directory.
    Remove,
    /// Creating a directory.
    CreateDir,
}

/// The failures to come and the operations so far.
#[derive(Debug)]
pub(super) struct Faults {
    /// Mutating operations carried out.
    ops: u64,
    crash_after: u64,
    armed: Vec<Armed>,
}

#[derive(Debug)]
struct Armed {
    kind: SimOp,
    /// How many more of the kind come first.
    before: u64,
    errno: i32,
}

impl Faults {
    /// Nothing goes wrong.
    pub(super) fn none() -> Faults {
        Faults {
            ops: 0,
            crash_after: u64::MAX,
            armed: Vec::new(),
        }
    }

    /// Mutating operations carried out.
    pub(super) fn op_count(&self) -> u64 {
        self.ops
    }

    /// Notes a mutating operation that has been carried out.
    pub(super) fn mutated(&mut self) {
        self.ops += 1;
    }

    /// Lets the power go once `op_count` mutating operations have been carried out.
    pub(super) fn set_crash_after(&mut self, op_count: u64) {
        self.crash_after = op_count;
    }

    /// Lets the `n`-th operation of a kind from now fail, counted from one.
    pub(super) fn fail_nth(&mut self, kind: SimOp, n: u64, errno: i32) {
        self.armed.push(Armed {
            kind,
            before: n.saturating_sub(1),
            errno,
        });
    }

    /// Whether the disk still has power.
    pub(super) fn check_power(&self) -> io::Result<()> {
        if self.ops >= self.crash_after {
            return Err(io::Error::other("simulated power failure"));
        }
        Ok(())
    }

    /// Lets nothing fail any more.
    pub(super) fn clear(&mut self) {
        self.crash_after = u64::MAX;
        self.armed.clear();
    }

    /// Asked before every operation: whether it may go on.
    pub(super) fn check(&mut self, kind: SimOp) -> io::Result<()> {
        self.check_power()?;
        let mut failure = None;
        self.armed.retain_mut(|armed| {
            if armed.kind != kind {
                return true;
            }
            if armed.before == 0 && failure.is_none() {
                failure = Some(armed.errno);
                return false;
            }
            armed.before = armed.before.saturating_sub(1);
            true
        });
        match failure {
            Some(errno) => Err(Errno::from_raw_os_error(errno).into()),
            None => Ok(()),
        }
    }
}
