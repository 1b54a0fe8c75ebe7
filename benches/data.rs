//! Data for the benchmarks: the same bytes on every machine and run.

/// `len` bytes of noise from `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// `len` bytes that compress about three to one, as the files of a system disk do.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len)
        .chunks(6)
        .flat_map(|six| {
            let word = u64::from(six[0]) * 0x0101_0203_0509_0d15;
            let mut out = word.to_be_bytes().to_vec();
            out.extend_from_slice(&six[..six.len().min(2)]);
            out
        })
        .take(len)
        .collect()
}

/// A disk's mix: runs of 256 KiB of zeros, text and noise in turn.
pub fn disk(len: usize) -> Vec<u8> {
    const RUN: usize = 256 << 10;
    let mut out = Vec::with_capacity(len);
    for number in 0..len.div_ceil(RUN) as u64 {
        match number % 3 {
            0 => out.extend_from_slice(&vec![0; RUN]),
            1 => out.extend_from_slice(&text(number, RUN)),
            _ => out.extend_from_slice(&noise(number, RUN)),
        }
    }
    out.truncate(len);
    out
}
