//! Which chunker cut a repository's chunks: a named, versioned choice with its parameters.
//!
//! The repository's config stores it. Where chunks end decides what deduplicates against what: the same
//! bytes cut by another chunker, another version or other lengths share nothing, so none of them may
//! change within a repository, and a version once released keeps its cuts for ever (golden vectors of
//! cuts in the data plane are the proof).
//!
//! # Encoding
//!
//! 16 bytes, and exactly one encoding for each choice:
//!
//! | offset | size | type   | field    | invariant                          |
//! |-------:|-----:|--------|----------|------------------------------------|
//! |      0 |    1 | u8     | kind     | 1 aligned, 2 FastCDC               |
//! |      1 |    1 | u8     | version  | 1 (of FastCDC: the v2020 variant)  |
//! |      2 |    2 | bytes  | reserved | zero                               |
//! |      4 |    4 | u32 LE | min      | bytes; limits of the kind          |
//! |      8 |    4 | u32 LE | avg      | bytes; limits of the kind          |
//! |     12 |    4 | u32 LE | max      | bytes; limits of the kind          |

use std::fmt;
use std::str::FromStr;

const KIND_ALIGNED: u8 = 1;
const KIND_FAST_CDC: u8 = 2;
const VERSION: u8 = 1;
const NAME_ALIGNED: &str = "aligned-v1";
const NAME_FAST_CDC: &str = "fastcdc-v2020";

/// Bytes of a block of the grid that zero runs and aligned chunks follow.
pub const GRID_BLOCK_LEN: u32 = 4096;

/// No chunker makes longer chunks than this, in bytes.
pub const CHUNK_LEN_MAX: u32 = 1 << 20;

const KIB: u32 = 1024;

/// The chunker of a repository.
///
/// Prints and parses as `aligned-v1:32K-64K-128K`: name, then minimal, average and maximal length in
/// KiB. The name alone parses as the kind's default lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkerSpec {
    /// Cuts at edges of 4 KiB blocks, for block disks.
    Aligned(AlignedParams),
    /// Cuts at any byte.
    FastCdc(FastCdcParams),
}

impl ChunkerSpec {
    /// Bytes of the encoding.
    pub const ENCODED_LEN: usize = 16;

    /// The longest chunk this chunker makes, in bytes; at most [`CHUNK_LEN_MAX`].
    pub const fn max_len(&self) -> u32 {
        match self {
            Self::Aligned(params) => params.max,
            Self::FastCdc(params) => params.max,
        }
    }

    /// The name with its version, as in `aligned-v1`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Aligned(_) => NAME_ALIGNED,
            Self::FastCdc(_) => NAME_FAST_CDC,
        }
    }

    /// The canonical encoding.
    pub fn encode(&self) -> [u8; Self::ENCODED_LEN] {
        let (kind, min, avg, max) = match *self {
            Self::Aligned(AlignedParams { min, avg, max }) => (KIND_ALIGNED, min, avg, max),
            Self::FastCdc(FastCdcParams { min, avg, max }) => (KIND_FAST_CDC, min, avg, max),
        };
        let mut bytes = [0; Self::ENCODED_LEN];
        bytes[0] = kind;
        bytes[1] = VERSION;
        bytes[4..8].copy_from_slice(&min.to_le_bytes());
        bytes[8..12].copy_from_slice(&avg.to_le_bytes());
        bytes[12..].copy_from_slice(&max.to_le_bytes());
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`ChunkerSpecError::Unknown`] for a kind or version of a newer Undercroft, else what is wrong with
    /// the bytes.
    pub fn decode(bytes: &[u8; Self::ENCODED_LEN]) -> Result<Self, ChunkerSpecError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (min, avg, max) = (word(4), word(8), word(12));
        if bytes[2..4] != [0, 0] {
            return Err(ChunkerSpecError::Reserved);
        }
        match (bytes[0], bytes[1]) {
            (KIND_ALIGNED, VERSION) => AlignedParams::new(min, avg, max).map(Self::Aligned),
            (KIND_FAST_CDC, VERSION) => FastCdcParams::new(min, avg, max).map(Self::FastCdc),
            (kind, version) => Err(ChunkerSpecError::Unknown { kind, version }),
        }
    }
}

