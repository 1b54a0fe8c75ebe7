//! What the tests of whole repositories share: small repositories on a simulated disk, disks to back up,
//! and a slow reader that shares no code with restore, to compare with.

#![allow(
    dead_code,
    missing_docs,
    reason = "each test binary uses a part of this; nobody reads its documentation"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use parking_lot::Mutex;
use rayon::{ThreadPool, ThreadPoolBuilder};
use undercroft_dataplane::ingest::backup::{BackupJob, BackupReport, DiskJob, backup};
use undercroft_dataplane::ingest::changes::ChangedBlocks;
use undercroft_dataplane::ingest::source::{DiskSource, Source};
use undercroft_dataplane::io::{BlockFile, Engine, SimEngine, Storage};
use undercroft_dataplane::progress::Progress;
use undercroft_dataplane::repository::entropy::{Entropy, SeededEntropy};
use undercroft_dataplane::repository::error::Result;
use undercroft_dataplane::repository::gc::{CollectOptions, CollectReport, collect};
use undercroft_dataplane::repository::index::{ChunkIndex, MemoryIndex};
use undercroft_dataplane::repository::keys::Keys;
use undercroft_dataplane::repository::open::{CreateOptions, OpenNote, reconcile};
use undercroft_dataplane::repository::pack_reader::{check_record, list_packs, read_contents};
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_dataplane::repository::{LocalRepository, Parts, Repository, layout};
use undercroft_format::audit::AuditShare;
use undercroft_format::chunker::{AlignedParams, ChunkerSpec};
use undercroft_format::config::{Config, KeyMaterial, MasterKey};
use undercroft_format::extent::Extent;
use undercroft_format::id::{ChunkId, NodeId, ObjectId, PackId, RepositoryId, SegmentMapId};
use undercroft_format::maptree::{Node, levels};
use undercroft_format::pack::RECORD_HEADER_LEN;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::units::SegmentSize;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Bytes per bit of a changed-block bitmap.
const CBT_BLOCK: usize = 64 << 10;
const MASTER: [u8; 32] = [42; 32];

/// SplitMix64: the same everywhere and for ever.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is small.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// Small chunks, 1 MiB segments, small packs.
pub fn create_options(pack_len_target: u32) -> CreateOptions {
    CreateOptions {
        chunker: ChunkerSpec::Aligned(
            AlignedParams::new(4 << 10, 12 << 10, 32 << 10).expect("valid lengths"),
        ),
        segment_size: SegmentSize::from_log2(20).expect("1 MiB"),
        pack_len_target,
        zstd_level: 1,
        index_memory_max: 64 << 20,
        passphrase: None,
        now_ms: 1,
    }
}

/// A config that was never stored, and the keys for it.
pub fn config(pack_len_target: u32, encrypted: bool) -> (Config, Arc<Keys>) {
    let options = create_options(pack_len_target);
    let master = MasterKey::from_bytes(MASTER);
    let config = Config {
        repository: RepositoryId::from_bytes([9; 16]),
        created_ms: 1,
        chunker: options.chunker,
        segment_size: options.segment_size,
        pack_len_target,
        zstd_level: options.zstd_level,
        index_memory_max: options.index_memory_max,
        keys: if encrypted {
            KeyMaterial::Wrapped(Vec::new())
        } else {
            KeyMaterial::Clear(master.clone())
        },
    };
    (config, Arc::new(Keys::new(master, encrypted)))
}

/// The directories of a repository, without a config.
pub fn make_directories(storage: &dyn Storage) {
    for dir in layout::DIRECTORIES {
        storage.create_dir(dir).expect("an empty disk has room");
    }
    storage.sync_dir("").expect("nothing fails here");
}

/// One worker: a run is a function of its inputs.
pub fn one_thread() -> Arc<ThreadPool> {
    Arc::new(threads(1))
}

pub fn threads(count: usize) -> ThreadPool {
    ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .expect("the system can start threads")
}

