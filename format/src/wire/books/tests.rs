//! Random histories of a proxy: the invariants hold after every step, and a crash at any step loses nothing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::trust::envelope::assert_only_whole;
use crate::wire::task::BackupTask;

#[derive(Clone, Debug)]
enum Step {
    Submit { id: u8, vm: u8, owner: u8 },
    Start,
    Open(u8),
    Write(u8),
    Over(u8),
    Postpone(u8),
    Cancel(u8),
    Suspend(bool),
    Drain,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..12_u8;
    prop_oneof![
        4 => (id.clone(), 0..2_u8, 0..2_u8).prop_map(|(id, vm, owner)| Step::Submit { id, vm, owner }),
        4 => Just(Step::Start),
        1 => id.clone().prop_map(Step::Open),
        1 => id.clone().prop_map(Step::Write),
        3 => id.clone().prop_map(Step::Over),
        1 => id.clone().prop_map(Step::Postpone),
        2 => id.prop_map(Step::Cancel),
        1 => any::<bool>().prop_map(Step::Suspend),
        1 => Just(Step::Crash),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    (vec(step(), 0..80), any::<bool>(), vec(step(), 0..10)).prop_map(|(mut steps, drains, more)| {
        if drains {
            steps.push(Step::Drain);
            steps.extend(more);
        }
        steps
    })
}

fn task_id(id: u8) -> TaskId {
    TaskId::from_bytes([id; 16])
}

fn task(vm: u8) -> Task {
    Task::Backup(BackupTask {
        vm: format!("vm{vm}"),
        ..BackupTask::default()
    })
}

fn owner(number: u8) -> Owner {
    Owner {
        name: format!("owner-{number}").parse().expect("a name"),
        role: Role::Ingest,
        scope: Scope::everything(),
    }
}

fn result(text: &str) -> TaskOver {
    ended(Ending::Done, text.to_owned())
}

/// What a proxy has on its disk: every entry as it was after its last change.
fn files(books: &Books) -> Vec<Vec<u8>> {
    books.entries().into_iter().map(Entry::encode).collect()
}

fn check(books: &Books) {
    assert!(books.running() <= books.streams());
    let mut orders = BTreeSet::new();
    for entry in books.entries() {
        assert!(orders.insert(entry.order), "two tasks in one place");
        assert_eq!(entry.result.is_some(), entry.phase == Phase::Over);
        assert_eq!(entry.ended_ms.is_some(), entry.phase == Phase::Over);
        assert_eq!(Entry::decode(&entry.encode()).as_ref(), Ok(entry));
    }
}

proptest! {
    #[test]
    fn every_history_keeps_the_invariants(streams in 1..4_usize, steps in steps()) {
        let mut books = Books::new(streams, false);
        let mut over = BTreeMap::new();
        for (now, step) in (0..).zip(steps) {
            let before = books.clone();
            match step {
                Step::Submit { id, vm, owner: of } => {
                    let known = books.get(task_id(id)).cloned();
                    let answer = books.submit(task_id(id), task(vm), owner(of), now);
                    match known {
                        Some(known) => {
                            let same = known.task == task(vm) && known.owner == owner(of);
                            prop_assert_eq!(answer.is_ok(), same);
                            prop_assert_ne!(answer, Ok(true), "twice is once");
                            prop_assert_eq!(books.get(task_id(id)), Some(&known));
                        }
                        None => {
                            let closed = before.is_suspended() || before.is_draining();
                            prop_assert_eq!(answer.is_ok(), !closed);
                        }
                    }
                }
                Step::Start => {
                    let may = !books.is_suspended() && !books.is_draining();
                    let room = books.running() < streams;
                    let first = before.entries().into_iter()
                        .find(|entry| entry.phase == Phase::Queued)
                        .map(|entry| entry.id);
                    let started = books.start(now).map(|entry| entry.id);
                    prop_assert_eq!(started, first.filter(|_| may && room));
                }
                Step::Open(id) => {
                    books.opened(task_id(id), SessionId::from_bytes([id; 16]));
                }
                Step::Write(id) => {
                    books.wrote(task_id(id), "/disk");
                }
                Step::Over(id) => {
                    books.over(task_id(id), result("done"), now);
                }
                Step::Postpone(id) => {
                    let was = before.get(task_id(id)).map(|entry| entry.phase);
                    prop_assert_eq!(books.postpone(task_id(id)), was == Some(Phase::Running));
                }
                Step::Cancel(id) => {
                    let was = before.get(task_id(id)).map(|entry| entry.phase);
                    let (cancelled, _) = books.cancel(task_id(id), result("cancelled"), now);
                    prop_assert_eq!(cancelled, match was {
                        None => Cancelled::Unknown,
                        Some(Phase::Queued) => Cancelled::AtOnce,
                        Some(Phase::Running | Phase::Cancelling) => Cancelled::Running,
                        Some(Phase::Over) => Cancelled::WasOver,
                    });
                }
                Step::Suspend(is_suspended) => books.set_suspended(is_suspended),
                Step::Drain => books.drain(),
                Step::Crash => {
                    let entries = files(&books).into_iter().map(|file| Entry::decode(&file));
                    let entries: Result<Vec<_>, _> = entries.collect();
                    let mut recovered = Books::new(streams, books.is_suspended());
                    let to_cancel = recovered.recover(entries.expect("whole files"));
                    prop_assert_eq!(to_cancel.len(), books.count(Phase::Cancelling));
                    prop_assert_eq!(recovered.running(), 0);
                    prop_assert_eq!(
                        recovered.count(Phase::Queued),
                        books.count(Phase::Queued) + books.running()
                    );
                    for id in to_cancel {
                        recovered.cancel(id, result("cancelled"), now);
                    }
                    books = recovered;
                }
            }
            check(&books);
            for entry in books.entries().into_iter().filter(|entry| entry.phase == Phase::Over) {
                let known = over.entry(entry.id).or_insert_with(|| entry.clone());
                prop_assert_eq!(&*known, entry, "what is over stays as it is");
            }
            for entry in before.live() {
                prop_assert!(books.get(entry.id).is_some(), "nothing is forgotten that is not over");
            }
        }
    }
}

#[test]
fn the_history_is_bounded_by_number_and_by_length() {
    let mut books = Books::new(1, false);
    let run = |books: &mut Books, number: u16, text: &str| {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_le_bytes());
        let id = TaskId::from_bytes(id);
        assert_eq!(books.submit(id, task(0), owner(0), number.into()), Ok(true));
        assert_eq!(books.start(number.into()).map(|entry| entry.id), Some(id));
        books.over(id, result(text), number.into())
    };
    for number in 0..HISTORY_MAX as u16 {
        assert!(run(&mut books, number, "x").is_empty());
    }
    assert_eq!(run(&mut books, 1000, "x").len(), 1, "the oldest goes");
    assert_eq!(books.count(Phase::Over), HISTORY_MAX);
    let long = "x".repeat(HISTORY_LEN_MAX);
    assert_eq!(run(&mut books, 1001, &long).len(), HISTORY_MAX);
    assert_eq!(books.count(Phase::Over), 1, "the newest stays");
}

#[test]
fn a_full_book_takes_no_more() {
    let mut books = Books::new(1, false);
    for number in 0..LIVE_MAX {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let id = TaskId::from_bytes(id);
        assert_eq!(books.submit(id, task(0), owner(0), 0), Ok(true));
    }
    let more = TaskId::from_bytes([0xff; 16]);
    assert_eq!(books.submit(more, task(0), owner(0), 0), Err(Refusal::Full));
}

#[test]
fn any_changed_byte_of_a_file_is_found() {
    let mut books = Books::new(1, false);
    let id = task_id(7);
    books.submit(id, task(1), owner(1), 5).expect("room");
    books.start(6);
    books.opened(id, SessionId::from_bytes([9; 16]));
    books.wrote(id, "/out/root.raw");
    books.over(id, result("{}"), 7);
    let entry = books.get(id).expect("it is there");
    assert_only_whole(&entry.encode(), Entry::decode);
}