impl Default for ChunkerSpec {
    fn default() -> Self {
        Self::Aligned(AlignedParams::default())
    }
}

impl fmt::Display for ChunkerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (min, avg, max) = match *self {
            Self::Aligned(AlignedParams { min, avg, max }) => (min, avg, max),
            Self::FastCdc(FastCdcParams { min, avg, max }) => (min, avg, max),
        };
        let name = self.name();
        write!(f, "{name}:{}K-{}K-{}K", min / KIB, avg / KIB, max / KIB)
    }
}

impl FromStr for ChunkerSpec {
    type Err = ChunkerSpecError;

    fn from_str(text: &str) -> Result<Self, ChunkerSpecError> {
        let syntax = || ChunkerSpecError::Syntax {
            text: text.chars().take(80).collect(),
        };
        let (name, lengths) = match text.split_once(':') {
            Some((name, lengths)) => (name, Some(parse_lengths(lengths).ok_or_else(syntax)?)),
            None => (text, None),
        };
        match (name, lengths) {
            (NAME_ALIGNED, None) => Ok(Self::Aligned(AlignedParams::default())),
            (NAME_ALIGNED, Some([min, avg, max])) => {
                AlignedParams::new(min, avg, max).map(Self::Aligned)
            }
            (NAME_FAST_CDC, None) => Ok(Self::FastCdc(FastCdcParams::default())),
            (NAME_FAST_CDC, Some([min, avg, max])) => {
                FastCdcParams::new(min, avg, max).map(Self::FastCdc)
            }
            _ => Err(syntax()),
        }
    }
}

/// Lengths of chunks that end at edges of the 4 KiB grid.
///
/// All are multiples of [`GRID_BLOCK_LEN`], in ascending order (equal is allowed for `avg` and `max`),
/// `max` is at most [`CHUNK_LEN_MAX`], and `avg - min` is a power of two of blocks, because that is how
/// many blocks pass on average until one meets a mask of whole bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AlignedParams {
    min: u32,
    avg: u32,
    max: u32,
}

impl AlignedParams {
    /// Lengths in bytes.
    ///
    /// # Errors
    /// [`ChunkerSpecError::Lengths`] outside the limits given at the type.
    pub fn new(min: u32, avg: u32, max: u32) -> Result<Self, ChunkerSpecError> {
        let on_grid = |len: u32| len.is_multiple_of(GRID_BLOCK_LEN);
        let ordered = 0 < min && min < avg && avg <= max && max <= CHUNK_LEN_MAX;
        if ordered
            && [min, avg, max].into_iter().all(on_grid)
            && ((avg - min) / GRID_BLOCK_LEN).is_power_of_two()
        {
            Ok(Self { min, avg, max })
        } else {
            Err(ChunkerSpecError::lengths(NAME_ALIGNED, min, avg, max))
        }
    }

    /// No chunk that ends by content is shorter, in bytes.
    pub const fn min(&self) -> u32 {
        self.min
    }

    /// The length aimed at, in bytes.
    pub const fn avg(&self) -> u32 {
        self.avg
    }

    /// No chunk is longer, in bytes.
    pub const fn max(&self) -> u32 {
        self.max
    }

    /// Low bits of a block's hash that are zero where a chunk ends.
    pub const fn mask_bits(&self) -> u32 {
        ((self.avg - self.min) / GRID_BLOCK_LEN).trailing_zeros()
    }
}

/// 32, 64 and 128 KiB.
impl Default for AlignedParams {
    fn default() -> Self {
        Self {
            min: 32 * KIB,
            avg: 64 * KIB,
            max: 128 * KIB,
        }
    }
}

