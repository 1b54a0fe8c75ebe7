//! Which parts of which blocks an overlay has: in memory, with what is not durable yet.

use std::collections::{HashMap, HashSet};

use undercroft_format::overlay::{BlockState, ENTRY_LEN, Header, SLOT_LEN};

/// Bytes of the map in the file that are allocated at once.
pub(super) const PAGE_LEN: u64 = 4096;
const ENTRIES: usize = PAGE_LEN as usize / ENTRY_LEN;

/// The map. Pages of which nothing was ever written are not there.
#[derive(Debug, Default)]
pub(super) struct Map {
    pages: HashMap<u64, Box<[Known; ENTRIES]>>,
    dirty: HashSet<u64>,
    torn: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    state: BlockState,
    /// Of the slot that is durable; its lowest bit says which one that is.
    sequence: u64,
}

/// A change that is to be made durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirty {
    pub block: u64,
    pub state: BlockState,
    pub sequence: u64,
}

impl Dirty {
    /// Where in the entry its slot lies.
    pub fn slot_at(&self) -> u64 {
        (self.sequence & 1) * SLOT_LEN as u64
    }
}

impl Map {
    pub fn page_of(block: u64) -> u64 {
        block / ENTRIES as u64
    }

    /// Takes in a page of the file, of which the end may be missing.
    pub fn load(&mut self, header: &Header, page: u64, bytes: &[u8]) {
        let mut entries = Box::new([Known::default(); ENTRIES]);
        let (found, _) = bytes.as_chunks::<ENTRY_LEN>();
        for (place, bytes) in found.iter().enumerate() {
            let block = page * ENTRIES as u64 + place as u64;
            let entry = header.decode_entry(block, bytes);
            self.torn += u64::from(entry.torn > 0);
            entries[place] = Known {
                state: entry.state,
                sequence: entry.sequence,
            };
        }
        self.pages.insert(page, entries);
    }

    pub fn torn(&self) -> u64 {
        self.torn
    }

    pub fn state(&self, block: u64) -> BlockState {
        let page = self.pages.get(&Self::page_of(block));
        page.map_or_else(Default::default, |page| page[place_of(block)].state)
    }

    /// The blocks of which something is here, in order.
    pub fn blocks_here(&self) -> impl Iterator<Item = (u64, BlockState)> {
        let mut pages: Vec<_> = self.pages.keys().copied().collect();
        pages.sort_unstable();
        pages.into_iter().flat_map(|page| {
            let entries = self.pages[&page].iter().enumerate();
            let here = entries.filter(|(_, known)| known.state.here != 0);
            here.map(move |(place, known)| (page * ENTRIES as u64 + place as u64, known.state))
        })
    }

    pub fn change(&mut self, block: u64, change: impl FnOnce(BlockState) -> BlockState) {
        let page = self.pages.entry(Self::page_of(block)).or_insert_with(empty);
        let known = &mut page[place_of(block)];
        let state = change(known.state);
        if state != known.state {
            known.state = state;
            self.dirty.insert(block);
        }
    }

    /// True if the file has room for the page.
    pub fn has_room(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    pub fn note_room(&mut self, page: u64) {
        self.pages.entry(page).or_insert_with(empty);
    }

    /// What is to be made durable, as it is now. Not to be called again before it was said how that went.
    pub fn take_dirty(&mut self) -> Vec<Dirty> {
        let mut blocks: Vec<_> = self.dirty.drain().collect();
        blocks.sort_unstable();
        let dirty = blocks.into_iter().map(|block| {
            let known = &self.pages[&Self::page_of(block)][place_of(block)];
            Dirty {
                block,
                state: known.state,
                sequence: known.sequence + 1,
            }
        });
        dirty.collect()
    }

    pub fn are_durable(&mut self, dirty: &[Dirty]) {
        for entry in dirty {
            if let Some(page) = self.pages.get_mut(&Self::page_of(entry.block)) {
                page[place_of(entry.block)].sequence = entry.sequence;
            }
        }
    }

    pub fn are_dirty(&mut self, dirty: &[Dirty]) {
        self.dirty.extend(dirty.iter().map(|entry| entry.block));
    }
}

fn empty() -> Box<[Known; ENTRIES]> {
    Box::new([Known::default(); ENTRIES])
}

fn place_of(block: u64) -> usize {
    (block % ENTRIES as u64) as usize
}
