//! Which lines of a flood are logged: the first few of a kind in a while, then how many there were.
//!
//! Decisions alone, with time given from outside. The table has a fixed size whatever is logged.

use std::collections::HashMap;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Lines of one kind that are logged in one window.
const LINES_MAX: u64 = 10;
/// Length of a window, in milliseconds.
pub const WINDOW_MS: u64 = 10_000;
/// Kinds that are told apart: what goes beyond counts as one kind.
const KINDS_MAX: usize = 512;

/// What makes two lines of a kind: where in the program they come from, and their reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// Where in the program.
    pub place: &'static str,
    /// Its reason, if it gives one.
    pub reason: String,
}

/// Lines of a kind that were not logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// Which.
    pub kind: Kind,
    /// What the first of them says.
    pub message: String,
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
    message: String,
    lines: u64,
}

impl LogLimit {
    /// Whether a line is logged.
    pub fn passes(&self, kind: Kind, message: &str, now_ms: u64) -> bool {
        let mut kinds = self.kinds.lock();
        let kind = match kinds.len() >= KINDS_MAX && !kinds.contains_key(&kind) {
            true => Kind {
                place: "elsewhere",
                reason: String::new(),
            },
            false => kind,
        };
        let window = kinds.entry(kind).or_insert_with(|| Window {
            since_ms: now_ms,
            message: message.to_owned(),
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
                    message: window.message.clone(),
                    lines: window.lines - LINES_MAX,
                });
            }
            false
        });
        over.sort_by(|a, b| a.kind.cmp(&b.kind));
        over
    }

    /// Adds the figures to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Lines of the log that were left out, because many of a kind came";
        registry.register("log_lines_left_out", help, self.suppressed.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(reason: &str) -> Kind {
        Kind {
            place: "here",
            reason: reason.into(),
        }
    }

    #[test]
    fn the_first_lines_of_each_reason_pass_and_the_rest_are_counted() {
        let limit = LogLimit::default();
        let passed = (0..100)
            .filter(|at| limit.passes(kind("a"), "no", *at))
            .count();
        assert_eq!(passed as u64, LINES_MAX);
        assert!(limit.passes(kind("b"), "no", 50), "another reason");
        assert_eq!(limit.sweep(WINDOW_MS - 1), []);
        let over = limit.sweep(WINDOW_MS + 50);
        let suppressed = Suppressed {
            kind: kind("a"),
            message: "no".into(),
            lines: 90,
        };
        assert_eq!(over, [suppressed]);
        assert!(
            limit.passes(kind("a"), "no", WINDOW_MS + 51),
            "a new window"
        );
        assert_eq!(limit.suppressed.get(), 90);
    }

    #[test]
    fn reasons_without_end_take_no_memory_without_end() {
        let limit = LogLimit::default();
        let passed = (0..10_000)
            .filter(|number| limit.passes(kind(&number.to_string()), "no", 0))
            .count();
        assert!(limit.kinds.lock().len() <= KINDS_MAX + 1);
        assert_eq!(passed as u64, KINDS_MAX as u64 + LINES_MAX);
    }
}
