//! What a session's reference holds: questions about it, and segments that a client found as they are there.

use undercroft_format::id::SegmentMapId;
use undercroft_format::maptree::Tree;
use undercroft_format::units::SegmentNumber;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::reference::{
    AskReference, ReferenceMaps, SegmentsUnchanged, ShortId, UnchangedSegment,
};
use undercroft_format::wire::session::{DoneSegment, Epoch, SegmentPlace};

use super::kept_session::KeptSession;
use crate::net::convert::failure_of;
use crate::repository::error::RepositoryError;
use crate::repository::{LocalRepository, Repository};

/// The beginnings of the ids of the maps that the reference has.
pub fn maps(
    repository: &LocalRepository,
    session: &KeptSession,
    question: AskReference,
) -> Result<ReferenceMaps, Failure> {
    let Some(tree) = tree(repository, session, question.disk) else {
        return Ok(ReferenceMaps { maps: Vec::new() });
    };
    let first = question.first.0.min(tree.segments);
    let end = (first + u64::from(question.count)).min(tree.segments);
    let mut maps = vec![ShortId::default(); (end - first) as usize];
    visit(repository, tree, first..end, |number, map| {
        maps[(number - first) as usize] = ShortId::of(map);
    })?;
    Ok(ReferenceMaps { maps })
}

/// Takes the reference's maps for those of segments that are as they are there.
pub fn unchanged(
    repository: &LocalRepository,
    session: &KeptSession,
    epoch: Epoch,
    SegmentsUnchanged { disk, segments }: &SegmentsUnchanged,
) -> Result<(), Failure> {
    let lacks = || {
        let text = "segments are said to be as they are in the reference, which does not have them";
        Failure::new(FailureCode::Protocol, text)
    };
    let follows =
        |one: &UnchangedSegment, next: &UnchangedSegment| one.number.0 + 1 == next.number.0;
    // Run by run: what lies between is not looked at, however far apart they are.
    for run in segments.chunk_by(follows) {
        let tree = tree(repository, session, *disk).ok_or_else(lacks)?;
        let first = run[0].number.0;
        let end = first + run.len() as u64;
        if end > tree.segments {
            return Err(lacks());
        }
        let mut maps = vec![None; run.len()];
        visit(repository, tree, first..end, |number, map| {
            maps[(number - first) as usize] = Some(map);
        })?;
        for (segment, map) in run.iter().zip(maps) {
            let place = SegmentPlace {
                disk: *disk,
                number: segment.number,
            };
            let done = DoneSegment {
                map: Some(map.ok_or_else(lacks)?),
                data_bytes: segment.data_bytes,
                replaced_bytes: 0,
            };
            session.segment_done(epoch, place, done)?;
        }
    }
    Ok(())
}

/// The reference's tree of one of the session's disks, if its segments are as long as the session's.
fn tree(repository: &LocalRepository, session: &KeptSession, disk: u16) -> Option<Tree> {
    let reference = session.reference()?;
    let labels = session.labels();
    let old = reference.snapshot.disk(labels.get(usize::from(disk))?)?;
    (old.segment_size == repository.config().segment_size).then(|| old.tree())
}

fn visit(
    repository: &LocalRepository,
    tree: Tree,
    segments: std::ops::Range<u64>,
    mut take: impl FnMut(u64, SegmentMapId),
) -> Result<(), Failure> {
    let visited =
        repository
            .objects()
            .visit_tree(tree, segments, &mut |SegmentNumber(number), map| {
                take(number, map);
                Ok(())
            });
    visited.map_err(|error: RepositoryError| failure_of(&error))
}
