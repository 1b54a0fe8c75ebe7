//! Clients that attack a repository server, the real program in a process of its own. While they do, an
//! honest backup and an honest restore go through; the server's memory stays bounded.

mod support;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::server::{Place, Server};
use support::{Image, noise, succeed};
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::net::address::{RepositoryName, ServerAddress};
use undercroft_dataplane::net::client::{Link, LinkLimits, LinkOptions};
use undercroft_dataplane::net::conversation::{Conversation, QuicStream, StreamError, expect};
use undercroft_dataplane::net::transport;
use undercroft_dataplane::net::trust::{ClientStore, SERVER_NAME, SystemClock, WallClock};
use undercroft_dataplane::repository::keys::Keys;
use undercroft_format::config::Config;
use undercroft_format::id::{ObjectId, SegmentMapId, SessionId};
use undercroft_format::lock::LockEnd;
use undercroft_format::pack::{Encoding, ObjectKind, RecordHeader, RecordInfo};
use undercroft_format::units::{DiskLength, SegmentNumber};
use undercroft_format::wire::failure::FailureCode;
use undercroft_format::wire::fetch::Fetch;
use undercroft_format::wire::frame::{Body, FrameHeader, FrameType};
use undercroft_format::wire::lane::{AskObjects, Attach, Flush, PushBuilder, SegmentDone};
use undercroft_format::wire::message::{
    Collect, Create, Forget, ListSnapshots, Lock, May, Open, Protect, Repair, Stats, Verify,
};
use undercroft_format::wire::session::{
    Abandon, Begin, Begun, Commit, DiskState, DoneSegment, Epoch, SegmentPlace,
};
use undercroft_format::wire::upkeep::Done;

/// Most memory that a server may ever have here: an index's budget of 64 MiB, its pools, and what a few
/// connections may make it hold.
const MEMORY_MAX: u64 = 320 << 20;

struct World {
    server: Server,
    turn: AtomicU64,
}

impl World {
    fn start() -> Self {
        let server = Server::start(Place {
            options: ["--checkpoint", "1"].map(str::to_owned).to_vec(),
            ..Place::default()
        });
        let sizes = ["init", "--segment-size", "1M", "--pack-size", "1M"];
        let mut init = server.undercroft();
        succeed(init.args(sizes).args(["--index-memory", "64M"]));
        for (name, role) in [("evil", "ingest"), ("reader", "restore")] {
            let token = server.token(&["--role", role, "--vm", "evil*"]);
            server.enroll(name, role, &token);
        }
        let turn = AtomicU64::new(0);
        Self { server, turn }
    }

    /// A client of the attacker's, with the repository open.
    fn link(&self, name: &str) -> (Link, Config) {
        let link = self.connect(name).expect("it connects");
        let main: RepositoryName = "main".parse().expect("a name");
        let config = link.open(&main).expect("it opens");
        (link, config)
    }

    fn connect(&self, name: &str) -> Result<Link, String> {
        let clock: Arc<dyn WallClock> = Arc::new(SystemClock);
        let address = self.server.address();
        let address: ServerAddress = address.parse().expect("an address");
        let store = ClientStore::of_server(&self.server.path(&format!("{name}.config")), &address);
        let enrolled = store.load().expect("it is enrolled");
        Link::connect(LinkOptions {
            address,
            tls: enrolled.client_config(&clock).expect("TLS"),
            server_name: SERVER_NAME.to_owned(),
            program: "an attacker".into(),
            connections: 1,
            limits: LinkLimits::default(),
        })
        .map_err(|error| error.to_string())
    }

    /// Runs an attack; those who mean well go about their work meanwhile.
    fn withstands(&self, attack: impl FnOnce(&Self) + Send) {
        std::thread::scope(|scope| {
            let attack = scope.spawn(|| attack(self));
            loop {
                self.honest_work();
                if attack.is_finished() {
                    break;
                }
            }
            if let Err(panic) = attack.join() {
                std::panic::resume_unwind(panic);
            }
        });
        let peak = self.server.peak_memory();
        println!("the server had {} MiB at most", peak >> 20);
        assert!(peak <= MEMORY_MAX, "{} MiB", peak >> 20);
    }

