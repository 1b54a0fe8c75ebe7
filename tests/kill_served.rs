//! SIGKILL to a repository server, to its client, to both, at random moments of everything they do. What was
//! acknowledged restores; what was interrupted is gone on with and then equals its source.
//!
//! `UNDERCROFT_KILL_ROUNDS` and `UNDERCROFT_KILL_SEED` make it longer and other: `make faults`.

mod support;

use std::collections::BTreeMap;
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::Duration;

use support::server::{Place, Server, assert_same, pack_bytes, wait_for};
use support::{Image, Random, files_below, noise, succeed, undercroft};
use undercroft_dataplane::clock::Stopwatch;

const IMAGE_LEN: usize = 6 << 20;
const BLOCK: usize = 64 << 10;
const VMS: u64 = 3;
/// Snapshots that are kept: each is restored after every kill.
const KEPT: usize = 5;
/// What an interruption may leave stored twice: a segment per worker and two read ahead, the windows of two
/// connections, and short packs.
const IN_FLIGHT: u64 = (2 + 2) * (1 << 20) + 2 * (4 << 20) + (1 << 20);

/// Leases of ten seconds have lapsed, and connections of killed clients have timed out.
const LAPSE_MAX: Duration = Duration::from_secs(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Fresh,
    Again,
    Increment,
    Restore,
    Collect,
    Forget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Server,
    Client,
    Both,
}

struct Story {
    server: Server,
    random: Random,
    /// The disk of each VM as it is now.
    disks: Vec<Image>,
    /// Snapshots that were acknowledged, oldest first, with their VM and what they hold.
    acknowledged: Vec<(String, usize, Rc<Vec<u8>>)>,
    /// How long each act takes when nobody is killed.
    takes: BTreeMap<Act, Duration>,
    resumed: u32,
    failed: u32,
}

#[test]
fn whatever_is_killed_nothing_acknowledged_is_lost() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    };
    let seed = number("UNDERCROFT_KILL_SEED", 1);
    let rounds = number("UNDERCROFT_KILL_ROUNDS", 30);
    println!("UNDERCROFT_KILL_SEED={seed} UNDERCROFT_KILL_ROUNDS={rounds}");
    let mut story = Story::begin(seed);
    for round in 0..rounds {
        let act = match story.random.below(10) {
            0..=2 => Act::Fresh,
            3..=4 => Act::Again,
            5..=6 => Act::Increment,
            7 => Act::Restore,
            8 => Act::Collect,
            _ => Act::Forget,
        };
        let victim = match story.random.below(5) {
            0..=1 => Victim::Server,
            2..=3 => Victim::Client,
            _ => Victim::Both,
        };
        story.round(round, act, victim);
        if round % 10 == 9 {
            succeed(story.server.undercroft().args(["verify", "--deep"]));
        }
    }
    println!(
        "{rounds} kills: {} sessions were gone on with, {} commands failed and were run again",
        story.resumed, story.failed
    );
    story.end();
}

impl Story {
    fn begin(seed: u64) -> Self {
        let server = Server::start(Place {
            options: ["--checkpoint", "0", "--lease", "10s"]
                .map(str::to_owned)
                .to_vec(),
            ..Place::default()
        });
        server.init();
        let mut story = Self {
            disks: Vec::new(),
            acknowledged: Vec::new(),
            takes: BTreeMap::new(),
            resumed: 0,
            failed: 0,
            random: Random(seed),
            server,
        };
        for vm in 0..VMS {
            let path = story.server.path(&format!("disk{vm}.raw"));
            let mut image = Image::new(path, vm, IMAGE_LEN);
            fresh(&mut image, story.random.next());
            story.disks.push(image);
        }
        let acts = [
            (Act::Fresh, 0),
            (Act::Fresh, 1),
            (Act::Fresh, 2),
            (Act::Again, 0),
            (Act::Increment, 1),
            (Act::Restore, 2),
            (Act::Collect, 0),
            (Act::Forget, 0),
        ];
        for (act, vm) in acts {
            let mut job = story.prepare(act, vm);
            let clock = Stopwatch::start();
            let output = succeed(&mut job.command);
            story.takes.insert(act, clock.elapsed());
            story.done(&job, &output);
        }
        story
    }

