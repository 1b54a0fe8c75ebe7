//! Loads of byte arrays into vector registers; the arrays may lie at any address.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_loadu_si128, _mm256_loadu_si256, _mm512_loadu_si512,
};

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load128(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the reference proves 16 readable bytes, and the instruction needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load256(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference proves 32 readable bytes, and the instruction needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load512(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference proves 64 readable bytes, and the instruction needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
