//! Agents with a worker that does as the tasks' VMs say.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use undercroft_format::id::SessionId;
use undercroft_format::wire::books::{Owner, ended};
use undercroft_format::wire::proxy::{Ending, TaskOver};
use undercroft_format::wire::task::BackupTask;

use super::super::run::TaskRun;
use super::*;
use crate::net::trust::{Role, Scope, Serial, SetClock, UnixMs};

/// Runs a task until it is told to go on, or stopped.
struct Obedient {
    begun: SyncSender<(TaskId, u32, Option<SessionId>)>,
    go_on: Mutex<Receiver<()>>,
}

impl Worker for Obedient {
    fn check(&self, _: &Task, _: &Owner) -> Result<(), Failure> {
        Ok(())
    }

    fn run(&self, run: TaskRun) -> TaskOver {
        let Task::Backup(task) = &run.entry.task else {
            unreachable!("only backups are submitted here");
        };
        assert_ne!(task.vm, "bug", "the bug is here");
        run.opened(SessionId::from_bytes([7; 16]));
        let begun = (run.entry.id, run.entry.runs, run.entry.session);
        self.begun.send(begun).expect("the test listens");
        loop {
            if run.is_stopping() {
                return ended(Ending::Cancelled, "{}".into());
            }
            let told = self.go_on.lock().recv_timeout(Duration::from_millis(5));
            if told.is_ok() {
                run.note("nearly done");
                return ended(Ending::Done, "{}".into());
            }
        }
    }

    fn threads(&self) -> usize {
        1
    }

    fn bounds(&self) -> (Vec<String>, Vec<String>) {
        Default::default()
    }
}

struct World {
    dir: tempfile::TempDir,
}

struct Running {
    agent: Agent,
    begun: Receiver<(TaskId, u32, Option<SessionId>)>,
    go_on: SyncSender<()>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn options(&self, streams: usize, worker: Obedient) -> AgentOptions {
        AgentOptions {
            state: self.dir.path().to_owned(),
            streams,
            program: "test".into(),
            worker: Arc::new(worker),
            clock: Arc::new(SetClock::new(UnixMs::from_seconds(1))),
        }
    }

    fn start(&self, streams: usize) -> Running {
        let (begun, hears_begun) = sync_channel(64);
        let (go_on, hears_go_on) = sync_channel(64);
        let worker = Obedient {
            begun,
            go_on: Mutex::new(hears_go_on),
        };
        let (agent, problems) = Agent::start(self.options(streams, worker)).unwrap();
        assert_eq!(problems, Vec::<String>::new());
        agent.begin();
        Running {
            agent,
            begun: hears_begun,
            go_on,
        }
    }
}

fn peer() -> PeerIdentity {
    PeerIdentity {
        name: "admin".parse().unwrap(),
        role: Role::Admin,
        scope: Scope::everything(),
        serial: Serial::from_random([1; 8]),
    }
}

fn id(number: u8) -> TaskId {
    TaskId::from_bytes([number; 16])
}

impl Running {
    fn submit(&self, number: u8, vm: &str) -> Result<Accepted, Failure> {
        self.submit_as(&peer(), number, vm)
    }

    fn submit_as(&self, peer: &PeerIdentity, number: u8, vm: &str) -> Result<Accepted, Failure> {
        let task = BackupTask {
            repository: "quic://server/main".into(),
            vm: vm.into(),
            ..BackupTask::default()
        };
        let submit = Submit {
            id: id(number),
            task: Task::Backup(task),
        };
        self.agent.submit(peer, submit)
    }

    fn state(&self, number: u8) -> String {
        let shown = self.agent.show(&peer(), id(number)).unwrap();
        shown.status.state
    }

