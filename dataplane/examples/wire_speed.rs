//! Measures the wire on loopback: `wire_speed DIRECTORY [MIB_PER_ROUND [ROUNDS [IDS]]]`. Both ends run in this
//! process. With a directory in memory (`/dev/shm`) no disk is measured.
//!
//! Pushes: records of incompressible chunks to a real server, which checks, hashes and stores them, in turn
//! with two endpoints of `quinn` that are set up alike and whose receiver drops what comes. Questions:
//! batches of ids, half of them known, over one lane.
#![expect(clippy::disallowed_methods, reason = "it measures wall time")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use bytes::Bytes;
use tokio::runtime::Runtime;
use undercroft_dataplane::net::client::Link;
use undercroft_dataplane::net::conversation::{Conversation, expect};
use undercroft_dataplane::net::server::CheckpointPolicy;
use undercroft_dataplane::net::transport::{
    RESET_KEY_LEN, ServerSide, client_config, endpoint, server_config, widen,
};
use undercroft_dataplane::net::trust::{SERVER_NAME, SystemClock, WallClock, tls};
use undercroft_dataplane::repository::keys::Keys;
use undercroft_dataplane::repository::open::CreateOptions;
use undercroft_format::config::Config;
use undercroft_format::id::ObjectId;
use undercroft_format::pack::{Encoding, ObjectKind, RecordHeader, RecordInfo};
use undercroft_format::units::DiskLength;
use undercroft_format::wire::lane::{Answers, AskObjects, Attach, Flush, PushBuilder};
use undercroft_format::wire::session::{Abandon, Begin, Begun, DiskState, Ended};
use undercroft_format::wire::upkeep::Done;
use world::World;

/// As a backup on two cores has them.
const CONNECTIONS: usize = 2;
const LANES: usize = 2;
const NET_THREADS: usize = 2;
const CHUNK_LEN: usize = 128 << 10;
/// Bytes of a push, and of a bare write.
const PUSH_LEN: usize = 1 << 20;
const LEASE: Duration = Duration::from_secs(600);
/// Ids of one question.
const QUESTION_IDS: usize = 1 << 16;
/// With chunks of a few bytes so long, a pack has as many as a usual one of usual chunks.
const SMALL_PACK_LEN: u32 = 128 << 10;
const QUESTIONS: usize = 60;

/// Threads of this process and the nanoseconds that each spent on a CPU.
fn threads() -> Vec<(String, u64)> {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux has it");
    let times = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let time = text.split(' ').next()?.parse().ok()?;
        Some((task.file_name().into_string().ok()?, time))
    });
    times.collect()
}

/// CPU time of the whole process, threads that have ended included, in seconds.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What a round came to.
struct Round {
    gb_per_s: f64,
    cpu_s_per_gb: f64,
}

fn measure(bytes: usize, work: impl FnOnce()) -> Round {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    work();
    let gb = bytes as f64 / 1e9;
    Round {
        gb_per_s: gb / start.elapsed().as_secs_f64(),
        cpu_s_per_gb: (cpu_seconds() - cpu) / gb,
    }
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("random numbers");
    bytes
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let builder = builder.worker_threads(NET_THREADS).enable_all();
    builder.build().expect("a runtime")
}

fn start(scratch: &Path, pack_len_target: Option<u32>) -> World {
    let mut create = CreateOptions::default();
    create.pack_len_target = pack_len_target.unwrap_or(create.pack_len_target);
    World::start_in(scratch, &create, LEASE, |options| {
        options.threads = LANES;
        options.checkpoint = CheckpointPolicy::default();
    })
}

