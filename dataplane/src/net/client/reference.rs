//! What a session knows of its reference, and which segments it found as they are there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use undercroft_format::id::SegmentMapId;
use undercroft_format::units::SegmentNumber;
use undercroft_format::wire::reference::{
    AskReference, ReferenceMaps, SegmentsUnchanged, ShortId, UnchangedSegment,
};
use undercroft_format::wire::session::{DoneSegment, SEGMENTS_MAX, SegmentPlace};

use crate::clock::Stopwatch;
use crate::repository::error::Result;

/// Segments that are asked for together: 64 GiB of disk are 32 KiB of answer.
const WINDOW: u64 = SEGMENTS_MAX as u64;
/// Windows of a disk that are kept: workers are in two at most.
const WINDOWS_MAX: usize = 2;
/// So many unchanged segments are told of at once ...
const TOLD_MAX: usize = 256;
/// ... or those of so long: they would be read again if the client died.
const TELL_EVERY_MS: u128 = 1_000;

/// The maps of the reference, by disk, as far as they were asked for.
pub struct Reference {
    windows: Vec<Mutex<VecDeque<Window>>>,
    is_distrusted: AtomicBool,
}

struct Window {
    first: u64,
    maps: Vec<ShortId>,
}

impl Window {
    fn has(&self, number: u64, map: SegmentMapId) -> bool {
        let short = self.maps.get((number - self.first) as usize);
        short.is_some_and(|short| !short.is_none() && *short == ShortId::of(map))
    }
}

impl Reference {
    /// That of a session with so many disks.
    pub fn new(disks: usize) -> Self {
        Self {
            windows: (0..disks).map(|_| Mutex::default()).collect(),
            is_distrusted: AtomicBool::new(false),
        }
    }

    /// It may have lost something: what it has says nothing from here on.
    pub fn distrust(&self) {
        self.is_distrusted.store(true, Ordering::SeqCst);
    }

    fn windows(&self, place: SegmentPlace) -> Option<&Mutex<VecDeque<Window>>> {
        let windows = self.windows.get(usize::from(place.disk))?;
        (!self.is_distrusted.load(Ordering::SeqCst)).then_some(windows)
    }

    /// Whether the reference has this map at this place. Lets `ask` ask for what is not known yet.
    pub fn has(
        &self,
        place: SegmentPlace,
        map: SegmentMapId,
        ask: impl FnOnce(AskReference) -> Result<ReferenceMaps>,
    ) -> Result<bool> {
        let number = place.number.0;
        let first = number - number % WINDOW;
        let Some(windows) = self.windows(place) else {
            return Ok(false);
        };
        // Others that want the same window wait for the answer.
        let mut windows = windows.lock();
        if let Some(window) = windows.iter().find(|window| window.first == first) {
            return Ok(window.has(number, map));
        }
        let ReferenceMaps { maps } = ask(AskReference {
            disk: place.disk,
            first: SegmentNumber(first),
            count: WINDOW as u16,
        })?;
        let window = Window { first, maps };
        let has = window.has(number, map);
        if windows.len() == WINDOWS_MAX {
            windows.pop_front();
        }
        windows.push_back(window);
        Ok(has)
    }

    /// Whether it is known that the reference has a segment as it was done.
    pub fn is_known_to_have(&self, place: SegmentPlace, done: &DoneSegment) -> bool {
        let number = place.number.0;
        let (Some(map), Some(windows)) = (done.map, self.windows(place)) else {
            return false;
        };
        let is_here =
            |window: &Window| window.first == number - number % WINDOW && window.has(number, map);
        done.replaced_bytes == 0 && windows.lock().iter().any(is_here)
    }
}

/// Unchanged segments that the server was not told of yet.
#[derive(Default)]
pub struct Unchanged(Mutex<Untold>);

#[derive(Default)]
struct Untold {
    since: Option<Stopwatch>,
    segments: BTreeMap<SegmentPlace, u32>,
}

impl Unchanged {
    /// Adds a segment; what is to be told now, if it is time.
    pub fn add(&self, place: SegmentPlace, data_bytes: u32) -> Vec<SegmentsUnchanged> {
        let mut untold = self.0.lock();
        untold.segments.insert(place, data_bytes);
        let since = untold.since.get_or_insert_with(Stopwatch::start);
        let is_time = since.elapsed().as_millis() >= TELL_EVERY_MS;
        if is_time || untold.segments.len() >= TOLD_MAX {
            return untold.take();
        }
        Vec::new()
    }

    /// All that is left to be told.
    pub fn take(&self) -> Vec<SegmentsUnchanged> {
        self.0.lock().take()
    }
}

impl Untold {
    fn take(&mut self) -> Vec<SegmentsUnchanged> {
        self.since = None;
        let segments: Vec<_> = std::mem::take(&mut self.segments).into_iter().collect();
        segments
            .chunk_by(|(one, _), (next, _)| one.disk == next.disk)
            .map(|of_disk| SegmentsUnchanged {
                disk: of_disk[0].0.disk,
                segments: of_disk
                    .iter()
                    .map(|(place, data_bytes)| UnchangedSegment {
                        number: place.number,
                        data_bytes: *data_bytes,
                    })
                    .collect(),
            })
            .collect()
    }
}
