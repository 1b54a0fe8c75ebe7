//! Measures each stage of the pipeline, and the whole, on one machine in one run: what `bench` prints.
//!
//! Every figure is given per second of wall time and in CPU seconds per gigabyte, and next to the limit
//! that it is to be held against, measured in the same run: reading alone, BLAKE3 alone, zstd alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;
use serde::Serialize;
use undercroft_format::audit::AuditShare;
use undercroft_format::chunker::ChunkerSpec;
use undercroft_format::config::MasterKey;
use undercroft_format::id::{ObjectId, SessionId};
use undercroft_format::pack::ObjectKind;
use undercroft_format::units::SegmentSize;

use crate::clock::Stopwatch;
use crate::ingest::backup::{BackupJob, DiskJob, backup};
use crate::ingest::chunker::{Chunker, Cut, is_zero};
use crate::ingest::reader::{DiskReader, Extent};
use crate::ingest::source::{DiskSource, Source};
use crate::io::{BlockFile, BufferPool, Engine, OsFile};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::keys::{Keys, Unlock};
use crate::repository::open::{Access, CreateOptions, OpenOptions, create_local, open_local};
use crate::repository::record::{RecordDecoder, RecordEncoder};
use crate::repository::session::DoneSegments;
use crate::repository::verify::{VerifyOptions, verify};
use crate::restore::{RestoreOptions, Target, TargetContent, restore_disk};

/// Data of the source kept in memory for the stages that need no disk, about, in bytes.
const SAMPLE_LEN: usize = 256 << 20;

/// What to measure.
#[derive(Clone, Debug)]
pub struct MeasureOptions {
    /// A directory for repositories and restored files; what is made there is removed.
    pub directory: std::path::PathBuf,
    /// Measures the whole with encryption too.
    pub encrypted: bool,
    /// zstd level.
    pub zstd_level: i8,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// Bytes gone through.
    pub bytes: u64,
    /// Wall time in seconds.
    pub seconds: f64,
    /// CPU time of the whole process in seconds.
    pub cpu_seconds: f64,
    /// 10^9 bytes per second of wall time.
    pub gb_per_second: f64,
    /// CPU seconds per 10^9 bytes.
    pub cpu_seconds_per_gb: f64,
    /// More to say: a ratio, a count.
    pub note: String,
}

/// All figures of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measurement {
    /// Threads of the worker pool.
    pub threads: usize,
    /// Who served the I/O.
    pub engine: String,
    /// The kernels that this processor's instructions allow.
    pub kernel: String,
    /// The figures in the order in which they were taken.
    pub figures: Vec<Figure>,
}

impl Measurement {
    fn get(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }

    fn add(&mut self, name: &'static str, bytes: u64, took: Took, note: String) {
        let gb = bytes as f64 / 1e9;
        let (seconds, cpu_seconds) = (took.wall.as_secs_f64(), took.cpu.as_secs_f64());
        self.figures.push(Figure {
            name,
            bytes,
            seconds,
            cpu_seconds,
            gb_per_second: if seconds > 0.0 { gb / seconds } else { 0.0 },
            cpu_seconds_per_gb: if gb > 0.0 { cpu_seconds / gb } else { 0.0 },
            note,
        });
    }
}

#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

