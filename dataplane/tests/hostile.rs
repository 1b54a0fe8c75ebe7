//! A client that breaks the rules, against a real server on loopback: it is refused with a reason, and
//! those beside it notice nothing. And the settings of the transport, on a real path.

mod world;

use std::time::Duration;

use undercroft_dataplane::net::client::Link;
use undercroft_dataplane::net::conversation::{Conversation, StreamError};
use undercroft_dataplane::net::transport::MTU_LAST;
use undercroft_dataplane::repository::keys::Keys;
use undercroft_format::config::Config;
use undercroft_format::id::{NodeId, ObjectId, SegmentMapId, SessionId};
use undercroft_format::lock::LockEnd;
use undercroft_format::pack::{Encoding, ObjectKind, RecordHeader, RecordInfo};
use undercroft_format::snapshot::{DiskFigures, DiskManifest, ReadMode, Snapshot};
use undercroft_format::units::{DiskLength, SegmentNumber};
use undercroft_format::wire::failure::FailureCode;
use undercroft_format::wire::lane::{
    Answers, AskObjects, Attach, Distrust, Flush, PushBuilder, SegmentDone,
};
use undercroft_format::wire::message::{ListSnapshots, SnapshotFile};
use undercroft_format::wire::reference::{
    AskReference, ReferenceMaps, SegmentsUnchanged, UnchangedSegment,
};
use undercroft_format::wire::session::{
    Acknowledged, Begin, Begun, Commit, DiskState, DoneSegment, Ended, Epoch, Finished, Published,
    SegmentPlace,
};
use undercroft_format::wire::upkeep::Done;
use world::World;

fn request(resume: Option<SessionId>) -> Begin {
    Begin {
        vm: "vm".into(),
        disks: vec![DiskState {
            label: "root".into(),
            size: DiskLength::new(1 << 20),
            state: [1; 32],
        }],
        resume,
        lock: None,
    }
}

fn begin(link: &Link, resume: Option<SessionId>) -> (Conversation, Begun) {
    let mut session = link.converse().expect("a stream");
    session.say(&request(resume)).expect("it listens");
    loop {
        let frame = session.read().expect("an answer").expect("an answer");
        if let Ok(begun) = undercroft_dataplane::net::conversation::expect::<Begun>(&frame) {
            return (session, begun);
        }
        undercroft_dataplane::net::conversation::expect::<Finished>(&frame)
            .expect("what it finished");
    }
}

fn lane(link: &Link, session: SessionId, epoch: Epoch) -> Conversation {
    let mut lane = link.converse().expect("a stream");
    lane.say(&Attach { session, epoch }).expect("it listens");
    lane
}

