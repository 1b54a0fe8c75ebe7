//! The repository behind a server: its address.

pub mod address;