/// Lengths of chunks that FastCDC (the variant of the 2020 paper, normalization level 1) makes.
///
/// All are multiples of 1 KiB, in ascending order (equal is allowed), `min` is at least 1 KiB and `max`
/// at most [`CHUNK_LEN_MAX`]; `avg` is a power of two, so that its mask needs no rounded logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FastCdcParams {
    min: u32,
    avg: u32,
    max: u32,
}

impl FastCdcParams {
    /// Lengths in bytes.
    ///
    /// # Errors
    /// [`ChunkerSpecError::Lengths`] outside the limits given at the type.
    pub fn new(min: u32, avg: u32, max: u32) -> Result<Self, ChunkerSpecError> {
        let ordered = 0 < min && min <= avg && avg <= max && max <= CHUNK_LEN_MAX;
        if ordered
            && [min, avg, max]
                .into_iter()
                .all(|len| len.is_multiple_of(KIB))
            && avg.is_power_of_two()
        {
            Ok(Self { min, avg, max })
        } else {
            Err(ChunkerSpecError::lengths(NAME_FAST_CDC, min, avg, max))
        }
    }

    /// No chunk that ends by content is shorter, in bytes.
    pub const fn min(&self) -> u32 {
        self.min
    }

    /// The length aimed at, in bytes.
    pub const fn avg(&self) -> u32 {
        self.avg
    }

    /// No chunk is longer, in bytes.
    pub const fn max(&self) -> u32 {
        self.max
    }
}

/// 32, 64 and 256 KiB.
impl Default for FastCdcParams {
    fn default() -> Self {
        Self {
            min: 32 * KIB,
            avg: 64 * KIB,
            max: 256 * KIB,
        }
    }
}

/// Bytes or text that name no chunker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkerSpecError {
    /// Neither kind nor version is known: a newer Undercroft made the repository, or damage.
    #[error("chunker kind {kind} version {version} is unknown")]
    Unknown {
        /// The kind's byte.
        kind: u8,
        /// The version's byte.
        version: u8,
    },
    /// The reserved bytes are not zero.
    #[error("chunker: reserved bytes are not zero")]
    Reserved,
    /// The lengths are outside the kind's limits.
    #[error("chunker {name}: lengths {min}-{avg}-{max} are outside its limits")]
    Lengths {
        /// Name of the chunker.
        name: &'static str,
        /// Minimal length in bytes.
        min: u32,
        /// Average length in bytes.
        avg: u32,
        /// Maximal length in bytes.
        max: u32,
    },
    /// Not of the form `NAME` or `NAME:minK-avgK-maxK` with a known name.
    #[error("'{text}' names no chunker (like {NAME_ALIGNED}:32K-64K-128K)")]
    Syntax {
        /// The start of what was given.
        text: String,
    },
}

impl ChunkerSpecError {
    const fn lengths(name: &'static str, min: u32, avg: u32, max: u32) -> Self {
        Self::Lengths {
            name,
            min,
            avg,
            max,
        }
    }
}

/// The three lengths of `32K-64K-128K` in bytes; only what `Display` prints is accepted.
fn parse_lengths(text: &str) -> Option<[u32; 3]> {
    let mut lengths = text.split('-').map(parse_kib);
    let parsed = [lengths.next()??, lengths.next()??, lengths.next()??];
    lengths.next().is_none().then_some(parsed)
}

