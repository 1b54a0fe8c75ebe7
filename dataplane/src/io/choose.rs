//! Which engine a run gets: io_uring if it works here, threads if not, and then with the reason.

use std::error::Error;
use std::sync::Arc;

use super::engine::{Engine, EngineError};
use super::posix::PosixEngine;
use super::uring::UringEngine;

/// Which engine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineRequest {
    /// The best that works.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads.
    Posix,
}

/// Makes the engine asked for; [`EngineRequest::Auto`] tries io_uring by setting up a ring, and says in
/// [`super::EngineChoice::reason`] why it fell back.
///
/// # Errors
/// [`EngineRequest::Uring`] only: io_uring does not work here.
pub fn choose(request: EngineRequest) -> Result<Arc<dyn Engine>, EngineError> {
    match request {
        EngineRequest::Posix => Ok(Arc::new(PosixEngine::new(None))),
        EngineRequest::Uring => Ok(Arc::new(UringEngine::new()?)),
        EngineRequest::Auto => Ok(match UringEngine::new() {
            Ok(engine) => Arc::new(engine),
            Err(error) => Arc::new(PosixEngine::new(Some(chain(&error)))),
        }),
    }
}

/// The error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::engine::EngineKind;

    #[test]
    fn posix_can_always_be_had() {
        let engine = choose(EngineRequest::Posix).expect("needs nothing");
        assert_eq!(engine.choice().kind, EngineKind::Posix);
        assert_eq!(engine.choice().reason, None);
    }

    #[test]
    fn a_fallback_has_a_reason() {
        let engine = choose(EngineRequest::Auto).expect("falls back");
        assert_eq!(
            engine.choice().kind == EngineKind::Posix,
            engine.choice().reason.is_some()
        );
    }

    #[test]
    fn the_reason_names_the_cause() {
        let error = EngineError::Setup {
            source: std::io::Error::from_raw_os_error(1),
        };
        assert_eq!(
            chain(&error),
            "setting up an io_uring: Operation not permitted (os error 1)"
        );
    }
}
