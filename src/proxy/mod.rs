//! Proxies: backups and restores on another machine.
//!
//! A client makes a task of a request ([`tasks`]), submits it ([`through`]) and follows it ([`follow`]). On the
//! proxy [`worker`] makes the request of the task again and does the work as a command would, within
//! [`bounds`] and of [`exports`]; [`task_runner`] is what differs from a command, [`noted`] a repository whose sessions can be gone
//! on with.

pub mod bounds;
pub mod exports;
mod follow;
mod noted;
mod task_runner;
pub mod tasks;
mod through;
pub mod worker;

pub use through::{Named, Through};