/// Opens a repository the way its owner does, with an index made from the packs.
pub fn open_with(
    storage: Arc<dyn Storage>,
    config: &Config,
    keys: &Arc<Keys>,
    seed: u64,
    index: Arc<dyn ChunkIndex>,
    engine: Arc<dyn Engine>,
) -> Result<(Arc<LocalRepository>, Vec<OpenNote>)> {
    let mut notes = Vec::new();
    reconcile(&*storage, config.repository, &*index, &mut notes)?;
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(seed));
    let repository = LocalRepository::assemble(Parts {
        storage,
        engine,
        entropy,
        config: config.clone(),
        keys: Some(keys.clone()),
        index,
        root: None,
        lock: None,
        beside_owner: false,
    });
    Ok((repository, notes))
}

/// [`open_with`] a fresh index and the simulated engine. No sealed pack may be unreadable.
pub fn open(
    storage: Arc<dyn Storage>,
    config: &Config,
    keys: &Arc<Keys>,
    seed: u64,
) -> Result<Arc<LocalRepository>> {
    let index = Arc::new(MemoryIndex::new());
    let engine = Arc::new(SimEngine::new());
    let (repository, notes) = open_with(storage, config, keys, seed, index, engine)?;
    for note in notes {
        assert!(
            !matches!(note, OpenNote::PackUnreadable(..)),
            "a sealed pack is unreadable: {note:?}"
        );
    }
    Ok(repository)
}

/// A disk in memory to back up; some of it may be unreadable.
#[derive(Debug)]
pub struct MemoryFile {
    pub bytes: Arc<Vec<u8>>,
    pub unreadable: Option<Range<u64>>,
}

impl BlockFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let wanted = offset..offset + buf.len() as u64;
        if let Some(bad) = &self.unreadable
            && bad.start < wanted.end
            && wanted.start < bad.end
        {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let start = (offset as usize).min(self.bytes.len());
        let len = buf.len().min(self.bytes.len() - start);
        buf[..len].copy_from_slice(&self.bytes[start..start + len]);
        Ok(len)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        let block = 4 * KIB;
        let end = end.min(self.bytes.len() as u64);
        let block_end = |at: u64| ((at / block + 1) * block).min(end);
        let is_hole =
            |at: u64| is_zero(&self.bytes[(at / block * block) as usize..block_end(at) as usize]);
        let mut start = offset.min(end);
        while start < end && is_hole(start) {
            start = block_end(start);
        }
        let mut stop = start;
        while stop < end && !is_hole(stop) {
            stop = block_end(stop);
        }
        Ok((start < end).then_some(start..stop))
    }

    fn advise_dont_need(&self) {}
}

fn is_zero(bytes: &[u8]) -> bool {
    *bytes == [0; 4096][..bytes.len()]
}

/// A disk's content, shared by those who remember it.
pub type Content = Arc<Vec<u8>>;

/// Writes something somewhere: noise, text, zeros, blocks that other disks have too.
pub fn scribble(disk: &mut [u8], rng: &mut Rng) {
    if disk.is_empty() {
        return;
    }
    let mut start = rng.below(disk.len() as u64) as usize;
    let mut len = match rng.below(4) {
        0 => 1 + rng.below(100) as usize,
        1 | 2 => 4096 * (1 + rng.below(8) as usize),
        _ => 1 + rng.below(200 * KIB) as usize,
    };
    if rng.below(3) > 0 {
        start = start / 4096 * 4096;
    }
    len = len.min(disk.len() - start);
    let part = &mut disk[start..start + len];
    match rng.below(5) {
        0 => part.fill(0),
        1 => {
            let text = format!("line {} of a log that says little\n", rng.next());
            part.iter_mut()
                .zip(text.bytes().cycle())
                .for_each(|(to, from)| *to = from);
        }
        // One of few contents: these are on other disks too.
        2 => fill_noise(part, &mut Rng(rng.below(3))),
        3 => part.fill(rng.next() as u8),
        _ => fill_noise(part, rng),
    }
}

pub fn fill_noise(part: &mut [u8], rng: &mut Rng) {
    for piece in part.chunks_mut(8) {
        piece.copy_from_slice(&rng.next().to_le_bytes()[..piece.len()]);
    }
}