    fn honest_work(&self) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut image = Image::new(self.server.path("honest.raw"), turn, 3 << 20);
        image.bytes = noise(turn, 3 << 20);
        image.write();
        let clock = Stopwatch::start();
        succeed(&mut self.server.backup("honest", &image.path));
        self.server.assert_restores("honest@latest", &image.bytes);
        let took = clock.elapsed();
        assert!(took < Duration::from_secs(60), "it took {took:?}");
    }

    /// The server has said why it refused something.
    fn assert_logged(&self, reasons: &[&str]) {
        let log = self.server.log();
        for reason in reasons {
            assert!(log.contains(reason), "no line with {reason:?}");
        }
    }
}

fn disk() -> DiskState {
    DiskState {
        label: "root".into(),
        size: DiskLength::new(64 << 20),
        state: [1; 32],
    }
}

fn begin_of(vm: &str, resume: Option<SessionId>) -> Begin {
    Begin {
        vm: vm.into(),
        disks: vec![disk()],
        resume,
        lock: None,
    }
}

fn begin(link: &Link) -> (Conversation, Begun) {
    let mut session = link.converse().expect("a stream");
    session.say(&begin_of("evil", None)).expect("it listens");
    let begun = session.answer::<Begun>().expect("a session");
    (session, begun)
}

fn lane(link: &Link, begun: &Begun) -> Conversation {
    let mut lane = link.converse().expect("a stream");
    let attach = Attach {
        session: begun.session,
        epoch: begun.epoch,
    };
    lane.say(&attach).expect("it listens");
    lane
}

/// What the server says to a stream that it does not want.
fn refusal(stream: &mut Conversation) -> FailureCode {
    // It may have stopped to listen already.
    let _ = stream.say(&Flush);
    stream.finish();
    match stream.answer::<Done>() {
        Err(StreamError::Failed(failure)) => failure.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn refused(link: &Link, frames: &[Vec<u8>]) -> FailureCode {
    let mut stream = link.converse().expect("a stream");
    for frame in frames {
        // It may have stopped to listen already.
        let _ = stream.write(frame.clone());
    }
    refusal(&mut stream)
}

fn header_of(id: ObjectId, kind: ObjectKind, payload: &[u8]) -> RecordHeader {
    let info = RecordInfo {
        id,
        kind,
        encoding: Encoding::RAW,
        stored_len: payload.len() as u32,
        plain_len: payload.len() as u32,
    };
    RecordHeader::new(info, payload)
}

fn push(records: &[(RecordHeader, &[u8])]) -> Vec<u8> {
    let mut builder = PushBuilder::default();
    for (header, payload) in records {
        builder.push(header, payload);
    }
    builder.finish()
}

/// A frame's header without a body.
fn bare(kind: FrameType, len: u32) -> Vec<u8> {
    FrameHeader { kind, len }.encode().to_vec()
}

fn zstd_bomb(len: usize, said: u32) -> (RecordHeader, Vec<u8>) {
    let payload = zstd::bulk::compress(&vec![0; len], 1).expect("it compresses");
    let mut header = header_of(ObjectId::from_bytes([3; 32]), ObjectKind::Chunk, &payload);
    header.info.encoding.zstd = true;
    header.info.plain_len = said;
    (RecordHeader::new(header.info, &payload), payload)
}

#[test]
fn records_lie() {
    let world = World::start();
    world.withstands(|world| {
        let (link, config) = world.link("evil");
        let keys = Keys::unlock(&config, None).expect("in clear");
        let (_session, begun) = begin(&link);
        let payload = noise(9, 5000);
        let right = ObjectId::from(keys.chunk_id(&payload));
        let wrong = ObjectId::from_bytes([9; 32]);
        let mut sum = header_of(right, ObjectKind::Chunk, &payload);
        sum.payload_checksum ^= 1;
        for header in [
            header_of(wrong, ObjectKind::Chunk, &payload),
            header_of(wrong, ObjectKind::SegmentMap, &payload),
            header_of(wrong, ObjectKind::Node, &payload),
            sum,
        ] {
            let mut lane = lane(&link, &begun);
            lane.write(push(&[(header, &payload)])).expect("sent");
            assert_eq!(refusal(&mut lane), FailureCode::BadRecord);
        }
        // Bombs: more than they say, less than they say, as much as they may say.
        for (len, said) in [
            (64 << 20, 4096),
            (64 << 20, 8 << 20),
            (4096, 8 << 20),
            (8 << 20, 8 << 20),
        ] {
            let (header, payload) = zstd_bomb(len, said);
            let mut lane = lane(&link, &begun);
            lane.write(push(&[(header, &payload)])).expect("sent");
            assert_eq!(refusal(&mut lane), FailureCode::BadRecord);
        }
        // Many small ones, each as good as it says: they cost time, and no memory.
        let plain = vec![0; 64 << 10];
        let payload = zstd::bulk::compress(&plain, 1).expect("it compresses");
        let mut header = header_of(keys.chunk_id(&plain).into(), ObjectKind::Chunk, &payload);
        header.info.encoding.zstd = true;
        header.info.plain_len = plain.len() as u32;
        let header = RecordHeader::new(header.info, &payload);
        let frame = push(&vec![(header, &payload[..]); 4000]);
        let mut lanes: Vec<_> = (0..8).map(|_| lane(&link, &begun)).collect();
        for lane in &mut lanes {
            lane.write(frame.clone()).expect("sent");
            lane.say(&Flush).expect("sent");
        }
        for lane in &mut lanes {
            lane.answer::<Done>().expect("they are what they say");
        }
    });
    world.assert_logged(&["is refused: "]);
}

#[test]
fn frames_are_too_long_out_of_place_or_none() {
    let world = World::start();
    world.withstands(|world| {
        let (link, _) = world.link("evil");
        let (_session, begun) = begin(&link);
        let attach = Attach {
            session: begun.session,
            epoch: begun.epoch,
        }
        .frame();
        // As first frames, and on a lane.
        for kind in 0..=255_u8 {
            for len in [0_u32, 1, u32::MAX] {
                let mut frame = len.to_le_bytes().to_vec();
                frame.extend([kind, 0, 0, 0]);
                if FrameHeader::decode(frame[..8].try_into().expect("eight")).is_ok() {
                    continue;
                }
                assert_eq!(
                    refused(&link, &[attach.clone(), frame]),
                    FailureCode::Protocol
                );
            }
        }
        // Counts that their frame cannot hold.
        let mut begin_many = Vec::new();
        begin_many.extend_from_slice(&bare(FrameType::Begin, 16));
        begin_many.extend_from_slice(b"\x04evil");
        begin_many.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0]);
        assert_eq!(refused(&link, &[begin_many]), FailureCode::Protocol);
        let mut ask_many = bare(FrameType::AskObjects, 9);
        ask_many.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0]);
        assert_eq!(
            refused(&link, &[attach.clone(), ask_many]),
            FailureCode::Protocol
        );
        // What does not belong where it stands.
        for frame in [Done.frame(), Abandon.frame(), attach.clone()] {
            assert_eq!(
                refused(&link, &[attach.clone(), frame]),
                FailureCode::Protocol
            );
        }
        for frame in [Flush.frame(), Abandon.frame(), bare(FrameType::Commit, 1)] {
            let mut frame = frame;
            if frame[4] == FrameType::Commit as u8 {
                frame.push(0);
            }
            assert_eq!(refused(&link, &[frame]), FailureCode::Protocol);
        }
        // Garbage.
        for seed in 0..50 {
            let mut stream = link.converse().expect("a stream");
            let _ = stream.write(noise(seed, 4096));
            stream.finish();
            let _ = stream.read();
        }
        let open = Open {
            name: "main".into(),
        };
        assert_eq!(refused(&link, &[open.frame()]), FailureCode::Protocol);
    });
}

