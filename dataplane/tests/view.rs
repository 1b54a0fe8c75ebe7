//! Disks of stored snapshots, read anywhere, by many, from real repositories in directories; and what damage costs.

mod support;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use support::{Content, DiskInput, KIB, MIB, Rng, create_options, fill_noise, job, run_backup};
use tempfile::TempDir;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::disk::ReadDisk;
use undercroft_dataplane::io::{BufferPool, Engine, EngineRequest, choose};
use undercroft_dataplane::repository::error::{RepositoryError, Result};
use undercroft_dataplane::repository::lookup::Located;
use undercroft_dataplane::repository::objects::Objects;
use undercroft_dataplane::repository::open::{Access, OpenOptions, create_local, open_local};
use undercroft_dataplane::repository::records::{Fetch, Records};
use undercroft_dataplane::repository::session::{Begun, SessionRequest};
use undercroft_dataplane::repository::snapshots::{Snapshots, StoredSnapshot};
use undercroft_dataplane::repository::{LocalRepository, Repository, Traffic, layout};
use undercroft_dataplane::view::{CACHE_LEN_MIN, DiskView, View, ViewOptions};
use undercroft_format::config::Config;
use undercroft_format::extent::Extent;
use undercroft_format::id::{ChunkId, ObjectId};
use undercroft_format::pack::{ObjectKind, RECORD_HEADER_LEN};
use undercroft_format::units::DiskRange;

/// A disk with something of everything: noise, text, holes, ends that fit nothing.
fn content(len: u64, seed: u64) -> Vec<u8> {
    let rng = &mut Rng(seed);
    let mut disk = vec![0; len as usize];
    for start in (0..len).step_by(256 << 10) {
        let end = (start + (rng.below(256) * KIB)).min(len) as usize;
        let part = &mut disk[start as usize..end];
        match rng.below(4) {
            0 => {}
            1 => part.fill(b'x'),
            _ => fill_noise(part, rng),
        }
    }
    disk
}

struct World {
    root: TempDir,
    repository: Arc<LocalRepository>,
    snapshots: Vec<(StoredSnapshot, Content)>,
}

impl World {
    /// A repository with a full snapshot of `disk`, and one of it with changes.
    fn new(disk: Vec<u8>) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        create_local(root.path(), &create_options(1 << 20)).expect("created");
        let owner = open(&root, Access::Own("a test".to_owned()));
        let threads = support::threads(2);
        let old: Content = Arc::new(disk);
        let mut snapshots = Vec::new();
        let stored = |input, now, parent| {
            let report = run_backup(&owner, &threads, job("vm", now, parent, vec![input]));
            let id = report.expect("it is backed up").id;
            owner.snapshots().read(id).expect("it is there")
        };
        let full = stored(DiskInput::full("root", &old), 1, None);
        let mut changed = (*old).clone();
        let len = changed.len();
        fill_noise(&mut changed[len / 3 + 5..len / 3 + 70_000], &mut Rng(5));
        changed[len / 2..len / 2 + 300_000].fill(0);
        let new: Content = Arc::new(changed);
        let input = DiskInput::since("root", &old, &new);
        let increment = stored(input, 2, Some(full.clone()));
        snapshots.push((full, old));
        snapshots.push((increment, new));
        owner.close().expect("closed");
        drop(owner);
        Self {
            repository: open(&root, Access::Read),
            root,
            snapshots,
        }
    }

    fn disk(&self, view: &View, place: usize) -> DiskView {
        let (stored, _) = &self.snapshots[place];
        let manifest = stored.snapshot.disks[0].clone();
        DiskView::new(view, self.repository.clone(), stored.id, manifest, None).expect("no key")
    }

    fn located(&self, id: ObjectId) -> Located {
        self.repository.lookup().locate(&[id]).expect("looked up")[0].expect("it is there")
    }

    /// Flips a bit in the payload of an object.
    fn damage(&self, id: ObjectId) {
        let place = self.located(id);
        let path = self.root.path().join(layout::pack(place.pack));
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("a pack");
        let at = place.position + RECORD_HEADER_LEN as u64 + u64::from(place.info.stored_len) / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    }
}

fn open(root: &TempDir, access: Access) -> Arc<LocalRepository> {
    let options = OpenOptions {
        unlock: None,
        access,
        engine: choose(EngineRequest::Auto).expect("an engine"),
    };
    open_local(root.path(), &options).expect("it opens").0
}