/// What `VDI.list_changed_blocks` says of two states of a disk.
pub fn changed_blocks(old: &[u8], new: &[u8]) -> Vec<u8> {
    let blocks = new.len().div_ceil(CBT_BLOCK);
    let mut bitmap = vec![0_u8; blocks.div_ceil(8)];
    for block in changed(old, new) {
        bitmap[block / 8] |= 0x80 >> (block % 8);
    }
    base64::engine::general_purpose::STANDARD
        .encode(bitmap)
        .into_bytes()
}

fn changed<'a>(old: &'a [u8], new: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    (0..new.len().div_ceil(CBT_BLOCK)).filter(|block| {
        let range = block * CBT_BLOCK..((block + 1) * CBT_BLOCK).min(new.len());
        let before = old.get(range.start.min(old.len())..range.end.min(old.len()));
        before != Some(&new[range])
    })
}

/// Bytes in the blocks that changed.
pub fn changed_bytes(old: &[u8], new: &[u8]) -> u64 {
    changed(old, new)
        .map(|block| ((block + 1) * CBT_BLOCK).min(new.len()) - block * CBT_BLOCK)
        .sum::<usize>() as u64
}

/// One disk to back up.
pub struct DiskInput {
    pub label: String,
    pub content: Content,
    pub changed_blocks: Option<Vec<u8>>,
}

impl DiskInput {
    pub fn full(label: &str, content: &Content) -> Self {
        Self {
            label: label.to_owned(),
            content: content.clone(),
            changed_blocks: None,
        }
    }

    pub fn since(label: &str, old: &[u8], content: &Content) -> Self {
        Self {
            changed_blocks: Some(changed_blocks(old, content)),
            ..Self::full(label, content)
        }
    }
}

pub fn job(
    vm: &str,
    now_ms: u64,
    parent: Option<StoredSnapshot>,
    disks: Vec<DiskInput>,
) -> BackupJob {
    BackupJob {
        vm: vm.to_owned(),
        disks: disks.into_iter().map(|disk| disk_job(disk, None)).collect(),
        parent,
        metadata: Some(("vm.json".to_owned(), format!("{{{vm}}}").into_bytes())),
        tags: Vec::new(),
        resume: None,
        lock: None,
        audit: AuditShare::default(),
        confirm: None,
        now_ms,
    }
}

pub fn disk_job(disk: DiskInput, unreadable: Option<Range<u64>>) -> DiskJob {
    let file = MemoryFile {
        bytes: disk.content,
        unreadable,
    };
    DiskJob {
        source: Source::Disk(DiskSource::new(Arc::new(file), true).expect("memory has a length")),
        source_name: disk.label.clone(),
        label: disk.label,
        changed_blocks: disk
            .changed_blocks
            .map(|text| ChangedBlocks::text(io::Cursor::new(text))),
        lineage: Vec::new(),
        state: [0; 32],
    }
}

pub fn run_backup(
    repository: &Arc<LocalRepository>,
    threads: &ThreadPool,
    job: BackupJob,
) -> Result<BackupReport> {
    backup(repository.clone(), job, threads, &Progress::default())
}

pub fn run_gc(
    repository: &Arc<LocalRepository>,
    rewrite_below_percent: u8,
) -> Result<CollectReport> {
    let options = CollectOptions {
        rewrite_below_percent,
        ..CollectOptions::default()
    };
    collect(repository, &options, &Progress::default())
}

/// Chunks decoded before, by id, with the records that they were decoded from: thousands of crash states
/// hold the same ones, and a record that is the same to the bit needs no second decoding.
#[derive(Default)]
pub struct Decoded(Mutex<HashMap<ObjectId, (Vec<u8>, Arc<Vec<u8>>)>>);

