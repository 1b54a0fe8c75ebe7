//! Errors, there and back: a client says of a failure what it would say if the repository were local.

use std::error::Error;

use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::ledger::LedgerError;

use super::closing::refusal_of;
use super::conversation::StreamError;
use crate::repository::error::{RecordProblem, RepositoryError};

/// The failure that tells the other end of `error`.
pub fn failure_of(error: &RepositoryError) -> Failure {
    let fail = |code, error: &RepositoryError| Failure::new(code, one_line(error));
    match error {
        RepositoryError::NoSuchSnapshot { id } => Failure {
            snapshot: Some(*id),
            ..fail(FailureCode::NoSuchSnapshot, error)
        },
        RepositoryError::Protected { id } => Failure {
            snapshot: Some(*id),
            ..fail(FailureCode::Protected, error)
        },
        RepositoryError::IncompleteSnapshot { id, source } => Failure {
            snapshot: Some(*id),
            ..fail(FailureCode::IncompleteSnapshot, source)
        },
        RepositoryError::MissingObject { kind, id } => Failure {
            object: Some((*kind, *id)),
            ..fail(FailureCode::MissingObject, error)
        },
        RepositoryError::CorruptObject {
            kind,
            id,
            pack,
            position,
            problem,
        } => Failure {
            object: Some((*kind, *id)),
            place: Some((*pack, *position)),
            ..Failure::new(FailureCode::CorruptObject, problem.to_string())
        },
        RepositoryError::Locked { owner } => Failure::new(FailureCode::Locked, owner.clone()),
        RepositoryError::AlreadyExists { .. } => fail(FailureCode::AlreadyExists, error),
        RepositoryError::KeyNeeded => fail(FailureCode::KeyNeeded, error),
        RepositoryError::Collecting => fail(FailureCode::Busy, error),
        RepositoryError::Cancelled => fail(FailureCode::Cancelled, error),
        RepositoryError::Retention { .. } | RepositoryError::Lock(_) => {
            fail(FailureCode::RetentionLocked, error)
        }
        RepositoryError::Unpublishable(_) => fail(FailureCode::Unpublishable, error),
        error if error.is_disk_full() => fail(FailureCode::DiskFull, error),
        error if error.is_damage() => fail(FailureCode::Damaged, error),
        error => fail(FailureCode::Failed, error),
    }
}

/// The failure for a session that does not do what it was asked.
pub fn failure_of_ledger(error: &LedgerError) -> Failure {
    let code = match error {
        LedgerError::Fenced(_) => FailureCode::Fenced,
        LedgerError::Over(_) => FailureCode::NoSuchSession,
        LedgerError::DiskChanged { .. } | LedgerError::OtherDisks(_) => FailureCode::DisksChanged,
        _ => FailureCode::Protocol,
    };
    Failure::new(code, error.to_string())
}

/// The error that a failure tells of.
pub fn error_of(failure: Failure) -> RepositoryError {
    match (failure.code, failure.snapshot, failure.object) {
        (FailureCode::NoSuchSnapshot, Some(id), _) => RepositoryError::NoSuchSnapshot { id },
        (FailureCode::Protected, Some(id), _) => RepositoryError::Protected { id },
        (FailureCode::IncompleteSnapshot, Some(id), _) => RepositoryError::IncompleteSnapshot {
            id,
            source: Box::new(RepositoryError::Remote(Failure::new(
                FailureCode::Failed,
                failure.text,
            ))),
        },
        (FailureCode::MissingObject, _, Some((kind, id))) => {
            RepositoryError::MissingObject { kind, id }
        }
        (FailureCode::CorruptObject, _, Some((kind, id))) if failure.place.is_some() => {
            let (pack, position) = failure.place.expect("just seen");
            RepositoryError::CorruptObject {
                kind,
                id,
                pack,
                position,
                problem: RecordProblem::Reported(failure.text),
            }
        }
        (FailureCode::Locked, _, _) => RepositoryError::Locked {
            owner: failure.text,
        },
        (FailureCode::Cancelled, _, _) => RepositoryError::Cancelled,
        _ => RepositoryError::Remote(failure),
    }
}

impl From<StreamError> for RepositoryError {
    fn from(error: StreamError) -> Self {
        if let StreamError::Failed(failure) = error {
            return error_of(failure);
        }
        match error.connection_error().and_then(refusal_of) {
            Some(failure) => Self::Remote(failure),
            None => Self::Connection(Box::new(error)),
        }
    }
}

/// The error and its causes on one line.
fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
