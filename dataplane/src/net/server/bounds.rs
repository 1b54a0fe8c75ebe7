//! What a server puts up with from those whom it let in.

use std::sync::Arc;
use std::time::Duration;

use crate::net::bandwidth::{Flow, Pace, Rules, Throttle};
use crate::net::manners::{FRAMES_LEN_MAX, FrameRoom, Manners};
use crate::net::status::LimitStatus;
use crate::net::transport::{CONNECTION_WINDOW, IDLE_TIMEOUT, SEND_WINDOW};

/// Most bytes of memory that one connection can make the server hold for it, besides its streams' threads and what
/// its sessions and fetches take: what has come and was not read, frames that are received or worked on, and what
/// was sent and not acknowledged.
pub const CONNECTION_LEN_MAX: u64 = CONNECTION_WINDOW as u64 + FRAMES_LEN_MAX as u64 + SEND_WINDOW;

/// Limits that an operator may set.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// How long nothing may move where something has to: in the middle of a frame, or of an answer.
    pub stall: Duration,
    /// How long a connection may do without a repository before it says what it wants.
    pub silence: Duration,
    /// The bandwidth of records that come.
    pub incoming: Rules,
    /// The bandwidth of records that go.
    pub outgoing: Rules,
}

impl Default for ServerLimits {
    /// A connection that is cut off for less than its own timeout has not stalled.
    fn default() -> Self {
        Self {
            stall: IDLE_TIMEOUT,
            silence: IDLE_TIMEOUT,
            incoming: Rules::default(),
            outgoing: Rules::default(),
        }
    }
}

/// The limits at work.
pub struct Bounds {
    stall: Duration,
    /// See [`ServerLimits::silence`].
    pub silence: Duration,
    incoming: Arc<Throttle>,
    outgoing: Arc<Throttle>,
}

impl Bounds {
    /// Of a server that begins.
    pub fn new(limits: &ServerLimits) -> Self {
        Self {
            stall: limits.stall,
            silence: limits.silence,
            incoming: Throttle::new(limits.incoming.clone()),
            outgoing: Throttle::new(limits.outgoing.clone()),
        }
    }

    /// How the streams of a connection are read and written; `number` is the connection's.
    pub fn manners(&self, number: u64) -> Manners {
        let pace = |throttle: &Arc<Throttle>| {
            let throttle = throttle.clone();
            let flow = Flow(number);
            (!throttle.rules().rules().is_empty()).then_some(Pace { throttle, flow })
        };
        Manners {
            stall: Some(self.stall),
            room: Some(FrameRoom::default()),
            incoming: pace(&self.incoming),
            outgoing: pace(&self.outgoing),
        }
    }

    /// For an administrator.
    pub fn status(&self) -> Vec<LimitStatus> {
        let directions = [("in", &self.incoming), ("out", &self.outgoing)];
        let limited = directions
            .into_iter()
            .filter(|(_, throttle)| !throttle.rules().rules().is_empty());
        limited
            .map(|(direction, throttle)| LimitStatus {
                direction: direction.to_owned(),
                bytes_per_second: throttle.rate().map(|rate| rate.per_second()),
                rules: throttle
                    .rules()
                    .rules()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_a_connection_takes() {
        let document = include_str!("../../../../docs/protocol.md").replace('\n', " ");
        let said = format!(
            "at most {} MiB per connection: {} MiB of window, {} MiB of frames, and {} MiB of what was sent and not \
             acknowledged",
            CONNECTION_LEN_MAX >> 20,
            CONNECTION_WINDOW >> 20,
            FRAMES_LEN_MAX >> 20,
            SEND_WINDOW >> 20
        );
        assert!(document.contains(&said), "{said}");
    }
}
