//! Sector bitmaps: which sectors of a block are this file's. The first sector's bit is the highest of the first byte.

/// Whether a sector's bit is set. Past the bitmap's end none is.
pub fn is_set(bitmap: &[u8], sector: u32) -> bool {
    let byte = bitmap.get((sector / 8) as usize);
    byte.is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
}

/// Sets the bits of sectors `start..end`.
pub fn set(bitmap: &mut [u8], sectors: std::ops::Range<u32>) {
    for sector in sectors {
        bitmap[(sector / 8) as usize] |= 0x80 >> (sector % 8);
    }
}

/// One past the last of the sectors from `start` on whose bits are all as the first's, at most `end`.
pub fn run_end(bitmap: &[u8], start: u32, end: u32) -> u32 {
    let value = is_set(bitmap, start);
    let whole = if value { 0xff } else { 0 };
    let mut at = start;
    while at < end {
        let byte = bitmap.get((at / 8) as usize).copied().unwrap_or(0);
        if at.is_multiple_of(8) && byte == whole {
            at += 8;
        } else if is_set(bitmap, at) == value {
            at += 1;
        } else {
            break;
        }
    }
    at.min(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_cover_what_is_alike(bits in proptest::collection::vec(any::<bool>(), 1..200), dense in any::<bool>()) {
            let bits: Vec<bool> = match dense {
                true => bits.iter().flat_map(|bit| [*bit; 40]).collect(),
                false => bits,
            };
            let count = bits.len() as u32;
            let mut bitmap = vec![0; bits.len().div_ceil(8)];
            for (sector, bit) in (0..).zip(&bits) {
                if *bit {
                    set(&mut bitmap, sector..sector + 1);
                }
            }
            let mut at = 0;
            while at < count {
                let end = run_end(&bitmap, at, count);
                prop_assert!(end > at);
                let alike = |sector: u32| bits[sector as usize] == bits[at as usize];
                prop_assert!((at..end).all(alike));
                prop_assert!(end == count || !alike(end));
                at = end;
            }
            prop_assert!(!is_set(&bitmap, 8 * bitmap.len() as u32));
        }
    }
}
