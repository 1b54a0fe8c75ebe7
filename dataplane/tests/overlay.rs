//! Overlays on a simulated disk: against a model, with the power failing after each operation, without room.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use undercroft_dataplane::disk::{Allocation, ReadDisk};
use undercroft_dataplane::io::{BlockFile, SimOp, SimStorage, Storage};
use undercroft_dataplane::nbd::export::{WriteDisk, ZeroFlags};
use undercroft_dataplane::overlay::Overlay;
use undercroft_dataplane::overlay::disk::OverlayDisk;
use undercroft_format::id::{RepositoryId, SnapshotId};
use undercroft_format::overlay::{DataPlace, Header, PART_LEN};
use undercroft_format::units::{DiskLength, DiskRange};

/// Several blocks, and an end within a part.
const SIZE: usize = (300 << 10) + 1536;
const SECTOR: usize = 512;
const ANY: [u64; 3] = [SECTOR as u64, PART_LEN, 1];
/// As guests write: what is less than a sector has no order on a disk.
const SECTORS: [u64; 3] = [SECTOR as u64, PART_LEN, SECTOR as u64];

/// A disk that never changes: its second 100 KiB are a hole.
struct Below(Vec<u8>);

const HOLE: DiskRange = DiskRange::new(100 << 10, 200 << 10);

impl Below {
    fn new() -> Arc<Self> {
        let byte = |at: usize| match HOLE.start as usize <= at && at < HOLE.end as usize {
            true => 0,
            false => (at / 97) as u8 | 1,
        };
        Arc::new(Self((0..SIZE).map(byte).collect()))
    }
}

impl ReadDisk for Below {
    fn size(&self) -> DiskLength {
        DiskLength::new(SIZE as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        let found = self.0.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn allocation(&self, range: DiskRange, parts_max: usize) -> io::Result<Vec<Allocation>> {
        let parts = [
            (DiskRange::new(0, HOLE.start), true),
            (HOLE, false),
            (DiskRange::new(HOLE.end, SIZE as u64), true),
        ];
        let parts = parts.into_iter().map(|(part, is_data)| Allocation {
            range: part.intersect(range),
            is_data,
        });
        let parts = parts.filter(|part| !part.range.is_empty());
        Ok(parts.take(parts_max).collect())
    }
}

fn header() -> Header {
    Header {
        data: DataPlace::Here,
        id: [9; 16],
        size: DiskLength::new(SIZE as u64),
        repository: RepositoryId::from_bytes([1; 16]),
        snapshot: SnapshotId::from_bytes([2; 16]),
        label: "root".to_owned(),
    }
}

fn open(storage: &SimStorage) -> OverlayDisk {
    let file = storage.open_write("o", false).expect("it is there");
    let header = Overlay::read_header(&*file).expect("it is an overlay");
    let overlay = Overlay::open(file, None, header).expect("it can be read");
    OverlayDisk::new(Arc::new(overlay), Below::new())
}

fn create(storage: &SimStorage) -> OverlayDisk {
    let file: Arc<dyn BlockFile> = storage.create("o", false).expect("a file");
    let overlay = Overlay::create(file, header()).expect("there is room");
    storage.sync_dir("").expect("a name");
    OverlayDisk::new(Arc::new(overlay), Below::new())
}

fn all(disk: &OverlayDisk) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    disk.read_at(0, &mut bytes).expect("nothing is lost");
    bytes
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Zeros(DiskRange, bool),
    Trim(DiskRange),
    Flush,
}

/// Lengths and places are multiples of one of `units`.
fn ops(seed: u64, count: usize, units: [u64; 3]) -> Vec<Op> {
    let random = &mut Random(seed);
    let op = |number: usize| {
        let unit = units[random.below(3) as usize];
        let start = random.below(SIZE as u64 / unit) * unit;
        let len_max = [3 * PART_LEN, 40 * PART_LEN][random.below(2) as usize];
        let len = 1 + random.below(len_max);
        let end = (start + len.next_multiple_of(unit)).min(SIZE as u64);
        let range = DiskRange::new(start, end);
        match random.below(8) {
            0 | 1 => Op::Flush,
            2 => Op::Zeros(range, true),
            3 => Op::Zeros(range, false),
            4 => Op::Trim(range),
            _ => Op::Write(start, vec![number as u8 | 128; range.len() as usize]),
        }
    };
    (0..count).map(op).collect()
}

/// What the disk must hold.
struct Model {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Bytes of each sector's writes since the last flush.
    since: Vec<Vec<Vec<u8>>>,
}

impl Model {
    fn new() -> Self {
        let bytes = Below::new().0.clone();
        Self {
            durable: bytes.clone(),
            since: vec![Vec::new(); SIZE.div_ceil(SECTOR)],
            bytes,
        }
    }

