//! Makes a repository of many small chunks in a directory, or collects one: time and memory of marking.
//!
//! ```console
//! $ cargo run --release --example gc_speed -- DIRECTORY 10000000
//! $ cargo run --release --example gc_speed -- DIRECTORY
//! ```
//!
//! Two processes, so that the peak of memory is that of the collection.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::io::{EngineRequest, choose};
use undercroft_dataplane::progress::Progress;
use undercroft_dataplane::repository::LocalRepository;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::gc::{CollectOptions, collect};
use undercroft_dataplane::repository::local_session::LocalSession;
use undercroft_dataplane::repository::open::{
    Access, CreateOptions, OpenOptions, create_local, open_local,
};
use undercroft_dataplane::repository::record::{RecordBatch, RecordEncoder};
use undercroft_dataplane::repository::session::{Session, SessionRequest};
use undercroft_format::codec::DecodeError;
use undercroft_format::extent::Extent;
use undercroft_format::id::{NodeId, ObjectId};
use undercroft_format::maptree::{NodeStore, Tree, update};
use undercroft_format::pack::ObjectKind;
use undercroft_format::segment::SegmentMap;
use undercroft_format::snapshot::{DiskFigures, DiskManifest, ReadMode, Snapshot};
use undercroft_format::units::{DiskLength, SegmentNumber, SegmentSize};

const CHUNKS_PER_SEGMENT: u64 = 256;
const CHUNK: u32 = 64 << 10;
/// Packs of some 9,000 entries: large ones would have tables of contents that no real pack has.
const PACK_LEN: u32 = 1 << 20;

/// New nodes in order, to be stored afterwards.
#[derive(Default)]
struct Nodes(Vec<(NodeId, Vec<u8>)>);

impl NodeStore for Nodes {
    type Error = DecodeError;

    fn load(&mut self, _: NodeId) -> Result<Vec<u8>, DecodeError> {
        unreachable!("the tree is made from nothing")
    }

    fn save(&mut self, id: NodeId, encoded: Vec<u8>) -> Result<(), DecodeError> {
        self.0.push((id, encoded));
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let root = args
        .next()
        .ok_or("give a directory, and a number of chunks to fill it")?;
    let chunks: Option<u64> = args.next().map(|text| text.parse()).transpose()?;
    if chunks.is_some() {
        let options = CreateOptions {
            pack_len_target: PACK_LEN,
            ..CreateOptions::default()
        };
        create_local(Path::new(&root), &options)?;
    }
    let open = OpenOptions {
        unlock: None,
        access: Access::Own("gc_speed".into()),
        engine: choose(EngineRequest::Auto)?,
    };
    let watch = Stopwatch::start();
    let (repository, _) = open_local(Path::new(&root), &open)?;
    println!("opened in {:.1?}, peak {}", watch.elapsed(), peak());
    match chunks {
        Some(chunks) => store(&repository, chunks)?,
        None => mark(&repository)?,
    }
    repository.close()?;
    println!("closed, peak {}", peak());
    Ok(())
}

/// The most memory that this process had at once, as the kernel prints it.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("unknown").trim().to_owned()
}

fn store(repository: &Arc<LocalRepository>, chunks: u64) -> Result<(), Box<dyn std::error::Error>> {
    let request = SessionRequest {
        vm: "vm".to_owned(),
        disks: Vec::new(),
        resume: None,
        lock: None,
    };
    let session: Box<dyn Session> = Box::new(LocalSession::begin(repository, &request)?);
    let watch = Stopwatch::start();
    let segments = chunks / CHUNKS_PER_SEGMENT;
    let snapshot = fill(&*session, segments)?;
    session.commit(&snapshot)?;
    println!("{chunks} chunks stored in {:.1?}", watch.elapsed());
    Ok(())
}

fn mark(repository: &Arc<LocalRepository>) -> Result<(), Box<dyn std::error::Error>> {
    // Of so small chunks, records are little more than half of a pack: none is to be rewritten for that.
    let options = CollectOptions {
        rewrite_below_percent: 0,
        ..CollectOptions::default()
    };
    let report = collect(repository, &options, &Progress::default())?;
    println!(
        "marking {} references took {} ms, peak {}; {} packs, none to be removed: {}",
        report.references,
        report.mark_ms,
        peak(),
        report.packs,
        report.packs_removed == 0
    );
    Ok(())
}

/// Chunks of eight bytes, in maps that say that each covers 64 KiB: only their number matters here.
fn fill(session: &dyn Session, segments: u64) -> Result<Snapshot, RepositoryError> {
    let mut encoder = RecordEncoder::new(1);
    let mut batch = RecordBatch::default();
    let mut maps = BTreeMap::new();
    for segment in 0..segments {
        let mut extents = Vec::new();
        for chunk in 0..CHUNKS_PER_SEGMENT {
            let plain = (segment * CHUNKS_PER_SEGMENT + chunk).to_le_bytes();
            let id = session.keys().chunk_id(&plain);
            batch.push(&encoder.encode(id.into(), ObjectKind::Chunk, &plain, None));
            extents.push(Extent::Data {
                chunk: id,
                offset: 0,
                len: CHUNK,
            });
        }
        session.store_chunks(&batch)?;
        batch.clear();
        let (id, bytes) = SegmentMap::from_extents(extents).encode_with_id();
        session.store(&encoder.encode(id.into(), ObjectKind::SegmentMap, &bytes, None))?;
        maps.insert(SegmentNumber(segment), Some(id));
    }
    let empty = Tree {
        root: None,
        segments: 0,
    };
    let mut nodes = Nodes::default();
    let tree = update(&mut nodes, empty, segments, &maps)?;
    for (id, bytes) in nodes.0 {
        session.store(&encoder.encode(ObjectId::from(id), ObjectKind::Node, &bytes, None))?;
    }
    Ok(Snapshot {
        repository: session.config().repository,
        session: session.id(),
        created_ms: 0,
        duration_ms: 0,
        vm: "many".into(),
        tags: Vec::new(),
        parent: None,
        disks: vec![DiskManifest {
            label: "disk".into(),
            size: DiskLength::new(segments << 24),
            segment_size: SegmentSize::DEFAULT,
            grid_phase: 0,
            root: tree.root,
            read_mode: ReadMode::Full,
            reasons: Vec::new(),
            source: String::new(),
            lineage: Vec::new(),
            figures: DiskFigures::default(),
        }],
        metadata: None,
    })
}