impl Decoded {
    pub fn chunk(&self, repository: &LocalRepository, id: ChunkId) -> Result<Arc<Vec<u8>>> {
        let object = ObjectId::from(id);
        let fresh = || repository.objects().chunk(id, repository.keys()?);
        let Some(place) = repository.lookup().locate(&[object])?[0] else {
            return fresh().map(Arc::new);
        };
        let mut record = vec![0; place.info.record_len() as usize];
        let file = repository.files().get(place.pack);
        let read = file.and_then(|file| file.read_at(&mut record, place.position));
        if read.is_err() || check_record(&record, place.pack, place.position, &place.info).is_err()
        {
            return fresh().map(Arc::new);
        }
        let payload = record.split_off(RECORD_HEADER_LEN);
        if let Some((known, plain)) = self.0.lock().get(&object)
            && *known == payload
        {
            return Ok(plain.clone());
        }
        let plain = Arc::new(fresh()?);
        self.0.lock().insert(object, (payload, plain.clone()));
        Ok(plain)
    }
}

/// A disk as its maps say, chunk by chunk.
pub fn slow_read(repository: &LocalRepository, disk: &DiskManifest) -> Result<Vec<u8>> {
    slow_read_with(repository, disk, &Decoded::default())
}

pub fn slow_read_with(
    repository: &LocalRepository,
    disk: &DiskManifest,
    decoded: &Decoded,
) -> Result<Vec<u8>> {
    let objects = repository.objects();
    let mut out = vec![0; disk.size.get() as usize];
    let tree = disk.tree();
    objects.visit_tree(tree, 0..tree.segments, &mut |number, id| {
        let map = objects.segment_map(id)?;
        let segment = disk.segment_size.range_of(number, disk.size);
        assert_eq!(u64::from(map.len()), segment.len(), "length of {number:?}");
        for (start, extent) in map.placed() {
            if let Extent::Data { chunk, offset, len } = *extent {
                let plain = decoded.chunk(repository, chunk)?;
                let at = segment.start as usize + start as usize;
                out[at..at + len as usize]
                    .copy_from_slice(&plain[offset as usize..(offset + len) as usize]);
            }
        }
        Ok(())
    })?;
    Ok(out)
}

/// Panics unless the snapshot restores to exactly these disks.
pub fn assert_restores(
    repository: &LocalRepository,
    stored: &StoredSnapshot,
    disks: &[(String, Content)],
    decoded: &Decoded,
) {
    assert!(!stored.incomplete);
    let labels: Vec<&str> = stored
        .snapshot
        .disks
        .iter()
        .map(|d| d.label.as_str())
        .collect();
    let wanted: Vec<&str> = disks.iter().map(|(label, _)| label.as_str()).collect();
    assert_eq!(labels, wanted, "disks of {}", stored.id);
    for (manifest, (label, content)) in stored.snapshot.disks.iter().zip(disks) {
        let read = slow_read_with(repository, manifest, decoded)
            .unwrap_or_else(|error| panic!("{} disk {label}: {}", stored.id, chain(&error)));
        assert_eq!(
            read.len(),
            content.len(),
            "size of {} disk {label}",
            stored.id
        );
        if read != **content {
            let at = read.iter().zip(&**content).position(|(a, b)| a != b);
            panic!("{} disk {label} differs at byte {at:?}", stored.id);
        }
    }
    if let Some(metadata) = &stored.snapshot.metadata {
        for (chunk, len) in &metadata.chunks {
            let plain = decoded
                .chunk(repository, *chunk)
                .expect("metadata is there");
            assert_eq!(plain.len() as u32, *len);
        }
    }
}

/// Everything that the snapshots refer to, found without the collector's walk.
pub fn live_objects(
    repository: &LocalRepository,
    snapshots: &[StoredSnapshot],
) -> Result<HashSet<ObjectId>> {
    let mut live = HashSet::new();
    for stored in snapshots {
        let metadata = stored.snapshot.metadata.iter();
        live.extend(
            metadata
                .flat_map(|m| &m.chunks)
                .map(|(chunk, _)| ObjectId::from(*chunk)),
        );
        for disk in &stored.snapshot.disks {
            if let Some(root) = disk.root {
                add_live(
                    repository,
                    root.into(),
                    levels(disk.tree().segments),
                    &mut live,
                )?;
            }
        }
    }
    Ok(live)
}