fn timed<R>(work: impl FnOnce() -> R) -> (R, Took) {
    let cpu = cpu_time();
    let watch = Stopwatch::start();
    let result = work();
    let took = Took {
        wall: watch.elapsed(),
        cpu: cpu_time().saturating_sub(cpu),
    };
    (result, took)
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Measures on the disk image at `source`. What it made is removed however it ends.
///
/// # Errors
/// What failed, and [`RepositoryError::Cancelled`] once `progress` says to stop.
pub fn measure(
    source: &Path,
    options: &MeasureOptions,
    engine: &Arc<dyn Engine>,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<Measurement> {
    let disk = DiskSource::open(source).map_err(|error| {
        let path = source.display().to_string();
        RepositoryError::io("opening", &path)(std::io::Error::other(error))
    })?;
    let chunker = Chunker::new(&ChunkerSpec::default());
    let mut result = Measurement {
        threads: threads.current_num_threads(),
        engine: engine.choice().kind.to_string(),
        kernel: chunker.kernel().to_string(),
        figures: Vec::new(),
    };
    begin("read", progress)?;
    let sample = read_stage(&disk, &**engine, progress, &mut result)?;
    begin("stages in memory", progress)?;
    memory_stages(&sample, &chunker, options, threads, &mut result);
    drop(sample);
    whole(
        source,
        options,
        false,
        engine,
        threads,
        &mut result,
        progress,
    )?;
    if options.encrypted {
        whole(
            source,
            options,
            true,
            engine,
            threads,
            &mut result,
            progress,
        )?;
    }
    Ok(result)
}

/// Tells what is measured next, unless the user has had enough.
fn begin(stage: &'static str, progress: &Progress) -> Result<()> {
    if progress.is_stopping() {
        return Err(RepositoryError::Cancelled);
    }
    tracing::info!(stage, "measuring");
    Ok(())
}

/// The limit of a re-read: the disk's rate over its allocated bytes. Keeps a sample of the data.
fn read_stage(
    disk: &DiskSource,
    engine: &dyn Engine,
    progress: &Progress,
    result: &mut Measurement,
) -> Result<Vec<u8>> {
    let segment_size = SegmentSize::DEFAULT;
    let pool = BufferPool::new(4 * segment_size.bytes() as usize);
    let reader = DiskReader {
        going_on: &|| Ok(()),
        source: disk,
        segment_size,
        grid_phase: 0,
        engine,
        pool: &pool,
        finished: &DoneSegments::new(),
        progress,
    };
    let before = progress.read_bytes.get();
    let (read, took) = timed(|| reader.run(&Extent::All, &mut |_| Ok(())));
    read?;
    let read_bytes = progress.read_bytes.get() - before;
    result.add(
        "read alone",
        read_bytes,
        took,
        "O_DIRECT, one thread".into(),
    );
    // Taken evenly from the whole disk: its parts compress very differently.
    let every = (read_bytes as usize).div_ceil(SAMPLE_LEN).max(1);
    let mut sample = Vec::new();
    let mut segments = 0;
    reader.run(&Extent::All, &mut |segment| {
        segments += 1;
        if let Some(buffer) = segment.buffer.filter(|_| segments % every == 0) {
            for run in &segment.runs {
                if let Some(at) = run.buffer_offset {
                    sample.extend_from_slice(&buffer[at..at + run.len as usize]);
                }
            }
        }
        Ok(())
    })?;
    sample.truncate(2 * SAMPLE_LEN);
    Ok(sample)
}

fn memory_stages(
    sample: &[u8],
    chunker: &Chunker,
    options: &MeasureOptions,
    threads: &rayon::ThreadPool,
    result: &mut Measurement,
) {
    let bytes = sample.len() as u64;
    if bytes == 0 {
        return;
    }
    let (zeros, took) = timed(|| sample.chunks(4096).filter(|block| is_zero(block)).count());
    result.add(
        "zero test",
        bytes,
        took,
        format!("{zeros} zero blocks, one thread"),
    );
    let mut cuts = Vec::new();
    let ((), took) = timed(|| chunker.cut(sample, 0, 0, &mut cuts));
    result.add(
        "chunker",
        bytes,
        took,
        format!("{} pieces, one thread", cuts.len()),
    );
    let stream = Chunker::new(&ChunkerSpec::FastCdc(Default::default()));
    let mut stream_cuts = Vec::new();
    let ((), took) = timed(|| stream.cut_stream(sample, &mut stream_cuts));
    result.add(
        "chunker fastcdc",
        bytes,
        took,
        format!("{} pieces, one thread", stream_cuts.len()),
    );
    let chunks = chunks_of(sample, &cuts);
    let data: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    let keys = Keys::new(MasterKey::from_bytes([1; 32]), true);
    let (ids, took) = timed(|| {
        chunks
            .iter()
            .map(|chunk| keys.chunk_id(chunk))
            .collect::<Vec<_>>()
    });
    result.add("BLAKE3 alone", data, took, "keyed, one thread".into());
    let level = options.zstd_level.into();
    let (stored, one) = timed(|| encode_all(&chunks, &ids, level));
    let ratio = data as f64 / stored.max(1) as f64;
    result.add(
        "zstd alone",
        data,
        one,
        format!("level {level}, ratio {ratio:.2}, one thread"),
    );
    let ((), all) = timed(|| {
        threads.install(|| {
            chunks
                .par_chunks(64)
                .zip(ids.par_chunks(64))
                .for_each(|(chunks, ids)| {
                    encode_all(chunks, ids, level);
                });
        });
    });
    let speedup = one.wall.as_secs_f64() / all.wall.as_secs_f64().max(1e-9);
    result.add(
        "zstd alone, all threads",
        data,
        all,
        format!("{speedup:.2}x of one thread"),
    );
    decode_stage(&chunks, &ids, &keys, level, result);
}

fn chunks_of<'a>(sample: &'a [u8], cuts: &[Cut]) -> Vec<&'a [u8]> {
    let mut at = 0;
    cuts.iter()
        .filter_map(|cut| {
            let start = at;
            at += cut.len();
            matches!(cut, Cut::Data(_)).then(|| &sample[start..at])
        })
        .collect()
}