#[test]
fn sessions_are_anothers_over_or_in_disorder() {
    let world = World::start();
    // A session of somebody else's that is open.
    let (other, _) = world.link("admin");
    let mut foreign = other.converse().expect("a stream");
    foreign.say(&begin_of("honest2", None)).expect("sent");
    let foreign_begun = foreign.answer::<Begun>().expect("a session");
    world.withstands(|world| {
        let (link, config) = world.link("evil");
        let keys = Keys::unlock(&config, None).expect("in clear");
        let lane_of = |session, epoch| Attach { session, epoch }.frame();
        let any = SessionId::from_bytes([5; 16]);
        let theirs = foreign_begun.session;
        let code = |frames: &[Vec<u8>]| refused(&link, frames);
        assert_eq!(code(&[lane_of(any, Epoch(1))]), FailureCode::NoSuchSession);
        let code_of_theirs = code(&[lane_of(theirs, foreign_begun.epoch)]);
        assert_eq!(code_of_theirs, FailureCode::Denied);
        let resume = begin_of("honest2", Some(theirs)).frame();
        assert_eq!(code(&[resume]), FailureCode::Denied);
        let resume = begin_of("evil", Some(theirs)).frame();
        let taken = code(&[resume]);
        assert!(
            matches!(
                taken,
                FailureCode::Denied | FailureCode::NoSuchSession | FailureCode::DisksChanged
            ),
            "{taken:?}"
        );
        let (mut session, begun) = begin(&link);
        for epoch in [0, 2, u64::MAX] {
            let code = code(&[lane_of(begun.session, Epoch(epoch))]);
            assert_eq!(code, FailureCode::Fenced);
        }
        // A frame that was captured, on a stream that is no lane, and in a session that is over.
        let payload = noise(8, 3000);
        let header = header_of(keys.chunk_id(&payload).into(), ObjectKind::Chunk, &payload);
        let captured = push(&[(header, &payload)]);
        assert_eq!(code(std::slice::from_ref(&captured)), FailureCode::Protocol);
        // Done without a map that is there: it is never called finished, and the end of it is no snapshot.
        let done = SegmentDone {
            place: SegmentPlace {
                disk: 0,
                number: SegmentNumber(0),
            },
            done: DoneSegment {
                map: Some(SegmentMapId::from_bytes([7; 32])),
                data_bytes: 1,
                replaced_bytes: 0,
            },
        };
        let mut lane = lane(&link, &begun);
        lane.say(&done).expect("sent");
        let beyond = SegmentDone {
            place: SegmentPlace {
                disk: 9,
                number: SegmentNumber(u64::MAX >> 24),
            },
            ..done
        };
        lane.say(&beyond).expect("sent");
        assert_eq!(refusal(&mut lane), FailureCode::Protocol);
        // Begin again on the same stream, then a commit of nothing.
        session.say(&begin_of("evil", None)).expect("sent");
        assert_eq!(refusal(&mut session), FailureCode::Protocol);
        let (mut session, begun) = begin(&link);
        let commit = Commit {
            lock: None,
            snapshot: noise(1, 500),
        };
        session.say(&commit).expect("sent");
        assert_eq!(refusal(&mut session), FailureCode::Unpublishable);
        let (mut session, _) = {
            let mut session = link.converse().expect("a stream");
            session
                .say(&begin_of("evil", Some(begun.session)))
                .expect("sent");
            loop {
                let frame = session.read().expect("an answer").expect("an answer");
                if let Ok(begun) = expect::<Begun>(&frame) {
                    break (session, begun);
                }
            }
        };
        session.say(&Abandon).expect("sent");
        while let Ok(Some((kind, _))) = session.read() {
            if kind == FrameType::Ended {
                break;
            }
        }
        assert_eq!(
            code(&[lane_of(begun.session, Epoch(2)), captured]),
            FailureCode::NoSuchSession
        );
    });
    assert_eq!(
        world
            .server
            .snapshots()
            .iter()
            .filter(|s| s["vm"] == "evil")
            .count(),
        0
    );
    drop(foreign);
}

