//! All engines and name spaces against each other: which one serves a call must not show.

use std::fs;
use std::io;
use std::sync::Arc;

use proptest::prelude::*;

use super::posix::PosixEngine;
use super::uring::UringEngine;
use super::*;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").expect("/var/tmp is writable")
}

/// Every engine that works here; io_uring does on the machines the tests are for.
fn engines() -> Vec<Arc<dyn Engine>> {
    let mut engines: Vec<Arc<dyn Engine>> =
        vec![Arc::new(PosixEngine::new(None)), Arc::new(SimEngine::new())];
    match UringEngine::new() {
        Ok(uring) => engines.push(Arc::new(uring)),
        Err(error) => eprintln!("io_uring is not tested: {error}"),
    }
    engines
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn open(path: &std::path::Path, direct: bool) -> Arc<dyn BlockFile> {
    Arc::new(OsFile::open_read(path, direct).expect("it exists"))
}

fn whole(file: &Arc<dyn BlockFile>, file_offset: u64, len: usize) -> Vec<Piece> {
    vec![Piece {
        file: Arc::clone(file),
        file_offset,
        buffer_offset: 0,
        len,
    }]
}

#[test]
fn every_engine_reads_and_writes_large_files_directly() {
    let dir = scratch();
    let bytes = noise((5 << 20) + 12_345, 1);
    for engine in engines() {
        let kind = engine.choice().kind;
        let pool = BufferPool::new(8 << 20);
        let mut queue = engine.queue(&pool, 16).expect("the machine has room");
        let path = dir.path().join(kind.to_string());
        let file: Arc<dyn BlockFile> = Arc::new(OsFile::create_new(&path, true).expect("new"));
        let mut buffer = pool.acquire(bytes.len());
        buffer.copy_from_slice(&bytes);
        let pieces = whole(&file, 0, bytes.len());
        queue.submit(Transfer {
            token: 1,
            direction: Direction::Write,
            buffer,
            pieces,
        });
        let done = queue.wait().expect("in flight");
        done.result.expect("written");
        drop(done.transfer);
        assert_eq!(fs::read(&path).expect("readable"), bytes, "{kind}");

        let buffer = pool.acquire(bytes.len());
        let pieces = whole(&file, 0, bytes.len());
        queue.submit(Transfer {
            token: 2,
            direction: Direction::Read,
            buffer,
            pieces,
        });
        assert_eq!(queue.in_flight(), 1);
        let done = queue.wait().expect("in flight");
        done.result.expect("read");
        assert_eq!(done.transfer.token, 2);
        assert!(done.transfer.buffer[..] == bytes[..], "{kind}");
        assert!(queue.wait().is_none() && queue.try_wait().is_none());
    }
}

#[test]
fn an_early_end_of_the_file_is_an_error_everywhere() {
    let dir = scratch();
    let path = dir.path().join("short");
    fs::write(&path, noise(300_001, 2)).expect("scratch is writable");
    for engine in engines() {
        let pool = BufferPool::new(1 << 20);
        let mut queue = engine.queue(&pool, 4).expect("the machine has room");
        for direct in [false, true] {
            let pieces = whole(&open(&path, direct), 0, 512 * 1024);
            let buffer = pool.acquire(512 * 1024);
            queue.submit(Transfer {
                token: 0,
                direction: Direction::Read,
                buffer,
                pieces,
            });
            let error = queue
                .wait()
                .expect("in flight")
                .result
                .expect_err("it ends early");
            assert_eq!(error.source.kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(error.piece, 0);
        }
    }
}

#[test]
fn a_failing_write_names_its_place() {
    let dir = scratch();
    let path = dir.path().join("read-only");
    fs::write(&path, [0; 100]).expect("scratch is writable");
    for engine in engines() {
        let pool = BufferPool::new(1 << 20);
        let mut queue = engine.queue(&pool, 4).expect("the machine has room");
        let pieces = whole(&open(&path, false), 50, 10);
        let buffer = pool.acquire(10);
        queue.submit(Transfer {
            token: 0,
            direction: Direction::Write,
            buffer,
            pieces,
        });
        let error = queue
            .wait()
            .expect("in flight")
            .result
            .expect_err("opened for reading");
        assert_eq!(error.to_string(), "writing 10 bytes at offset 50 (piece 0)");
        assert_eq!(error.source.raw_os_error(), Some(libc::EBADF));
    }
}

#[test]
fn a_queue_dropped_in_flight_returns_its_buffers() {
    let dir = scratch();
    let path = dir.path().join("f");
    fs::write(&path, noise(4 << 20, 3)).expect("scratch is writable");
    for engine in engines() {
        for direct in [false, true] {
            let pool = BufferPool::new(16 << 20);
            let mut queue = engine.queue(&pool, 8).expect("the machine has room");
            let file = open(&path, direct);
            for token in 0..4 {
                let (buffer, pieces) = (pool.acquire(4 << 20), whole(&file, 0, 4 << 20));
                queue.submit(Transfer {
                    token,
                    direction: Direction::Read,
                    buffer,
                    pieces,
                });
            }
            assert_eq!((queue.in_flight(), pool.in_use()), (4, 16 << 20));
            drop(queue);
            assert_eq!(pool.in_use(), 0);
            assert_eq!(Arc::strong_count(&file), 1);
        }
    }
}

#[test]
fn a_queue_is_made_here_and_used_there() {
    let dir = scratch();
    let path = dir.path().join("f");
    let bytes = noise(1 << 20, 4);
    fs::write(&path, &bytes).expect("scratch is writable");
    for engine in engines() {
        let pool = BufferPool::new(2 << 20);
        let mut queue = engine.queue(&pool, 8).expect("the machine has room");
        let (buffer, pieces) = (pool.acquire(1 << 20), whole(&open(&path, true), 0, 1 << 20));
        let done = std::thread::spawn(move || {
            queue.submit(Transfer {
                token: 0,
                direction: Direction::Read,
                buffer,
                pieces,
            });
            queue.wait().expect("in flight")
        });
        let done = done.join().expect("the thread ends well");
        assert!(done.result.is_ok() && done.transfer.buffer[..] == bytes[..]);
    }
}

#[test]
fn a_queue_dropped_by_another_thread_harms_nobody() {
    let dir = scratch();
    let path = dir.path().join("f");
    fs::write(&path, noise(4 << 20, 5)).expect("scratch is writable");
    for engine in engines() {
        let pool = BufferPool::new(4 << 20);
        let mut queue = engine.queue(&pool, 8).expect("the machine has room");
        let (buffer, pieces) = (pool.acquire(4 << 20), whole(&open(&path, true), 0, 4 << 20));
        queue.submit(Transfer {
            token: 0,
            direction: Direction::Read,
            buffer,
            pieces,
        });
        std::thread::spawn(move || drop(queue))
            .join()
            .expect("the thread ends well");
        // Returned, or leaked where the ring belongs to this thread: never handed out while in use.
        assert!([0, 4 << 20].contains(&pool.in_use()));
    }
}

#[test]
fn an_arena_too_large_to_register_works_too() {
    let dir = scratch();
    let path = dir.path().join("f");
    let bytes = noise(1 << 20, 6);
    fs::write(&path, &bytes).expect("scratch is writable");
    for engine in engines() {
        let pool = BufferPool::new((1 << 30) + 1);
        let mut queue = engine.queue(&pool, 8).expect("the machine has room");
        let (buffer, pieces) = (pool.acquire(1 << 20), whole(&open(&path, true), 0, 1 << 20));
        queue.submit(Transfer {
            token: 0,
            direction: Direction::Read,
            buffer,
            pieces,
        });
        let done = queue.wait().expect("in flight");
        assert!(done.result.is_ok() && done.transfer.buffer[..] == bytes[..]);
    }
}

#[test]
fn polling_gets_there_as_well() {
    let dir = scratch();
    let path = dir.path().join("f");
    fs::write(&path, noise(2 << 20, 7)).expect("scratch is writable");
    for engine in engines() {
        let pool = BufferPool::new(2 << 20);
        let mut queue = engine.queue(&pool, 2).expect("the machine has room");
        let (buffer, pieces) = (pool.acquire(2 << 20), whole(&open(&path, true), 0, 2 << 20));
        queue.submit(Transfer {
            token: 0,
            direction: Direction::Read,
            buffer,
            pieces,
        });
        let done = loop {
            if let Some(done) = queue.try_wait() {
                break done;
            }
            std::thread::yield_now();
        };
        assert!(done.result.is_ok());
        assert_eq!(queue.in_flight(), 0);
    }
}

#[test]
fn local_and_simulated_names_behave_alike() {
    let dir = scratch();
    let local = LocalStorage::new(dir.path().to_owned());
    assert_eq!(local.root(), dir.path());
    assert!(local.free_space().is_some());
    let storages: [&dyn Storage; 2] = [&local, &SimStorage::new()];
    for storage in storages {
        storage.create_dir("packs").expect("created");
        storage.create_dir("packs").expect("there already");
        storage.write_new("packs/b", b"bb").expect("created");
        storage.write_new("packs/a", b"a").expect("created");
        storage.create_dir("packs/c").expect("created");
        let entries = storage.list("packs").expect("it exists");
        let entries: Vec<_> = entries
            .iter()
            .map(|e| (e.name.as_str(), if e.is_dir { 0 } else { e.len }, e.is_dir))
            .collect();
        assert_eq!(entries, [("a", 1, false), ("b", 2, false), ("c", 0, true)]);
        assert_eq!(storage.list("").expect("the root").len(), 1);

        storage
            .write_new("config.tmp", b"left by a crash")
            .expect("created");
        storage.publish("config", b"one").expect("published");
        storage.publish("config", b"two").expect("published");
        assert_eq!(storage.read("config", 3).expect("readable"), b"two");
        assert!(!storage.exists("config.tmp").expect("known"));
        assert_eq!(
            storage.read("config", 2).expect_err("too large").kind(),
            io::ErrorKind::InvalidData
        );

        storage.rename("packs/a", "packs/b").expect("replaced");
        assert_eq!(storage.read("packs/b", 9).expect("readable"), b"a");
        let kind = |result: io::Result<()>| result.expect_err("must fail").kind();
        assert_eq!(kind(storage.list("no").map(drop)), io::ErrorKind::NotFound);
        assert_eq!(
            kind(storage.write_new("packs/b", b"")),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(
            kind(storage.open_write("no", false).map(drop)),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            kind(storage.remove_dir("packs")),
            io::ErrorKind::DirectoryNotEmpty
        );
        assert_eq!(
            kind(storage.create_dir("config")),
            io::ErrorKind::AlreadyExists
        );
        for path in ["../x", "/etc/x", "a//b", "a/./b", "a/"] {
            assert_eq!(
                kind(storage.write_new(path, b"")),
                io::ErrorKind::InvalidInput
            );
        }
        storage.remove("packs/b").expect("removed");
        storage.remove_dir("packs/c").expect("removed");
        storage.remove_dir("packs").expect("removed");
        storage.sync_dir("").expect("durable");
        assert!(!storage.exists("packs").expect("known"));
    }
}

#[test]
fn a_name_that_is_no_text_spoils_the_listing() {
    use std::os::unix::ffi::OsStrExt;
    let dir = scratch();
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"\xff")), b"")
        .expect("ext4 takes any bytes");
    let error = LocalStorage::new(dir.path().to_owned())
        .list("")
        .expect_err("not a name of ours");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

/// A file's size, and pieces of it as (file offset, length, gap before it in the buffer).
type Scatter = (usize, Vec<(usize, usize, usize)>);

fn scatter() -> impl Strategy<Value = Scatter> {
    let sized = prop_oneof![
        1usize..5000,
        (1usize..200).prop_map(|n| n * 4096),
        1usize..900_000
    ];
    let place = prop_oneof![0usize..2_000_000, (0usize..400).prop_map(|n| n * 4096)];
    let gap = prop_oneof![Just(0usize), 0usize..5000];
    (
        1usize..2_000_000,
        prop::collection::vec((place, sized, gap), 1..12),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Reads gather and writes scatter the same bytes on all engines, around the cache and through it,
    /// on real and simulated files in one transfer.
    #[test]
    fn scattered_transfers_equal_plain_copies((size, places) in scatter(), seed: u64, depth in 1u32..40) {
        let dir = scratch();
        let bytes = noise(size, seed);
        let path = dir.path().join("source");
        fs::write(&path, &bytes).expect("scratch is writable");
        let simulated = SimStorage::new();
        simulated.write_new("source", &bytes).expect("created");

        let mut gathered = Vec::new();
        let mut pieces = Vec::new();
        for &(offset, len, gap) in &places {
            let offset = offset % size;
            let len = len.min(size - offset);
            gathered.resize(gathered.len() + gap, 0);
            pieces.push((offset, gathered.len(), len));
            gathered.extend_from_slice(&bytes[offset..offset + len]);
        }
        // Written places must not overlap: put them one after the other.
        let mut scattered = vec![0; gathered.len()];
        for &(_, at, len) in &pieces {
            scattered[at..at + len].copy_from_slice(&gathered[at..at + len]);
        }

        for engine in engines() {
            for direct in [false, true] {
                let pool = BufferPool::new(2 * gathered.len() + (2 << 20));
                let mut queue = engine.queue(&pool, depth).expect("the machine has room");
                let sources = [open(&path, direct), simulated.open("source", false).expect("it exists")];
                let target = dir.path().join(format!("{}-{direct}", engine.choice().kind));
                let target: Arc<dyn BlockFile> = Arc::new(OsFile::create_new(target, direct).expect("new"));
                target.set_len(gathered.len() as u64).expect("sparse");

                let mut buffer = pool.acquire(gathered.len());
                buffer.fill(0);
                let piece = |(at, &(offset, buffer_offset, len)): (usize, &(usize, usize, usize))| Piece {
                    file: Arc::clone(&sources[usize::from(at % 5 == 4)]),
                    file_offset: offset as u64,
                    buffer_offset,
                    len,
                };
                let read = pieces.iter().enumerate().map(piece).collect();
                queue.submit(Transfer { token: 1, direction: Direction::Read, buffer, pieces: read });
                let done = queue.wait().expect("in flight");
                prop_assert!(done.result.is_ok(), "{:?}", done.result);
                prop_assert!(done.transfer.buffer[..] == gathered[..]);

                let write = pieces.iter().map(|&(_, at, len)| Piece {
                    file: Arc::clone(&target),
                    file_offset: at as u64,
                    buffer_offset: at,
                    len,
                });
                let (buffer, pieces) = (done.transfer.buffer, write.collect());
                queue.submit(Transfer { token: 2, direction: Direction::Write, buffer, pieces });
                let done = queue.wait().expect("in flight");
                prop_assert!(done.result.is_ok(), "{:?}", done.result);
                let mut actual = vec![0; gathered.len()];
                prop_assert_eq!(target.read_at(&mut actual, 0).expect("readable"), actual.len());
                prop_assert!(actual == scattered);
            }
        }
    }
}
