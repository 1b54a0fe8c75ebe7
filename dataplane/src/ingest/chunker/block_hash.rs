//! The hash of a block of the grid, from which an aligned chunk's end is decided.
//!
//! Not a cryptographic hash: whoever writes a disk's content can choose where its chunks end, and gains
//! nothing but longer or shorter chunks within the limits. It must be fast, and the same everywhere and
//! for ever: seeds and the order of operations are part of the format `aligned-v1`.
//!
//! # Definition
//!
//! `round(state, key)` is one AES round as the instruction AESENC does it (FIPS 197, section 5.1):
//! SubBytes, ShiftRows, MixColumns, then XOR with `key`. All values are of 16 bytes.
//!
//! 1. The block is padded with zeros to whole stripes of 256 bytes: 16 lanes of 16 bytes each.
//! 2. `lane[l]` starts as `SEEDS[l]`; for each stripe, `lane[l] = round(lane[l], stripe[l])`.
//! 3. Fold: for `half` of 8, 4, 2, 1: `lane[l] = round(lane[l], lane[l + half])` for each `l < half`.
//! 4. `state = round(lane[0], length)`, the block's length before padding as a little-endian integer.
//! 5. Three more rounds, with the keys `SEEDS[16]`, `SEEDS[17]` and `SEEDS[18]`.
//! 6. The hash is the first 8 bytes of the state as a little-endian integer.

use super::grid::BLOCK_LEN;
use super::kernel::{Instructions, Kernel};

const LANES: usize = 16;

/// One AES round's worth of data for every lane.
type Stripe = [[u8; 16]; LANES];

const STRIPE_LEN: usize = size_of::<Stripe>();

/// First bytes of BLAKE3's output in key derivation mode, for the context [`SEEDS_CONTEXT`] and no key
/// material; written in the order of the bytes.
const SEEDS_TEXT: [u128; LANES + 3] = [
    0x6fa4a255133331eed299831ec4683229,
    0xcde028072bc4ea5676a90a7134a41c46,
    0x6615090177cfc9ef8bf9f7535c91c43f,
    0xcc83e824d7ff619eeafc5647a4f506a9,
    0x5eb8368ac4e04a9bcb91eeddf60c4c7a,
    0xd91fa30a885218dccc33757536cb3e51,
    0x05e230fed3ce2e501fcf3c10e174245a,
    0x702bcc96b91b2954bfce7b0fd87c14d6,
    0x6cd4fef29eddefbeccb2636e09586bc6,
    0x8bf33a784f84f90d2d914e902fcd6b7e,
    0x63e402c78aa6206f90ee886c8a11f5ae,
    0x25088f2734e663117591db730244d627,
    0xc0eab4b0529773f26bc68327278fcc70,
    0xc754051c88519d188418f9c429f1ed7e,
    0x301c6843a15530418d0c4a48715b5c4e,
    0x26e6e2c7b3315d877c6d00b8e8ccd942,
    0x6b0354b5978ac1b3e3e701b2c74297b1,
    0x5dc6d8f19d010a66bd49be5daf79680b,
    0xeb60128273a5513f3f7a3403ede52b6b,
];

#[cfg(test)]
const SEEDS_CONTEXT: &str = "undercroft 2026 chunker aligned-v1 block hash";

static LANE_SEEDS: Stripe = seeds(0);
static FINISH_KEYS: [[u8; 16]; 3] = seeds(LANES);

const fn seeds<const N: usize>(first: usize) -> [[u8; 16]; N] {
    let mut seeds = [[0; 16]; N];
    let mut at = 0;
    while at < N {
        seeds[at] = SEEDS_TEXT[first + at].to_be_bytes();
        at += 1;
    }
    seeds
}

/// The hash of `block`, which has at most [`BLOCK_LEN`] bytes.
pub(super) fn block_hash(kernel: Kernel, block: &[u8]) -> u64 {
    let (stripes, rest) = block.as_chunks::<STRIPE_LEN>();
    if rest.is_empty() {
        return hash_stripes(kernel, stripes, block.len());
    }
    let mut padded = [0; BLOCK_LEN];
    padded[..block.len()].copy_from_slice(block);
    let (stripes, _) = padded.as_chunks();
    hash_stripes(
        kernel,
        &stripes[..block.len().div_ceil(STRIPE_LEN)],
        block.len(),
    )
}

