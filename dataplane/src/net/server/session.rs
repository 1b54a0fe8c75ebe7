//! A session's own stream: begin, pin, commit, abandon; acknowledgements go out whenever there are some.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use undercroft_format::lock::LockEnd;
use undercroft_format::wire::failure::Failure;
use undercroft_format::wire::frame::FrameType;
use undercroft_format::wire::session::{
    Abandon, Acknowledged, Begin, Begun, Commit, Draining, Ended, Epoch, Finished, Pin, Pinned,
    SEGMENTS_MAX, SegmentPlace,
};

use super::commit::Candidate;
use super::connection::{Broken, Conversing, Ending};
use super::kept_session::KeptSession;
use super::repository_figures::SessionEvent;
use super::served::Began;
use crate::clock::Stopwatch;
use crate::net::conversation::{Conversation, Frame, StreamError, Waited, expect};
use crate::net::convert::failure_of;
use crate::net::trust::Verb;
use crate::repository::Repository;
use crate::repository::error::RepositoryError;

/// Serves a session's stream, whose first frame was `request`.
pub fn converse(on: &mut Conversing, request: Begin) -> Ending {
    let verb = match request.resume {
        None => Verb::BeginSession,
        Some(_) => Verb::ResumeSession,
    };
    on.caller.check_vm(verb, &request.vm)?;
    on.refuse_while_draining()?;
    check_lock(on, &request.vm, request.lock)?;
    let (session, epoch) = match on.served.begin(&request, on.caller.peer.name.as_str())? {
        Began::Open(session, epoch) => (session, epoch),
        Began::Published(published) => return Ok(on.stream.say(&published)?),
    };
    name_span(&session);
    let begun = begin(on, &session, epoch, request.resume.is_some());
    let ended = begun.and_then(|()| serve(on, &session, epoch));
    match ended {
        Ok(true) => on.served.remove(session.id()),
        Ok(false) | Err(_) => on.served.leave(&session, epoch, on.shared.now_ms()),
    }
    ended.map(|_| ())
}

/// Says in every line of the log from here on whose session it is.
pub fn name_span(session: &KeptSession) {
    let span = tracing::Span::current();
    span.record("session", tracing::field::display(session.id()));
    span.record("vm", session.vm());
}

/// A lock that cannot be had is refused before any data is read.
fn check_lock(on: &Conversing, vm: &str, lock: Option<LockEnd>) -> Result<(), Failure> {
    let Some(lock) = lock else { return Ok(()) };
    on.caller.check_vm(Verb::LockUntil, vm)?;
    let checked = on.served.repository().snapshots().check_lock(lock);
    checked.map_err(|error| failure_of(&error))
}

/// Tells of what is finished and what is likely to be known.
fn begin(
    on: &mut Conversing,
    session: &Arc<KeptSession>,
    epoch: Epoch,
    is_resumed: bool,
) -> Result<(), Broken> {
    if is_resumed {
        session.settle_in()?;
        for (disk, finished) in (0..).zip(session.finished()) {
            let finished: Vec<_> = finished.into_iter().collect();
            for segments in finished.chunks(SEGMENTS_MAX) {
                on.stream.say(&Finished {
                    disk,
                    segments: segments.to_vec(),
                })?;
            }
        }
    }
    let failed = |error: RepositoryError| failure_of(&error);
    let reference = on.served.reference_for(session).map_err(failed)?;
    let reference = match reference {
        Some(stored) if session.pin(epoch, &stored)? => Some(stored),
        _ => None,
    };
    let id = reference.as_ref().map(|stored| stored.id);
    session.set_reference(reference);
    on.stream.say(&Begun {
        session: session.id(),
        epoch,
        reference: id,
    })?;
    Ok(())
}