    /// Does something, kills somebody meanwhile, and has it done all the same.
    fn round(&mut self, round: u64, act: Act, victim: Victim) {
        let vm = self.random.below(VMS) as usize;
        let mut job = self.prepare(act, vm);
        let most = self.takes[&act].as_micros() as u64 * 5 / 4;
        let pause = Duration::from_micros(self.random.below(most));
        println!("round {round}: {act:?} of vm{vm}, {victim:?} killed after {pause:?}");
        let before = self.server.pack_bytes();
        let sessions = self.server.sessions().into_iter();
        job.sessions = sessions.map(|of| of["session"].clone()).collect();
        let mut child = spawn(&mut job.command);
        std::thread::sleep(pause);
        if victim != Victim::Client {
            self.server.kill();
        }
        if victim != Victim::Server {
            let _ = child.kill();
        }
        if victim != Victim::Client {
            let checkpoint = self.random.below(2).to_string();
            self.server.place.options[1] = checkpoint;
            self.server.start_again();
        }
        let output = child.wait_with_output().expect("it ends");
        if output.status.success() {
            self.done(&job, &output);
        } else {
            self.failed += 1;
            if victim == Victim::Server {
                assert_clear(&output);
            }
            self.again(&job, vm);
        }
        let grown = self.server.pack_bytes().saturating_sub(before);
        let most = job.new_bytes + 2 * IN_FLIGHT;
        assert!(grown <= most, "{grown} bytes more, at most {most}");
        self.check_all();
        self.make_room();
    }

    /// Runs what failed once more.
    fn again(&mut self, job: &Job, vm: usize) {
        // In this order: a session that is not listed any more has published, or never will.
        let sessions = self.server.sessions();
        let listed = self.server.snapshots();
        let unknown = self.unknown(&listed);
        match job.act {
            Act::Fresh | Act::Again | Act::Increment => {
                let name = format!("vm{vm}");
                // One that nobody heard of yet when its server was killed is of a disk that has changed since.
                let open = sessions.iter().find(|session| {
                    session["vm"] == *name && !job.sessions.contains(&session["session"])
                });
                // The client died after its snapshot was published, before it heard of that.
                if let (None, [id]) = (open, &unknown[..]) {
                    let bytes = Rc::new(self.disks[vm].bytes.clone());
                    self.acknowledged.push((id.clone(), vm, bytes));
                    return;
                }
                let mut job = self.job(job.act, vm, job.target.clone(), job.new_bytes);
                if let Some(session) = open {
                    let id = session["session"].as_str().expect("an id");
                    job.command.args(["--resume", id]);
                    self.resumed += 1;
                }
                let output = succeed(&mut job.command);
                self.done(&job, &output);
            }
            Act::Forget if !listed.iter().any(|entry| entry["id"] == job.target) => {
                self.acknowledged.retain(|(id, ..)| *id != job.target);
            }
            act => {
                let mut job = self.job(act, vm, job.target.clone(), 0);
                // The server does not know yet that whoever asked for a collection is dead.
                let mut output = None;
                wait_for("a collection to end", Duration::from_secs(60), || {
                    let ended = job.command.output().expect("it starts");
                    let said = String::from_utf8_lossy(&ended.stderr);
                    let is_busy = said.contains("another collection is running");
                    assert!(ended.status.success() || is_busy, "{said}");
                    output = ended.status.success().then_some(ended);
                    output.is_some()
                });
                self.done(&job, &output.expect("just seen"));
            }
        }
    }

