//! Who acts when, and what goes wrong: one seed decides.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use generator::{Generator, Gn};
use parking_lot::Mutex;
use rayon::ThreadPool;
use undercroft_dataplane::io::SimOp;
use undercroft_dataplane::net::trust::{PeerIdentity, Role, Scope};
use undercroft_dataplane::simulate;
use undercroft_format::trust::serial::Serial;

use super::client::{Clients, Vm};
use super::site::{LEASE, Site};
use super::support::{Rng, config};
use super::world::{ActorNumber, Killed, Side, SimStream, State, Wait, World};

/// Stack of an actor, in words.
const STACK_WORDS: usize = 32 << 10;
/// Steps until something is wrong with the test.
const STEPS_MAX: u64 = 100_000;
/// How often leases are looked at.
const TICK_MS: u64 = 1000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Part of the server's process.
    Server,
    /// The process of a VM's client.
    Client(usize),
    /// A client that takes a session over.
    Thief,
}

struct Actor {
    number: ActorNumber,
    kind: Kind,
    body: Generator<'static, (), ()>,
    worker: Option<usize>,
}

pub struct Run {
    pub world: World,
    clients: Clients,
    vms: Vec<Arc<Mutex<Vm>>>,
    site: Site,
    actors: Vec<Actor>,
    next_actor: ActorNumber,
    /// Something goes wrong once in so many steps.
    calm: u64,
    /// What may still go wrong.
    troubles: u64,
    /// Disk faults are among it.
    has_bad_disk: bool,
    back_at: u64,
    /// When the disk gets room again.
    room_at: u64,
    steps: u64,
}

impl Run {
    pub fn new(world: &World, threads: &Arc<ThreadPool>) -> Self {
        let encrypted = world.once_in(4);
        let pack_len = 32_768 << world.below(5);
        let (config, keys) = config(pack_len, encrypted);
        let mut rng = Rng(world.lock().rng.next());
        let vms =
            (0..1 + rng.below(3)).map(|number| Arc::new(Mutex::new(Vm::new(number, &mut rng))));
        Self {
            vms: vms.collect(),
            site: Site::new(world, &config, &keys),
            clients: Clients {
                world: world.clone(),
                config,
                keys,
                threads: threads.clone(),
            },
            world: world.clone(),
            actors: Vec::new(),
            next_actor: 1,
            calm: 10 << world.below(7),
            troubles: world.below(12),
            has_bad_disk: world.once_in(3),
            back_at: 0,
            room_at: u64::MAX,
            steps: 0,
        }
    }