fn parse_kib(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('K')?;
    let canonical = digits.bytes().all(|c| c.is_ascii_digit()) && !digits.starts_with('0');
    let kib: u32 = canonical.then(|| digits.parse().ok())??;
    kib.checked_mul(KIB)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_spec() -> impl Strategy<Value = ChunkerSpec> {
        let aligned = (1..=32u32, 0..=6u32, 0..=64u32).prop_map(|(min, bits, above)| {
            let avg = min + (1 << bits);
            AlignedParams::new(min * 4096, avg * 4096, (avg + above) * 4096)
                .expect("within the limits: at most 32 + 64 + 64 blocks")
        });
        let fast_cdc = (0..=9u32, 1..=1024u32, 1..=1024u32).prop_map(|(bits, min, max)| {
            let avg = 1u32 << bits;
            FastCdcParams::new(min.min(avg) * KIB, avg * KIB, max.max(avg) * KIB)
                .expect("within the limits: clamped to the average")
        });
        prop_oneof![
            aligned.prop_map(ChunkerSpec::Aligned),
            fast_cdc.prop_map(ChunkerSpec::FastCdc)
        ]
    }

    #[test]
    fn defaults_have_the_documented_encoding_and_text() {
        let aligned = ChunkerSpec::default();
        assert_eq!(aligned.to_string(), "aligned-v1:32K-64K-128K");
        assert_eq!(
            aligned.encode(),
            [1, 1, 0, 0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0]
        );
        let fast_cdc = ChunkerSpec::FastCdc(FastCdcParams::default());
        assert_eq!(fast_cdc.to_string(), "fastcdc-v2020:32K-64K-256K");
        assert_eq!(
            fast_cdc.encode(),
            [2, 1, 0, 0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0]
        );
        assert_eq!("aligned-v1".parse(), Ok(aligned));
        assert_eq!("fastcdc-v2020".parse(), Ok(fast_cdc));
        assert_eq!(AlignedParams::default().mask_bits(), 3);
    }

    #[test]
    fn lengths_outside_the_limits_are_refused() {
        for (min, avg, max) in [
            (0, 4096, 8192),                // no minimum
            (32 << 10, 32 << 10, 64 << 10), // nothing between minimum and average
            (32 << 10, 56 << 10, 64 << 10), // six blocks are no power of two
            (32 << 10, 64 << 10, 60 << 10), // not ascending
            (32 << 10, 64 << 10, (128 << 10) + 512),
            (32 << 10, 64 << 10, 2 << 20),
            (u32::MAX, u32::MAX, u32::MAX),
        ] {
            assert!(
                AlignedParams::new(min, avg, max).is_err(),
                "{min} {avg} {max}"
            );
        }
        for (min, avg, max) in [
            (0, 4096, 8192),
            (512, 4096, 8192),
            (32 << 10, 48 << 10, 64 << 10),
            (32 << 10, 64 << 10, 32 << 10),
            (32 << 10, 64 << 10, 2 << 20),
        ] {
            assert!(
                FastCdcParams::new(min, avg, max).is_err(),
                "{min} {avg} {max}"
            );
        }
    }

    #[test]
    fn text_that_display_would_not_print_is_refused() {
        for text in [
            "",
            "aligned",
            "aligned-v2",
            "aligned-v1:",
            "aligned-v1:32K-64K",
            "aligned-v1:32K-64K-128K-256K",
            "aligned-v1:032K-64K-128K",
            "aligned-v1:+32K-64K-128K",
            "aligned-v1:32k-64k-128k",
            "aligned-v1:32K-64K-128K ",
            "aligned-v1:32K-64K-99999999999K",
            "aligned-v1:K-K-K",
            "fastcdc-v2020:4194304K-64K-128K",
        ] {
            assert!(text.parse::<ChunkerSpec>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn encoding_and_text_round_trip(spec in any_spec()) {
            prop_assert_eq!(ChunkerSpec::decode(&spec.encode()), Ok(spec));
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn a_changed_byte_is_an_error_or_another_spec(
            spec in any_spec(), at in 0..16usize, change in 1..=255u8,
        ) {
            let mut bytes = spec.encode();
            bytes[at] ^= change;
            if let Ok(other) = ChunkerSpec::decode(&bytes) {
                prop_assert_ne!(other, spec);
                prop_assert_eq!(other.encode(), bytes);
            }
        }

        #[test]
        fn any_bytes_that_decode_encode_to_themselves(
            kind in 0..4u8, version in 0..3u8, rest: [u8; 14],
        ) {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&[kind, version]);
            bytes[2..].copy_from_slice(&rest);
            if let Ok(spec) = ChunkerSpec::decode(&bytes) {
                prop_assert_eq!(spec.encode(), bytes);
            }
        }

        #[test]
        fn any_text_parses_or_is_refused(text: String) {
            let _ = text.parse::<ChunkerSpec>();
        }
    }
}
