//! One benchmark per stage of the pipeline, in memory, on one thread.
#![allow(missing_docs, reason = "Criterion's macros make undocumented items")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use undercroft_benches::{disk, text};
use undercroft_dataplane::ingest::chunker::{Chunker, is_zero};
use undercroft_dataplane::repository::keys::Keys;
use undercroft_dataplane::repository::record::{RecordDecoder, RecordEncoder};
use undercroft_format::chunker::ChunkerSpec;
use undercroft_format::config::MasterKey;
use undercroft_format::id::{ObjectId, SessionId};
use undercroft_format::pack::ObjectKind;

const LEN: usize = 16 << 20;
const CHUNK: usize = 64 << 10;

fn cutting(criterion: &mut Criterion) {
    let data = disk(LEN);
    let mut group = criterion.benchmark_group("cut");
    group.throughput(Throughput::Bytes(LEN as u64));
    let zeros = vec![0; LEN];
    group.bench_function("zero test", |b| b.iter(|| is_zero(&zeros)));
    let specs = [
        ("aligned-v1", ChunkerSpec::default()),
        ("fastcdc-v2020", ChunkerSpec::FastCdc(Default::default())),
    ];
    for (name, spec) in specs {
        let chunker = Chunker::new(&spec);
        let mut cuts = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| {
                cuts.clear();
                chunker.cut(&data, 0, 0, &mut cuts);
                cuts.len()
            });
        });
    }
    group.finish();
}

fn records(criterion: &mut Criterion) {
    let data = text(1, LEN);
    let keys = Keys::new(MasterKey::from_bytes([1; 32]), true);
    let sealer = keys.sealer(SessionId::from_bytes([2; 16]));
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Bytes(LEN as u64));
    group.bench_function("hash", |b| {
        b.iter(|| data.chunks(CHUNK).map(|chunk| keys.chunk_id(chunk)).max());
    });
    for (name, sealer) in [("plain", None), ("sealed", sealer.as_ref())] {
        let mut encoder = RecordEncoder::new(1);
        let mut encode = |chunk: &[u8]| {
            let id = ObjectId::from(keys.chunk_id(chunk));
            let record = encoder.encode(id, ObjectKind::Chunk, chunk, sealer);
            (record.info, record.payload.to_vec())
        };
        let encoded: Vec<_> = data.chunks(CHUNK).map(&mut encode).collect();
        group.bench_function(format!("hash and encode, {name}"), |b| {
            b.iter(|| {
                data.chunks(CHUNK)
                    .map(|chunk| encode(chunk).1.len())
                    .sum::<usize>()
            });
        });
        let mut decoder = RecordDecoder::default();
        let mut plain = vec![0; CHUNK];
        group.bench_function(format!("decode and verify, {name}"), |b| {
            b.iter(|| {
                encoded.iter().all(|(info, payload)| {
                    let out = &mut plain[..info.plain_len as usize];
                    decoder.decode(info, payload, &keys, out).is_ok()
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cutting, records);
criterion_main!(benches);