    fn prepare(&mut self, act: Act, vm: usize) -> Job {
        let mut new_bytes = 0;
        let mut target = String::new();
        match act {
            Act::Fresh => {
                let seed = self.random.next();
                fresh(&mut self.disks[vm], seed);
                new_bytes = IMAGE_LEN as u64;
            }
            Act::Increment => {
                let blocks: Vec<usize> = (0..12)
                    .map(|_| self.random.below((IMAGE_LEN / BLOCK) as u64) as usize)
                    .collect();
                // Changes are told against the newest snapshot, which has to be of the disk as it is.
                let seed = self.random.next() >> 8;
                let newest = self.acknowledged.iter().rev().find(|(_, of, _)| *of == vm);
                if let Some((id, _, bytes)) = newest
                    && **bytes == self.disks[vm].bytes
                {
                    target = id.clone();
                }
                let bitmap = self.disks[vm].change(seed, &blocks);
                std::fs::write(self.bitmap(vm), bitmap).expect("the bitmap");
                new_bytes = (blocks.len() * 2 * BLOCK) as u64;
            }
            Act::Restore | Act::Forget => {
                let place = self.random.below(self.acknowledged.len() as u64) as usize;
                target = self.acknowledged[place].0.clone();
            }
            Act::Again | Act::Collect => {}
        }
        self.job(act, vm, target, new_bytes)
    }

    fn bitmap(&self, vm: usize) -> std::path::PathBuf {
        self.server.path(&format!("bitmap{vm}"))
    }

    fn job(&self, act: Act, vm: usize, target: String, new_bytes: u64) -> Job {
        let server = &self.server;
        let mut command = match act {
            Act::Fresh | Act::Again | Act::Increment => {
                let mut backup = server.backup(&format!("vm{vm}"), &self.disks[vm].path);
                if act == Act::Increment && !target.is_empty() {
                    backup.args(["--parent", &target, "--changed-blocks"]);
                    backup.arg(self.bitmap(vm));
                }
                backup
            }
            Act::Restore => {
                let mut restore = server.undercroft();
                restore.args(["restore", &target, "--force", "--progress", "none"]);
                restore.arg("--to").arg(server.path("killed.raw"));
                restore
            }
            Act::Collect => {
                let mut collect = server.undercroft();
                collect.args(["gc", "--rewrite-below", "100"]);
                collect
            }
            Act::Forget => {
                let mut forget = server.undercroft();
                forget.args(["forget", &target]);
                forget
            }
        };
        command.args(["--json", "--threads", "2"]);
        Job {
            act,
            vm,
            target,
            new_bytes,
            command,
            sessions: Vec::new(),
        }
    }

