//! Measures the chunk index: `index_speed ENTRIES [DIRECTORY]`. One thread unless it says otherwise.
//!
//! Ids are BLAKE3 outputs of counters, so that entry `n` can be asked for without keeping it. Probes go
//! through [`Lookup`] as a backup's do; the packs that they hit exist, without their records.
#![expect(clippy::disallowed_methods, reason = "it measures wall time")]

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use undercroft_dataplane::io::LocalStorage;
use undercroft_dataplane::repository::index::{
    Candidate, ChunkIndex, IndexOptions, PackContents, RocksIndex, SealState, check_seal,
};
use undercroft_dataplane::repository::layout;
use undercroft_dataplane::repository::lookup::Lookup;
use undercroft_format::id::{ObjectId, PackId, RepositoryId};
use undercroft_format::pack::{
    Encoding, ObjectKind, PackHeader, PackKind, RecordInfo, Toc, TocEntry,
};

/// Chunks of a 32 MiB pack at 24 KiB each.
const PACK_ENTRIES: u64 = 1300;
const BATCH: usize = 1024;
/// Chunks of a segment: what a backup probes for at a time.
const SEGMENT_CHUNKS: usize = 288;
/// Packs whose chunks are probed for.
const PROBED_PACKS: u64 = 800;
const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);
/// Merging needs twice the disk: more entries are left as they are.
const COMPACT_ENTRIES_MAX: u64 = 20_000_000;

fn id(n: u64) -> ObjectId {
    ObjectId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn pack(number: u64, first: u64, end: u64) -> PackContents {
    let entry = |n: u64| TocEntry {
        info: RecordInfo {
            id: id(n),
            kind: ObjectKind::Chunk,
            encoding: Encoding {
                zstd: true,
                sealed: false,
            },
            stored_len: 24_000,
            plain_len: 65_536,
        },
        position: 64 + (n - first) as u32 * 24_064,
    };
    let mut name = [0; 16];
    name[..8].copy_from_slice(&number.to_le_bytes());
    PackContents {
        id: PackId::from_bytes(name),
        kind: PackKind::Data,
        len: 64 << 20,
        entries: (first..end).map(entry).collect(),
    }
}

fn packs(entries: u64) -> impl Iterator<Item = PackContents> {
    (0..entries.div_ceil(PACK_ENTRIES)).map(move |number| {
        let first = number * PACK_ENTRIES;
        pack(number, first, (first + PACK_ENTRIES).min(entries))
    })
}

/// Random numbers below `below`: the same ones every time.
fn random(seed: u64, below: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |n: u64| {
        let mut x = (n ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((u128::from(x ^ x >> 32) * u128::from(below)) >> 64) as u64
    })
}

fn rss_mib() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = statm.split(' ').nth(1).expect("has seven fields");
    pages.parse::<u64>().expect("is a number") >> 8
}

/// Nanoseconds that this process's threads spent on a CPU, so that a busy machine does not distort much.
fn cpu_ns() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux has it");
    let times = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    times.sum()
}

struct Watch {
    start: Instant,
    cpu_ns: u64,
}

impl Watch {
    fn start() -> Self {
        Self {
            start: Instant::now(),
            cpu_ns: cpu_ns(),
        }
    }
}

fn report(what: &str, count: u64, since: Watch) {
    let cpu_seconds = (cpu_ns() - since.cpu_ns) as f64 / 1e9;
    let seconds = since.start.elapsed().as_secs_f64();
    println!(
        "{what}: {seconds:.2} s, {:.0} per second, {:.0} per CPU second, RSS {} MiB",
        count as f64 / seconds,
        count as f64 / cpu_seconds,
        rss_mib()
    );
}

/// Makes the first packs as files: header and table of contents, a hole for the records.
fn write_packs(dir: &Path, entries: u64) {
    for pack in packs(entries).take(PROBED_PACKS as usize) {
        let path = dir.join(layout::pack(pack.id));
        fs::create_dir_all(path.parent().expect("is in a directory")).expect("makes");
        let header = PackHeader {
            kind: pack.kind,
            id: pack.id,
            repository: REPOSITORY,
        };
        let end = pack.entries.last().expect("has entries").end();
        let tail = Toc {
            entries: pack.entries,
        }
        .encode_tail(pack.id, end);
        let file = File::create(&path).expect("creates");
        file.write_all_at(&header.encode(), 0).expect("writes");
        file.write_all_at(&tail, end).expect("writes");
    }
}