    fn put(&mut self, range: DiskRange, byte: u8) {
        if range.is_empty() {
            return;
        }
        self.bytes[range.start as usize..range.end as usize].fill(byte);
        for sector in range.start as usize / SECTOR..(range.end as usize).div_ceil(SECTOR) {
            let to = ((sector + 1) * SECTOR).min(SIZE);
            self.since[sector].push(self.bytes[sector * SECTOR..to].to_vec());
        }
    }

    fn does(&mut self, op: &Op) {
        match op {
            Op::Write(start, bytes) => {
                self.put(DiskRange::new(*start, start + bytes.len() as u64), bytes[0]);
            }
            Op::Zeros(range, _) => self.put(*range, 0),
            Op::Trim(range) => {
                let end = match range.end == SIZE as u64 {
                    true => range.end,
                    false => range.end / PART_LEN * PART_LEN,
                };
                let start = range.start.next_multiple_of(PART_LEN);
                self.put(DiskRange::new(start, end).intersect(*range), 0);
            }
            Op::Flush => {}
        }
    }

    fn flushed(&mut self) {
        self.durable.clone_from(&self.bytes);
        self.since.iter_mut().for_each(Vec::clear);
    }

    /// Each sector is as it was flushed, or as one of the writes since made it.
    fn assert_may_be(&self, found: &[u8], what: &str) {
        for (sector, bytes) in found.chunks(SECTOR).enumerate() {
            let at = sector * SECTOR;
            let is_durable = bytes == &self.durable[at..at + bytes.len()];
            let is_newer = self.since[sector].iter().any(|newer| newer == bytes);
            assert!(is_durable || is_newer, "{what}: sector {sector} is neither");
        }
    }
}

fn does(disk: &OverlayDisk, op: &Op) -> io::Result<()> {
    match op {
        Op::Write(start, bytes) => disk.write_at(*start, bytes),
        Op::Zeros(range, may_punch) => {
            let may_punch = *may_punch;
            disk.write_zeros(*range, ZeroFlags { may_punch })
        }
        Op::Trim(range) => disk.trim(*range),
        Op::Flush => disk.flush(),
    }
}

#[test]
fn it_is_the_disk_that_was_written_now_and_when_it_is_opened_again() {
    for seed in 0..30 {
        let storage = SimStorage::new();
        let mut disk = create(&storage);
        let mut model = Model::new();
        for (number, op) in ops(seed, 60, ANY).iter().enumerate() {
            does(&disk, op).expect("nothing fails");
            model.does(op);
            let what = || format!("seed {seed}, operation {number}: {op:?}");
            assert!(all(&disk) == model.bytes, "{}", what());
            if matches!(op, Op::Flush) {
                drop(disk);
                disk = open(&storage);
                assert_eq!(disk.overlay().torn(), 0);
                assert!(all(&disk) == model.bytes, "opened again, {}", what());
            }
            assert_allocation(&disk, &model.bytes);
        }
    }
}

/// What is told of holes has no gaps, and no hole has anything in it.
fn assert_allocation(disk: &OverlayDisk, bytes: &[u8]) {
    for (start, parts_max) in [(0, usize::MAX), (5000, 3), (70_001, 1)] {
        let range = DiskRange::new(start, SIZE as u64);
        let parts = disk.allocation(range, parts_max).expect("it is known");
        let mut at = start;
        assert!(!parts.is_empty() && parts.len() <= parts_max);
        for (place, part) in parts.iter().enumerate() {
            assert_eq!(part.range.start, at);
            assert!(!part.range.is_empty());
            at = part.range.end;
            let here = &bytes[part.range.start as usize..at as usize];
            assert!(part.is_data || here.iter().all(|byte| *byte == 0));
            assert!(place == 0 || parts[place - 1].is_data != part.is_data);
        }
        assert!(parts.len() == parts_max || at == SIZE as u64);
    }
}

#[test]
fn what_was_flushed_survives_the_power_failing_anywhere() {
    for seed in 0..4 {
        let script = ops(100 + seed, 24, SECTORS);
        let before = {
            let storage = SimStorage::new();
            create(&storage);
            storage.op_count()
        };
        for crash_after in before.. {
            let storage = SimStorage::new();
            let disk = create(&storage);
            storage.set_crash_after(crash_after);
            let mut model = Model::new();
            let mut crashed = false;
            for op in &script {
                model.does(op);
                if does(&disk, op).is_err() {
                    crashed = true;
                    break;
                }
                if matches!(op, Op::Flush) {
                    model.flushed();
                }
            }
            for (number, state) in storage.crash_states(seed, 12).iter().enumerate() {
                let what = format!("seed {seed}, after {crash_after}, state {number}");
                let disk = open(state);
                let found = all(&disk);
                model.assert_may_be(&found, &what);
                // And it goes on from there.
                disk.write_at(3, b"again").expect("there is room");
                disk.flush().expect("it is there");
                drop(disk);
                let mut expected = found;
                expected[3..8].copy_from_slice(b"again");
                assert!(all(&open(state)) == expected, "{what}: gone on");
            }
            if !crashed {
                break;
            }
        }
    }
}

#[test]
fn without_room_nothing_earlier_is_lost_and_it_goes_on_with_room() {
    let full = rustix::io::Errno::NOSPC.raw_os_error();
    for seed in 0..20 {
        for failing in [1, 2, 3] {
            let storage = SimStorage::new();
            let disk = create(&storage);
            let mut model = Model::new();
            for (number, op) in ops(500 + seed, 40, ANY).iter().enumerate() {
                let is_to_fail = number % 5 == 4;
                if is_to_fail {
                    storage.fail_nth(SimOp::Write, failing, full);
                }
                let done = does(&disk, op);
                storage.clear_faults();
                if let Err(error) = &done {
                    assert!(is_to_fail);
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                    // Before or after, or in between; then it is done again.
                    does(&disk, op).expect("there is room");
                }
                model.does(op);
                assert!(all(&disk) == model.bytes, "seed {seed}, {failing}, {op:?}");
            }
            disk.flush().expect("there is room");
            drop(disk);
            assert!(all(&open(&storage)) == model.bytes, "seed {seed}");
        }
    }
}

#[test]
fn a_torn_entry_costs_at_most_its_block() {
    let storage = SimStorage::new();
    let disk = create(&storage);
    disk.write_at(0, &[1; 200 << 10]).expect("room");
    disk.flush().expect("room");
    disk.write_zeros(DiskRange::new(0, 4096), ZeroFlags { may_punch: true })
        .expect("room");
    disk.flush().expect("room");
    let block = undercroft_format::overlay::BLOCK_LEN as usize;
    drop(disk);
    // The second slot of block 0 is its first, the first its second; block 1 has one alone.
    storage.flip_bit("o", 4096 + 3, 0).expect("it is there");
    let disk = open(&storage);
    assert_eq!(disk.overlay().torn(), 1);
    let mut expected = Below::new().0.clone();
    expected[..200 << 10].fill(1);
    let mut found = vec![0; SIZE - 4096];
    disk.read_at(4096, &mut found)
        .expect("the other slot stands");
    assert!(found == expected[4096..]);
    drop(disk);
    storage
        .flip_bit("o", 4096 + 32 + 3, 0)
        .expect("it is there");
    let disk = open(&storage);
    let error = disk.read_at(100, &mut [0; 9]).expect_err("it is lost");
    assert!(error.to_string().contains("lost"), "{error}");
    let mut found = vec![0; SIZE - block];
    disk.read_at(block as u64, &mut found)
        .expect("other blocks are not");
    assert!(found == expected[block..]);
    // What is written over a lost part is known again.
    disk.write_at(5, &[2; 9])
        .expect_err("the rest of the part is not known");
    disk.write_at(0, &[3; 4096]).expect("room");
    disk.flush().expect("room");
    drop(disk);
    let disk = open(&storage);
    let mut found = [0; 4096];
    disk.read_at(0, &mut found).expect("it is known");
    assert_eq!(found, [3; 4096]);
    disk.read_at(4096, &mut found)
        .expect_err("the next part is lost still");
}

#[test]
fn blocks_are_written_by_many_at_once() {
    let storage = SimStorage::new();
    let disk = create(&storage);
    let places: BTreeSet<u64> = (0..SIZE as u64 / 700).map(|number| number * 700).collect();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (disk, places) = (&disk, &places);
            scope.spawn(move || {
                for place in places.iter().filter(|place| **place / 700 % 8 == thread) {
                    disk.write_at(*place, &[thread as u8 + 100; 700])
                        .expect("room");
                    if place % 7 == 0 {
                        disk.flush().expect("room");
                    }
                }
            });
        }
    });
    disk.flush().expect("room");
    drop(disk);
    let found = all(&open(&storage));
    for place in places {
        let byte = (place / 700 % 8) as u8 + 100;
        let at = place as usize;
        assert!(
            found[at..at + 700].iter().all(|found| *found == byte),
            "{place}"
        );
    }
}

