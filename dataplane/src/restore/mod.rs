//! From chunks back to disks.
