//! A lane: questions, records, finished segments, in order.

use undercroft_format::wire::failure::Failure;
use undercroft_format::wire::frame::FrameType;
use undercroft_format::wire::lane::{
    Answers, AskObjects, AskSegments, Attach, Distrust, Flush, SegmentDone, pushed_records,
};
use undercroft_format::wire::reference::{AskReference, SegmentsUnchanged};
use undercroft_format::wire::upkeep::Done;

use super::check::RecordChecker;
use super::connection::{Broken, Conversing, Ending};
use super::kept_session::KeptSession;
use super::reference;
use super::session::name_span;
use crate::net::bandwidth::Flow;
use crate::net::conversation::{StreamError, expect};
use crate::net::trust::Verb;

/// Serves a lane, whose first frame was `attach`.
pub fn converse(on: &mut Conversing, attach: Attach) -> Ending {
    let session = on.served.session(attach.session)?;
    on.caller.check_vm(Verb::Push, &session.vm())?;
    on.caller.check_vm(Verb::Ask, &session.vm())?;
    session.check(attach.epoch)?;
    // Sessions share a limit of bandwidth in equal parts, however many lanes they have.
    let mut flow = [0; 8];
    flow.copy_from_slice(&attach.session.as_bytes()[..8]);
    on.stream.set_flow(Flow(u64::from_le_bytes(flow)));
    name_span(&session);
    let mut lane = Lane {
        session: &session,
        attach,
        checker: RecordChecker::default(),
    };
    while let Some(frame) = on.stream.read()? {
        lane.take(on, &frame)?;
    }
    Ok(())
}

struct Lane<'a> {
    session: &'a KeptSession,
    attach: Attach,
    checker: RecordChecker,
}

impl Lane<'_> {
    fn take(&mut self, on: &mut Conversing, frame: &(FrameType, Vec<u8>)) -> Result<(), Broken> {
        let epoch = self.attach.epoch;
        match frame.0 {
            FrameType::Push => self.push(on, &frame.1),
            FrameType::AskObjects => {
                let AskObjects { ids } = expect(frame)?;
                let known = self.session.probe(epoch, &ids)?;
                Ok(on.stream.say(&Answers { known })?)
            }
            FrameType::AskSegments => {
                let AskSegments { ids } = expect(frame)?;
                let known = self.session.holds_segments(epoch, &ids)?;
                Ok(on.stream.say(&Answers { known })?)
            }
            FrameType::Distrust => {
                let Distrust { kind, ids } = expect(frame)?;
                self.session.distrust(epoch, kind, &ids)?;
                Ok(on.stream.say(&Done)?)
            }
            FrameType::SegmentDone => {
                let SegmentDone { place, done } = expect(frame)?;
                Ok(self.session.segment_done(epoch, place, done)?)
            }
            FrameType::AskReference => {
                let question: AskReference = expect(frame)?;
                self.session.check(epoch)?;
                let repository = on.served.repository();
                let maps = reference::maps(repository, self.session, question)?;
                Ok(on.stream.say(&maps)?)
            }
            FrameType::SegmentsUnchanged => {
                let segments: SegmentsUnchanged = expect(frame)?;
                let repository = on.served.repository();
                Ok(reference::unchanged(
                    repository,
                    self.session,
                    epoch,
                    &segments,
                )?)
            }
            FrameType::Flush => {
                let Flush = expect(frame)?;
                Ok(on.stream.say(&Done)?)
            }
            kind => Err(StreamError::Unexpected(kind).into()),
        }
    }

    fn push(&mut self, on: &Conversing, body: &[u8]) -> Result<(), Broken> {
        let records = pushed_records(body).map_err(StreamError::from)?;
        let span = tracing::trace_span!("receiver", records = records.len(), bytes = body.len());
        let _entered = span.entered();
        let keys = on.served.keys();
        for (header, payload) in &records {
            self.checker.check(header, payload, keys)?;
        }
        let pushed: Result<(), Failure> = self.session.push(self.attach.epoch, &records);
        Ok(pushed?)
    }
}