fn add_live(
    repository: &LocalRepository,
    id: ObjectId,
    level: u8,
    live: &mut HashSet<ObjectId>,
) -> Result<()> {
    if !live.insert(id) {
        return Ok(());
    }
    let objects = repository.objects();
    if level == 0 {
        let map = objects.segment_map(SegmentMapId::from(id))?;
        live.extend(map.chunks().map(ObjectId::from));
        return Ok(());
    }
    let node = Node::decode(&objects.node(NodeId::from(id))?)?;
    for (_, child) in node.children() {
        add_live(repository, child, level - 1, live)?;
    }
    Ok(())
}

/// The objects in each sealed pack.
pub fn packs_on_disk(repository: &LocalRepository) -> BTreeMap<PackId, Vec<ObjectId>> {
    let storage = &**repository.storage();
    let listing = list_packs(storage).expect("packs can be listed");
    listing
        .sealed
        .iter()
        .map(|(id, _)| {
            let contents = read_contents(storage, repository.config().repository, *id)
                .expect("sealed packs are whole");
            let ids = contents.toc.entries.iter().map(|e| e.info.id).collect();
            (*id, ids)
        })
        .collect()
}

/// Panics if anything but config, sealed packs, snapshots and their markers is there.
pub fn assert_no_leftovers(repository: &LocalRepository) {
    let storage = &**repository.storage();
    let packs = list_packs(storage).expect("packs can be listed");
    assert!(
        packs.open.is_empty() && packs.foreign.is_empty(),
        "{packs:?}"
    );
    let snapshots = repository.snapshots().list().expect("can be listed");
    assert!(
        snapshots.temporary.is_empty() && snapshots.foreign.is_empty(),
        "{snapshots:?}"
    );
    for dir in [layout::SESSIONS, layout::PINS] {
        let entries = storage.list(dir).expect("can be listed");
        assert!(entries.is_empty(), "{dir}: {entries:?}");
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A storage that tells a hook of every change, after it was made.
#[derive(Clone)]
pub struct Watched {
    pub inner: Arc<dyn Storage>,
    pub hook: Arc<dyn Fn(&str, &str, &[u8]) + Send + Sync>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Watched {
    fn tell<T>(&self, op: &str, path: &str, result: io::Result<T>) -> io::Result<T> {
        if result.is_ok() {
            (self.hook)(op, path, &[]);
        }
        result
    }

    fn file(&self, path: &str, inner: Arc<dyn BlockFile>) -> Arc<dyn BlockFile> {
        Arc::new(WatchedFile {
            inner,
            path: path.to_owned(),
            storage: self.clone(),
        })
    }
}

impl Storage for Watched {
    fn create(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        let file = self.tell("create", path, self.inner.create(path, direct))?;
        Ok(self.file(path, file))
    }

    fn open(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        Ok(self.file(path, self.inner.open(path, direct)?))
    }

    fn open_write(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        Ok(self.file(path, self.inner.open_write(path, direct)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.tell("rename", to, self.inner.rename(from, to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.tell("remove", path, self.inner.remove(path))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.tell("create_dir", path, self.inner.create_dir(path))
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.tell("remove_dir", path, self.inner.remove_dir(path))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<undercroft_dataplane::io::Entry>> {
        self.inner.list(dir)
    }

    fn names(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.names(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.tell("sync_dir", dir, self.inner.sync_dir(dir))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn free_space(&self) -> Option<u64> {
        self.inner.free_space()
    }
}

#[derive(Debug)]
struct WatchedFile {
    inner: Arc<dyn BlockFile>,
    path: String,
    storage: Watched,
}

impl BlockFile for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(buf, offset)?;
        (self.storage.hook)("write", &self.path, buf);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.storage.tell("sync", &self.path, self.inner.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.storage
            .tell("set_len", &self.path, self.inner.set_len(len))
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.preallocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage
            .tell("punch", &self.path, self.inner.punch(offset, len))
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset, end)
    }

    fn advise_dont_need(&self) {
        self.inner.advise_dont_need();
    }
}