fn hash_stripes(kernel: Kernel, stripes: &[[u8; STRIPE_LEN]], len: usize) -> u64 {
    let mut length = [0; 16];
    length[..8].copy_from_slice(&(len as u64).to_le_bytes());
    match kernel.instructions() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kernel proves that this machine has AVX-512F, AVX2, VAES and AES.
        Instructions::VaesAvx512 => unsafe { x86::hash_vaes_avx512(stripes, &length) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kernel proves that this machine has AVX2, VAES and AES.
        Instructions::VaesAvx2 => unsafe { x86::hash_vaes_avx2(stripes, &length) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kernel proves that this machine has AES.
        Instructions::AesNi => unsafe { x86::hash_aes_ni(stripes, &length) },
        Instructions::Portable => portable::hash(stripes, &length),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_aesenc_si128, _mm_cvtsi128_si64, _mm256_aesenc_epi128,
        _mm256_castsi256_si128, _mm256_extracti128_si256, _mm512_aesenc_epi128,
        _mm512_castsi512_si256, _mm512_extracti64x4_epi64,
    };

    use super::super::load::{load128, load256, load512};
    use super::{FINISH_KEYS, LANE_SEEDS, STRIPE_LEN};

    /// Four registers hold four lanes each.
    #[target_feature(enable = "avx512f,avx2,vaes,aes")]
    pub(super) fn hash_vaes_avx512(stripes: &[[u8; STRIPE_LEN]], length: &[u8; 16]) -> u64 {
        let (seeds, _) = LANE_SEEDS.as_flattened().as_chunks::<64>();
        let mut lanes = [
            load512(&seeds[0]),
            load512(&seeds[1]),
            load512(&seeds[2]),
            load512(&seeds[3]),
        ];
        for stripe in stripes {
            let (vectors, _) = stripe.as_chunks::<64>();
            for (lane, vector) in lanes.iter_mut().zip(vectors) {
                *lane = _mm512_aesenc_epi128(*lane, load512(vector));
            }
        }
        let low = _mm512_aesenc_epi128(lanes[0], lanes[2]);
        let high = _mm512_aesenc_epi128(lanes[1], lanes[3]);
        let four = _mm512_aesenc_epi128(low, high);
        finish_two_lanes(
            _mm256_aesenc_epi128(
                _mm512_castsi512_si256(four),
                _mm512_extracti64x4_epi64::<1>(four),
            ),
            length,
        )
    }

    /// Eight registers hold two lanes each.
    #[target_feature(enable = "avx2,vaes,aes")]
    pub(super) fn hash_vaes_avx2(stripes: &[[u8; STRIPE_LEN]], length: &[u8; 16]) -> u64 {
        let (seeds, _) = LANE_SEEDS.as_flattened().as_chunks::<32>();
        let mut lanes = [load256(&seeds[0]); 8];
        for (lane, seed) in lanes.iter_mut().zip(seeds) {
            *lane = load256(seed);
        }
        for stripe in stripes {
            let (vectors, _) = stripe.as_chunks::<32>();
            for (lane, vector) in lanes.iter_mut().zip(vectors) {
                *lane = _mm256_aesenc_epi128(*lane, load256(vector));
            }
        }
        for half in [4, 2, 1] {
            for at in 0..half {
                lanes[at] = _mm256_aesenc_epi128(lanes[at], lanes[at + half]);
            }
        }
        finish_two_lanes(lanes[0], length)
    }

    #[inline]
    #[target_feature(enable = "avx2,aes")]
    fn finish_two_lanes(lanes: __m256i, length: &[u8; 16]) -> u64 {
        let low = _mm256_castsi256_si128(lanes);
        let high = _mm256_extracti128_si256::<1>(lanes);
        finish(_mm_aesenc_si128(low, high), length)
    }

    /// Eight lanes at a time: sixteen and the data would not fit into the registers of SSE, and eight
    /// already keep the AES unit busy while each waits for its own last round.
    #[target_feature(enable = "aes,sse2")]
    pub(super) fn hash_aes_ni(stripes: &[[u8; STRIPE_LEN]], length: &[u8; 16]) -> u64 {
        let mut lanes = hash_half::<0>(stripes);
        let upper = hash_half::<8>(stripes);
        for (lane, other) in lanes.iter_mut().zip(upper) {
            *lane = _mm_aesenc_si128(*lane, other);
        }
        for half in [4, 2, 1] {
            for at in 0..half {
                lanes[at] = _mm_aesenc_si128(lanes[at], lanes[at + half]);
            }
        }
        finish(lanes[0], length)
    }

    #[inline]
    #[target_feature(enable = "aes,sse2")]
    fn hash_half<const FIRST: usize>(stripes: &[[u8; STRIPE_LEN]]) -> [__m128i; 8] {
        let mut lanes = [load128(&LANE_SEEDS[FIRST]); 8];
        for (lane, seed) in lanes.iter_mut().zip(&LANE_SEEDS[FIRST..]) {
            *lane = load128(seed);
        }
        for stripe in stripes {
            let (vectors, _) = stripe.as_chunks::<16>();
            for (lane, vector) in lanes.iter_mut().zip(&vectors[FIRST..]) {
                *lane = _mm_aesenc_si128(*lane, load128(vector));
            }
        }
        lanes
    }

    #[inline]
    #[target_feature(enable = "aes,sse2")]
    fn finish(lane: __m128i, length: &[u8; 16]) -> u64 {
        let mut state = _mm_aesenc_si128(lane, load128(length));
        for key in &FINISH_KEYS {
            state = _mm_aesenc_si128(state, load128(key));
        }
        _mm_cvtsi128_si64(state).cast_unsigned()
    }
}

/// AES rounds by table look-ups, in plain Rust.
mod portable {
    use super::{FINISH_KEYS, LANE_SEEDS, LANES, STRIPE_LEN};

    /// The columns of an AES state, each with its first row in the lowest byte.
    type State = [u32; 4];

    pub(super) fn hash(stripes: &[[u8; STRIPE_LEN]], length: &[u8; 16]) -> u64 {
        let mut lanes = LANE_SEEDS.map(|seed| state(&seed));
        for (at, lane) in lanes.iter_mut().enumerate() {
            for stripe in stripes {
                *lane = round(*lane, state(&stripe.as_chunks().0[at]));
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for at in 0..half {
                lanes[at] = round(lanes[at], lanes[at + half]);
            }
            half /= 2;
        }
        let finished = FINISH_KEYS
            .iter()
            .fold(round(lanes[0], state(length)), |lane, key| {
                round(lane, state(key))
            });
        u64::from(finished[0]) | u64::from(finished[1]) << 32
    }

    fn state(bytes: &[u8; 16]) -> State {
        let (columns, _) = bytes.as_chunks();
        std::array::from_fn(|at| u32::from_le_bytes(columns[at]))
    }

    #[inline(always)]
    pub(super) fn round(state: State, key: State) -> State {
        let [a, b, c, d] = state;
        [
            column(a, b, c, d) ^ key[0],
            column(b, c, d, a) ^ key[1],
            column(c, d, a, b) ^ key[2],
            column(d, a, b, c) ^ key[3],
        ]
    }

    /// One column after SubBytes, ShiftRows and MixColumns: row `r` comes from the `r`-th argument.
    #[inline(always)]
    fn column(row0: u32, row1: u32, row2: u32, row3: u32) -> u32 {
        let byte = |word: u32, row: u32| (word >> (8 * row)) as u8 as usize;
        TABLES[0][byte(row0, 0)]
            ^ TABLES[1][byte(row1, 1)]
            ^ TABLES[2][byte(row2, 2)]
            ^ TABLES[3][byte(row3, 3)]
    }

    /// `TABLES[row][x]`: what a byte `x` in `row` adds to its column.
    static TABLES: [[u32; 256]; 4] = tables();

    const fn tables() -> [[u32; 256]; 4] {
        let mut tables = [[0; 256]; 4];
        let mut x = 0;
        while x < 256 {
            let once = s_box(x as u8);
            let twice = doubled(once);
            let column = u32::from_le_bytes([twice, once, once, once ^ twice]);
            let mut row = 0;
            while row < 4 {
                tables[row][x] = column.rotate_left(8 * row as u32);
                row += 1;
            }
            x += 1;
        }
        tables
    }

    /// FIPS 197, section 5.1.1: the inverse in GF(2^8), then an affine map.
    const fn s_box(x: u8) -> u8 {
        // The inverse is the 254th power, for 0 as well: 254 = 2 + 4 + ... + 128.
        let mut square = x;
        let mut inverse = 1;
        let mut step = 0;
        while step < 7 {
            square = product(square, square);
            inverse = product(inverse, square);
            step += 1;
        }
        inverse
            ^ inverse.rotate_left(1)
            ^ inverse.rotate_left(2)
            ^ inverse.rotate_left(3)
            ^ inverse.rotate_left(4)
            ^ 0x63
    }

    /// Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
    const fn product(mut a: u8, mut b: u8) -> u8 {
        let mut sum = 0;
        while b > 0 {
            if b & 1 == 1 {
                sum ^= a;
            }
            a = doubled(a);
            b >>= 1;
        }
        sum
    }

    const fn doubled(a: u8) -> u8 {
        (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1b }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new()
            .update(b"block hash pattern")
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    #[test]
    fn seeds_are_derived_from_their_context() {
        let mut derived = [[0; 16]; LANES + 3];
        blake3::Hasher::new_derive_key(SEEDS_CONTEXT)
            .finalize_xof()
            .fill(derived.as_flattened_mut());
        assert_eq!(derived, seeds::<{ LANES + 3 }>(0));
    }

    #[test]
    fn portable_round_is_the_aes_round() {
        let bytes = pattern(32 * 100);
        let states = |bytes: &[u8]| -> [u32; 4] {
            std::array::from_fn(|at| {
                u32::from_le_bytes(bytes[4 * at..][..4].try_into().expect("4 bytes"))
            })
        };
        for pair in bytes.chunks(32) {
            let mut state = *aes::Block::from_slice(&pair[..16]);
            aes::hazmat::cipher_round(&mut state, aes::Block::from_slice(&pair[16..]));
            assert_eq!(
                portable::round(states(&pair[..16]), states(&pair[16..])),
                states(&state)
            );
        }
    }

    /// The values come from another implementation, written from the definition above.
    #[test]
    fn hashes_are_those_of_aligned_v1() {
        let bytes = pattern(4096);
        for kernel in Kernel::available() {
            for (block, hash) in [
                (&bytes[..], 0x0c1e_ced3_2373_1f2a),
                (&bytes[..512], 0x9ad9_e645_0aae_97fa),
                (&bytes[..3584], 0xd513_32bd_e805_fca3),
                (&bytes[..1], 0xadaf_a5ec_79c4_18ae),
                (&[0; 4096][..], 0xbb48_b317_615d_bb09),
                (&[], 0x05d4_5444_fbdc_8368),
            ] {
                let len = block.len();
                let actual = block_hash(kernel, block);
                assert_eq!(actual, hash, "{kernel}, {len} bytes: {actual:#018x}");
            }
        }
    }

    #[test]
    fn every_bit_of_a_block_counts() {
        let mut bytes = pattern(4096);
        let kernel = Kernel::best();
        let hash = block_hash(kernel, &bytes);
        for bit in 0..8 * bytes.len() {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(block_hash(kernel, &bytes), hash, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn low_bits_are_even() {
        let kernel = Kernel::best();
        let mut counts = [0; 8];
        for block in 0..80_000u32 {
            let mut bytes = [0; 4096];
            bytes[2048..2052].copy_from_slice(&block.to_le_bytes());
            counts[(block_hash(kernel, &bytes) & 7) as usize] += 1;
        }
        for count in counts {
            assert!((9_600..10_400).contains(&count), "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn all_kernels_agree(bytes in prop::collection::vec(any::<u8>(), 0..=4096)) {
            let hash = block_hash(Kernel::PORTABLE, &bytes);
            for kernel in Kernel::available() {
                prop_assert_eq!(block_hash(kernel, &bytes), hash, "{}", kernel);
            }
        }
    }
}