/// One identity cannot keep all others from having sessions.
#[test]
fn sessions_are_begun_and_left() {
    let world = World::start();
    world.withstands(|world| {
        let (link, _) = world.link("evil");
        let mut left = 0;
        let code = loop {
            let mut stream = link.converse().expect("a stream");
            stream.say(&begin_of("evil", None)).expect("sent");
            match stream.answer::<Begun>() {
                Ok(_) => left += 1,
                Err(error) => break error.to_string(),
            }
            assert!(left <= 256, "nothing stops it");
        };
        assert_eq!(left, 128);
        assert!(code.contains("evil has 128 sessions"), "{code}");
    });
}

/// Honest clients ask first whether they may; that is not what keeps others out.
#[test]
fn what_a_role_may_not_do_is_not_asked_for_first() {
    let world = World::start();
    let disk = Image::new(world.server.path("evil.raw"), 5, 1 << 20);
    succeed(&mut world.server.backup("evil", &disk.path));
    let snapshots = world.server.snapshots();
    let id = snapshots[0]["id"].as_str().expect("an id");
    let snapshot = id.parse().expect("an id");
    let json = String::from("{}");
    let until = LockEnd::After(Duration::from_secs(60));
    let forget = Forget {
        snapshots: vec![snapshot],
    }
    .frame();
    let protect = Protect {
        snapshot,
        is_protected: true,
    }
    .frame();
    let lock = Lock {
        snapshot,
        end: until,
    }
    .frame();
    let collect = Collect { json: json.clone() }.frame();
    let verify = Verify { json }.frame();
    let repair = Repair { is_deep: false }.frame();
    let fetch = Fetch {
        kind: ObjectKind::Chunk,
        ids: vec![ObjectId::from_bytes([1; 32])],
    }
    .frame();
    let (ingest, _) = world.link("evil");
    let (restore, _) = world.link("reader");
    let of_none = [
        &forget,
        &protect,
        &collect,
        &verify,
        &repair,
        &Stats.frame(),
    ];
    for link in [&ingest, &restore] {
        for frame in of_none {
            let code = refused(link, std::slice::from_ref(frame));
            assert_eq!(code, FailureCode::Denied, "type {}", frame[4]);
        }
    }
    assert_eq!(refused(&ingest, &[fetch]), FailureCode::Denied);
    assert_eq!(refused(&restore, &[lock]), FailureCode::Denied);
    let begin = begin_of("evil", None).frame();
    assert_eq!(refused(&restore, &[begin]), FailureCode::Denied);
    let asked = May {
        first: FrameType::Hello,
    }
    .frame();
    assert_eq!(refused(&ingest, &[asked]), FailureCode::Protocol);
    world.server.assert_restores("evil@latest", &disk.bytes);
}

