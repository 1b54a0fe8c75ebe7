//! The dedup store: packs, the chunk index, snapshots.

pub mod index;