fn view(cache_len: u64) -> View {
    let options = ViewOptions {
        cache_len,
        threads: 3,
        ..ViewOptions::default()
    };
    View::new(options).expect("threads")
}

/// Reads `len` bytes and compares them.
fn assert_reads(disk: &DiskView, content: &[u8], at: u64, len: u64) {
    let mut out = vec![0xee; len as usize];
    disk.read_at(at, &mut out)
        .unwrap_or_else(|error| panic!("{at}+{len}: {}", support::chain(&error)));
    assert!(
        out == content[at as usize..(at + len) as usize],
        "{at}+{len}"
    );
}

fn read_randomly(disk: &DiskView, content: &[u8], rng: &mut Rng, reads: usize) {
    let size = content.len() as u64;
    for _ in 0..reads {
        let at = rng.below(size + 1);
        let len = match rng.below(3) {
            0 => rng.below(20),
            1 => rng.below(9 * KIB),
            _ => rng.below(3 * MIB),
        };
        assert_reads(disk, content, at, len.min(size - at));
    }
}

#[test]
fn reads_anywhere_equal_the_source() {
    let world = World::new(content(9 * MIB + 777, 1));
    for cache_len in [0, 128 * MIB] {
        let view = view(cache_len);
        for (place, (_, content)) in world.snapshots.iter().enumerate() {
            let disk = world.disk(&view, place);
            assert_eq!(disk.size().get(), content.len() as u64);
            read_randomly(&disk, content, &mut Rng(3), 100);
            // In sequence, too, by pieces that fit nothing.
            for at in (0..content.len() as u64).step_by(100_001) {
                assert_reads(&disk, content, at, 100_001.min(content.len() as u64 - at));
            }
        }
    }
}

