//! How many requests a device should have at once: a hill climb on bytes per second, no clock, no I/O.
//!
//! The controller measures windows at one depth, tries the next depth up or down, and stays there if that
//! paid: more depth must earn its latency with a faster window, less depth may cost next to nothing. A
//! try that did not pay is taken back and the depth rests for a while. Time in which the device had less
//! to do than the depth allows says nothing about the device, and such windows are thrown away.

use std::time::Duration;

/// Depth before anything is measured: where the reference disks reach most of their speed.
const DEPTH_START: u32 = 8;

/// Fewest requests at once; with one, the device idles while its completion is handled.
const DEPTH_MIN: u32 = 2;

/// A window is at least this many requests per unit of depth, so that one slow request does not decide.
const WINDOW_ROUNDS: u32 = 8;

/// And at least this long, for the same reason on fast devices.
const WINDOW_MIN: Duration = Duration::from_millis(20);

/// A deeper queue must be this much faster, in percent of the speed before.
const GAIN_TO_DEEPEN: u64 = 104;

/// A shallower one may be no slower than this, in percent of the speed before.
const GAIN_TO_SHALLOW: u64 = 99;

/// Windows to rest after a try that did not pay; a changed device is noticed within about this many.
const REST_WINDOWS: u32 = 10;

/// The depth in use and how it was found.
#[derive(Debug)]
pub(super) struct DepthController {
    depth: u32,
    max: u32,
    direction: Step,
    phase: Phase,
    window: Window,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Deeper,
    Shallower,
}

#[derive(Debug)]
enum Phase {
    /// At the known depth: measure, then try another once no rest is left.
    Settled { rest: u32 },
    /// At a depth on trial; `from` is where to go back to and `rate` what was measured there.
    Trial { from: u32, rate: u64 },
}

#[derive(Debug, Default)]
struct Window {
    start: Duration,
    requests: u32,
    bytes: u64,
}

impl DepthController {
    /// Never more than `max`, never less than two unless `max` is.
    pub(super) fn new(max: u32) -> DepthController {
        let max = max.max(1);
        DepthController {
            depth: DEPTH_START.min(max),
            max,
            direction: Step::Deeper,
            phase: Phase::Settled { rest: 0 },
            window: Window::default(),
        }
    }

    /// Requests to have on the device at once.
    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    /// A request of `bytes` bytes is done at `now`, counted from any fixed moment. `saturated` tells
    /// whether the device had as many requests as the depth allows.
    pub(super) fn completed(&mut self, bytes: u64, now: Duration, saturated: bool) {
        if !saturated {
            self.window = Window {
                start: now,
                ..Window::default()
            };
            return;
        }
        self.window.requests += 1;
        self.window.bytes += bytes;
        let elapsed = now.saturating_sub(self.window.start);
        if self.window.requests >= WINDOW_ROUNDS * self.depth && elapsed >= WINDOW_MIN {
            let rate =
                self.window.bytes.saturating_mul(1_000_000) / (elapsed.as_micros() as u64).max(1);
            self.window = Window {
                start: now,
                ..Window::default()
            };
            self.window_measured(rate);
        }
    }

    fn window_measured(&mut self, rate: u64) {
        match self.phase {
            Phase::Settled { rest: 0 } => self.start_trial(rate),
            Phase::Settled { rest } => self.phase = Phase::Settled { rest: rest - 1 },
            Phase::Trial { from, rate: before } => {
                let needed = match self.direction {
                    Step::Deeper => GAIN_TO_DEEPEN,
                    Step::Shallower => GAIN_TO_SHALLOW,
                };
                if rate.saturating_mul(100) >= before.saturating_mul(needed) {
                    self.start_trial(rate);
                } else {
                    self.depth = from;
                    self.turn();
                    self.phase = Phase::Settled { rest: REST_WINDOWS };
                }
            }
        }
    }

    /// Goes one step on from a depth at which `rate` was measured, or rests at the end of the range.
    fn start_trial(&mut self, rate: u64) {
        let step = (self.depth / 4).max(1);
        let target = match self.direction {
            Step::Deeper => self.depth + step,
            Step::Shallower => self.depth.saturating_sub(step),
        };
        let target = target.clamp(DEPTH_MIN.min(self.max), self.max);
        if target == self.depth {
            self.turn();
            self.phase = Phase::Settled { rest: REST_WINDOWS };
        } else {
            self.phase = Phase::Trial {
                from: self.depth,
                rate,
            };
            self.depth = target;
        }
    }

    fn turn(&mut self) {
        self.direction = match self.direction {
            Step::Deeper => Step::Shallower,
            Step::Shallower => Step::Deeper,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: u64 = 256 * 1024;

    /// Runs the controller for `requests` against a device whose bytes per second depend on the depth.
    fn run(controller: &mut DepthController, requests: u32, rate: impl Fn(u32) -> u64) {
        let mut now = Duration::from_secs(1);
        for _ in 0..requests {
            now += Duration::from_nanos(REQUEST * 1_000_000_000 / rate(controller.depth()));
            controller.completed(REQUEST, now, true);
            assert!((1..=controller.max).contains(&controller.depth()));
        }
    }

    #[test]
    fn a_device_that_scales_is_driven_to_the_maximum() {
        let mut controller = DepthController::new(64);
        assert_eq!(controller.depth(), 8);
        run(&mut controller, 20_000, |depth| {
            u64::from(depth) * 50_000_000
        });
        assert!(controller.depth() >= 48, "{controller:?}");
    }

    #[test]
    fn a_device_that_saturates_early_gets_a_shallow_queue() {
        let mut controller = DepthController::new(64);
        run(&mut controller, 20_000, |depth| {
            u64::from(depth.min(4)) * 300_000_000
        });
        assert!((3..=6).contains(&controller.depth()), "{controller:?}");
    }

    #[test]
    fn a_device_that_thrashes_when_deep_is_backed_off() {
        let mut controller = DepthController::new(32);
        run(&mut controller, 20_000, |depth| {
            200_000_000 / u64::from(depth)
        });
        assert!(controller.depth() <= 3, "{controller:?}");
    }

    #[test]
    fn idle_time_teaches_nothing() {
        let mut controller = DepthController::new(32);
        for second in 0..10_000 {
            controller.completed(REQUEST, Duration::from_secs(second), false);
        }
        assert_eq!(controller.depth(), 8);
    }

    #[test]
    fn the_range_is_kept_for_tiny_maxima() {
        for max in 0..4 {
            let mut controller = DepthController::new(max);
            run(&mut controller, 2_000, |depth| {
                u64::from(depth) * 50_000_000
            });
            assert!(controller.depth() <= max.max(1));
        }
    }
}