/// A stream's probes: duplicates in the order in which they were stored; runs of 16 of them out of
/// order, as after many increments; new data; one duplicate in ten.
fn probes(dir: &Path, index: &Arc<RocksIndex>) {
    let storage = Arc::new(LocalStorage::new(dir.to_owned()));
    let known = PROBED_PACKS * PACK_ENTRIES;
    let new = |n: u64| id(n + (1 << 42));
    let in_order: Vec<_> = (0..known).map(id).collect();
    let runs = random(3, known / 16).take((known / 16) as usize);
    let scattered: Vec<_> = runs
        .flat_map(|run| run * 16..run * 16 + 16)
        .map(id)
        .collect();
    let fresh: Vec<_> = (0..known).map(new).collect();
    let mixed: Vec<_> = (0..known)
        .map(|n| if n % 10 == 0 { id(n) } else { new(n) })
        .collect();
    for (what, ids) in [
        ("duplicates in order", in_order),
        ("duplicates, scattered runs", scattered),
        ("new", fresh),
        ("new and duplicates", mixed),
    ] {
        let lookup = Lookup::new(storage.clone(), REPOSITORY, index.clone(), false);
        let start = Watch::start();
        let batches = ids
            .chunks(SEGMENT_CHUNKS)
            .map(|ids| lookup.probe(ids).expect("probes"));
        let hits: usize = batches
            .map(|answers| answers.iter().flatten().count())
            .sum();
        report(
            &format!("probe, {what} ({hits} hits)"),
            ids.len() as u64,
            start,
        );
    }
}

fn lookups(what: &str, index: &RocksIndex, ids: &[ObjectId], exact: bool) {
    let (mut candidates, mut places) = (Vec::new(), Vec::new());
    let (mut unsure, mut hits) = (Vec::new(), 0);
    let start = Watch::start();
    for ids in ids.chunks(BATCH) {
        if exact {
            index.find(ids, &mut places).expect("finds");
            hits += places.iter().flatten().count();
        } else {
            index.candidates(ids, &mut candidates).expect("answers");
            let known = candidates
                .iter()
                .filter(|known| matches!(known, Candidate::In(_)));
            hits += known.count();
            unsure.clear();
            let answers = ids.iter().zip(&candidates);
            let answers = answers.filter(|(_, known)| **known == Candidate::Unsure);
            unsure.extend(answers.map(|(id, _)| *id));
            if !unsure.is_empty() {
                index.find(&unsure, &mut places).expect("finds");
                hits += places.iter().flatten().count();
            }
        }
    }
    report(&format!("{what} ({hits} hits)"), ids.len() as u64, start);
    black_box(hits);
}

fn open(dir: &Path, options: IndexOptions, what: &str) -> RocksIndex {
    let start = Watch::start();
    let index = RocksIndex::open(dir, options).expect("opens");
    report(&format!("open, {what}"), index.len(), start);
    let start = Watch::start();
    let known = index.table().expect("loads").knowledge();
    report(&format!("table, {what}: {known:?}"), index.len(), start);
    index
}

fn shut(index: RocksIndex) {
    let (start, entries) = (Watch::start(), index.len());
    index.shutdown().expect("shuts down");
    report("shutdown and seal", entries, start);
}

