//! QEMU's image format, version 3 ("QCOW2 and QCOW3", docs/interop/qcow2.rst of QEMU's sources): what is written.

pub mod layout;

pub use layout::{CLUSTER_LEN, Layout, UnfitSize};
