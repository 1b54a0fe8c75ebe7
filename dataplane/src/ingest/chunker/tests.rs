//! Claims about cuts that hold for every chunker and kernel.

use std::collections::HashSet;

use proptest::prelude::*;
use undercroft_format::chunker::{AlignedParams, ChunkerSpec, FastCdcParams};

use super::{Chunker, Cut, Kernel};

const MIB: usize = 1 << 20;

fn aligned_v1() -> ChunkerSpec {
    ChunkerSpec::Aligned(AlignedParams::default())
}

fn fastcdc_v2020() -> ChunkerSpec {
    ChunkerSpec::FastCdc(FastCdcParams::default())
}

/// Bytes without any pattern, the same on every machine.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// 8 MiB of noise with 64 zero runs of up to 128 KiB, every other one of whole blocks.
fn golden_input() -> Vec<u8> {
    let mut data = noise(1, 8 * MIB);
    let places = noise(2, 64 * 8);
    for (run, place) in places.chunks(8).enumerate() {
        let word =
            |at: usize| u32::from_le_bytes(place[at..at + 4].try_into().expect("4 bytes")) as usize;
        let unit = if run % 2 == 0 { 4096 } else { 1 };
        let start = word(0) % data.len() / unit * unit;
        let len = word(4) % (128 << 10) / unit * unit;
        let end = data.len().min(start + len);
        data[start..end].fill(0);
    }
    data
}

fn cut(spec: &ChunkerSpec, data: &[u8], disk_offset: u64, phase: u16) -> Vec<Cut> {
    let mut cuts = Vec::new();
    Chunker::new(spec).cut(data, disk_offset, phase, &mut cuts);
    cuts
}

fn cut_stream(spec: &ChunkerSpec, data: &[u8]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    Chunker::new(spec).cut_stream(data, &mut cuts);
    cuts
}

/// The pieces' bytes, with their offset in `data`.
fn pieces<'a>(data: &'a [u8], cuts: &[Cut]) -> Vec<(Cut, usize, &'a [u8])> {
    let mut start = 0;
    let pieces = cuts.iter().map(|cut| {
        let offset = start;
        start += cut.len();
        (*cut, offset, &data[offset..start])
    });
    let pieces = pieces.collect();
    assert_eq!(start, data.len(), "cuts cover the input");
    pieces
}

fn chunks<'a>(data: &'a [u8], cuts: &[Cut]) -> Vec<&'a [u8]> {
    pieces(data, cuts)
        .into_iter()
        .filter(|(cut, ..)| matches!(cut, Cut::Data(_)))
        .map(|(_, _, bytes)| bytes)
        .collect()
}