/// Bare `quinn`: as many connections and streams, the same settings and TLS.
fn bare(world: &World, bytes: usize) -> Round {
    let (near, far) = (runtime(), runtime());
    let tls = tls::server_config(&world.authority, tls::REPOSITORY).expect("TLS");
    let server = {
        let _entered = far.enter();
        let config = server_config(tls, CONNECTIONS).expect("settings");
        let reset_key = [0; RESET_KEY_LEN];
        let side = ServerSide { config, reset_key };
        endpoint(([127, 0, 0, 1], 0).into(), Some(side)).expect("a socket")
    };
    let address = server.local_addr().expect("it listens");
    far.spawn(async move {
        while let Some(incoming) = server.accept().await {
            let connection = incoming.await.expect("a handshake");
            widen(&connection);
            tokio::spawn(async move {
                while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                    tokio::spawn(async move {
                        while let Ok(Some(_)) = recv.read_chunk(usize::MAX, true).await {}
                        let _ = send.write_all(b"done").await;
                        let _ = send.finish();
                    });
                }
            });
        }
    });
    let clock: Arc<dyn WallClock> = Arc::new(SystemClock);
    let tls = world.enrol().client_config(&clock).expect("TLS");
    let config = client_config(tls).expect("settings");
    let connected: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            near.block_on(async {
                let near = endpoint(([127, 0, 0, 1], 0).into(), None).expect("a socket");
                let connecting = near.connect_with(config.clone(), address, SERVER_NAME);
                (
                    near,
                    connecting.expect("settings").await.expect("a handshake"),
                )
            })
        })
        .collect();
    let data = Bytes::from(random(PUSH_LEN));
    let send = |lane: usize, bytes: usize| {
        near.block_on(async {
            let connection = &connected[lane % CONNECTIONS].1;
            let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
            for _ in 0..bytes / PUSH_LEN {
                send.write_chunk(data.clone()).await.expect("sent");
            }
            send.finish().expect("open");
            let answer = recv.read_to_end(16).await;
            assert_eq!(answer.expect("an answer"), b"done");
        });
    };
    // Until then the server's windows are narrow and packets short.
    (0..LANES).for_each(|lane| send(lane, 32 * PUSH_LEN));
    let round = measure(bytes, || {
        thread::scope(|scope| {
            for lane in 0..LANES {
                scope.spawn(move || send(lane, bytes / LANES));
            }
        });
    });
    drop(connected);
    near.shutdown_background();
    far.shutdown_background();
    round
}

fn open(world: &World) -> (Link, Keys) {
    let link = world.connect_by(&world.enrol(), CONNECTIONS);
    let link = link.expect("it connects");
    let config: Config = link
        .open(&"main".parse().expect("a name"))
        .expect("it opens");
    (link, Keys::unlock(&config, None).expect("in clear"))
}

fn begin(link: &Link) -> (Conversation, Attach) {
    let mut session = link.converse_on(0).expect("a stream");
    let disk = DiskState {
        label: "root".into(),
        size: DiskLength::new(1 << 40),
        state: [1; 32],
    };
    let begin = Begin {
        vm: "vm".into(),
        disks: vec![disk],
        resume: None,
        lock: None,
    };
    session.say(&begin).expect("it listens");
    let Begun {
        session: id, epoch, ..
    } = session.answer().expect("begun");
    (session, Attach { session: id, epoch })
}

fn lane(link: &Link, number: usize, attach: &Attach) -> Conversation {
    let mut lane = link.converse_on(number).expect("a stream");
    lane.say(attach).expect("it listens");
    lane
}

fn abandon(mut session: Conversation) {
    session.say(&Abandon).expect("it listens");
    loop {
        // Acknowledgements may come first.
        let frame = session.read().expect("an answer").expect("an answer");
        if expect::<Ended>(&frame).is_ok() {
            return;
        }
    }
}

fn header(keys: &Keys, chunk: &[u8]) -> RecordHeader {
    let info = RecordInfo {
        id: keys.chunk_id(chunk).into(),
        kind: ObjectKind::Chunk,
        encoding: Encoding::RAW,
        stored_len: chunk.len() as u32,
        plain_len: chunk.len() as u32,
    };
    RecordHeader::new(info, chunk)
}

fn send(lane: &mut Conversation, builder: &mut PushBuilder) {
    let frame = std::mem::take(builder).finish();
    lane.write(frame).expect("it takes it");
}