/// The final place is the disk, whatever was there before and however filling and writing take turns.
#[test]
fn a_filled_place_is_the_disk_with_what_was_written() {
    for seed in 0..12 {
        let storage = SimStorage::new();
        let data = storage.create("place", false).expect("a file");
        data.write_all_at(&[0xaa; SIZE], 0).expect("room");
        let header = Header {
            data: DataPlace::Elsewhere,
            ..header()
        };
        let file = storage.create("o", false).expect("a file");
        drop(Overlay::create(file, header.clone()).expect("room"));
        let open = || {
            let file = storage.open_write("o", false).expect("it is there");
            let data = storage.open_write("place", false).expect("it is there");
            let overlay = Overlay::open(file, Some(data), header.clone()).expect("it can be read");
            OverlayDisk::new(Arc::new(overlay), Below::new())
        };
        let mut disk = open();
        let mut model = Model::new();
        for (number, op) in ops(900 + seed, 30, ANY).iter().enumerate() {
            does(&disk, op).expect("nothing fails");
            model.does(op);
            assert!(all(&disk) == model.bytes, "seed {seed}, {op:?}");
            if number == 15 {
                let mut pieces = 0;
                let filled = disk.fill(|_| {
                    pieces += 1;
                    seed % 2 == 0 || pieces < 1
                });
                assert!(filled.expect("room").missing.is_empty());
                drop(disk);
                disk = open();
                assert!(all(&disk) == model.bytes, "seed {seed}: opened again");
            }
        }
        let filled = disk.fill(|_| true).expect("room");
        assert_eq!((filled.bytes, filled.missing.len()), (SIZE as u64, 0));
        assert_eq!(disk.filled_bytes(), SIZE as u64);
        let mut found = vec![0; SIZE];
        data.read_at(&mut found, 0).expect("it is there");
        assert!(found == model.bytes, "seed {seed}: the place is the disk");
    }
}
