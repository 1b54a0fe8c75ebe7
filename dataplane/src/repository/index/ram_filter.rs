//! What the existence table turns into when its slots would outgrow their memory: a blocked Bloom filter.
//!
//! It knows ids by the same 40 bits as the slots, so that it is made from them, shard by shard, in the
//! memory that they leave. The id's first byte is the shard; the high bits of the fingerprint choose a
//! block of one cache line, a mix of all its bits [`BITS`] bits of the block.
//!
//! Ids are only ever added: one that was removed is still found, one that was added is never missed.
//! The memory stays what it was at first, so that the share of wrong guesses grows with the entries:
//! 0.5 % at 12 bits per entry, 5 % at 6.7, 25 % at 3.3.

use super::ram_shard::Shard;
use super::ram_table::SHARDS;

/// Bits set per id. More would do better above 9 bits per entry, where guesses are good enough, and worse
/// below 5, where they matter.
const BITS: u32 = 4;
const WORDS: usize = 8;
/// Bytes of a block.
pub(super) const BLOCK_LEN: usize = 64;
/// Numbers a bit of a block.
const BIT_NUMBER_BITS: u32 = 9;

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Block(pub(super) [u64; WORDS]);

const _: () = assert!(size_of::<Block>() == BLOCK_LEN);
const _: () = assert!(BLOCK_LEN * 8 == 1 << BIT_NUMBER_BITS);

impl Block {
    pub(super) const EMPTY: Self = Self([0; WORDS]);
}

/// The filter, of as many shards as the table.
#[derive(Debug)]
pub(super) struct Filter {
    shards: Vec<Vec<Block>>,
    /// Ids added, those included that were removed since.
    pub(super) added: u64,
}

impl Filter {
    /// Bytes of one shard of a filter that takes at most `cap_bytes`, while one shard's slots are still
    /// there beside it.
    pub(super) fn shard_bytes(cap_bytes: u64) -> u64 {
        let blocks = cap_bytes / ((SHARDS as u64 + 1) * BLOCK_LEN as u64);
        blocks * BLOCK_LEN as u64
    }

    /// An empty filter that takes at most `cap_bytes`; none if not even a block per shard fits.
    pub(super) fn new(cap_bytes: u64) -> Option<Self> {
        let blocks = Self::shard_bytes(cap_bytes) as usize / BLOCK_LEN;
        (blocks > 0).then(|| Self::of_blocks(vec![vec![Block::EMPTY; blocks]; SHARDS], 0))
    }

    pub(super) fn of_blocks(shards: Vec<Vec<Block>>, added: u64) -> Self {
        Self { shards, added }
    }

    /// Takes the memory of a table's shards over. The largest go first: what has been freed is then never
    /// less than what has been taken, but for one shard.
    pub(super) fn of_slots(slots: Vec<Shard>, cap_bytes: u64) -> Option<Self> {
        let blocks = Self::shard_bytes(cap_bytes) as usize / BLOCK_LEN;
        if blocks == 0 {
            return None;
        }
        let mut filter = Self::of_blocks(vec![Vec::new(); SHARDS], 0);
        let mut slots: Vec<_> = slots.into_iter().enumerate().collect();
        slots.sort_by_key(|(_, shard)| shard.bytes());
        while let Some((number, shard)) = slots.pop() {
            filter.shards[number] = vec![Block::EMPTY; blocks];
            for fingerprint in shard.fingerprints() {
                filter.add(number, fingerprint);
            }
        }
        Some(filter)
    }

    pub(super) fn blocks_per_shard(&self) -> usize {
        self.shards[0].len()
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.blocks_per_shard() * BLOCK_LEN * SHARDS) as u64
    }

    pub(super) fn shards(&self) -> &[Vec<Block>] {
        &self.shards
    }

    pub(super) fn add(&mut self, shard: usize, fingerprint: u32) {
        let at = self.home(shard, fingerprint);
        let block = &mut self.shards[shard][at].0;
        for bit in bits(fingerprint) {
            block[bit / 64] |= 1 << (bit % 64);
        }
        self.added += 1;
    }

    /// A word of the fingerprint's block: reading it brings the cache line in.
    pub(super) fn touch(&self, shard: usize, fingerprint: u32) -> u64 {
        self.shards[shard][self.home(shard, fingerprint)].0[0]
    }

    /// Whether the fingerprint may have been added.
    pub(super) fn may_have(&self, shard: usize, fingerprint: u32) -> bool {
        let block = &self.shards[shard][self.home(shard, fingerprint)].0;
        let set = bits(fingerprint).map(|bit| block[bit / 64] >> (bit % 64) & 1);
        set.into_iter().all(|bit| bit == 1)
    }

    fn home(&self, shard: usize, fingerprint: u32) -> usize {
        ((u64::from(fingerprint) * self.shards[shard].len() as u64) >> 32) as usize
    }
}

/// The bits of an id in its block. Ids of one block share the fingerprint's high bits, so all of it is
/// mixed (the finalizer of MurmurHash3).
fn bits(fingerprint: u32) -> [usize; BITS as usize] {
    let mut mix = u64::from(fingerprint).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mix = (mix ^ mix >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    std::array::from_fn(|bit| {
        let shift = 64 - BIT_NUMBER_BITS * (bit as u32 + 1);
        (mix >> shift) as usize & (BLOCK_LEN * 8 - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: u64) -> (usize, u32) {
        let hash = blake3::hash(&n.to_le_bytes());
        let [shard, a, b, c, d, ..] = *hash.as_bytes();
        (shard.into(), u32::from_be_bytes([a, b, c, d]))
    }

    #[test]
    fn what_was_added_is_found_and_wrong_guesses_are_as_few_as_promised() {
        // 84, 11.8, 6.6 and 3.3 bits per id.
        for (cap_bytes, permille_max) in
            [(4_200_000, 1), (600_000, 10), (335_000, 60), (165_000, 280)]
        {
            let mut filter = Filter::new(cap_bytes).expect("has room for blocks");
            assert!(filter.bytes() <= cap_bytes);
            let ids = (0..400_000).map(random);
            ids.clone()
                .for_each(|(shard, print)| filter.add(shard, print));
            assert!({ ids }.all(|(shard, print)| filter.may_have(shard, print)));
            let others = (1 << 40..(1 << 40) + 100_000).map(random);
            let wrong = others.filter(|(shard, print)| filter.may_have(*shard, *print));
            let wrong = wrong.count();
            assert!(wrong < permille_max * 100, "{wrong} at {cap_bytes} bytes");
        }
        assert!(Filter::new(16 << 10).is_none());
    }
}