    fn wait_for(&self, number: u8, state: &str) {
        for _ in 0..1000 {
            if self.state(number) == state {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("task {number} is {} and not {state}", self.state(number));
    }

    fn begun(&self) -> (TaskId, u32, Option<SessionId>) {
        let patience = Duration::from_secs(20);
        self.begun.recv_timeout(patience).expect("a task begins")
    }
}

#[test]
fn a_panic_ends_one_task_and_frees_its_stream() {
    let world = World::new();
    let running = world.start(1);
    running.submit(1, "bug").unwrap();
    running.submit(2, "vm").unwrap();
    assert_eq!(running.begun().0, id(2));
    assert_eq!(running.state(1), "failed");
    let shown = running.agent.show(&peer(), id(1)).unwrap();
    let failure = shown.result.unwrap().to_string();
    assert!(failure.contains("the bug is here"), "{failure}");
    running.go_on.send(()).unwrap();
    running.wait_for(2, "done");
    let shown = running.agent.show(&peer(), id(2)).unwrap();
    assert_eq!(shown.notes, ["nearly done"]);
}

#[test]
fn what_ran_runs_again_with_its_session_before_what_waited() {
    let world = World::new();
    let running = world.start(1);
    running.submit(1, "vm1").unwrap();
    running.submit(2, "vm2").unwrap();
    assert_eq!(running.begun(), (id(1), 1, None));
    assert_eq!(running.agent.drain(Duration::from_secs(20)), 0);
    let refused = running.submit(3, "vm3").unwrap_err();
    assert_eq!(refused.code, FailureCode::Draining);
    assert_eq!(running.state(1), "queued", "it is not cancelled");

    let again = world.start(1);
    let session = SessionId::from_bytes([7; 16]);
    assert_eq!(again.begun(), (id(1), 2, Some(session)));
    assert!(!again.submit(1, "vm1").unwrap().is_new);
    again.go_on.send(()).unwrap();
    assert_eq!(again.begun().0, id(2));
    again.wait_for(1, "done");
    // A crash: the files are all that is left. The first agent goes on beside, as no process could.
    let crashed = world.start(1);
    assert_eq!(crashed.begun().0, id(2));
    assert_eq!(crashed.state(1), "done");
    again.go_on.send(()).unwrap();
    crashed.go_on.send(()).unwrap();
}

#[test]
fn a_task_that_is_cancelled_in_a_drain_is_not_run_again() {
    let world = World::new();
    let running = world.start(1);
    running.submit(1, "vm").unwrap();
    running.begun();
    running.agent.cancel(&peer(), id(1)).unwrap();
    running.agent.drain(Duration::from_secs(20));
    assert_eq!(running.state(1), "cancelled");
    assert_eq!(world.start(1).state(1), "cancelled");
}

#[test]
fn tasks_of_who_was_revoked_end_and_those_of_others_go_on() {
    let world = World::new();
    let running = world.start(1);
    let mallory = PeerIdentity {
        name: "mallory".parse().unwrap(),
        ..peer()
    };
    running.submit_as(&mallory, 1, "vm1").unwrap();
    running.begun();
    running.submit_as(&mallory, 2, "vm2").unwrap();
    running.submit(3, "vm3").unwrap();
    let is_revoked = |name: &IdentityName| *name == mallory.name;
    running.agent.end_tasks_of(is_revoked);
    running.wait_for(2, "cancelled");
    running.wait_for(1, "cancelled");
    for number in [1, 2] {
        let shown = running.agent.show(&peer(), id(number)).unwrap();
        let result = shown.result.unwrap().to_string();
        assert!(
            result.contains("mallory, who submitted the task, was revoked"),
            "{result}"
        );
    }
    assert_eq!(running.begun().0, id(3));
    running.agent.end_tasks_of(is_revoked);
    running.go_on.send(()).unwrap();
    running.wait_for(3, "done");
}

#[test]
fn a_task_that_a_crash_left_does_not_begin_if_its_owner_was_revoked_since() {
    let world = World::new();
    let running = world.start(1);
    running.submit(1, "vm1").unwrap();
    running.begun();
    running.agent.drain(Duration::from_secs(20));
    drop(running);
    let (begun, hears_begun) = sync_channel(1);
    let (_go_on, hears_go_on) = sync_channel(1);
    let worker = Obedient {
        begun,
        go_on: Mutex::new(hears_go_on),
    };
    let (agent, _) = Agent::start(world.options(1, worker)).unwrap();
    agent.end_tasks_of(|_| true);
    agent.begin();
    assert_eq!(
        agent.show(&peer(), id(1)).unwrap().status.state,
        "cancelled"
    );
    assert!(hears_begun.try_recv().is_err(), "it ran");
}
