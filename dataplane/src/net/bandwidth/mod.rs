//! Limits of bandwidth by schedule.
//!
//! [`rate`] and [`rule`] are what a person writes, [`fair`] decides who may move bytes next, [`throttle`]
//! makes streams wait. Only payload is counted: records on lanes and in answers to fetches. Questions,
//! answers and acknowledgements never wait.

pub mod fair;
pub mod rate;
pub mod rule;
pub mod throttle;

pub use fair::Flow;
pub use rate::ByteRate;
pub use rule::{Rule, Rules};
pub use throttle::{Pace, Throttle};