/// BLAKE3 of each cut as a byte (0 zero, 1 data) and its length, u32 little-endian.
fn digest(cuts: &[Cut]) -> String {
    let mut hasher = blake3::Hasher::new();
    for cut in cuts {
        let (kind, len) = match cut {
            Cut::Zero(len) => (0, len),
            Cut::Data(len) => (1, len),
        };
        hasher.update(&[kind]).update(&len.to_le_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[test]
fn golden_cuts_have_not_moved() {
    let data = golden_input();
    assert_eq!(
        blake3::hash(&data).to_hex().as_str(),
        "b69142aebd23743559f08d8265854927b98fcee598953b42e6dfa060abf5189e"
    );
    let offset = 16 << 20;
    let actual = [
        cut(&aligned_v1(), &data, offset, 0),
        cut(&aligned_v1(), &data, offset, 3584),
        cut(&fastcdc_v2020(), &data, offset, 0),
        cut(&fastcdc_v2020(), &data, offset, 3584),
        cut_stream(&fastcdc_v2020(), &data),
    ]
    .map(|cuts| (cuts.len(), digest(&cuts)));
    let golden = [
        (
            152,
            "56c5349312b9444a0eca175a145768f013a0ad513906221c1f89487346ec390b",
        ),
        (
            161,
            "d8e6cb7ad8c7e392fecf8f23b29f8de8f3e2195f2914b742676a5e4aa3649ce5",
        ),
        (
            125,
            "af5748f370e74582e32981243ab6d41205bd6770f2e83d9697ecc30203605b7b",
        ),
        (
            124,
            "a3a5d37d62834ba76a54d3fec5eb3a279f4f6fc2d7f2062e54e1934c048ce764",
        ),
        (
            125,
            "af5748f370e74582e32981243ab6d41205bd6770f2e83d9697ecc30203605b7b",
        ),
    ]
    .map(|(cuts, digest)| (cuts, digest.to_owned()));
    assert_eq!(actual, golden);
}

#[test]
fn all_kernels_cut_alike() {
    let data = golden_input();
    for spec in [aligned_v1(), fastcdc_v2020()] {
        for phase in [0, 512, 3584] {
            let expected = cut(&spec, &data, 0, phase);
            for kernel in Kernel::available() {
                let mut cuts = Vec::new();
                Chunker::with_kernel(&spec, kernel).cut(&data, 0, phase, &mut cuts);
                assert!(cuts == expected, "{spec} with {kernel} at phase {phase}");
            }
        }
    }
}

#[test]
fn aligned_spec_cuts_streams_with_the_default_fastcdc() {
    let data = golden_input();
    assert_eq!(
        cut_stream(&aligned_v1(), &data),
        cut_stream(&fastcdc_v2020(), &data)
    );
}

#[test]
fn cuts_depend_on_nothing_before_the_run() {
    let data = golden_input();
    for spec in [aligned_v1(), fastcdc_v2020()] {
        for phase in [0, 3584] {
            let alone = cut(&spec, &data[MIB..2 * MIB], MIB as u64, phase);
            let elsewhere = cut(&spec, &data[MIB..2 * MIB], 77 << 30, phase);
            assert_eq!(alone, elsewhere);
            let mut cuts = cut(&spec, &data[..MIB], 0, phase);
            let before = cuts.len();
            Chunker::new(&spec).cut(&data[MIB..2 * MIB], MIB as u64, phase, &mut cuts);
            assert_eq!(cuts[before..], alone);
        }
    }
}

#[test]
fn cutting_restarts_after_zeros() {
    let noise = noise(3, MIB);
    for spec in [aligned_v1(), fastcdc_v2020()] {
        let mut data = noise[..20 << 10].to_vec();
        data.resize(24 << 10, 0);
        data.extend_from_slice(&noise);
        let cuts = cut(&spec, &data, 0, 0);
        assert_eq!(cuts[..2], [Cut::Data(20 << 10), Cut::Zero(4 << 10)]);
        assert_eq!(cuts[2..], cut(&spec, &noise, 0, 0));
    }
}

#[test]
fn a_block_inserted_before_moves_few_cuts() {
    let data = noise(4, 8 * MIB);
    for (spec, inserted) in [
        (aligned_v1(), 4096),
        (fastcdc_v2020(), 4096),
        (fastcdc_v2020(), 1),
    ] {
        let mut shifted = noise(5, inserted);
        shifted.extend_from_slice(&data);
        let cuts = cut(&spec, &data, 0, 0);
        let known: HashSet<&[u8]> = chunks(&data, &cuts).into_iter().collect();
        let cuts = cut(&spec, &shifted, 0, 0);
        let all = chunks(&shifted, &cuts);
        let new = all.iter().filter(|chunk| !known.contains(*chunk)).count();
        assert!(new <= 12, "{spec}: {new} of {} chunks are new", all.len());
    }
}

#[test]
fn chunks_of_noise_have_the_average_length() {
    let data = noise(6, 32 * MIB);
    for (spec, expected_kib) in [(aligned_v1(), 54..62), (fastcdc_v2020(), 60..100)] {
        let cuts = cut(&spec, &data, 0, 0);
        let mean_kib = data.len() / cuts.len() / 1024;
        assert!(expected_kib.contains(&mean_kib), "{spec}: {mean_kib} KiB");
    }
}

#[test]
fn nothing_and_zeros_make_no_chunk() {
    for spec in [aligned_v1(), fastcdc_v2020()] {
        assert_eq!(cut(&spec, &[], 0, 0), []);
        assert_eq!(cut_stream(&spec, &[]), []);
        assert_eq!(cut(&spec, &[0; 10_000], 100, 512), [Cut::Zero(10_000)]);
        assert_eq!(cut_stream(&spec, &[0; 10_000]), [Cut::Zero(10_000)]);
    }
}

/// A run of content: noise or zeros, with its length.
fn any_data() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![0..9000usize, (0..40usize).prop_map(|n| 4096 * n)];
    let run = (any::<bool>(), any::<u64>(), len);
    prop::collection::vec(run, 0..12).prop_map(|runs| {
        let run = |(zero, seed, len)| if zero { vec![0; len] } else { noise(seed, len) };
        runs.into_iter().flat_map(run).collect()
    })
}

fn any_spec() -> impl Strategy<Value = ChunkerSpec> {
    prop_oneof![
        Just(aligned_v1()),
        Just(fastcdc_v2020()),
        Just("aligned-v1:4K-8K-8K".parse().expect("a spec")),
        Just("fastcdc-v2020:1K-4K-9K".parse().expect("a spec")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn cuts_cover_the_input_and_keep_the_limits(
        data in any_data(),
        spec in any_spec(),
        disk_offset in any::<u64>(),
        phase in 0..4096u16,
        is_stream: bool,
    ) {
        let (cuts, phase) = if is_stream {
            (cut_stream(&spec, &data), disk_offset as u16 % 4096)
        } else {
            (cut(&spec, &data, disk_offset, phase), phase)
        };
        let max = if is_stream { 256 << 10 } else { spec.max_len() as usize };
        let is_line = |at: usize| (disk_offset.wrapping_add(at as u64)) % 4096 == u64::from(phase);
        for (piece, start, bytes) in pieces(&data, &cuts) {
            prop_assert!(!bytes.is_empty());
            match piece {
                Cut::Zero(_) => {
                    prop_assert!(bytes.iter().all(|byte| *byte == 0));
                    prop_assert!(start == 0 || is_line(start));
                    prop_assert!(start + bytes.len() == data.len() || is_line(start + bytes.len()));
                }
                Cut::Data(_) => {
                    prop_assert!(bytes.len() <= max);
                    for at in (0..bytes.len()).filter(|at| is_line(start + at)) {
                        let block = bytes.get(at..at + 4096);
                        prop_assert!(block.is_none_or(|block| block.iter().any(|byte| *byte != 0)));
                    }
                    if matches!(spec, ChunkerSpec::Aligned(_)) && !is_stream {
                        prop_assert!(start == 0 || is_line(start));
                    }
                }
            }
        }
        for pair in cuts.windows(2) {
            prop_assert!(!matches!(pair, [Cut::Zero(_), Cut::Zero(_)]));
        }
    }

    #[test]
    fn kernels_agree_on_any_data(data in any_data(), spec in any_spec(), phase in 0..4096u16) {
        let expected = cut(&spec, &data, 0, phase);
        for kernel in Kernel::available() {
            let mut cuts = Vec::new();
            Chunker::with_kernel(&spec, kernel).cut(&data, 0, phase, &mut cuts);
            prop_assert!(cuts == expected, "{}", kernel);
        }
    }
}
