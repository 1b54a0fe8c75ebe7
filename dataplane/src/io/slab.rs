//! Values with small reusable numbers for names.

/// Values by key; a removed value's key is used again.
pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    /// No values.
    pub(super) fn new() -> Slab<T> {
        Slab {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Keeps `value` and gives its key.
    pub(super) fn insert(&mut self, value: T) -> usize {
        let key = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[key] = Some(value);
        key
    }

    /// The value of `key`, which must be in use.
    pub(super) fn get_mut(&mut self, key: usize) -> &mut T {
        self.slots[key].as_mut().expect("the key is in use")
    }

    /// Takes out the value of `key`, which must be in use.
    pub(super) fn remove(&mut self, key: usize) -> T {
        let value = self.slots[key].take().expect("the key is in use");
        self.free.push(key);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_used_again() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(slab.remove(a), 'a');
        assert_eq!(slab.insert('c'), a);
        *slab.get_mut(b) = 'd';
        assert_eq!((slab.remove(b), slab.len()), ('d', 1));
    }

    #[test]
    #[should_panic(expected = "the key is in use")]
    fn a_key_is_removed_once() {
        let mut slab = Slab::new();
        let key = slab.insert(());
        slab.remove(key);
        slab.remove(key);
    }
}