fn flush(lane: &mut Conversation) {
    lane.say(&Flush).expect("it listens");
    let Done = lane.answer().expect("taken in");
}

/// Chunks of a lane: all different, windows of one random buffer.
struct Chunks {
    data: Vec<u8>,
    headers: Vec<RecordHeader>,
}

impl Chunks {
    /// Room between two chunks: they overlap, but no two are the same.
    const STEP: usize = 1031;

    fn new(keys: &Keys, count: usize) -> Self {
        let data = random(CHUNK_LEN + count * Self::STEP);
        let chunk = |n: usize| header(keys, &data[n * Self::STEP..][..CHUNK_LEN]);
        let headers = (0..count).map(chunk).collect();
        Self { data, headers }
    }

    fn push(&self, lane: &mut Conversation) {
        let mut builder = PushBuilder::default();
        for (n, header) in self.headers.iter().enumerate() {
            builder.push(header, &self.data[n * Self::STEP..][..CHUNK_LEN]);
            if (n + 1) % (PUSH_LEN / CHUNK_LEN) == 0 {
                send(lane, &mut builder);
            }
        }
        flush(lane);
    }
}

/// Pushes, until everything was taken in and, as the second, until everything is durable.
fn push(world: &World, bytes: usize) -> (Round, Round) {
    let (link, keys) = open(world);
    let warm = Chunks::new(&keys, 256);
    let chunks: Vec<_> = (0..LANES)
        .map(|_| Chunks::new(&keys, bytes / LANES / CHUNK_LEN))
        .collect();
    let (session, attach) = begin(&link);
    let mut lanes: Vec<_> = (0..LANES).map(|n| lane(&link, n, &attach)).collect();
    lanes.iter_mut().for_each(|lane| warm.push(lane));
    let mut taken = None;
    let durable = measure(bytes, || {
        taken = Some(measure(bytes, || {
            thread::scope(|scope| {
                for (chunks, lane) in chunks.iter().zip(&mut lanes) {
                    scope.spawn(|| chunks.push(lane));
                }
            });
        }));
        drop(lanes);
        abandon(session);
    });
    (taken.expect("measured"), durable)
}

fn report(what: &str, rounds: &[Round], against: &[Round]) {
    let ratios = rounds.iter().zip(against);
    let ratios = ratios.map(|(round, against)| round.gb_per_s / against.gb_per_s);
    println!(
        "{what}: {:.3} GB/s, {:.2} CPU s/GB of both ends, {:.2}x of bare quinn",
        median(rounds.iter().map(|round| round.gb_per_s).collect()),
        median(rounds.iter().map(|round| round.cpu_s_per_gb).collect()),
        median(ratios.collect()),
    );
}

fn pushes(scratch: &Path, bytes: usize, rounds: usize) {
    let (mut bares, mut taken, mut durable) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        // A store of its own each, so that there is never more than one round's data.
        let world = start(scratch, None);
        bares.push(bare(&world, bytes));
        let (until_taken, until_durable) = push(&world, bytes);
        taken.push(until_taken);
        durable.push(until_durable);
        println!(
            "round: bare {:.3}, push {:.3} GB/s",
            bares.last().expect("there").gb_per_s,
            taken.last().expect("there").gb_per_s
        );
    }
    report("bare quinn", &bares, &bares);
    report("push, taken in", &taken, &bares);
    report("push, packs sealed", &durable, &bares);
}

fn small(n: u64) -> [u8; 16] {
    (u128::from(n) << 64 | u128::from(n)).to_le_bytes()
}

