//! Which instructions the chunker uses: every kernel gives the same cuts, at its own speed.

use std::fmt;

/// A set of instructions that this machine is known to have.
///
/// A value is a proof: only detection at run time makes one, so that code compiled for a kernel's
/// instructions may be called wherever its `Kernel` is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel(Instructions);

/// What a kernel is compiled for; the features are what [`Kernel::available`] detects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Instructions {
    /// Features `avx512f`, `avx2`, `vaes`, `aes`: Intel from Ice Lake, AMD from Zen 4.
    #[cfg(target_arch = "x86_64")]
    VaesAvx512,
    /// Features `avx2`, `vaes`, `aes`: AMD Zen 3, Intel's hybrid cores.
    #[cfg(target_arch = "x86_64")]
    VaesAvx2,
    /// Feature `aes`: nearly every server since 2010.
    #[cfg(target_arch = "x86_64")]
    AesNi,
    /// Nothing beyond what the target has anyway.
    Portable,
}

impl Kernel {
    /// Plain Rust, for machines without AES instructions.
    pub const PORTABLE: Self = Self(Instructions::Portable);

    /// The fastest kernel of this machine.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// All kernels of this machine, the fastest first; the last is [`Kernel::PORTABLE`].
    pub fn available() -> Vec<Self> {
        let mut kernels = detected();
        kernels.push(Self::PORTABLE);
        kernels
    }

    pub(super) fn instructions(self) -> Instructions {
        self.0
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::VaesAvx512 => "vaes-avx512",
            #[cfg(target_arch = "x86_64")]
            Instructions::VaesAvx2 => "vaes-avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::AesNi => "aes-ni",
            Instructions::Portable => "portable",
        })
    }
}

/// The kernels that need instructions of their own, the fastest first.
#[cfg(target_arch = "x86_64")]
fn detected() -> Vec<Kernel> {
    let aes = is_x86_feature_detected!("aes");
    let vaes = aes && is_x86_feature_detected!("vaes") && is_x86_feature_detected!("avx2");
    let avx512 = vaes && is_x86_feature_detected!("avx512f");
    [
        (avx512, Instructions::VaesAvx512),
        (vaes, Instructions::VaesAvx2),
        (aes, Instructions::AesNi),
    ]
    .into_iter()
    .filter_map(|(is_there, instructions)| is_there.then_some(Kernel(instructions)))
    .collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Vec<Kernel> {
    Vec::new()
}
