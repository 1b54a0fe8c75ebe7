//! Decides: which snapshot a name means, which snapshots to keep.
//!
//! Nothing here reads a clock, a file or the environment. The caller lists the snapshots of a
//! repository as [`SnapshotSummary`] and passes the time zone in which people read calendars; what comes
//! back is an id, or a [`Decision`] per snapshot, and the caller acts on it. The same input gives the
//! same answer, in whatever order the snapshots are listed.
//!
//! - [`selection`]: `web01@latest`, `web01@2026-11-22`, `3f9c` → one snapshot id, or an error that says
//!   what was meant instead
//! - [`retention`]: a [`Policy`] and the snapshots → keep or prune, with the reasons
//! - [`within`]: the durations a policy is written with, as in `1y6m`
//!
//! ```
//! use jiff::tz::TimeZone;
//! use undercroft_control::{Policy, SnapshotSpec, SnapshotSummary, plan};
//! use undercroft_format::id::SnapshotId;
//!
//! let snapshot = |day: u8| SnapshotSummary {
//!     id: SnapshotId::from_bytes([day; 16]),
//!     vm: "web01".to_owned(),
//!     time: format!("2026-11-{day}T03:00:00Z").parse().unwrap(),
//!     tags: Vec::new(),
//!     protected: false,
//!     locked_until: None,
//! };
//! let snapshots = [snapshot(20), snapshot(21), snapshot(22)];
//!
//! let spec: SnapshotSpec = "web01@2026-11-21".parse()?;
//! assert_eq!(spec.resolve(&snapshots, &TimeZone::UTC)?, snapshots[1].id);
//!
//! let policy = Policy { within: Some("1d12h".parse()?), ..Policy::default() };
//! let pruned: Vec<_> = plan(&snapshots, &policy, &TimeZone::UTC)?
//!     .into_iter()
//!     .filter(|decision| !decision.keep)
//!     .map(|decision| decision.id)
//!     .collect();
//! assert_eq!(pruned, [snapshots[0].id]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod retention;
pub mod selection;
pub mod within;

mod near;

pub use retention::{Decision, Policy, PolicyError, plan};
pub use selection::{SelectError, SnapshotSpec, SnapshotSummary};
pub use within::{ParseWithinError, Within};
