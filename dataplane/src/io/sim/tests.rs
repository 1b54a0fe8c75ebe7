//! The simulated disk against what it promises.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 4096;

/// Distinct outcomes of `path` after a power failure now.
fn outcomes(disk: &SimStorage, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    let states = disk.crash_states(7, LIMIT);
    states
        .iter()
        .map(|state| state.contents().get(path).cloned().flatten())
        .collect()
}

/// A disk with a durable file of these bytes.
fn disk_with(path: &str, bytes: &[u8]) -> SimStorage {
    let disk = SimStorage::new();
    disk.write_new(path, bytes).expect("nothing fails");
    disk.sync_dir("").expect("nothing fails");
    disk
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn what_is_synced_survives_and_nothing_else_must() {
    let disk = SimStorage::new();
    let file = disk.create("f", false).expect("new");
    file.write_all_at(b"abc", 0).expect("written");
    assert_eq!(
        outcomes(&disk, "f"),
        BTreeSet::from([None, Some(vec![]), Some(vec![0; 3]), Some(b"abc".to_vec())])
    );
    file.sync().expect("durable");
    assert_eq!(
        outcomes(&disk, "f"),
        BTreeSet::from([None, Some(b"abc".to_vec())])
    );
    disk.sync_dir("").expect("durable");
    assert_eq!(
        outcomes(&disk, "f"),
        BTreeSet::from([Some(b"abc".to_vec())])
    );
}

#[test]
fn unsynced_writes_are_lost_in_any_order() {
    let disk = disk_with("f", &[0; 1024]);
    let file = disk.open_write("f", false).expect("it exists");
    file.write_all_at(&[1; 10], 0).expect("written");
    file.write_all_at(&[2; 10], 512).expect("written");
    let states: BTreeSet<(u8, u8)> = outcomes(&disk, "f")
        .into_iter()
        .map(|bytes| bytes.expect("its name is durable"))
        .map(|bytes| (bytes[0], bytes[512]))
        .collect();
    assert_eq!(states, BTreeSet::from([(0, 0), (1, 0), (0, 2), (1, 2)]));
}

#[test]
fn writes_are_torn_at_sectors_only() {
    let disk = disk_with("f", &[0; 2048]);
    let file = disk.open_write("f", false).expect("it exists");
    file.write_all_at(&[1; 1024], 256).expect("written");
    let states = outcomes(&disk, "f");
    assert_eq!(states.len(), 8, "three sectors are touched");
    for bytes in states.into_iter().flatten() {
        for range in [256..512, 512..1024, 1024..1280] {
            let part = &bytes[range];
            assert!(part.iter().all(|&byte| byte == part[0]));
        }
        assert!(
            bytes[..256]
                .iter()
                .chain(&bytes[1280..])
                .all(|&byte| byte == 0)
        );
    }
}

#[test]
fn publish_leaves_the_old_or_the_new_bytes_at_every_crash() {
    let run = |crash_after| {
        let disk = disk_with("config", b"old");
        let before = disk.op_count();
        disk.set_crash_after(before + crash_after);
        let result = disk.publish("config", b"new and longer");
        (disk, result)
    };
    for crash_after in 0..=3 {
        let (disk, result) = run(crash_after);
        assert!(result.is_err());
        for state in disk.crash_states(1, LIMIT) {
            let bytes = state.read("config", 100).expect("it is always there");
            assert!(bytes == b"old" || bytes == b"new and longer");
            state
                .publish("config", b"again")
                .expect("a stale temporary file is no hindrance");
        }
    }
    let (disk, result) = run(4);
    assert!(result.is_ok());
    assert_eq!(
        outcomes(&disk, "config"),
        BTreeSet::from([Some(b"new and longer".to_vec())])
    );
}

#[test]
fn a_rename_without_a_sync_may_leave_an_empty_file() {
    let disk = disk_with("f", b"old");
    disk.create("tmp", false)
        .expect("new")
        .write_all_at(b"new", 0)
        .expect("written");
    disk.rename("tmp", "f").expect("renamed");
    let states = outcomes(&disk, "f");
    assert!(states.contains(&Some(vec![])) && states.contains(&Some(vec![0; 3])));
    assert!(states.contains(&Some(b"old".to_vec())) && states.contains(&Some(b"new".to_vec())));
}

#[test]
fn names_of_a_directory_survive_as_a_prefix() {
    let disk = SimStorage::new();
    for name in ["a", "b", "c"] {
        disk.write_new(name, b"").expect("created");
    }
    let states: BTreeSet<usize> = disk
        .crash_states(1, LIMIT)
        .iter()
        .map(|state| state.contents().len())
        .collect();
    assert_eq!(states, BTreeSet::from([0, 1, 2, 3]));
    assert!(disk.crash_states(1, LIMIT).iter().all(|state| {
        let contents = state.contents();
        !contents.contains_key("c") || contents.contains_key("a")
    }));
}

#[test]
fn a_rename_between_directories_is_in_both_or_in_neither() {
    let disk = SimStorage::new();
    disk.create_dir("x").expect("created");
    disk.create_dir("y").expect("created");
    disk.sync_dir("").expect("durable");
    disk.write_new("x/f", b"f").expect("created");
    disk.sync_dir("x").expect("durable");
    disk.write_new("y/g", b"g").expect("created");
    disk.rename("x/f", "y/f").expect("renamed");
    for state in disk.crash_states(1, LIMIT) {
        let contents = state.contents();
        assert!(
            contents.contains_key("x/f") != contents.contains_key("y/f"),
            "{contents:?}"
        );
        assert!(!contents.contains_key("y/f") || contents.contains_key("y/g"));
    }
    disk.sync_dir("x").expect("durable");
    assert!(
        disk.crash_states(1, LIMIT)
            .iter()
            .all(|state| state.exists("y/f").expect("known"))
    );
}

#[test]
fn a_directory_that_is_not_durable_takes_its_files_along() {
    let disk = SimStorage::new();
    disk.create_dir("d").expect("created");
    disk.write_new("d/f", b"f").expect("created");
    disk.sync_dir("d").expect("durable");
    assert_eq!(
        outcomes(&disk, "d/f"),
        BTreeSet::from([None, Some(b"f".to_vec())])
    );
}

#[test]
fn a_failed_sync_loses_the_bytes_even_if_the_next_one_works() {
    let disk = disk_with("f", b"old");
    let file = disk.open_write("f", false).expect("it exists");
    file.write_all_at(b"new!", 0).expect("written");
    disk.fail_nth(SimOp::Sync, 1, 5);
    assert_eq!(errno(file.sync()), Some(5));
    file.sync().expect("the pages are clean now");
    assert_eq!(disk.read("f", 10).expect("readable"), b"old");
    assert_eq!(
        outcomes(&disk, "f"),
        BTreeSet::from([Some(b"old".to_vec())])
    );
}

#[test]
fn the_nth_operation_fails_and_no_other() {
    let disk = SimStorage::new();
    disk.fail_nth(SimOp::Rename, 2, 28);
    disk.write_new("a", b"").expect("created");
    disk.rename("a", "b").expect("the first works");
    assert_eq!(errno(disk.rename("b", "c")), Some(28));
    disk.rename("b", "c").expect("the third works");
    disk.fail_nth(SimOp::List, 1, 5);
    assert_eq!(errno(disk.list("")), Some(5));
    assert_eq!(disk.list("").expect("works again").len(), 1);
}

#[test]
fn a_full_disk_takes_what_fits() {
    let disk = SimStorage::new();
    disk.set_capacity(10);
    let file = disk.create("f", false).expect("new");
    file.write_all_at(b"12345678", 0).expect("fits");
    assert_eq!(disk.free_space(), Some(2));
    assert_eq!(errno(file.write_all_at(b"abcd", 8)), Some(28));
    assert_eq!(disk.read("f", 100).expect("readable"), b"12345678ab");
    file.write_all_at(b"overwritten", 0)
        .expect_err("one too long");
    disk.remove("f").expect("removed");
    assert_eq!(disk.free_space(), Some(10));
}

#[test]
fn after_the_power_failed_nothing_works() {
    let disk = SimStorage::new();
    disk.set_crash_after(2);
    let file = disk.create("f", false).expect("first");
    file.write_all_at(b"x", 0).expect("second");
    assert_eq!(disk.op_count(), 2);
    assert!(file.sync().is_err() && file.len().is_err() && file.read_at(&mut [0], 0).is_err());
    assert!(disk.list("").is_err() && disk.exists("f").is_err() && disk.sync_dir("").is_err());
    let state = &disk.crash_states(1, LIMIT)[0];
    state.write_new("g", b"").expect("the machine is up again");
}

#[test]
fn bits_can_be_turned_over() {
    let disk = disk_with("f", &[0; 4]);
    disk.flip_bit("f", 2, 7).expect("there is such a byte");
    assert_eq!(disk.read("f", 10).expect("readable"), [0, 0, 128, 0]);
    assert_eq!(
        outcomes(&disk, "f"),
        BTreeSet::from([Some(vec![0, 0, 128, 0])])
    );
    assert!(disk.flip_bit("f", 4, 0).is_err());
}

#[test]
fn many_states_are_sampled_with_the_extremes_first() {
    let disk = disk_with("f", &[0; 1 << 20]);
    let file = disk.open_write("f", false).expect("it exists");
    for at in 0..40 {
        file.write_all_at(&[at as u8 + 1; 20_000], at * 20_000)
            .expect("written");
    }
    let states = disk.crash_states(3, 100);
    assert_eq!(states.len(), 100);
    assert_eq!(
        states[0].read("f", 1 << 20).expect("readable"),
        [0; 1 << 20]
    );
    assert_eq!(states[1].contents(), disk.contents());
    let again = disk.crash_states(3, 100);
    assert!(
        states
            .iter()
            .zip(&again)
            .all(|(a, b)| a.contents() == b.contents()),
        "not deterministic"
    );
    let other = disk.crash_states(4, 100);
    assert!(
        states
            .iter()
            .zip(&other)
            .any(|(a, b)| a.contents() != b.contents())
    );
}

#[test]
fn crash_states_are_disks_of_their_own() {
    let disk = disk_with("f", b"abc");
    let states = disk.crash_states(1, 2);
    let file = states[0].open_write("f", false).expect("it exists");
    file.write_all_at(b"X", 0).expect("written");
    assert_eq!(disk.read("f", 3).expect("readable"), b"abc");
    assert_eq!(states[0].read("f", 3).expect("readable"), b"Xbc");
}

#[test]
fn zero_blocks_are_holes() {
    let disk = disk_with("f", &[0; 20_000]);
    let file = disk.open_write("f", false).expect("it exists");
    file.write_all_at(&[1; 10], 5000).expect("written");
    assert_eq!(
        file.next_data(0, u64::MAX).expect("known"),
        Some(4096..8192)
    );
    assert_eq!(file.next_data(5000, 6000).expect("known"), Some(5000..6000));
    assert_eq!(file.next_data(8192, u64::MAX).expect("known"), None);
    file.punch(4096, 4096).expect("punched");
    assert_eq!(file.next_data(0, u64::MAX).expect("known"), None);
}

#[test]
fn errors_are_those_of_a_file_system() {
    let disk = disk_with("f", b"abc");
    let kind = |result: io::Result<()>| result.expect_err("must fail").kind();
    assert_eq!(kind(disk.write_new("f", b"")), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(disk.write_new("no/f", b"")), io::ErrorKind::NotFound);
    assert_eq!(kind(disk.remove("no")), io::ErrorKind::NotFound);
    assert_eq!(kind(disk.create_dir("f")), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(disk.list("f").map(drop)), io::ErrorKind::NotADirectory);
    assert_eq!(
        kind(disk.open("../f", false).map(drop)),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(
        kind(disk.read("f", 2).map(drop)),
        io::ErrorKind::InvalidData
    );
    disk.create_dir("d").expect("created");
    disk.write_new("d/g", b"").expect("created");
    assert_eq!(kind(disk.remove_dir("d")), io::ErrorKind::DirectoryNotEmpty);
    let read_only = disk.open("f", false).expect("it exists");
    assert!(read_only.write_all_at(b"x", 0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was written and synced: all kept is the live state, all lost is the last synced one.
    #[test]
    fn the_extremes_are_the_live_and_the_synced_state(
        steps in prop::collection::vec((0u8..5, 0u64..3000, 1usize..3000), 1..20)
    ) {
        let disk = disk_with("f", b"");
        let file = disk.open_write("f", false).expect("it exists");
        let mut synced = disk.contents();
        for (at, (step, offset, len)) in steps.into_iter().enumerate() {
            match step {
                0..3 => file.write_all_at(&vec![at as u8 + 1; len], offset).expect("written"),
                3 => file.set_len(offset).expect("set"),
                _ => {
                    file.sync().expect("durable");
                    synced = disk.contents();
                }
            }
        }
        let states: Vec<_> = disk.crash_states(1, 64).iter().map(SimStorage::contents).collect();
        prop_assert!(states.len() <= 64);
        prop_assert!(states.contains(&synced));
        prop_assert!(states.contains(&disk.contents()));
    }
}
