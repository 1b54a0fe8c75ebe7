//! Which granules of an arena are taken: a first-fit bitmap, no memory of its own to hand out.
//!
//! A set bit is a taken granule. Runs never overlap and are given back exactly as they were taken; both
//! are asserted, because a granule handed out twice would be two owners of the same memory.

/// First-fit allocator over a fixed number of granules.
pub(super) struct Granules {
    words: Vec<u64>,
    count: usize,
    taken: usize,
}

impl Granules {
    /// All `count` granules free.
    pub(super) fn new(count: usize) -> Granules {
        Granules {
            words: vec![0; count.div_ceil(64)],
            count,
            taken: 0,
        }
    }

    /// Granules taken now.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Takes the lowest free run of `run` granules and gives its first, or `None` if no gap is that long.
    pub(super) fn take(&mut self, run: usize) -> Option<usize> {
        let first = self.find(run)?;
        for granule in first..first + run {
            self.words[granule / 64] |= 1 << (granule % 64);
        }
        self.taken += run;
        Some(first)
    }

    /// Frees a run that [`Granules::take`] gave.
    pub(super) fn give_back(&mut self, first: usize, run: usize) {
        for granule in first..first + run {
            assert!(
                self.is_taken(granule),
                "granule {granule} was given back twice"
            );
            self.words[granule / 64] &= !(1 << (granule % 64));
        }
        self.taken -= run;
    }

    fn is_taken(&self, granule: usize) -> bool {
        self.words[granule / 64] & (1 << (granule % 64)) != 0
    }

    fn find(&self, run: usize) -> Option<usize> {
        assert!(run > 0, "an empty run has no place");
        let (mut first, mut free, mut granule) = (0, 0, 0);
        while granule < self.count {
            // A full word cannot hold any part of the run: step over it whole.
            if granule % 64 == 0 && self.words[granule / 64] == u64::MAX {
                free = 0;
                granule += 64;
                continue;
            }
            if self.is_taken(granule) {
                free = 0;
            } else {
                if free == 0 {
                    first = granule;
                }
                free += 1;
                if free == run {
                    return Some(first);
                }
            }
            granule += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lowest_gap_is_taken() {
        let mut granules = Granules::new(200);
        assert_eq!(granules.take(130), Some(0));
        assert_eq!(granules.take(10), Some(130));
        granules.give_back(0, 130);
        assert_eq!(granules.take(131), None);
        assert_eq!(granules.take(60), Some(0));
        assert_eq!(granules.take(60), Some(60));
        assert_eq!(granules.take(60), Some(140));
        assert_eq!(granules.taken(), 190);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_back_twice_is_caught() {
        let mut granules = Granules::new(4);
        let first = granules.take(2).expect("all are free");
        granules.give_back(first, 2);
        granules.give_back(first, 2);
    }

    proptest! {
        #[test]
        fn runs_never_overlap(steps in prop::collection::vec((1usize..40, any::<bool>()), 1..100)) {
            let mut granules = Granules::new(150);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (run, give) in steps {
                if give && !held.is_empty() {
                    let (first, run) = held.swap_remove(run % held.len());
                    granules.give_back(first, run);
                } else if let Some(first) = granules.take(run) {
                    prop_assert!(first + run <= 150);
                    prop_assert!(held.iter().all(|&(at, len)| at + len <= first || first + run <= at));
                    held.push((first, run));
                }
                prop_assert_eq!(granules.taken(), held.iter().map(|&(_, run)| run).sum::<usize>());
            }
        }
    }
}