#[test]
fn the_end_is_the_end() {
    let world = World::new(content(MIB + 300 * KIB + 5, 2));
    let view = view(0);
    let disk = world.disk(&view, 0);
    let size = disk.size().get();
    disk.read_at(size, &mut []).expect("nothing is read");
    for (at, len) in [(size, 1), (size - 3, 4), (size + 1, 0), (u64::MAX, 7)] {
        let error = disk
            .read_at(at, &mut vec![0; len])
            .expect_err("past the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn readers_at_once_read_right_and_decode_each_chunk_once() {
    let world = World::new(content(12 * MIB, 3));
    let view = view(128 * MIB);
    let start = Barrier::new(12);
    std::thread::scope(|scope| {
        for reader in 0..12_u64 {
            let (world, view, start) = (&world, &view, &start);
            scope.spawn(move || {
                let place = (reader % 2) as usize;
                let (disk, content) = (world.disk(view, place), &world.snapshots[place].1);
                start.wait();
                match reader % 3 {
                    0 => read_randomly(&disk, content, &mut Rng(reader), 60),
                    _ => (0..content.len() as u64 / (256 * KIB)).for_each(|piece| {
                        assert_reads(&disk, content, piece * 256 * KIB, 256 * KIB);
                    }),
                }
            });
        }
    });
    let objects = world.repository.objects();
    let mut chunks = HashSet::new();
    for (stored, _) in &world.snapshots {
        let tree = stored.snapshot.disks[0].tree();
        objects
            .visit_tree(tree, 0..tree.segments, &mut |_, map| {
                chunks.extend(objects.segment_map(map)?.chunks());
                Ok(())
            })
            .expect("maps");
    }
    assert_eq!(view.decoded(), chunks.len() as u64);
}

#[test]
fn the_cache_stays_within_its_bound() {
    let mut noise = vec![0; 24 << 20];
    fill_noise(&mut noise, &mut Rng(4));
    let world = World::new(noise);
    let view = view(CACHE_LEN_MIN);
    let (disk, content) = (world.disk(&view, 0), &world.snapshots[0].1);
    let rng = &mut Rng(9);
    for _ in 0..3 {
        for at in (0..content.len() as u64).step_by(1 << 20) {
            assert_reads(&disk, content, at, MIB);
            read_randomly(&disk, content, rng, 1);
            assert!(view.cached_len() <= CACHE_LEN_MIN);
        }
    }
    assert!(view.cached_len() > CACHE_LEN_MIN / 2, "it is used");
}

#[test]
fn random_reads_fetch_what_they_touch_alone() {
    let mut noise = vec![0; 24 << 20];
    fill_noise(&mut noise, &mut Rng(6));
    let world = World::new(noise);
    let view = view(128 * MIB);
    let (disk, content) = (world.disk(&view, 0), &world.snapshots[0].1);
    let rng = &mut Rng(1);
    for _ in 0..40 {
        assert_reads(&disk, content, rng.below(5000) * 4 * KIB, 4 * KIB);
    }
    assert!(view.decoded() <= 80, "{} chunks", view.decoded());
}

#[test]
fn a_sequential_reader_is_read_ahead_of() {
    let mut noise = vec![0; 24 << 20];
    fill_noise(&mut noise, &mut Rng(6));
    let world = World::new(noise);
    let view = view(128 * MIB);
    let (disk, content) = (world.disk(&view, 0), &world.snapshots[0].1);
    for piece in 0..16 {
        assert_reads(&disk, content, piece * 128 * KIB, 128 * KIB);
    }
    let clock = Stopwatch::start();
    while view.cached_len() < 3 * MIB {
        assert!(
            clock.elapsed() < Duration::from_secs(60),
            "nothing is read ahead"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn allocation_says_where_data_is() {
    let mut disk = content(7 * MIB + 123, 7);
    disk[2 << 20..5 << 20].fill(0);
    let world = World::new(disk);
    let view = view(0);
    for (place, (_, content)) in world.snapshots.iter().enumerate() {
        let disk = world.disk(&view, place);
        for range in [
            DiskRange::new(0, content.len() as u64),
            DiskRange::new(5000, 3 * MIB + 1),
            DiskRange::new(2 * MIB, 4 * MIB),
        ] {
            let parts = disk.allocation(range, usize::MAX).expect("maps");
            let mut at = range.start;
            for (index, part) in parts.iter().enumerate() {
                assert_eq!(part.range.start, at);
                assert!(!part.range.is_empty());
                assert!(index == 0 || parts[index - 1].is_data != part.is_data);
                let bytes = &content[at as usize..part.range.end as usize];
                assert!(part.is_data || bytes.iter().all(|byte| *byte == 0));
                at = part.range.end;
            }
            assert_eq!(at, range.end);
            let first = disk.allocation(range, 2).expect("maps");
            assert_eq!(first, parts[..parts.len().min(2)]);
        }
        let hole = disk.allocation(DiskRange::new(2 * MIB, 4 * MIB), 9);
        assert!(!hole.expect("maps")[0].is_data, "zeros are no data");
    }
}

/// Where on the disk a chunk is used.
fn uses(world: &World, place: usize, chunk: ChunkId) -> Vec<DiskRange> {
    let manifest = &world.snapshots[place].0.snapshot.disks[0];
    let objects = world.repository.objects();
    let mut ranges = Vec::new();
    let tree = manifest.tree();
    objects
        .visit_tree(tree, 0..tree.segments, &mut |number, map| {
            let start = manifest.segment_size.range_of(number, manifest.size).start;
            for (at, extent) in objects.segment_map(map)?.placed() {
                if matches!(extent, Extent::Data { chunk: used, .. } if *used == chunk) {
                    let at = start + u64::from(at);
                    ranges.push(DiskRange::new(at, at + u64::from(extent.len())));
                }
            }
            Ok(())
        })
        .expect("maps");
    ranges
}

#[test]
fn damage_costs_the_reads_that_touch_it() {
    let world = World::new(content(6 * MIB, 8));
    let manifest = &world.snapshots[0].0.snapshot.disks[0];
    let objects = world.repository.objects();
    let mut maps = Vec::new();
    let tree = manifest.tree();
    objects
        .visit_tree(tree, 0..tree.segments, &mut |number, map| {
            maps.push((number, map));
            Ok(())
        })
        .expect("maps");
    let map = objects.segment_map(maps[1].1).expect("a map");
    let chunk = map.chunks().nth(3).expect("a chunk");
    let mut bad = uses(&world, 0, chunk);
    let lost = maps[4];
    bad.push(manifest.segment_size.range_of(lost.0, manifest.size));
    world.damage(chunk.into());
    world.damage(lost.1.into());
    let content = &world.snapshots[0].1;
    // One by one, and many at once: they are fetched in different ways.
    for len in [4 * KIB, MIB / 2] {
        let view = view(0);
        let disk = world.disk(&view, 0);
        let (mut failed, mut read) = (0, 0);
        for at in (0..content.len() as u64).step_by(len as usize) {
            let range = DiskRange::new(at, (at + len).min(content.len() as u64));
            let is_bad = bad.iter().any(|bad| !bad.intersect(range).is_empty());
            if !is_bad {
                assert_reads(&disk, content, at, range.len());
                read += 1;
                continue;
            }
            let mut out = vec![0; range.len() as usize];
            let error = disk.read_at(at, &mut out).expect_err("it is damaged");
            let text = support::chain(&error);
            assert!(text.contains("disk root"), "{text}");
            assert!(text.contains("bytes "), "{text}");
            let is_told = text.contains(&chunk.to_string()) || text.contains(&lost.1.to_string());
            assert!(is_told, "{text}");
            failed += 1;
        }
        assert!(failed > 1 && read > 1);
    }
}

#[test]
fn a_repository_that_is_gone_is_an_error() {
    let world = World::new(content(4 * MIB, 9));
    let view = view(0);
    let disk = world.disk(&view, 0);
    std::fs::remove_dir_all(world.root.path().join(layout::PACKS)).expect("removed");
    let mut out = vec![0; 2 << 20];
    disk.read_at(0, &mut out).expect_err("nothing is there");
    disk.read_at(5, &mut out[..10])
        .expect_err("nothing is there");
}

/// A repository behind a server that does not answer.
struct Silent {
    inner: Arc<LocalRepository>,
    objects: Objects,
}

struct NoRecords;

impl Records for NoRecords {
    fn payload(&self, _: ObjectId, _: ObjectKind) -> Result<(Located, Vec<u8>)> {
        std::thread::sleep(Duration::from_secs(3600));
        Err(RepositoryError::Collecting)
    }

    fn fetch_ahead_len(&self) -> usize {
        0
    }

    fn fetch(&self, _: &dyn Engine, _: &Arc<BufferPool>) -> Result<Box<dyn Fetch + '_>> {
        struct NoFetch;
        impl Fetch for NoFetch {
            fn prepare(
                &mut self,
                _: &mut undercroft_dataplane::repository::records::Batch,
            ) -> Result<()> {
                Ok(())
            }
            fn submit(
                &mut self,
                _: undercroft_dataplane::repository::records::Batch,
                _: undercroft_dataplane::io::Buffer,
            ) {
            }
            fn wait(
                &mut self,
            ) -> Option<(
                undercroft_dataplane::repository::records::Batch,
                undercroft_dataplane::io::Buffer,
            )> {
                None
            }
        }
        Ok(Box::new(NoFetch))
    }
}

impl Repository for Silent {
    fn config(&self) -> &Config {
        self.inner.config()
    }

    fn keys(&self) -> Result<&Arc<undercroft_dataplane::repository::keys::Keys>> {
        self.inner.keys()
    }

    fn engine(&self) -> &Arc<dyn Engine> {
        self.inner.engine()
    }

    fn objects(&self) -> &Objects {
        &self.objects
    }

    fn snapshots(&self) -> &Snapshots {
        self.inner.snapshots()
    }

    fn traffic(&self) -> Option<Traffic> {
        Some(Traffic::default())
    }

    fn begin(self: Arc<Self>, _: &SessionRequest) -> Result<Begun> {
        Err(RepositoryError::Collecting)
    }
}

#[test]
fn a_server_that_does_not_answer_is_an_error_in_the_end() {
    let world = World::new(content(4 * MIB, 9));
    let options = ViewOptions {
        patience: Duration::from_millis(300),
        ..ViewOptions::default()
    };
    let view = View::new(options).expect("threads");
    let repository = Arc::new(Silent {
        inner: world.repository.clone(),
        objects: Objects::new(Arc::new(NoRecords)),
    });
    let (stored, _) = &world.snapshots[0];
    let manifest = stored.snapshot.disks[0].clone();
    let disk = DiskView::new(&view, repository, stored.id, manifest, None).expect("no key");
    // More readers than threads: those that find none free give up, too.
    std::thread::scope(|scope| {
        for reader in 0..16_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut out = vec![0; 64 << 10];
                let error = disk
                    .read_at(reader * 64 * KIB, &mut out)
                    .expect_err("silence");
                let text = support::chain(&error);
                assert!(text.contains("did not answer"), "{text}");
            });
        }
    });
}
