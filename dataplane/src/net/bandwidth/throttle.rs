//! Makes streams wait for their share of a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::fair::{FairShare, Flow};
use super::rate::ByteRate;
use super::rule::Rules;
use crate::clock::Stopwatch;

/// How often it is looked at which rules hold: so late at most does a change of schedule count.
const LOOK_EVERY_US: u64 = 250_000;
/// `limited` if there is no limit at present.
const UNLIMITED: u64 = u64::MAX;

/// A limit of one direction, for all that this process moves.
pub struct Throttle {
    rules: Rules,
    clock: Stopwatch,
    /// When the rules are to be looked at next, in microseconds, while there is no limit; else 0.
    unlimited_until_us: AtomicU64,
    state: Mutex<State>,
}

struct State {
    share: FairShare<oneshot::Sender<()>>,
    looked_us: Option<u64>,
    is_driven: bool,
}

impl Throttle {
    /// A limit by `rules`.
    pub fn new(rules: Rules) -> Arc<Self> {
        let unlimited = if rules.rules().is_empty() {
            UNLIMITED
        } else {
            0
        };
        Arc::new(Self {
            rules,
            clock: Stopwatch::start(),
            unlimited_until_us: AtomicU64::new(unlimited),
            state: Mutex::new(State {
                share: FairShare::new(0),
                looked_us: None,
                is_driven: false,
            }),
        })
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The rate that holds now.
    pub fn rate(&self) -> Option<ByteRate> {
        self.rules.rate_at(Timestamp::now())
    }

    /// Waits until `bytes` of `flow` may be moved. To be called within a tokio runtime.
    pub async fn take(self: &Arc<Self>, flow: Flow, bytes: u64) {
        let now_us = self.now_us();
        if bytes == 0 || now_us < self.unlimited_until_us.load(Ordering::Relaxed) {
            return;
        }
        let (told, go) = oneshot::channel();
        {
            let mut state = self.state.lock();
            self.look(&mut state, now_us);
            state.share.ask(flow, bytes, told);
            self.grant(&mut state, now_us);
            if state.share.waiting() > 0 && !state.is_driven {
                state.is_driven = true;
                tokio::spawn(self.clone().drive());
            }
        }
        // Its other end is dropped only after it was used, or with the throttle.
        let _ = go.await;
    }

    /// Lets go who may, as long as anybody waits.
    async fn drive(self: Arc<Self>) {
        loop {
            let wait_us = {
                let mut state = self.state.lock();
                let now_us = self.now_us();
                self.look(&mut state, now_us);
                self.grant(&mut state, now_us);
                let Some(wait_us) = state.share.wait_us() else {
                    state.is_driven = false;
                    return;
                };
                wait_us.min(LOOK_EVERY_US)
            };
            tokio::time::sleep(Duration::from_micros(wait_us)).await;
        }
    }

    fn grant(&self, state: &mut State, now_us: u64) {
        state.share.grant(now_us, |waiter| waiter.send(()).is_ok());
    }

    fn look(&self, state: &mut State, now_us: u64) {
        let is_due = |looked: u64| now_us >= looked + LOOK_EVERY_US;
        if !state.looked_us.is_none_or(is_due) {
            return;
        }
        state.looked_us = Some(now_us);
        let rate = self.rate().map(ByteRate::per_second);
        state.share.set_rate(rate, now_us);
        let until = if rate.is_none() {
            now_us + LOOK_EVERY_US
        } else {
            0
        };
        self.unlimited_until_us.store(until, Ordering::Relaxed);
    }

    fn now_us(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }
}

/// A flow's part in a limit.
#[derive(Clone)]
pub struct Pace {
    /// The limit.
    pub throttle: Arc<Throttle>,
    /// The flow.
    pub flow: Flow,
}

impl Pace {
    /// See [`Throttle::take`].
    pub async fn take(&self, bytes: usize) {
        self.throttle.take(self.flow, bytes as u64).await;
    }
}
