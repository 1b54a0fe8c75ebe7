//! Telling the service manager how a daemon is: systemd's `sd_notify(3)`. Without one nothing is said.

use sd_notify::NotifyState;

use crate::failure::warn;

/// The daemon listens at `address`.
pub fn is_ready(address: impl std::fmt::Display) {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("listening on {address}")),
    ]);
}

/// The daemon shuts down in order, which may take a while.
pub fn is_stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("shutting down: making durable what was pushed"),
    ]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn(format_args!("telling the service manager failed: {error}"));
    }
}