fn questions(scratch: &Path, ids: usize) {
    let world = start(scratch, Some(SMALL_PACK_LEN));
    let others: HashSet<String> = threads().into_iter().map(|(id, _)| id).collect();
    let main = std::process::id().to_string();
    let (link, keys) = open(&world);
    // The server makes its threads when they are needed: those of now are the client's, but for few that
    // idle. A thread that opened the repository is the server's and may converse later.
    let net: HashSet<String> = client_threads(&others).into_iter().chain([main]).collect();

    let (session, attach) = begin(&link);
    let mut first = lane(&link, 0, &attach);
    let mut known: Vec<ObjectId> = Vec::with_capacity(ids);
    let mut builder = PushBuilder::default();
    for n in 0..ids {
        let chunk = small(n as u64);
        let header = header(&keys, &chunk);
        known.push(header.info.id);
        builder.push(&header, &chunk);
        if n % 8192 == 8191 {
            send(&mut first, &mut builder);
        }
    }
    send(&mut first, &mut builder);
    flush(&mut first);
    drop(first);
    abandon(session);

    let (session, attach) = begin(&link);
    let mut lane = lane(&link, 0, &attach);
    let scatter = |n: usize| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % ids;
    ask(
        &mut lane,
        "in the order in which they were stored",
        &net,
        |n| known[n % ids],
    );
    ask(&mut lane, "scattered in runs of 16", &net, |n| {
        known[(scatter(n / 16) + n % 16) % ids]
    });
    drop(lane);
    abandon(session);
}

/// Threads that drive a link's connections: of the new ones, the first `NET_THREADS`, which
/// [`Link::connect`] starts before the server has anything to do.
fn client_threads(before: &HashSet<String>) -> Vec<String> {
    let mut new: Vec<_> = threads()
        .into_iter()
        .map(|(id, _)| id)
        .filter(|id| !before.contains(id))
        .collect();
    new.sort_by_key(|id| id.parse::<u32>().expect("a number"));
    new.truncate(NET_THREADS);
    new
}

/// Asks for ids, every other one new. Of the first tenth no time is taken.
fn ask(
    lane: &mut Conversation,
    what: &str,
    client: &HashSet<String>,
    known: impl Fn(usize) -> ObjectId,
) {
    let question = |number: usize| AskObjects {
        ids: (0..QUESTION_IDS)
            .map(|n| match n % 2 {
                0 => known((number * QUESTION_IDS + n) / 2),
                _ => {
                    let new = (1_u64 << 40) + (number * QUESTION_IDS + n) as u64;
                    ObjectId::from_bytes(*blake3::hash(&new.to_le_bytes()).as_bytes())
                }
            })
            .collect(),
    };
    let mut rounds = Vec::new();
    for number in 0..QUESTIONS + QUESTIONS / 10 {
        let question = question(number);
        let (before, start) = (threads(), Instant::now());
        lane.say(&question).expect("it listens");
        let Answers { known } = lane.answer().expect("answers");
        let seconds = start.elapsed().as_secs_f64();
        assert!(
            known
                .iter()
                .enumerate()
                .all(|(n, known)| *known == (n % 2 == 0))
        );
        let spent = threads().into_iter().filter_map(|(id, time)| {
            let before = before.iter().find(|(of, _)| *of == id);
            let spent = time - before.map_or(0, |(_, time)| *time);
            (!client.contains(&id)).then_some(spent as f64 / 1e9)
        });
        let spent: Vec<f64> = spent.collect();
        let conversation = spent.iter().copied().fold(0.0, f64::max);
        if number >= QUESTIONS / 10 {
            rounds.push((seconds, spent.iter().sum::<f64>(), conversation));
        }
    }
    let rate = |of: fn(&(f64, f64, f64)) -> f64| {
        let total: f64 = rounds.iter().map(of).sum();
        (rounds.len() * QUESTION_IDS) as f64 / total / 1e6
    };
    println!(
        "questions, {what}: {:.2} M ids/s wall, {:.2} M per CPU second of the server, {:.2} M of the conversation's thread",
        rate(|round| round.0),
        rate(|round| round.1),
        rate(|round| round.2),
    );
}

fn main() {
    let mut args = env::args().skip(1);
    let scratch = args.next().map_or_else(env::temp_dir, PathBuf::from);
    let mut number = |default| {
        args.next()
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let (mib, rounds, ids): (usize, usize, usize) = (number(1024), number(5), number(2_000_000));
    questions(&scratch, ids);
    pushes(&scratch, mib << 20, rounds);
}