    /// Runs to the end; the hash of all that happened.
    pub fn run(mut self) -> blake3::Hash {
        self.start_server();
        for number in 0..self.vms.len() {
            self.start_client(number);
        }
        while self.step() {
            if self.troubles > 0 && self.world.once_in(self.calm) {
                self.troubles -= 1;
                self.trouble();
            }
        }
        self.end();
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.world.lock().trace_hash().as_bytes());
        hasher.update(self.site.hash().as_bytes());
        hasher.finalize()
    }

    fn spawn(&mut self, kind: Kind, body: impl FnOnce() + Send + 'static) -> ActorNumber {
        let number = self.next_actor;
        self.next_actor += 1;
        let mut state = self.world.lock();
        let until = state.now;
        state.waits.insert(number, Wait::Sleep { until });
        self.actors.push(Actor {
            number,
            kind,
            body: Gn::new_opt(STACK_WORDS, body),
            worker: None,
        });
        number
    }

    /// Lets one actor act; false once there is nothing left to do.
    fn step(&mut self) -> bool {
        self.steps += 1;
        assert!(self.steps < STEPS_MAX, "no end after {STEPS_MAX} steps");
        self.look_after_server();
        self.accept();
        let is_busy = |actor: &Actor| actor.kind != Kind::Server;
        if !self.actors.iter().any(is_busy) {
            return false;
        }
        let chosen = {
            let mut state = self.world.lock();
            let state = &mut *state;
            let mut times: Vec<u64> = Vec::with_capacity(self.actors.len());
            for actor in &self.actors {
                let wait = state.waits[&actor.number];
                times.push(state.ready_at(wait).unwrap_or(u64::MAX));
            }
            let soonest = *times.iter().min().expect("a client is there");
            let back = if state.is_server_up {
                u64::MAX
            } else {
                self.back_at
            };
            if soonest.min(back) > state.now {
                assert!(soonest.min(back) < u64::MAX, "everybody waits for ever");
                state.now = soonest.min(back);
            }
            let now = state.now;
            let ready: Vec<usize> = (0..times.len()).filter(|at| times[*at] <= now).collect();
            simulate::set_now(Some(Duration::from_millis(now)));
            if ready.is_empty() {
                return true;
            }
            ready[state.rng.below(ready.len() as u64) as usize]
        };
        self.resume(chosen);
        true
    }

    fn resume(&mut self, at: usize) {
        let actor = &mut self.actors[at];
        self.world.lock().current = actor.number;
        simulate::set_worker(actor.worker);
        let resumed = catch_unwind(AssertUnwindSafe(|| actor.body.resume()));
        actor.worker = simulate::worker();
        simulate::set_worker(None);
        let is_over = match resumed {
            Ok(_) => actor.body.is_done(),
            Err(payload) if payload.is::<Killed>() => true,
            Err(payload) => resume_unwind(payload),
        };
        if is_over {
            let actor = self.actors.remove(at);
            let mut state = self.world.lock();
            state.waits.remove(&actor.number);
            state.killed.remove(&actor.number);
        }
    }

    /// Ends those that a process consists of, wherever they are.
    fn kill(&mut self, is_part: impl Fn(&Actor) -> bool) {
        while let Some(at) = self.actors.iter().position(&is_part) {
            let number = self.actors[at].number;
            self.world.lock().killed.insert(number);
            self.resume(at);
        }
    }

    fn start_client(&mut self, number: usize) {
        let (clients, vm) = (self.clients.clone(), self.vms[number].clone());
        let resume = self
            .open_session_of(number)
            .filter(|_| self.world.once_in(2));
        self.spawn(Kind::Client(number), move || clients.live(&vm, resume));
    }

    fn open_session_of(&self, number: usize) -> Option<undercroft_format::id::SessionId> {
        let name = self.vms[number].lock().name.clone();
        let server = self.site.server.as_ref()?;
        let sessions = server.sessions();
        let session = sessions.iter().find(|session| session.vm == name)?;
        session.session.parse().ok()
    }

    fn start_server(&mut self) {
        if let Err(error) = self.site.start() {
            let text = super::support::chain(&error);
            let mut state = self.world.lock();
            assert!(
                state.books.has_disk_faults,
                "the server does not start: {text}"
            );
            // Who looks after it tries again.
            state.note(format!("the server does not start: {text}"));
            self.back_at = state.now + 1000;
            return;
        }
        let (world, server) = (self.world.clone(), self.site.server.clone());
        let server = server.expect("it was just started");
        self.spawn(Kind::Server, move || {
            loop {
                world.sleep(TICK_MS);
                server.tick();
            }
        });
    }

    /// Streams that have come get somebody who serves them.
    fn accept(&mut self) {
        let incoming = std::mem::take(&mut self.world.lock().incoming);
        for number in incoming {
            let Some(server) = self.site.server.clone() else {
                continue;
            };
            let stream = SimStream {
                world: self.world.clone(),
                number,
                side: Side::Server,
            };
            let peer = PeerIdentity {
                name: "proxy".parse().expect("a name"),
                role: Role::Admin,
                scope: Scope::everything(),
                serial: Serial::from_random([1; 8]),
            };
            self.spawn(Kind::Server, move || {
                server.converse(peer, Box::new(stream))
            });
        }
    }

    /// Notices a power failure, and starts the server when it is time.
    fn look_after_server(&mut self) {
        let (is_up, is_dead, now) = {
            let state = self.world.lock();
            let is_dead = (state.is_server_mute)();
            (state.is_server_up, is_dead, state.now)
        };
        if now >= self.room_at {
            self.site.disk.set_capacity(u64::MAX);
            self.room_at = u64::MAX;
        }
        if is_up && is_dead {
            self.crash(true);
        } else if !is_up && now >= self.back_at {
            self.start_server();
        }
    }

    /// The server's process is gone, and perhaps the machine's power.
    fn crash(&mut self, is_power_lost: bool) {
        self.stop_server(is_power_lost);
        self.site.check();
    }

    fn stop_server(&mut self, is_power_lost: bool) {
        let word = if is_power_lost {
            "loses power"
        } else {
            "is killed"
        };
        let mut state = self.world.lock();
        state.note(format!("the server {word}"));
        state.is_server_up = false;
        state.books.crashes += 1;
        state.incoming.clear();
        let patience = [100, 20_000][state.rng.below(2) as usize];
        for connection in state.whole_connections(None) {
            state.break_connection(connection, [patience, 0]);
        }
        let down = [0, 2000, 30_000][state.rng.below(3) as usize];
        self.back_at = state.now + state.rng.below(down + 1);
        drop(state);
        // What the process still does on its way out does not happen.
        let op_count = self.site.disk.op_count();
        self.site.disk.set_crash_after(op_count);
        self.kill(|actor| actor.kind == Kind::Server);
        self.site.server = None;
        self.site.lose_power(is_power_lost);
        self.hear(u64::MAX);
    }

    /// The server is heard until its disk has carried out so many operations.
    fn hear(&self, until: u64) {
        let disk = self.site.disk.clone();
        self.world.lock().is_server_mute = Box::new(move || disk.op_count() >= until);
    }

    fn trouble(&mut self) {
        // A power failure within the last step is not to be taken back.
        self.look_after_server();
        let kinds = if self.has_bad_disk { 14 } else { 11 };
        match self.world.below(kinds) {
            0..=2 => self.break_one(),
            3 => self.crash_if_up(true),
            4 => self.crash_if_up(false),
            5 => {
                if self.world.lock().is_server_up {
                    let op = self.site.disk.op_count() + 1 + self.world.below(40);
                    self.site.disk.set_crash_after(op);
                    self.hear(op);
                    self.world
                        .note(|| format!("power is going to fail at operation {op}"));
                }
            }
            6 => self.kill_client(),
            7 => self.steal(),
            8 => {
                if self.world.once_in(2) {
                    self.site.forget();
                }
                self.site.collect();
            }
            9 => self.site.collect_soon(),
            10 => {
                let mut state = self.world.lock();
                let ms = state.rng.below(2 * LEASE.as_millis() as u64);
                state.now += ms;
                state.note("the clock jumps".to_owned());
            }
            11 | 12 => self.fail_operation(),
            _ => self.fill_disk(),
        }
    }

    fn break_one(&mut self) {
        let mut state = self.world.lock();
        let whole = state.whole_connections(None);
        if !whole.is_empty() {
            let number = whole[state.rng.below(whole.len() as u64) as usize];
            let notice = notices(&mut state);
            state.break_connection(number, notice);
        }
    }

    fn crash_if_up(&mut self, is_power_lost: bool) {
        if self.site.server.is_some() {
            self.crash(is_power_lost);
        }
    }

    fn kill_client(&mut self) {
        let number = self.world.below(self.vms.len() as u64) as usize;
        let kind = Kind::Client(number);
        let Some(actor) = self.actors.iter().find(|actor| actor.kind == kind) else {
            return;
        };
        {
            let mut state = self.world.lock();
            state.note(format!("the client of VM {number} is killed"));
            for connection in state.whole_connections(Some(actor.number)) {
                let server = notices(&mut state)[1];
                state.break_connection(connection, [0, server]);
            }
        }
        self.kill(|actor| actor.kind == kind);
        self.start_client(number);
    }

    /// Another client goes on with a session, whether the first one is still there or not.
    fn steal(&mut self) {
        let number = self.world.below(self.vms.len() as u64) as usize;
        let Some(session) = self.open_session_of(number) else {
            return;
        };
        self.world
            .note(|| format!("session {session} is taken over"));
        let (clients, vm) = (self.clients.clone(), self.vms[number].clone());
        self.spawn(Kind::Thief, move || {
            clients.back_up(&vm, Some(session));
        });
    }

    fn fail_operation(&mut self) {
        const KINDS: [SimOp; 10] = [
            SimOp::Open,
            SimOp::Create,
            SimOp::Read,
            SimOp::Write,
            SimOp::SetLen,
            SimOp::Sync,
            SimOp::SyncDir,
            SimOp::List,
            SimOp::Rename,
            SimOp::Remove,
        ];
        let kind = KINDS[self.world.below(10) as usize];
        let n = 1 + self.world.below(10);
        let errno = if self.world.once_in(2) {
            libc::EIO
        } else {
            libc::ENOSPC
        };
        self.world.lock().books.has_disk_faults = true;
        self.world
            .note(|| format!("{kind:?} number {n} is going to fail with {errno}"));
        self.site.disk.fail_nth(kind, n, errno);
    }

    fn fill_disk(&mut self) {
        let room = self.world.below(200_000);
        self.world.lock().books.has_disk_faults = true;
        self.world
            .note(|| format!("the disk has {room} bytes left"));
        self.site.disk.set_capacity(self.site.used() + room);
        let mut state = self.world.lock();
        self.room_at = state.now + state.rng.below(60_000);
    }

    /// All is well again, leases lapse, and then everything must be in order.
    fn end(&mut self) {
        if self.site.server.is_some() {
            self.stop_server(false);
        }
        self.site.disk.set_capacity(u64::MAX);
        self.site.check();
        let mut state = self.world.lock();
        state.now = state.now.max(self.back_at) + 1;
        drop(state);
        self.start_server();
        let mut state = self.world.lock();
        state.now += LEASE.as_millis() as u64 + 1;
        simulate::set_now(Some(Duration::from_millis(state.now)));
        drop(state);
        self.site.check_rest();
        self.kill(|actor| actor.kind == Kind::Server);
    }
}

/// How long it takes at most until the two ends notice a broken connection.
fn notices(state: &mut State) -> [u64; 2] {
    [(); 2].map(|()| [10, 1000, 30_000][state.rng.below(3) as usize])
}