#[test]
fn names_are_deep_odd_or_many() {
    let world = World::start();
    let store = world.server.store();
    let before = list(&store);
    world.withstands(|world| {
        let (link, _) = world.link("evil");
        let long = "x/".repeat(120);
        for vm in [
            "evil/../../x",
            "evil\0x",
            "evil\u{202e}gpj",
            &format!("evil{long}"),
        ] {
            let mut stream = link.converse().expect("a stream");
            stream.say(&begin_of(vm, None)).expect("sent");
            // A VM's name is no file's name anywhere.
            let _ = stream.read();
        }
        let many = Begin {
            disks: (0..4096)
                .map(|number| DiskState {
                    label: format!("{number:->250}"),
                    ..disk()
                })
                .collect(),
            ..begin_of("evil", None)
        };
        for _ in 0..20 {
            let mut stream = link.converse().expect("a stream");
            stream.say(&many).expect("sent");
            let _ = stream.read();
        }
        // Names of repositories, asked for on connections of their own.
        let (_, config) = world.link("evil");
        for name in [
            "..",
            "../main",
            "trust",
            ".reset-key",
            "main/../main",
            "ma\0in",
            "m\u{e4}in",
            "/etc",
            "",
            "main ",
            &"m".repeat(65),
        ] {
            let (admin, _) = world.link("admin");
            let mut control = admin.converse().expect("a stream");
            let create = Create {
                name: name.into(),
                config: config.encode(),
            };
            // On the first stream alone these are asked for.
            control.say(&create).expect("sent");
            assert_eq!(refusal(&mut control), FailureCode::Protocol, "{name:?}");
            let parsed: Result<RepositoryName, _> = name.parse();
            assert!(parsed.is_err(), "{name:?}");
        }
    });
    assert_eq!(list(&store), before, "nothing new lies in the store");
}

