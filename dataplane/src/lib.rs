//! Moves the bytes: disks to chunks to packs, and back.
//!
//! - [`io`]: files, devices and the engines that serve them; the only `unsafe` besides SIMD kernels
//! - [`ingest`]: source, reader, chunker, hasher, prober, compressor, pusher
//! - [`repository`]: packs, index, snapshots; collection, verification, repair
//! - [`restore`]: plan, fetch, decode, write
//! - [`disk`]: a disk that can be read anywhere; [`view`]: those of stored snapshots
//! - [`partitions`]: its parts, and what they hold; [`files`]: the files in them
//! - [`overlay`]: what is written to a disk that is exported
//! - [`nbd`]: disks over NBD; [`vhd`]: disks in VHDs; [`qemu`]: those of a running guest
//! - [`net`]: the same over QUIC: server, client, trust
//! - [`observe`]: what a daemon shows to those who watch it
//! - [`progress`], [`clock`]: what a run tells about itself; [`measure`]: what `bench` measures
//! - [`simulate`]: what a simulation puts in place of the machine

pub mod clock;
pub mod disk;
pub mod files;
pub mod ingest;
pub mod io;
pub mod measure;
pub mod nbd;
pub mod net;
pub mod observe;
pub mod overlay;
pub mod partitions;
pub mod progress;
pub mod qemu;
pub mod repository;
pub mod restore;
pub mod simulate;
pub mod vhd;
pub mod view;
pub mod wall_clock;
