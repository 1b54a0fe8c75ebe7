//! Moves the bytes: disks to chunks to packs, and back.

pub mod repository;
