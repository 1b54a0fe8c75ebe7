//! Clients that stop where something has to move, against a real server on loopback: they are given up, and
//! those beside them notice nothing.

mod world;

use std::time::Duration;

use undercroft_dataplane::net::client::Link;
use undercroft_dataplane::net::conversation::{Conversation, StreamError};
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::keys::Keys;
use undercroft_format::config::Config;
use undercroft_format::id::{ObjectId, SessionId};
use undercroft_format::pack::{Encoding, ObjectKind, RecordHeader, RecordInfo};
use undercroft_format::units::{DiskLength, SegmentNumber};
use undercroft_format::wire::fetch::Fetch;
use undercroft_format::wire::frame::{FrameHeader, FrameType};
use undercroft_format::wire::lane::{Attach, Flush, PushBuilder, SegmentDone};
use undercroft_format::wire::session::{
    Abandon, Begin, Begun, DiskState, DoneSegment, Ended, SegmentPlace,
};
use undercroft_format::wire::upkeep::Done;
use world::World;

const SHORT: Duration = Duration::from_millis(700);

fn begin(link: &Link) -> (Conversation, Attach) {
    let mut session = link.converse().expect("a stream");
    let request = Begin {
        vm: "vm".into(),
        disks: vec![DiskState {
            label: "root".into(),
            size: DiskLength::new(1 << 20),
            state: [1; 32],
        }],
        resume: None,
        lock: None,
    };
    session.say(&request).expect("it listens");
    let begun: Begun = session.answer().expect("it begins");
    let attach = Attach {
        session: begun.session,
        epoch: begun.epoch,
    };
    (session, attach)
}

fn lane(link: &Link, attach: &Attach) -> Conversation {
    let mut lane = link.converse().expect("a stream");
    lane.say(attach).expect("it listens");
    lane
}

fn answers(lane: &mut Conversation) {
    lane.say(&Flush).expect("it listens");
    let Done = lane.answer().expect("it answers");
}

/// Chunks of noise in the repository.
fn store_chunks(link: &Link, config: &Config, count: u32) -> Vec<ObjectId> {
    let keys = Keys::unlock(config, None).expect("in clear");
    let (mut session, attach) = begin(link);
    let mut lane = lane(link, &attach);
    let mut ids = Vec::new();
    for number in 0..count {
        let mut payload = vec![0; 128 << 10];
        let mut hash = blake3::Hasher::new();
        hash.update(&number.to_le_bytes());
        hash.finalize_xof().fill(&mut payload);
        let info = RecordInfo {
            id: keys.chunk_id(&payload).into(),
            kind: ObjectKind::Chunk,
            encoding: Encoding::RAW,
            stored_len: payload.len() as u32,
            plain_len: payload.len() as u32,
        };
        let mut builder = PushBuilder::default();
        builder.push(&RecordHeader::new(info, &payload), &payload);
        lane.write(builder.finish()).expect("it takes it");
        ids.push(info.id);
    }
    answers(&mut lane);
    session.say(&Abandon).expect("it listens");
    session.answer::<Ended>().expect("what was pushed is kept");
    ids
}

fn fetch(link: &Link, ids: &[ObjectId]) -> Conversation {
    let mut stream = link.converse().expect("a stream");
    let fetch = Fetch {
        kind: ObjectKind::Chunk,
        ids: ids.to_vec(),
    };
    stream.say(&fetch).expect("it listens");
    stream
}

fn read_all(stream: &mut Conversation, count: usize) {
    for _ in 0..count {
        let (kind, _) = stream.read().expect("it answers").expect("a record");
        assert_eq!(kind, FrameType::Record);
    }
}

#[test]
fn who_stops_in_the_middle_of_a_frame_is_given_up() {
    let world = World::start_with(Duration::from_secs(60), |options| {
        options.limits.stall = SHORT;
    });
    let (link, _) = world.link();
    let (_session, attach) = begin(&link);
    let mut good = lane(&link, &attach);
    answers(&mut good);
    let header = FrameHeader {
        kind: FrameType::Push,
        len: 4 << 20,
    };
    let mut stalled: Vec<_> = (0..4)
        .map(|_| {
            let mut lane = lane(&link, &attach);
            let mut half = header.encode().to_vec();
            half.resize(1 << 10, 7);
            lane.write(half).expect("sent");
            lane
        })
        .collect();
    for lane in &mut stalled {
        let error = lane.read().expect_err("it is given up");
        assert!(
            matches!(error, StreamError::Read(quinn::ReadError::Reset(_))),
            "{error:?}"
        );
    }
    // Between frames one may be silent.
    std::thread::sleep(SHORT);
    answers(&mut good);
}

