//! The checksum file that follows each block of an XVA.
//!
//! Source: xapi-project/xen-api, `ocaml/xapi/stream_vdi.ml`: `.xxhash` since Citrix Hypervisor 8.1, before
//! that `.checksum`. Both only tell accidents: what a backup keeps is known by its BLAKE3.

use sha1::{Digest, Sha1};
use xxhash_rust::xxh64::Xxh64;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumKind {
    /// XXH64 with seed 0: 16 upper-case hexadecimal digits. XenServer and XCP-ng 8.1 and newer.
    Xxh64,
    /// SHA-1: 40 lower-case hexadecimal digits. All releases.
    Sha1,
}

impl ChecksumKind {
    /// What a block's name is followed by.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Xxh64 => ".xxhash",
            Self::Sha1 => ".checksum",
        }
    }

    /// Length of the file.
    pub const fn digits(self) -> usize {
        match self {
            Self::Xxh64 => 16,
            Self::Sha1 => 40,
        }
    }

    /// The text for `block`.
    pub fn of(self, block: &[u8]) -> String {
        let mut hasher = BlockHasher::new(Some(self));
        hasher.update(block);
        hasher.digits(self).expect("this kind is computed")
    }
}

/// Computes the checksum of a block; both of them as long as it is not known which will be asked for.
#[derive(Clone)]
pub(super) struct BlockHasher {
    xxh64: Option<Xxh64>,
    sha1: Option<Sha1>,
}

impl BlockHasher {
    pub(super) fn new(kind: Option<ChecksumKind>) -> Self {
        let wants = |wanted| kind.is_none_or(|kind| kind == wanted);
        Self {
            xxh64: wants(ChecksumKind::Xxh64).then(|| Xxh64::new(0)),
            sha1: wants(ChecksumKind::Sha1).then(Sha1::new),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(xxh64) = &mut self.xxh64 {
            xxh64.update(bytes);
        }
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(bytes);
        }
    }

    /// The checksum's text; `None` if this kind was not computed.
    pub(super) fn digits(&self, kind: ChecksumKind) -> Option<String> {
        match kind {
            ChecksumKind::Xxh64 => {
                let xxh64 = self.xxh64.as_ref()?;
                Some(format!("{:016X}", xxh64.digest()))
            }
            ChecksumKind::Sha1 => {
                let sha1 = self.sha1.clone()?;
                Some(data_encoding::HEXLOWER.encode(&sha1.finalize()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_xapi() {
        for (block, xxh64, sha1) in [
            (
                Vec::new(),
                "EF46DB3751D8E999",
                "da39a3ee5e6b4b0d3255bfef95601890afd80709",
            ),
            (
                vec![0; 1 << 20],
                "87D2A1B6E1163EF1",
                "3b71f43ff30f4b15b5cd85dd9e95ebc7e84eb5a3",
            ),
            (
                vec![0xff; 1 << 20],
                "93E8573813BAC8B4",
                "bf0b121670df23f2cc64302d9f215e7c81187bbb",
            ),
        ] {
            assert_eq!(ChecksumKind::Xxh64.of(&block), xxh64);
            assert_eq!(ChecksumKind::Sha1.of(&block), sha1);
        }
    }
}