fn encode_all(chunks: &[&[u8]], ids: &[undercroft_format::id::ChunkId], level: i32) -> u64 {
    let mut encoder = RecordEncoder::new(level);
    chunks
        .iter()
        .zip(ids)
        .map(|(chunk, id)| {
            let record = encoder.encode(ObjectId::from(*id), ObjectKind::Chunk, chunk, None);
            u64::from(record.info.stored_len)
        })
        .sum()
}

fn decode_stage(
    chunks: &[&[u8]],
    ids: &[undercroft_format::id::ChunkId],
    keys: &Keys,
    level: i32,
    result: &mut Measurement,
) {
    for (name, sealer) in [
        ("decode and verify", None),
        (
            "decode and verify, sealed",
            keys.sealer(SessionId::from_bytes([2; 16])),
        ),
    ] {
        let mut encoder = RecordEncoder::new(level);
        let encoded: Vec<_> = chunks
            .iter()
            .zip(ids)
            .map(|(chunk, id)| {
                let id = ObjectId::from(*id);
                let record = encoder.encode(id, ObjectKind::Chunk, chunk, sealer.as_ref());
                (record.info, record.payload.to_vec())
            })
            .collect();
        let data: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let mut decoder = RecordDecoder::default();
        let mut plain = Vec::new();
        let (good, took) = timed(|| {
            encoded.iter().all(|(info, payload)| {
                plain.resize(info.plain_len as usize, 0);
                decoder.decode(info, payload, keys, &mut plain).is_ok()
            })
        });
        assert!(good, "what was encoded decodes");
        result.add(name, data, took, "one thread".into());
    }
}

/// The whole: a full backup, a re-read, a scrub, a restore.
fn whole(
    source: &Path,
    options: &MeasureOptions,
    encrypted: bool,
    engine: &Arc<dyn Engine>,
    threads: &rayon::ThreadPool,
    result: &mut Measurement,
    progress: &Progress,
) -> Result<()> {
    let root = options.directory.join("undercroft-bench-repository");
    let target = options.directory.join("undercroft-bench-restored.raw");
    let remove = || {
        let _ = std::fs::remove_dir_all(&root);
        let _ = std::fs::remove_file(&target);
    };
    remove();
    let measured = whole_in(
        source, &root, &target, options, encrypted, engine, threads, result, progress,
    );
    remove();
    measured
}

#[expect(
    clippy::too_many_arguments,
    reason = "one caller, which only adds the clean-up"
)]
fn whole_in(
    source: &Path,
    root: &Path,
    target: &Path,
    options: &MeasureOptions,
    encrypted: bool,
    engine: &Arc<dyn Engine>,
    threads: &rayon::ThreadPool,
    result: &mut Measurement,
    progress: &Progress,
) -> Result<()> {
    let names = if encrypted { &SEALED_NAMES } else { &NAMES };
    let passphrase = || zeroize::Zeroizing::new("bench".to_owned());
    let create = CreateOptions {
        zstd_level: options.zstd_level,
        passphrase: encrypted.then(passphrase),
        ..CreateOptions::default()
    };
    create_local(root, &create)?;
    let open = OpenOptions {
        unlock: encrypted.then(|| Unlock::Passphrase(passphrase())),
        access: Access::Own("undercroft bench".into()),
        engine: engine.clone(),
    };
    let (repository, _) = open_local(root, &open)?;
    let mut snapshot = None;
    for name in &names[..2] {
        begin(name, progress)?;
        let job = job(source)?;
        let before = progress.read_bytes.get();
        let (report, took) = timed(|| backup(repository.clone(), job, threads, progress));
        let report = report?;
        let figures = &report.snapshot.disks[0].figures;
        let mut note = format!(
            "{} new bytes, {} stored",
            figures.new_bytes, figures.stored_bytes
        );
        if let Some(limit) = limit(result, name, figures.new_bytes, took) {
            note = format!("{note}; {limit}");
        }
        result.add(name, progress.read_bytes.get() - before, took, note);
        snapshot = Some(report.id);
    }
    for (name, deep) in [(names[2], false), (names[3], true)] {
        begin(name, progress)?;
        let deep = VerifyOptions {
            deep,
            ..VerifyOptions::default()
        };
        let (report, took) = timed(|| verify(&repository, &deep, threads, progress));
        let report = report?;
        let note = format!(
            "{} records, {} damaged",
            report.records,
            report.damage.len()
        );
        result.add(name, report.bytes, took, note);
    }
    if let Some(id) = snapshot {
        begin(names[4], progress)?;
        let stored = repository.snapshots().read(id)?;
        let disk = &stored.snapshot.disks[0];
        let io = RepositoryError::io("writing", "the restored file");
        let file = OsFile::create_new(target, true).map_err(io)?;
        let size = disk.size.get();
        file.set_len(size)
            .map_err(RepositoryError::io("sizing", "the restored file"))?;
        let target = Target::Disk {
            file: Arc::new(file),
            content: TargetContent::Zeros,
            reads: None,
        };
        let restore = RestoreOptions::default();
        let (report, took) = timed(|| {
            restore_disk(
                &*repository,
                &stored,
                disk,
                target,
                restore,
                threads,
                progress,
            )
        });
        let note = format!("{} bytes fetched", report?.fetched_bytes);
        result.add(names[4], disk.figures.data_bytes, took, note);
    }
    repository.close()
}

