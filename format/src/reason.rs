//! Reason codes: why a backup did what it did, for people and for scripts.

use std::fmt;

use serde::Serialize;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why a disk was read in full, or what held a run up. The text form is stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// The number that stands for it at rest.
            pub const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            /// The reason that a number stands for.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The text that listings and JSON show.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// No parent and no changed blocks were given.
    Requested = 1, "full:requested";
    /// Changed blocks were given, but no parent to apply them to.
    NoParent = 2, "full:no-parent";
    /// A parent was given, but no changed blocks.
    NoChangedBlocks = 3, "full:no-changed-blocks";
    /// The parent does not have a disk of this label.
    DiskNotInParent = 4, "full:disk-not-in-parent";
    /// The bitmap is shorter than the disk needs.
    BitmapTooShort = 5, "full:bitmap-too-short";
    /// The bitmap covers more than the disk.
    BitmapTooLong = 6, "full:bitmap-too-long";
    /// The bitmap could not be read, or not decoded.
    BitmapUnreadable = 7, "full:bitmap-unreadable";
    /// The parent was cut into segments of another size or by another chunker.
    ParentLayout = 8, "full:parent-layout";
    /// The parent has damaged or missing chunks.
    ParentDamaged = 9, "full:parent-damaged";
    /// The source has no addresses: an opaque stream.
    Stream = 10, "full:stream";
    /// The disk shrank below the parent's size; the bitmap is trusted for what is left.
    Shrunk = 11, "note:disk-shrunk";
    /// The disk grew; the bytes past the parent's size were read.
    Grown = 12, "note:disk-grown";
    /// The parent is a snapshot of another VM.
    ParentOfOtherVm = 13, "note:parent-of-other-vm";
    /// The list of changed extents could not be read, or tells of something else.
    ExtentsUnreadable = 14, "full:extents-unreadable";
    /// The list of changed extents belongs to another disk or size.
    ExtentsOfOtherDisk = 15, "full:extents-of-other-disk";
    /// The server does not have the dirty bitmap, or did not tell of it.
    NoDirtyBitmap = 16, "full:no-dirty-bitmap";
    /// The parent is of another virtual disk.
    LineageVdi = 17, "full:lineage-vdi";
    /// The changes begin at another state of the disk than the parent's.
    LineageBase = 18, "full:lineage-base";
    /// Changes were tracked anew since the parent.
    LineageCbt = 19, "full:lineage-cbt";
    /// The changes are those of another bitmap than the parent's.
    LineageBitmap = 20, "full:lineage-bitmap";
    /// Blocks that were said to be unchanged were not.
    AuditMismatch = 21, "full:audit-mismatch";
    /// Nothing says that the changes begin where the parent ends.
    LineageUnchecked = 22, "note:lineage-unchecked";
    /// Something was found where the source says that there are zeros: all of it was read.
    HolesUntrue = 23, "note:holes-untrue";
    /// Most of the time went into waiting for the source.
    WaitedForSource = 32, "slow:source";
    /// Most of the time went into CPU work: cutting, hashing, compressing.
    WaitedForCpu = 33, "slow:cpu";
    /// Most of the time went into waiting for the repository's disk.
    WaitedForRepository = 34, "slow:repository";
    /// io_uring was not permitted; plain system calls served.
    PlainIo = 35, "slow:no-io-uring";
    /// The source could not be opened with O_DIRECT.
    NoDirectIo = 36, "slow:no-direct-io";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}
