//! Speed and chunk length of the chunkers on a raw disk image, on one core.
//!
//! ```text
//! cargo run --release --example chunker_speed FILE
//! ```
//!
//! Reads 512 MiB of the file's data extents into memory and cuts them in segments of 16 MiB, best of
//! five runs for each; then goes through the whole file once for the mean length of chunks.
#![expect(clippy::disallowed_methods, reason = "it measures wall time")]

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use undercroft_dataplane::ingest::chunker::{Chunker, Cut, Kernel};
use undercroft_format::chunker::{AlignedParams, ChunkerSpec, FastCdcParams};

const SEGMENT_LEN: u64 = 16 << 20;
const SAMPLE_LEN: usize = 512 << 20;
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: chunker_speed FILE")?;
    let file = File::open(PathBuf::from(path))?;
    let aligned = ChunkerSpec::Aligned(AlignedParams::default());
    let fast_cdc = ChunkerSpec::FastCdc(FastCdcParams::default());

    let mut sample = Vec::new();
    for (start, end) in data_extents(&file)? {
        let len = (end - start).min((SAMPLE_LEN - sample.len()) as u64);
        sample.extend(read(&file, start, start + len)?);
    }
    println!(
        "sample of {} MiB, GB/s per core from memory and from L2:",
        sample.len() >> 20
    );
    for kernel in Kernel::available() {
        report(
            &format!("{aligned} {kernel}"),
            &Chunker::with_kernel(&aligned, kernel),
            &sample,
        );
    }
    report(&fast_cdc.to_string(), &Chunker::new(&fast_cdc), &sample);
    drop(sample);
    // Written, lest all its pages are the one zero page of the system.
    let mut zeros = black_box(vec![1; SAMPLE_LEN]);
    zeros.fill(0);
    for kernel in Kernel::available() {
        report(
            &format!("zeros {kernel}"),
            &Chunker::with_kernel(&aligned, kernel),
            &zeros,
        );
    }
    drop(zeros);

    for spec in [aligned, fast_cdc] {
        print_lengths(&file, &spec)?;
    }
    Ok(())
}

/// From memory: segment after segment. From L2: each 512 KiB eight times before the next.
fn report(name: &str, chunker: &Chunker, data: &[u8]) {
    let from_memory = gigabytes_per_s(chunker, data, SEGMENT_LEN as usize, 1);
    let from_l2 = gigabytes_per_s(chunker, data, 512 << 10, 8);
    println!("  {name:42} {from_memory:6.2} {from_l2:6.2}");
}

/// Counts for each window the best of its runs, so that other work on the machine counts little.
fn gigabytes_per_s(chunker: &Chunker, data: &[u8], window_len: usize, repeats: usize) -> f64 {
    let mut cuts = Vec::new();
    let mut best = vec![Duration::MAX; data.len().div_ceil(window_len)];
    for _ in 0..RUNS {
        for (window, best) in data.chunks(window_len).zip(&mut best) {
            let start = Instant::now();
            for _ in 0..repeats {
                cuts.clear();
                chunker.cut(black_box(window), 0, 0, &mut cuts);
                black_box(&cuts);
            }
            *best = start.elapsed().min(*best);
        }
    }
    let seconds = best.iter().sum::<Duration>().as_secs_f64();
    (data.len() * repeats) as f64 / seconds / 1e9
}

fn print_lengths(file: &File, spec: &ChunkerSpec) -> Result<(), Box<dyn Error>> {
    let chunker = Chunker::new(spec);
    let (mut cuts, mut unique) = (Vec::new(), HashMap::new());
    let (mut chunks, mut data_len, mut zero_len, mut extents) = (0u64, 0u64, 0u64, 0u64);
    for (start, end) in data_extents(file)? {
        let mut start = start;
        while start < end {
            let segment_end = end.min((start / SEGMENT_LEN + 1) * SEGMENT_LEN);
            let segment = read(file, start, segment_end)?;
            cuts.clear();
            chunker.cut(&segment, start, 0, &mut cuts);
            extents += cuts.len() as u64;
            let mut at = 0;
            for cut in &cuts {
                let bytes = &segment[at..at + cut.len()];
                at += cut.len();
                match cut {
                    Cut::Zero(len) => zero_len += u64::from(*len),
                    Cut::Data(len) => {
                        chunks += 1;
                        data_len += u64::from(*len);
                        unique.insert(blake3::hash(bytes), u64::from(*len));
                    }
                }
            }
            start = segment_end;
        }
    }
    println!(
        "{spec}: {chunks} chunks, mean {:.1} KiB; {extents} extents; {} MiB zero in data extents; \
         {} of {} MiB unique",
        data_len as f64 / chunks as f64 / 1024.0,
        zero_len >> 20,
        unique.values().sum::<u64>() >> 20,
        data_len >> 20,
    );
    Ok(())
}

/// The ranges of the file that are no holes, as `(start, end)`.
fn data_extents(file: &File) -> Result<Vec<(u64, u64)>, Box<dyn Error>> {
    let (mut extents, mut at) = (Vec::new(), 0);
    let len = file.metadata()?.len();
    while at < len {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            start => start?,
        };
        at = seek(file, SeekFrom::Hole(start))?;
        extents.push((start, at));
    }
    Ok(extents)
}

fn read(file: &File, start: u64, end: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = vec![0; (end - start) as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}
