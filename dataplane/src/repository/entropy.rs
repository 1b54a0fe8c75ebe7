//! Where random ids and keys come from: the system, or a seed in tests.

use parking_lot::Mutex;

use super::error::{RepositoryError, Result};

/// A source of random bytes.
pub trait Entropy: Send + Sync {
    /// Fills `out` with random bytes.
    fn fill(&self, out: &mut [u8]) -> Result<()>;
}

impl dyn Entropy + '_ {
    /// `N` random bytes.
    pub fn array<const N: usize>(&self) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }
}

/// The operating system's generator.
#[derive(Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, out: &mut [u8]) -> Result<()> {
        getrandom::fill(out).map_err(|error| RepositoryError::Entropy(error.to_string()))
    }
}

/// A repeatable stream from a seed. For tests and simulation alone: everybody can guess it.
#[derive(Debug)]
pub struct SeededEntropy(Mutex<blake3::OutputReader>);

impl SeededEntropy {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        let hasher = blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof();
        Self(Mutex::new(hasher))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, out: &mut [u8]) -> Result<()> {
        self.0.lock().fill(out);
        Ok(())
    }
}
