//! Is this block all zero? Asked of every block of a disk, and most often answered by its first bytes.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    _mm256_or_si256, _mm256_testz_si256, _mm512_or_si512, _mm512_test_epi64_mask,
};

use super::kernel::{Instructions, Kernel};
#[cfg(target_arch = "x86_64")]
use super::load::{load256, load512};

/// Bytes between two looks at whether anything was set.
const STEP: usize = 256;

/// True if no bit of `bytes` is set; true for no bytes.
#[inline]
pub(super) fn is_zero(kernel: Kernel, bytes: &[u8]) -> bool {
    if let Some(head) = bytes.first_chunk::<16>()
        && *head != [0; 16]
    {
        return false;
    }
    match kernel.instructions() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kernel proves that this machine has AVX-512F.
        Instructions::VaesAvx512 => unsafe { is_zero_avx512(bytes) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the kernel proves that this machine has AVX2.
        Instructions::VaesAvx2 => unsafe { is_zero_avx2(bytes) },
        #[cfg(target_arch = "x86_64")]
        Instructions::AesNi => is_zero_portable(bytes),
        Instructions::Portable => is_zero_portable(bytes),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn is_zero_avx512(bytes: &[u8]) -> bool {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    for step in steps {
        let (vectors, _) = step.as_chunks::<64>();
        let low = _mm512_or_si512(load512(&vectors[0]), load512(&vectors[1]));
        let high = _mm512_or_si512(load512(&vectors[2]), load512(&vectors[3]));
        let any = _mm512_or_si512(low, high);
        if _mm512_test_epi64_mask(any, any) != 0 {
            return false;
        }
    }
    is_zero_portable(rest)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn is_zero_avx2(bytes: &[u8]) -> bool {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    for step in steps {
        let (vectors, _) = step.as_chunks::<32>();
        let mut any = load256(&vectors[0]);
        for vector in &vectors[1..] {
            any = _mm256_or_si256(any, load256(vector));
        }
        if _mm256_testz_si256(any, any) == 0 {
            return false;
        }
    }
    is_zero_portable(rest)
}

/// The compiler makes this the vector instructions that every machine of the target has.
fn is_zero_portable(bytes: &[u8]) -> bool {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    steps
        .iter()
        .all(|step| step.iter().fold(0, |any, byte| any | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_bit_anywhere_is_seen_by_every_kernel() {
        for kernel in Kernel::available() {
            for len in [0, 1, 15, 16, 255, 256, 257, 512, 3584, 4095, 4096] {
                let mut bytes = vec![0; len];
                assert!(is_zero(kernel, &bytes), "{kernel}: {len} zeros");
                for at in 0..len {
                    bytes[at] = 1 << (at % 8);
                    assert!(!is_zero(kernel, &bytes), "{kernel}: byte {at} of {len}");
                    bytes[at] = 0;
                }
            }
        }
    }

    #[test]
    fn bytes_around_the_slice_do_not_count() {
        let mut bytes = [0xff; 4096 + 2];
        bytes[1..4097].fill(0);
        for kernel in Kernel::available() {
            assert!(is_zero(kernel, &bytes[1..4097]), "{kernel}");
        }
    }
}
