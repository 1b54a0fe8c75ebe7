//! Where the time comes from.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
pub use undercroft_format::trust::time::UnixMs;

pub use crate::wall_clock::{SetClock, SystemClock, WallClock};

/// As certificates are verified with.
pub(super) fn to_tls(time: UnixMs) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(time.as_millis()))
}

/// A client's time, as TLS takes it: its clock's.
#[derive(Debug)]
pub(super) struct ClientTime(pub Arc<dyn WallClock>);

impl TimeProvider for ClientTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(to_tls(self.0.now()))
    }
}
