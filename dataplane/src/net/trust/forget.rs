//! What an authority forgets.
//!
//! Who is not on the list is not let in, so forgetting lets nobody in; it only makes a refusal say less.

use std::collections::BTreeMap;
use std::time::Duration;

use super::registry::{IDENTITIES_MAX, Registry, TOKENS_MAX};
use super::time::UnixMs;

/// Tokens and identities are remembered so long after their end, to say why they are refused.
const MEMORY: Duration = Duration::from_secs(90 * 24 * 3600);

impl Registry {
    /// True if there is something that ended long ago.
    pub fn has_old(&self, now: UnixMs) -> bool {
        let horizon = now.before(MEMORY);
        self.tokens.values().any(|token| token.not_after < horizon)
            || self
                .identities
                .values()
                .any(|entry| entry.not_after < horizon)
    }

    /// Forgets what ended long ago; and where a list is full, what is of no use any more, the oldest first.
    pub fn forget_old(&mut self, now: UnixMs) {
        let horizon = now.before(MEMORY);
        self.tokens.retain(|_, token| token.not_after >= horizon);
        self.identities
            .retain(|_, entry| entry.not_after >= horizon);
        make_room(&mut self.tokens, TOKENS_MAX, |token| {
            (token.used.is_some() || now >= token.not_after).then_some(token.not_after)
        });
        make_room(&mut self.identities, IDENTITIES_MAX, |entry| {
            (!entry.is_live(now)).then_some(entry.not_after)
        });
    }
}

/// Removes entries until there are fewer than `limit`, in the order of what `ended` says of them.
fn make_room<K: Ord + Copy, V>(
    entries: &mut BTreeMap<K, V>,
    limit: usize,
    ended: impl Fn(&V) -> Option<UnixMs>,
) {
    while entries.len() >= limit {
        let oldest = entries
            .iter()
            .filter_map(|(key, value)| ended(value).map(|end| (end, *key)))
            .min();
        match oldest {
            Some((_, key)) => entries.remove(&key),
            None => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_list_loses_the_oldest_that_is_of_no_use_and_nothing_else() {
        let mut entries: BTreeMap<u8, Option<u64>> =
            [(1, None), (2, Some(30)), (3, Some(20)), (4, None)].into();
        let ended = |end: &Option<u64>| end.map(UnixMs::from_seconds);
        make_room(&mut entries, 5, ended);
        assert_eq!(entries.len(), 4);
        make_room(&mut entries, 4, ended);
        assert_eq!(entries.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
        make_room(&mut entries, 1, ended);
        assert_eq!(entries.keys().copied().collect::<Vec<_>>(), [1, 4]);
    }
}
