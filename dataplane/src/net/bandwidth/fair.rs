//! Who may move bytes next: a token bucket, shared by flows in turn. Decisions alone, with time given from
//! outside.
//!
//! Each flow has got a number of bytes; of those that wait, the one that got least goes first (start-time
//! fair queueing). A flow that comes back after it was idle begins where the others are: what it did not use
//! is not saved up.

use std::collections::{HashMap, VecDeque};

/// Those who share a limit in equal parts: a session, or a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow(pub u64);

/// The bucket fills up to what flows in so much of a second.
const BURST_PARTS: u64 = 10;
const SECOND_US: u64 = 1_000_000;
/// Flows that are remembered though they do not wait, before those that got their due are forgotten.
const FLOWS_KEPT: usize = 1024;

/// Those who wait, each with a `W` by which it is told that it may go.
#[derive(Debug)]
pub struct FairShare<W> {
    /// Bytes a second; no limit if there is none.
    rate: Option<u64>,
    /// In millionths of a byte; negative after more was given than there was.
    tokens: i128,
    at_us: u64,
    flows: HashMap<Flow, Queue<W>>,
    /// What the flow that was served last had got before.
    now: u64,
    waiting: usize,
}

#[derive(Debug)]
struct Queue<W> {
    got: u64,
    waiting: VecDeque<(u64, W)>,
}

impl<W> FairShare<W> {
    /// Nobody waits, and there is no limit.
    pub fn new(now_us: u64) -> Self {
        Self {
            rate: None,
            tokens: 0,
            at_us: now_us,
            flows: HashMap::new(),
            now: 0,
            waiting: 0,
        }
    }

    /// Bytes a second from now on.
    pub fn set_rate(&mut self, rate: Option<u64>, now_us: u64) {
        if rate != self.rate {
            self.fill(now_us);
            self.rate = rate;
            self.tokens = self.tokens.min(self.most());
        }
    }

    /// Wants to move `bytes` of `flow`.
    pub fn ask(&mut self, flow: Flow, bytes: u64, waiter: W) {
        let now = self.now;
        let queue = self.flows.entry(flow).or_insert_with(|| Queue {
            got: now,
            waiting: VecDeque::new(),
        });
        if queue.waiting.is_empty() {
            queue.got = queue.got.max(now);
        }
        queue.waiting.push_back((bytes, waiter));
        self.waiting += 1;
    }

    /// Lets those go who may; `go` says false of one who does not wait any more, and whose bytes are not
    /// counted.
    pub fn grant(&mut self, now_us: u64, mut go: impl FnMut(W) -> bool) {
        self.fill(now_us);
        while self.waiting > 0 && (self.rate.is_none() || self.tokens > 0) {
            let waiting = self
                .flows
                .values_mut()
                .filter(|queue| !queue.waiting.is_empty());
            let Some(queue) = waiting.min_by_key(|queue| queue.got) else {
                break;
            };
            let Some((bytes, waiter)) = queue.waiting.pop_front() else {
                break;
            };
            self.waiting -= 1;
            self.now = self.now.max(queue.got);
            if go(waiter) {
                queue.got += bytes;
                self.tokens -= i128::from(bytes) * i128::from(SECOND_US);
            }
        }
        if self.rate.is_none() {
            self.tokens = 0;
        }
        if self.flows.len() > FLOWS_KEPT {
            let now = self.now;
            self.flows
                .retain(|_, queue| !queue.waiting.is_empty() || queue.got > now);
        }
    }