/// True if the session ended, false if the client went away.
fn serve(on: &mut Conversing, session: &Arc<KeptSession>, epoch: Epoch) -> Result<bool, Broken> {
    let (listener, acknowledgements) = channel();
    session.attach(epoch, on.caller.peer.name.as_str(), listener);
    let shared = on.shared.clone();
    let mut is_told = false;
    // Answers and acknowledgements share the stream, so that both go through one thread.
    loop {
        let mut tell = |stream: &mut Conversation| {
            if shared.is_draining() && !is_told {
                is_told = true;
                stream.say(&Draining)?;
            }
            acknowledge(stream, &acknowledgements)
        };
        let Some(frame) = next_frame(&mut on.stream, &mut tell)? else {
            return Ok(false);
        };
        match frame.0 {
            FrameType::Pin => {
                let Pin { snapshot } = expect(&frame)?;
                let is_there = pin(on, session, epoch, snapshot)?;
                on.stream.say(&Pinned { is_there })?;
            }
            FrameType::Commit => {
                let Commit { lock, snapshot } = expect(&frame)?;
                on.caller.check_vm(Verb::Commit, &session.vm())?;
                if lock.is_some() {
                    on.caller.check_vm(Verb::LockUntil, &session.vm())?;
                }
                session.check(epoch)?;
                let took = Stopwatch::start();
                let candidate = Candidate::new(&on.served, session, &on.caller, snapshot)?;
                let published = {
                    let span = tracing::info_span!("commit", snapshot = %candidate.id());
                    let _entered = span.entered();
                    session.end(epoch, |store| {
                        candidate.publish(&on.served, session, store, lock)
                    })
                };
                on.served.figures().commit(&took, &published);
                let ended = published.map(|(figures, locked_until)| Ended {
                    packs: figures.packs,
                    pack_bytes: figures.bytes,
                    locked_until,
                });
                if let Ok(ended) = &ended {
                    // Before the session goes: whoever misses the answer asks for it.
                    on.served.published().note(session.id(), *ended);
                }
                on.served.remove(session.id());
                let ended = ended?;
                on.served.figures().session(SessionEvent::Committed, 1);
                tracing::info!(snapshot = %candidate.id(), "published");
                on.stream.say(&ended)?;
                return Ok(true);
            }
            FrameType::Abandon => {
                let Abandon = expect(&frame)?;
                on.caller.check_vm(Verb::Abandon, &session.vm())?;
                let (figures, ()) = session.end(epoch, |_| Ok(()))?;
                on.served.remove(session.id());
                on.served.figures().session(SessionEvent::Abandoned, 1);
                on.stream.say(&Ended {
                    packs: figures.packs,
                    pack_bytes: figures.bytes,
                    locked_until: None,
                })?;
                return Ok(true);
            }
            kind => return Err(StreamError::Unexpected(kind).into()),
        }
    }
}

fn pin(
    on: &Conversing,
    session: &KeptSession,
    epoch: Epoch,
    id: undercroft_format::id::SnapshotId,
) -> Result<bool, Failure> {
    match on.served.repository().snapshots().read(id) {
        Ok(stored) => {
            on.caller.check_vm(Verb::ReadMaps, &stored.snapshot.vm)?;
            session.pin(epoch, &stored)
        }
        Err(RepositoryError::NoSuchSnapshot { .. }) => Ok(false),
        Err(error) => Err(failure_of(&error)),
    }
}

/// How often acknowledgements are looked for while the client is silent.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(200);

/// The client's next frame; `tell` is called meanwhile, again and again.
fn next_frame(
    stream: &mut Conversation,
    tell: &mut dyn FnMut(&mut Conversation) -> Result<(), StreamError>,
) -> Result<Option<Frame>, StreamError> {
    loop {
        tell(stream)?;
        if let Waited::For(frame) = stream.read_within(ACKNOWLEDGE_EVERY)? {
            return Ok(frame);
        }
    }
}

fn acknowledge(
    stream: &mut Conversation,
    acknowledgements: &Receiver<Vec<SegmentPlace>>,
) -> Result<(), StreamError> {
    for places in acknowledgements.try_iter() {
        for places in places.chunks(SEGMENTS_MAX) {
            stream.say(&Acknowledged {
                places: places.to_vec(),
            })?;
        }
    }
    Ok(())
}
