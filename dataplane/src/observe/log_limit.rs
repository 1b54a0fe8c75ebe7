//! Which lines of a flood are logged: the first few of a kind in a while, then how many there were.
//!
//! Decisions alone, with time given from outside. The table has a fixed size whatever is logged.

use std::collections::HashMap;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

/// Lines of one kind that are logged in one window.
const LINES_MAX: u64 = 10;
/// Length of a window, in milliseconds.
pub const WINDOW_MS: u64 = 10_000;
/// Kinds that are told apart: what goes beyond counts as one kind.
const KINDS_MAX: usize = 512;

/// What makes two lines of a kind: where in the program they come from, and their reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// What the line says.
    pub message: &'static str,
    /// Its reason, if it gives one.
    pub reason: String,
}

/// Lines of a kind that were not logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// Which.
    pub kind: Kind,
    /// How many.
    pub lines: u64,
}

/// Counts lines.
#[derive(Debug, Default)]
pub struct LogLimit {
    kinds: Mutex<HashMap<Kind, Window>>,
    suppressed: Counter,
}

#[derive(Debug)]
struct Window {
    since_ms: u64,
    lines: u64,
}

impl LogLimit {
    /// Whether a line is logged.
    pub fn passes(&self, kind: Kind, now_ms: u64) -> bool {
        let mut kinds = self.kinds.lock();
        let kind = match kinds.len() >= KINDS_MAX && !kinds.contains_key(&kind) {
            true => Kind {
                message: "other lines",
                reason: String::new(),
            },
            false => kind,
        };
        let window = kinds.entry(kind).or_insert(Window {
            since_ms: now_ms,
            lines: 0,
        });
        window.lines += 1;
        let passes = window.lines <= LINES_MAX;
        if !passes {
            self.suppressed.inc();
        }
        passes
    }

    /// Ends the windows that are over, and says what was left out in them. To be called now and then.
    pub fn sweep(&self, now_ms: u64) -> Vec<Suppressed> {
        let mut over = Vec::new();
        self.kinds.lock().retain(|kind, window| {
            if now_ms.saturating_sub(window.since_ms) < WINDOW_MS {
                return true;
            }
            if window.lines > LINES_MAX {
                over.push(Suppressed {
                    kind: kind.clone(),
                    lines: window.lines - LINES_MAX,
                });
            }
            false
        });
        over.sort_by(|a, b| a.kind.cmp(&b.kind));
        over
    }

    /// Lines left out so far.
    pub fn suppressed(&self) -> Counter {
        self.suppressed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(reason: &str) -> Kind {
        Kind {
            message: "refused",
            reason: reason.into(),
        }
    }

    #[test]
    fn the_first_lines_of_each_reason_pass_and_the_rest_are_counted() {
        let limit = LogLimit::default();
        let passed = (0..100).filter(|at| limit.passes(kind("a"), *at)).count();
        assert_eq!(passed as u64, LINES_MAX);
        assert!(limit.passes(kind("b"), 50), "another reason");
        assert_eq!(limit.sweep(WINDOW_MS - 1), []);
        let over = limit.sweep(WINDOW_MS + 50);
        let suppressed = Suppressed {
            kind: kind("a"),
            lines: 90,
        };
        assert_eq!(over, [suppressed]);
        assert!(limit.passes(kind("a"), WINDOW_MS + 51), "a new window");
        assert_eq!(limit.suppressed().get(), 90);
    }

    #[test]
    fn reasons_without_end_take_no_memory_without_end() {
        let limit = LogLimit::default();
        let passed = (0..10_000)
            .filter(|number| limit.passes(kind(&number.to_string()), 0))
            .count();
        assert!(limit.kinds.lock().len() <= KINDS_MAX + 1);
        assert_eq!(passed as u64, KINDS_MAX as u64 + LINES_MAX);
    }
}