    /// Microseconds until the next one may go; `None` if nobody waits.
    pub fn wait_us(&self) -> Option<u64> {
        let rate = self.rate.filter(|_| self.waiting > 0)?;
        let missing = (1 - self.tokens).max(0) as u128;
        Some(u64::try_from(missing.div_ceil(u128::from(rate))).unwrap_or(u64::MAX))
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    fn most(&self) -> i128 {
        let rate = self.rate.unwrap_or(0);
        i128::from(rate) * i128::from(SECOND_US / BURST_PARTS)
    }

    fn fill(&mut self, now_us: u64) {
        let passed = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        let more = i128::from(self.rate.unwrap_or(0)) * i128::from(passed);
        self.tokens = (self.tokens + more).min(self.most());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECE: u64 = 64 << 10;

    /// Bytes that each of `flows` moves in `ms`, with so many askers each who ask again at once.
    fn run(askers: &[usize], rate: u64, ms: u64) -> Vec<u64> {
        let mut share = FairShare::new(0);
        share.set_rate(Some(rate), 0);
        let mut moved = vec![0; askers.len()];
        for (flow, count) in askers.iter().enumerate() {
            (0..*count).for_each(|_| share.ask(Flow(flow as u64), PIECE, flow));
        }
        for ms in 1..=ms {
            let mut again = Vec::new();
            share.grant(ms * 1000, |flow| {
                again.push(flow);
                true
            });
            for flow in again {
                moved[flow] += PIECE;
                share.ask(Flow(flow as u64), PIECE, flow);
            }
        }
        moved
    }

    #[test]
    fn a_flow_with_many_askers_gets_no_more_than_one_with_one() {
        let rate = 10 << 20;
        let moved = run(&[32, 1, 4], rate, 10_000);
        let total: u64 = moved.iter().sum();
        assert!(total.abs_diff(rate * 10) <= rate / 5, "{moved:?}");
        for of_flow in &moved {
            assert!(of_flow.abs_diff(total / 3) <= 4 * PIECE, "{moved:?}");
        }
    }

    #[test]
    fn who_was_idle_has_saved_nothing_up() {
        let mut share = FairShare::new(0);
        share.set_rate(Some(PIECE * 1000), 0);
        for round in 1..100 {
            share.ask(Flow(1), PIECE, 1);
            share.grant(round * 1000, |_| true);
        }
        for _ in 0..50 {
            share.ask(Flow(1), PIECE, 1);
            share.ask(Flow(2), PIECE, 2);
        }
        let mut order = Vec::new();
        for ms in 100..120 {
            share.grant(ms * 1000, |flow| {
                order.push(flow);
                true
            });
        }
        let first = order.iter().filter(|flow| **flow == 1).count();
        assert!(first.abs_diff(order.len() / 2) <= 2, "{order:?}");
    }

    #[test]
    fn limits_come_change_and_go_at_once() {
        let mut share = FairShare::new(0);
        share.set_rate(Some(PIECE), 0);
        (0..10).for_each(|number| share.ask(Flow(number), PIECE, number));
        let count = |share: &mut FairShare<u64>, now| {
            let mut count = 0;
            share.grant(now, |_| {
                count += 1;
                true
            });
            count
        };
        assert_eq!(count(&mut share, 100_000), 1);
        assert_eq!(count(&mut share, 200_000), 0);
        // What was overdrawn is paid back first.
        let wait = share.wait_us().expect("somebody waits");
        assert_eq!(count(&mut share, 200_000 + wait - 1), 0);
        assert_eq!(count(&mut share, 200_000 + wait), 1);
        share.set_rate(None, 1_500_000);
        assert_eq!(count(&mut share, 1_500_000), 8);
        assert_eq!(share.wait_us(), None);
    }

    proptest! {
        /// In no stretch of time more than the rate and one burst and piece, and never less while somebody
        /// waits.
        #[test]
        fn the_rate_is_kept(
            rate in (128_u64 << 10)..(1 << 30),
            askers in prop::collection::vec(1..8_usize, 1..5),
            ms in 500..3000_u64,
        ) {
            let moved: u64 = run(&askers, rate, ms).iter().sum();
            let due = rate * ms / 1000;
            prop_assert!(moved <= due + rate / 10 + PIECE, "{} of {}", moved, due);
            // A bucket of a tenth of a second can run over between two looks a millisecond apart only if
            // fewer wait than it holds.
            let at_once = askers.iter().sum::<usize>() as u64 * PIECE;
            let least = due.min(at_once * ms);
            prop_assert!(moved + rate / 10 + PIECE >= least, "{} of {}", moved, least);
        }

        /// Whatever the order: who waits gets through, once.
        #[test]
        fn nobody_is_forgotten(asks in prop::collection::vec((0..5_u64, 1..200_000_u64), 0..100)) {
            let mut share = FairShare::new(0);
            share.set_rate(Some(1 << 20), 0);
            let mut gone = vec![0; asks.len()];
            for (number, (flow, bytes)) in asks.iter().enumerate() {
                share.ask(Flow(*flow), *bytes, number);
            }
            let mut now = 0;
            while let Some(wait) = share.wait_us() {
                now += wait.max(1);
                share.grant(now, |number| {
                    gone[number] += 1;
                    true
                });
            }
            prop_assert!(gone.iter().all(|times| *times == 1));
            prop_assert_eq!(share.waiting(), 0);
        }
    }
}