const NAMES: [&str; 5] = [
    "full backup",
    "re-read",
    "verify",
    "verify --deep",
    "restore",
];
const SEALED_NAMES: [&str; 5] = [
    "full backup, encrypted",
    "re-read, encrypted",
    "verify, encrypted",
    "verify --deep, encrypted",
    "restore, encrypted",
];

/// The figure next to the limit that it is to be held against.
fn limit(result: &Measurement, name: &str, new_bytes: u64, took: Took) -> Option<String> {
    let seconds = took.wall.as_secs_f64();
    if name.starts_with("full") {
        let zstd = result.get("zstd alone, all threads")?;
        let alone = new_bytes as f64 / 1e9 / zstd.gb_per_second;
        return Some(format!(
            "{:.2}x of zstd alone over the new bytes",
            alone / seconds
        ));
    }
    let read = result.get("read alone")?;
    Some(format!("{:.2}x of reading alone", read.seconds / seconds))
}

fn job(source: &Path) -> Result<BackupJob> {
    let disk = DiskSource::open(source).map_err(|error| {
        RepositoryError::io("opening", "the source")(std::io::Error::other(error))
    })?;
    Ok(BackupJob {
        vm: "bench".into(),
        disks: vec![DiskJob {
            label: "disk".into(),
            source: Source::Disk(disk),
            source_name: source.display().to_string(),
            changed_blocks: None,
            lineage: Vec::new(),
            state: [0; 32],
        }],
        parent: None,
        metadata: None,
        tags: Vec::new(),
        resume: None,
        lock: None,
        audit: AuditShare::NONE,
        confirm: None,
        now_ms: 0,
    })
}

/// Writes a disk image of `len` bytes to `path` for a run without one: a third zeros, a third text-like
/// data that compresses about 3 : 1, a third noise, in runs of 256 KiB, some of them repeated.
///
/// # Errors
/// What the system says, and [`RepositoryError::Cancelled`].
pub fn generate(path: &Path, len: u64, progress: &Progress) -> Result<()> {
    const RUN: usize = 256 << 10;
    let shown = path.display().to_string();
    let writing = || RepositoryError::io("writing", &shown);
    let file = OsFile::create_new(path, false).map_err(writing())?;
    file.set_len(len).map_err(writing())?;
    let mut run = vec![0; RUN];
    for number in 0..len / RUN as u64 {
        if progress.is_stopping() {
            return Err(RepositoryError::Cancelled);
        }
        // Every tenth run repeats an earlier one.
        let seed = if number % 10 == 9 { number / 2 } else { number };
        match seed % 3 {
            0 => continue,
            1 => {
                let mut words = blake3::Hasher::new()
                    .update(&seed.to_le_bytes())
                    .finalize_xof();
                let mut picks = vec![0; RUN / 8];
                words.fill(&mut picks);
                for (place, pick) in run.chunks_mut(8).zip(picks) {
                    place.copy_from_slice(&WORDS[usize::from(pick) % WORDS.len()]);
                }
            }
            _ => blake3::Hasher::new()
                .update(&seed.to_le_bytes())
                .finalize_xof()
                .fill(&mut run),
        }
        file.write_all_at(&run, number * RUN as u64)
            .map_err(writing())?;
    }
    file.sync().map_err(writing())
}

const WORDS: [[u8; 8]; 16] = [
    *b"backup, ",
    *b"restore ",
    *b"segment ",
    *b"snapshot",
    *b"chunks, ",
    *b"packs of",
    *b" parent ",
    *b"reposito",
    *b"0000000\n",
    *b"GET /ind",
    *b"ex.html ",
    *b"HTTP/1.1",
    *b" 200 OK\n",
    *b"192.0.2.",
    *b"lib64/ld",
    *b"-linux-x",
];