/// What the server says, or does, to a lane that it does not want.
fn refusal(stream: &mut Conversation) -> FailureCode {
    // The server may have stopped to listen already.
    let _ = stream.say(&Flush);
    match stream.answer::<Done>() {
        Err(StreamError::Failed(failure)) => failure.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn chunk(id: ObjectId, payload: &[u8]) -> RecordHeader {
    let info = RecordInfo {
        id,
        kind: ObjectKind::Chunk,
        encoding: Encoding::RAW,
        stored_len: payload.len() as u32,
        plain_len: payload.len() as u32,
    };
    RecordHeader::new(info, payload)
}

fn push(header: &RecordHeader, payload: &[u8]) -> Vec<u8> {
    let mut builder = PushBuilder::default();
    builder.push(header, payload);
    builder.finish()
}

#[test]
fn records_that_lie_are_refused_and_others_go_on() {
    let world = World::start(Duration::from_secs(60));
    let (link, config) = world.link();
    let keys = Keys::unlock(&config, None).expect("in clear");
    let (_good_session, good) = begin(&link, None);
    let (_bad_session, bad) = begin(&link, None);
    let payload = vec![7; 5000];
    let id = ObjectId::from(keys.chunk_id(&payload));
    let honest = chunk(id, &payload);
    let mut good_lane = lane(&link, good.session, good.epoch);
    good_lane
        .write(push(&honest, &payload))
        .expect("it takes it");

    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("it compresses");
    let mut bomb_header = chunk(ObjectId::from_bytes([3; 32]), &bomb);
    bomb_header.info.encoding.zstd = true;
    bomb_header.info.plain_len = 8 << 20;
    let wrong_sum = RecordHeader {
        payload_checksum: honest.payload_checksum ^ 1,
        ..honest
    };
    let lies = [
        (chunk(ObjectId::from_bytes([9; 32]), &payload), &payload),
        (wrong_sum, &payload),
        (bomb_header, &bomb),
    ];
    for (header, payload) in lies {
        let mut lane = lane(&link, bad.session, bad.epoch);
        lane.write(push(&header, payload)).expect("sent");
        assert_eq!(refusal(&mut lane), FailureCode::BadRecord);
    }
    good_lane
        .say(&AskObjects { ids: vec![id] })
        .expect("it listens");
    assert_eq!(
        good_lane.answer::<Answers>().expect("answers").known,
        [true]
    );
}

#[test]
fn frames_that_do_not_belong_are_refused() {
    let world = World::start(Duration::from_secs(60));
    let (link, _) = world.link();
    let (_session, begun) = begin(&link, None);
    // Too long for its type, of no type, in the wrong place, cut short.
    let mut long = Flush.frame_bytes();
    long[..4].copy_from_slice(&1_u32.to_le_bytes());
    let mut unknown = Flush.frame_bytes();
    unknown[4] = 200;
    let misplaced = Done.frame_bytes();
    for frame in [long, unknown, misplaced] {
        let mut lane = lane(&link, begun.session, begun.epoch);
        lane.write(frame).expect("sent");
        assert_eq!(refusal(&mut lane), FailureCode::Protocol);
    }
    let mut huge = link.converse().expect("a stream");
    huge.write(vec![0xff; 8]).expect("sent");
    huge.write(vec![0xff; 1 << 20]).ok();
    let foreign = SessionId::from_bytes([5; 16]);
    assert_eq!(
        refusal(&mut lane(&link, foreign, Epoch(1))),
        FailureCode::NoSuchSession
    );
    assert_eq!(
        refusal(&mut lane(&link, begun.session, Epoch(7))),
        FailureCode::Fenced
    );
    // Streams that are opened and never used do not keep others from being served.
    let idle: Vec<_> = (0..40)
        .map(|_| link.converse().expect("a stream"))
        .collect();
    let mut lane = lane(&link, begun.session, begun.epoch);
    lane.say(&Flush).expect("it listens");
    lane.answer::<Done>().expect("served");
    drop(idle);
}

trait FrameBytes {
    fn frame_bytes(&self) -> Vec<u8>;
}

impl<B: undercroft_format::wire::frame::Body> FrameBytes for B {
    fn frame_bytes(&self) -> Vec<u8> {
        self.frame()
    }
}

fn snapshot(config: &Config, session: SessionId, root: Option<NodeId>) -> Snapshot {
    Snapshot {
        repository: config.repository,
        session,
        created_ms: 1,
        duration_ms: 1,
        vm: "vm".into(),
        tags: Vec::new(),
        parent: None,
        disks: vec![DiskManifest {
            label: "root".into(),
            size: DiskLength::new(1 << 20),
            segment_size: config.segment_size,
            grid_phase: 0,
            root,
            read_mode: ReadMode::Full,
            reasons: Vec::new(),
            source: "nowhere".into(),
            lineage: Vec::new(),
            figures: DiskFigures::default(),
        }],
        metadata: None,
    }
}

fn commit(
    session: &mut Conversation,
    config: &Config,
    snapshot: &Snapshot,
) -> Result<(), FailureCode> {
    let keys = Keys::unlock(config, None).expect("in clear");
    let (_, snapshot) = snapshot.encode(|body| keys.authenticate(body));
    session
        .say(&Commit {
            lock: None,
            snapshot,
        })
        .expect("sent");
    loop {
        let frame = session.read().expect("an answer").expect("an answer");
        if undercroft_dataplane::net::conversation::expect::<Acknowledged>(&frame).is_ok() {
            continue;
        }
        let ended = undercroft_dataplane::net::conversation::expect::<Ended>(&frame);
        return match ended {
            Ok(_) => Ok(()),
            Err(StreamError::Failed(failure)) => Err(failure.code),
            Err(error) => panic!("{error}"),
        };
    }
}

#[test]
fn a_snapshot_with_holes_or_of_another_session_is_not_published() {
    let world = World::start(Duration::from_secs(60));
    let (link, config) = world.link();
    let (mut session, begun) = begin(&link, None);
    let other = snapshot(&config, SessionId::from_bytes([4; 16]), None);
    assert_eq!(
        commit(&mut session, &config, &other),
        Err(FailureCode::Unpublishable)
    );
    let (mut session, begun_2) = begin(&link, Some(begun.session));
    let holes = snapshot(&config, begun.session, Some(NodeId::from_bytes([8; 32])));
    assert_eq!(
        commit(&mut session, &config, &holes),
        Err(FailureCode::Unpublishable)
    );
    assert_eq!(
        refusal(&mut lane(&link, begun.session, begun_2.epoch)),
        FailureCode::NoSuchSession
    );
    let (mut session, begun) = begin(&link, None);
    assert_eq!(
        commit(
            &mut session,
            &config,
            &snapshot(&config, begun.session, None)
        ),
        Ok(())
    );
}

#[test]
fn whoever_lost_a_session_can_do_nothing_any_more() {
    let world = World::start(Duration::from_millis(1500));
    let (link, config) = world.link();
    let (mut old, begun) = begin(&link, None);
    let mut old_lane = lane(&link, begun.session, begun.epoch);
    old_lane.say(&Flush).expect("sent");
    old_lane.answer::<Done>().expect("it holds the session");
    let (new, resumed) = begin(&link, Some(begun.session));
    assert!(resumed.epoch > begun.epoch);
    let place = SegmentPlace {
        disk: 0,
        number: SegmentNumber(0),
    };
    let done = DoneSegment {
        map: Some(SegmentMapId::from_bytes([1; 32])),
        data_bytes: 1,
        replaced_bytes: 0,
    };
    old_lane.say(&SegmentDone { place, done }).expect("sent");
    assert_eq!(refusal(&mut old_lane), FailureCode::Fenced);
    let mine = snapshot(&config, begun.session, None);
    assert_eq!(commit(&mut old, &config, &mine), Err(FailureCode::Fenced));
    // The newer one goes away, too: its lease lapses, and nobody can come back.
    drop(new);
    std::thread::sleep(Duration::from_secs(4));
    let mut late = link.converse().expect("a stream");
    late.say(&request(Some(begun.session))).expect("sent");
    match late.answer::<Begun>() {
        Err(StreamError::Failed(failure)) => assert_eq!(failure.code, FailureCode::NoSuchSession),
        other => panic!("{other:?}"),
    }
}

/// A client sends `Commit` and comes back without having heard the answer, sooner or later: it is told what
/// was published, or goes on, and nothing is ever published twice.
#[test]
fn whoever_missed_the_end_of_a_session_is_told_of_it() {
    let world = World::start(Duration::from_secs(60));
    let (link, config) = world.link();
    let keys = Keys::unlock(&config, None).expect("in clear");
    let mut told = 0;
    const TIMES: u64 = 60;
    for time in 0..TIMES {
        let (mut session, begun) = begin(&link, None);
        let (id, snapshot) =
            snapshot(&config, begun.session, None).encode(|body| keys.authenticate(body));
        let lock = Some(LockEnd::After(Duration::from_secs(3600)));
        let commit = Commit { lock, snapshot };
        session.say(&commit).expect("sent");
        std::thread::sleep(Duration::from_micros(time * 150));
        // As if the connection had broken: nobody reads the answer.
        let mut back = link.converse().expect("a stream");
        back.say(&request(Some(begun.session))).expect("sent");
        let frame = back.read().expect("an answer").expect("an answer");
        if let Ok(begun) = undercroft_dataplane::net::conversation::expect::<Begun>(&frame) {
            // It was not published, and whoever sent that cannot do it any more.
            assert_eq!(begun.epoch, Epoch(2));
            back.say(&commit).expect("sent");
            back.answer::<Ended>().expect("it is published now");
            continue;
        }
        let published = undercroft_dataplane::net::conversation::expect::<Published>(&frame);
        let published = published.expect("one or the other");
        assert_eq!(published.snapshot, id);
        assert!(published.ended.locked_until.is_some());
        told += 1;
    }
    assert!(
        told > 0,
        "the sooner ones may go on, the later ones are told"
    );
    let mut list = link.converse().expect("a stream");
    list.say(&ListSnapshots).expect("sent");
    let mut names = Vec::new();
    while let Ok(file) = list.answer::<SnapshotFile>() {
        names.push(file.name);
    }
    let locks = names.iter().filter(|name| name.ends_with(".locked"));
    assert_eq!(locks.count() as u64, TIMES);
    assert_eq!(names.len() as u64, 2 * TIMES, "each once, with its lock");
}

/// A client calls sound records damaged: the server looks for itself, and keeps them.
#[test]
fn a_client_cannot_have_sound_data_distrusted() {
    let world = World::start(Duration::from_secs(60));
    let (link, config) = world.link();
    let keys = Keys::unlock(&config, None).expect("in clear");
    let (_session, begun) = begin(&link, None);
    let mut lane = lane(&link, begun.session, begun.epoch);
    let payload = [5; 4096];
    let id = keys.chunk_id(&payload).into();
    lane.write(push(&chunk(id, &payload), &payload))
        .expect("sent");
    lane.say(&Flush).expect("sent");
    lane.answer::<Done>().expect("it was taken in");
    let kinds = [ObjectKind::Chunk, ObjectKind::SegmentMap, ObjectKind::Node];
    for kind in kinds {
        let ids = vec![id, ObjectId::from_bytes([1; 32])];
        lane.say(&Distrust { kind, ids }).expect("sent");
        lane.answer::<Done>().expect("it looked");
    }
    lane.say(&AskObjects { ids: vec![id] }).expect("sent");
    assert_eq!(lane.answer::<Answers>().expect("an answer").known, [true]);
}

/// A path that carries long packets is found, and a batch of them still fits what the kernel takes: above
/// that, the connection would fall back to the shortest packets.
#[test]
fn packets_grow_and_stay_long() {
    let world = World::start(Duration::from_secs(60));
    let (link, config) = world.link();
    let keys = Keys::unlock(&config, None).expect("in clear");
    let (_session, begun) = begin(&link, None);
    let mut lane = lane(&link, begun.session, begun.epoch);
    for number in 0..200_u32 {
        let mut payload = vec![0; 128 << 10];
        blake3::Hasher::new()
            .update(&number.to_le_bytes())
            .finalize_xof()
            .fill(&mut payload);
        let header = chunk(keys.chunk_id(&payload).into(), &payload);
        lane.write(push(&header, &payload)).expect("it takes it");
    }
    lane.say(&Flush).expect("sent");
    lane.answer::<Done>().expect("all was taken in");
    let stats = link.stats(0);
    let (mtu, batches) = (stats.path.current_mtu, stats.udp_tx);
    assert!((6000..=MTU_LAST).contains(&mtu), "packets of {mtu} bytes");
    assert_eq!(stats.path.black_holes_detected, 0);
    // Most were sent in full batches, which all fitted: a batch that does not is lost as a whole.
    assert!(
        batches.datagrams > 4 * batches.ios,
        "{} packets in {} batches",
        batches.datagrams,
        batches.ios
    );
    assert!(
        stats.path.lost_packets < batches.datagrams / 100,
        "{} of {} packets were lost",
        stats.path.lost_packets,
        batches.datagrams
    );
}

/// A segment can be said to be as it is in the reference only if it is there.
#[test]
fn nothing_is_like_a_reference_that_does_not_have_it() {
    let world = World::start(Duration::from_secs(60));
    let (link, _) = world.link();
    let (_session, begun) = begin(&link, None);
    assert_eq!(begun.reference, None);
    let mut asker = lane(&link, begun.session, begun.epoch);
    let question = AskReference {
        disk: 7,
        first: SegmentNumber(1 << 40),
        count: 4096,
    };
    asker.say(&question).expect("sent");
    let ReferenceMaps { maps } = asker.answer().expect("an answer");
    assert_eq!(maps, []);
    let unchanged = SegmentsUnchanged {
        disk: 0,
        segments: vec![UnchangedSegment {
            number: SegmentNumber(0),
            data_bytes: 4096,
        }],
    };
    asker.say(&unchanged).expect("sent");
    assert_eq!(refusal(&mut asker), FailureCode::Protocol);
}