/// What the frames of one connection take together is bounded: a stream that wants more is told, the others
/// go on.
#[test]
fn frames_of_one_connection_have_so_much_memory() {
    let world = World::start_with(Duration::from_secs(60), |options| {
        options.limits.stall = SHORT;
    });
    let (link, _) = world.link();
    let (_session, attach) = begin(&link);
    let header = FrameHeader {
        kind: FrameType::Push,
        len: 9 << 20,
    };
    let mut lanes: Vec<_> = (0..4)
        .map(|_| {
            let mut lane = lane(&link, &attach);
            lane.write(header.encode().to_vec()).expect("sent");
            std::thread::sleep(SHORT / 10);
            lane
        })
        .collect();
    let refused = lanes[3].answer::<Done>().expect_err("there is no room");
    let told = match &refused {
        StreamError::Failed(failure) => failure.text.contains("too long together"),
        // The others were given up just before it was.
        _ => false,
    };
    assert!(told, "{refused:?}");
    let mut late = lane(&link, &attach);
    answers(&mut late);
}

#[test]
fn who_says_nothing_is_sent_away() {
    let world = World::start_with(Duration::from_secs(60), |options| {
        options.limits.silence = SHORT;
    });
    let enrolled = world.enrol();
    let link = world.connect(&enrolled).expect("it is let in");
    std::thread::sleep(SHORT * 2);
    let error = link.open(&"main".parse().expect("a name"));
    let error = error.expect_err("it is gone");
    assert!(matches!(error, RepositoryError::Connection(_)), "{error:?}");
    assert!(
        format!("{error:?}").contains("nothing was asked for"),
        "{error:?}"
    );
    // With a repository open it may be silent.
    let (link, _) = world.link();
    std::thread::sleep(SHORT * 2);
    let (_session, attach) = begin(&link);
    answers(&mut lane(&link, &attach));
}

/// Clients that ask for more than they read hold neither the memory that all fetches share nor a thread for
/// ever.
#[test]
fn who_does_not_read_keeps_nobody_from_reading() {
    let world = World::start_with(Duration::from_secs(60), |options| {
        options.limits.stall = Duration::from_secs(600);
    });
    let (link, config) = world.link();
    let ids = store_chunks(&link, &config, 96);
    let greedy = world.enrol();
    let name = "main".parse().expect("a name");
    let links: Vec<_> = (0..2)
        .map(|_| {
            let link = world.connect(&greedy).expect("it is let in");
            link.open(&name).expect("it opens");
            link
        })
        .collect();
    let unread: Vec<_> = links
        .iter()
        .flat_map(|link| (0..12).map(|_| fetch(link, &ids)))
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..3 {
        let mut stream = fetch(&link, &ids);
        read_all(&mut stream, ids.len());
    }
    // Whoever reads at last gets what was asked for. All of a connection's streams share its window, so that
    // one alone would wait for the others.
    std::thread::scope(|scope| {
        for mut stream in unread {
            let count = ids.len();
            scope.spawn(move || read_all(&mut stream, count));
        }
    });
}

/// A session whose client never comes back ends with its lease, though nobody asks for its repository after
/// a restart.
#[test]
fn sessions_are_taken_up_at_start() {
    let mut world = World::start(Duration::from_secs(60));
    let sessions = world.dir.path().join("main/sessions");
    let count = || std::fs::read_dir(&sessions).expect("a directory").count();
    let id: SessionId = {
        let (link, _) = world.link();
        let (_session, attach) = begin(&link);
        let mut lane = lane(&link, &attach);
        let place = SegmentPlace {
            disk: 0,
            number: SegmentNumber(0),
        };
        let done = DoneSegment {
            map: None,
            data_bytes: 0,
            replaced_bytes: 0,
        };
        lane.say(&SegmentDone { place, done }).expect("it listens");
        answers(&mut lane);
        attach.session
    };
    let closed = world.server.take().expect("it runs").drain();
    assert!(closed.is_empty(), "{closed:?}");
    assert_eq!(count(), 1, "session {id} is kept");
    world.serve(Duration::from_secs(1), |_| {});
    let is_over = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        count() == 0
    });
    assert!(is_over, "its lease does not run");
}