fn main() {
    let mut args = std::env::args().skip(1);
    let entries: u64 = args
        .next()
        .map_or(5_000_000, |text| text.parse().expect("a number"));
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let root = dir.join(format!("index-speed-{}", std::process::id()));
    let dir = root.join("index");
    let options = IndexOptions {
        repository: REPOSITORY,
        memory_budget: 2 << 30,
        read_only: false,
    };
    println!("{entries} entries in {}", dir.display());

    let start = Watch::start();
    let generated: usize = packs(entries)
        .map(|pack| black_box(pack).entries.len())
        .sum();
    report("making up the entries alone", generated as u64, start);
    let start = Watch::start();
    let index = RocksIndex::build(&dir, packs(entries), options).expect("builds");
    report("build, making up included, all cores", index.len(), start);
    let per_entry = |bytes: u64| bytes as f64 / index.len() as f64;
    println!(
        "disk: {:.1} bytes per entry",
        per_entry(index.disk_bytes().expect("lists"))
    );
    println!(
        "table: {:.1} bytes per entry",
        per_entry(index.table().expect("was built").memory_bytes())
    );
    println!(
        "memory: {} MiB, RSS {} MiB",
        index.memory_bytes() >> 20,
        rss_mib()
    );

    let count = 4_000_000;
    let hits: Vec<_> = random(1, entries).take(count).map(id).collect();
    let misses: Vec<_> = random(2, entries)
        .take(count)
        .map(|n| id(n + (1 << 40)))
        .collect();
    let mixed: Vec<_> = hits
        .iter()
        .zip(&misses)
        .flat_map(|(a, b)| [*a, *b])
        .take(count)
        .collect();
    lookups("RAM table, hits", &index, &hits, false);
    lookups("RAM table, misses", &index, &misses, false);
    lookups("RAM table, mixed", &index, &mixed, false);
    lookups("find, hits, first time", &index, &hits[..400_000], true);
    lookups("find, hits, warm", &index, &hits[..400_000], true);
    lookups(
        "find, hits of one pack after the other",
        &index,
        &(0..400_000.min(entries)).map(id).collect::<Vec<_>>(),
        true,
    );

    let more = 400;
    let fresh: Vec<_> = (0..more)
        .map(|n| {
            let first = (1 << 41) + n * PACK_ENTRIES;
            pack((1 << 32) + n, first, first + PACK_ENTRIES)
        })
        .collect();
    let start = Watch::start();
    for pack in &fresh {
        index
            .insert_pack(pack.id, pack.kind, pack.len, &pack.entries)
            .expect("inserts");
    }
    report("insert_pack, entries", more * PACK_ENTRIES, start);
    println!("memory: {} MiB", index.memory_bytes() >> 20);
    write_packs(&root, entries);
    let index = Arc::new(index);
    probes(&root, &index);
    shut(Arc::into_inner(index).expect("the lookups are gone"));
    let start = Watch::start();
    let state = check_seal(&dir).expect("reads");
    report(
        &format!("check_seal: {}", state == SealState::Clean),
        entries,
        start,
    );

    let index = open(&dir, options, "clean");
    println!(
        "table: {:.1} bytes per entry",
        index.table().expect("loads").memory_bytes() as f64 / index.len() as f64
    );
    // What was stored fits no more: a scan must make it.
    let last = pack(1 << 33, 1 << 43, (1 << 43) + 1);
    let inserted = index.insert_pack(last.id, last.kind, last.len, &last.entries);
    inserted.expect("inserts");
    drop(index);
    let index = open(&dir, options, "after a crash");
    shut(index);
    for budget_mib in [16, 64, 256] {
        let memory_budget = budget_mib << 20;
        let index = open(
            &dir,
            IndexOptions {
                memory_budget,
                ..options
            },
            &format!("{budget_mib} MiB"),
        );
        let index = Arc::new(index);
        probes(&root, &index);
        let index = Arc::into_inner(index).expect("the lookups are gone");
        lookups("misses", &index, &misses[..1_000_000], false);
        lookups("misses again", &index, &misses[..1_000_000], false);
        lookups("hits", &index, &hits[..400_000], false);
        println!("memory: {} MiB of {budget_mib}", index.memory_bytes() >> 20);
        shut(index);
    }
    let reader = IndexOptions {
        read_only: true,
        memory_budget: 64 << 20,
        ..options
    };
    let index = open(&dir, reader, "read-only");
    lookups(
        "find, hits, read-only, 64 MiB",
        &index,
        &hits[..400_000],
        true,
    );
    drop(index);
    if entries <= COMPACT_ENTRIES_MAX {
        let index = open(&dir, options, "to compact");
        let start = Watch::start();
        index.compact().expect("compacts");
        report("compact", index.len(), start);
        index.flush().expect("flushes");
        let bytes = index.disk_bytes().expect("lists");
        println!(
            "disk: {:.1} bytes per entry",
            bytes as f64 / index.len() as f64
        );
        shut(index);
    }
    fs::remove_dir_all(&root).expect("removes");
}