    /// Notes what a command that ended well acknowledged.
    fn done(&mut self, job: &Job, output: &Output) {
        match job.act {
            Act::Fresh | Act::Again | Act::Increment => {
                let report: serde_json::Value =
                    serde_json::from_slice(&output.stdout).expect("JSON");
                let id = report["id"].as_str().expect("an id").to_owned();
                let listed = self.server.snapshots();
                assert_eq!(
                    self.unknown(&listed),
                    [id.as_str()],
                    "one backup, one snapshot: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                let bytes = Rc::new(self.disks[job.vm].bytes.clone());
                self.acknowledged.push((id, job.vm, bytes));
            }
            Act::Forget => self.acknowledged.retain(|(id, ..)| *id != job.target),
            Act::Restore => {
                let of = self.acknowledged.iter().find(|(id, ..)| *id == job.target);
                let (.., bytes) = of.expect("it is kept");
                assert_same(&self.server.path("killed.raw"), bytes, &job.target);
            }
            Act::Collect => {}
        }
    }

    /// Snapshots that nobody acknowledged.
    fn unknown(&self, listed: &[serde_json::Value]) -> Vec<String> {
        let ids = listed
            .iter()
            .map(|entry| entry["id"].as_str().expect("an id").to_owned());
        ids.filter(|id| self.acknowledged.iter().all(|(known, ..)| known != id))
            .collect()
    }

    fn check_all(&self) {
        let listed = self.server.snapshots();
        assert_eq!(self.unknown(&listed), [""; 0], "half-done snapshots");
        assert_eq!(listed.len(), self.acknowledged.len(), "snapshots are lost");
        for (id, _, bytes) in &self.acknowledged {
            self.server.assert_restores(id, bytes);
        }
    }

    fn make_room(&mut self) {
        while self.acknowledged.len() > KEPT {
            let (id, ..) = self.acknowledged.remove(0);
            succeed(self.server.undercroft().args(["forget", &id]));
        }
        // Something to restore and to forget is left.
        while self.acknowledged.len() < 2 {
            let mut job = self.prepare(Act::Again, 0);
            let output = succeed(&mut job.command);
            self.done(&job, &output);
        }
    }

    /// Sessions have gone, a collection leaves what the snapshots need, and all of it is sound.
    fn end(self) {
        let sessions = self.server.store().join("main/sessions");
        // What a kill left half-written is a collection's business.
        let left = || {
            let mut files = files_below(&sessions);
            files.retain(|file| file.extension().is_none_or(|end| end != "tmp"));
            files
        };
        let clock = Stopwatch::start();
        while !left().is_empty() {
            let (left, held) = (left(), self.server.sessions());
            let took = clock.elapsed();
            assert!(took < LAPSE_MAX, "sessions do not end: {left:?}; {held:?}");
            std::thread::sleep(Duration::from_secs(1));
        }
        assert!(self.server.sessions().is_empty());
        let mut collect = self.server.undercroft();
        collect.args(["gc", "--rewrite-below", "100"]);
        wait_for("a collection", Duration::from_secs(60), || {
            collect.output().expect("it starts").status.success()
        });
        let left = files_below(&sessions);
        assert!(left.is_empty(), "a collection left {left:?}");
        succeed(self.server.undercroft().args(["verify", "--deep"]));
        self.check_all();
        let repo = self.server.store().join("main");
        let left = files_below(&repo).into_iter().filter(|file| {
            let name = file.to_string_lossy();
            name.ends_with(".open") || name.ends_with(".tmp")
        });
        let left: Vec<_> = left.collect();
        assert!(left.is_empty(), "{left:?}");
        // The same snapshots, stored by nobody that was killed.
        let clean = self.server.path("clean");
        let sizes = ["init", "--segment-size", "1M", "--pack-size", "1M"];
        succeed(undercroft(&clean).args(sizes));
        for (_, vm, bytes) in &self.acknowledged {
            let image = self.server.path("clean.raw");
            std::fs::write(&image, &**bytes).expect("an image");
            let mut backup = undercroft(&clean);
            backup.args(["backup", "--progress", "none", "--vm", &format!("vm{vm}")]);
            succeed(
                backup
                    .arg("--disk")
                    .arg(format!("disk={}", image.display())),
            );
        }
        succeed(undercroft(&clean).args(["gc", "--rewrite-below", "100"]));
        let (here, clean) = (self.server.pack_bytes(), pack_bytes(&clean));
        assert!(
            here <= clean + clean / 10 + (1 << 20),
            "{here} bytes of packs, where {clean} do"
        );
    }
}

struct Job {
    act: Act,
    vm: usize,
    target: String,
    /// What it stores at most.
    new_bytes: u64,
    command: Command,
    /// Sessions that were open before.
    sessions: Vec<serde_json::Value>,
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

/// Noise but for some zeros: what is stored twice shows in the bytes of packs.
fn fresh(image: &mut Image, seed: u64) {
    image.bytes = noise(seed, IMAGE_LEN);
    image.bytes[IMAGE_LEN / 2..IMAGE_LEN / 2 + 5 * BLOCK].fill(0);
    image.write();
}

/// Who sees the error knows that the server went away, not that something is wrong with the data.
fn assert_clear(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let reasons = ["connection", "connecting", "interrupted", "nobody answers"];
    assert!(
        reasons.iter().any(|reason| said.contains(reason)),
        "it says what happened: {said}"
    );
}