fn list(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("the store");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn streams_are_opened_and_left_or_trickle() {
    let world = World::start();
    world.withstands(|world| {
        let links: Vec<_> = (0..24).filter_map(|_| world.connect("evil").ok()).collect();
        let main: RepositoryName = "main".parse().expect("a name");
        let mut left = Vec::new();
        for link in &links {
            if link.open(&main).is_err() {
                continue;
            }
            for number in 0..60 {
                let Ok(mut stream) = link.converse() else {
                    break;
                };
                // Nothing, a piece of a header, a header without its body, a body without its end.
                let begun = match number % 4 {
                    0 => vec![0],
                    1 => bare(FrameType::ListSnapshots, 0)[..5].to_vec(),
                    2 => bare(FrameType::Begin, 2 << 20),
                    _ => {
                        let mut frame = bare(FrameType::Begin, 2 << 20);
                        frame.extend(noise(1, 20_000));
                        frame
                    }
                };
                // The server may refuse so many.
                try_to_send(&mut stream, &begun);
                left.push(stream);
            }
        }
        println!("{} streams are left open", left.len());
        // One byte a second, on each of some.
        for second in 0..6_usize {
            for stream in left.iter_mut().step_by(50) {
                let byte = [second as u8];
                try_to_send(stream, &byte);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    });
}

/// Sends what goes at once: what flow control or the peer holds up is given up.
fn try_to_send(stream: &mut Conversation, bytes: &[u8]) {
    let QuicStream { handle, send, .. } = stream.quic().expect("it is over QUIC");
    let sending = async {
        let mut sending = std::pin::pin!(send.write_all(bytes));
        std::future::poll_fn(|context| {
            let _ = sending.as_mut().poll(context);
            std::task::Poll::Ready(())
        })
        .await;
    };
    handle.block_on(sending);
}

#[test]
fn everything_is_asked_for_and_nothing_read() {
    let world = World::start();
    let image = Image::new(world.server.path("big.raw"), 5, 48 << 20);
    succeed(&mut world.server.backup("evil-big", &image.path));
    world.withstands(|world| {
        let (link, config) = world.link("reader");
        let keys = Keys::unlock(&config, None).expect("in clear");
        // Ids of chunks that are there and of many that are not.
        let mut ids: Vec<ObjectId> = (0..2000_u64)
            .map(|number| ObjectId::from(keys.chunk_id(&noise(number, 100))))
            .collect();
        ids.truncate(2000);
        let mut streams = Vec::new();
        for number in 0..60 {
            let Ok(mut stream) = link.converse() else {
                break;
            };
            let frame = match number % 2 {
                0 => Fetch {
                    kind: ObjectKind::Chunk,
                    ids: ids.clone(),
                }
                .frame(),
                _ => ListSnapshots.frame(),
            };
            try_to_send(&mut stream, &frame);
            streams.push(stream);
        }
        std::thread::sleep(Duration::from_secs(5));
        // Those who wait for the attacker do not keep others from their records.
        drop(streams);
    });
}

/// Handshakes that are begun and left, from thousands of addresses that may all be forged.
#[test]
fn handshakes_are_begun_and_left_by_the_thousand() {
    let world = World::start();
    world.withstands(|world| {
        let server = SocketAddr::from(([127, 0, 0, 1], world.server.port));
        let clock: Arc<dyn WallClock> = Arc::new(SystemClock);
        let address: ServerAddress = world.server.address().parse().expect("an address");
        let store = ClientStore::of_server(&world.server.path("evil.config"), &address);
        let tls = store
            .load()
            .expect("it is enrolled")
            .client_config(&clock)
            .expect("TLS");
        let config = transport::client_config(tls).expect("a config");
        let endpoint = Arc::new(quinn_proto::EndpointConfig::default());
        let mut endpoint = quinn_proto::Endpoint::new(endpoint, None, true, None);
        for number in 0..4000_u32 {
            #[expect(clippy::disallowed_methods, reason = "quinn takes an instant")]
            let now = Instant::now();
            let connecting = endpoint.connect(now, config.clone(), server, SERVER_NAME);
            let (_, mut connection) = connecting.expect("it begins");
            let mut packet = Vec::new();
            let sent = connection.poll_transmit(now, 1, &mut packet);
            assert!(sent.is_some(), "an initial packet");
            // All of 127/8 is this machine.
            let [_, a, b, c] = (number + 2).to_be_bytes();
            let from = IpAddr::from(Ipv4Addr::new(127, 9 + a, b, c));
            let socket = UdpSocket::bind((from, 0)).expect("a socket");
            let _ = socket.send_to(&packet, server);
        }
    });
}

#[test]
fn datagrams_are_garbage() {
    let world = World::start();
    world.withstands(|world| {
        let server = SocketAddr::from(([127, 0, 0, 1], world.server.port));
        let socket = UdpSocket::bind(("127.3.2.1", 0)).expect("a socket");
        for seed in 0..20_000_u64 {
            let mut garbage = noise(seed, 20 + seed as usize % 1400);
            // Long headers, short ones, versions that are ours and none.
            match seed % 4 {
                0 => garbage[0] |= 0xc0,
                1 => garbage[0] = 0x40 | garbage[0] & 0x3f,
                2 => {
                    garbage[0] |= 0xc0;
                    garbage[1..5].copy_from_slice(&[0, 0, 0, 1]);
                    garbage[5] %= 21;
                }
                _ => {}
            }
            let _ = socket.send_to(&garbage, server);
        }
    });
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{} bytes of log", world.server.log().len());
    assert!(world.server.log().len() < 4 << 20, "a flood fills no log");
}

/// Questions by the million ids cost time, which others share.
#[test]
fn questions_are_asked_without_end() {
    let world = World::start();
    world.withstands(|world| {
        let (link, _) = world.link("evil");
        let (_session, begun) = begin(&link);
        let ids: Vec<ObjectId> = noise(3, 32 * 60_000)
            .chunks(32)
            .map(|id| ObjectId::from_bytes(id.try_into().expect("32 bytes")))
            .collect();
        let mut lanes: Vec<_> = (0..8).map(|_| lane(&link, &begun)).collect();
        for _ in 0..5 {
            for lane in &mut lanes {
                let question = AskObjects { ids: ids.clone() };
                lane.say(&question).expect("sent");
            }
        }
    });
}
