//! Files that are written are read back; what is not a whole VHD is refused, and never reads past what is checked.

use std::convert::Infallible;

use proptest::prelude::*;

use super::blocks::UNUSED;
use super::error::{Part, Problem, VhdError};
use super::footer::{DiskType, Footer, Geometry, timestamp};
use super::header::{BlockSize, DynamicHeader};
use super::image::{Content, Head, Image, OpenError};
use super::layout::{Identity, Layout, UnfitSize};
use super::locator::Locator;
use super::uuid::VhdUuid;
use super::{DISK_LEN_MAX, bitmap};
use crate::units::{DiskLength, DiskRange};

const IDENTITY: Identity = Identity {
    uuid: VhdUuid::derived([7; 16]),
    timestamp: 800_000_000,
};
const PARENT: Identity = Identity {
    uuid: VhdUuid::derived([9; 16]),
    timestamp: 700_000_000,
};

fn open(bytes: &[u8]) -> Result<Image, VhdError> {
    let opened = Image::open::<Infallible>(bytes.len() as u64, &mut |out, offset| {
        // A place that was not checked panics here.
        let offset = offset as usize;
        out.copy_from_slice(&bytes[offset..offset + out.len()]);
        Ok(())
    });
    opened.map_err(|error| match error {
        OpenError::Vhd(error) => error,
        OpenError::Read { source, .. } => match source {},
    })
}

fn problem(bytes: &[u8]) -> (Part, Problem) {
    let error = open(bytes).expect_err("it is wrong");
    (error.part, error.problem)
}

/// A VHD with small blocks: header, table and footer as given, blocks of 4 KiB filled with their number.
fn small(
    entries: &[u32],
    size: u64,
    change: impl FnOnce(&mut Footer, &mut DynamicHeader),
) -> Vec<u8> {
    let mut footer = Footer {
        header_offset: 512,
        timestamp: 1,
        creator: *b"win ",
        creator_version: 0x000a_0000,
        creator_system: *b"Wi2k",
        original_size: size,
        current_size: size,
        geometry: Geometry::of(DiskLength::new(size)),
        disk_type: DiskType::Dynamic,
        uuid: IDENTITY.uuid,
    };
    let mut header = DynamicHeader {
        table_offset: 1536,
        entries: entries.len() as u32,
        block_size: BlockSize::new(4096).expect("a size"),
        parent_uuid: VhdUuid::from_bytes([0; 16]),
        parent_timestamp: 0,
        parent_name: String::new(),
        locators: [Locator::NONE; 8],
    };
    change(&mut footer, &mut header);
    let mut out = footer.encode().to_vec();
    out.extend(header.encode());
    out.extend(entries.iter().flat_map(|sector| sector.to_be_bytes()));
    out.resize(2048, 0);
    for number in 0..4 {
        out.extend([0xff; 512]);
        out.extend([number; 4096]);
    }
    out.extend(footer.encode());
    out
}

/// Where the block with so many before it lies in [`small`].
fn sector(before: u32) -> u32 {
    4 + before * 9
}

#[test]
fn times_count_from_2000() {
    assert_eq!(timestamp(946_684_800_999), 0);
    assert_eq!(timestamp(0), 0);
    assert_eq!(timestamp(946_684_801_000), 1);
    assert_eq!(timestamp(u64::MAX), u32::MAX);
}

#[test]
fn geometries_are_those_of_the_specification() {
    let of = |bytes| {
        let found = Geometry::of(DiskLength::new(bytes));
        (found.cylinders, found.heads, found.sectors)
    };
    assert_eq!(of(10 << 20), (301, 4, 17));
    assert_eq!(of(127 << 30), (65278, 16, 255));
    assert_eq!(of(1 << 30), (2080, 16, 63));
    assert_eq!(of(DISK_LEN_MAX), (65535, 16, 255));
    for mib in (1..4000).step_by(7) {
        let size = mib << 20;
        let bytes = Geometry::of(DiskLength::new(size)).bytes();
        assert!(bytes <= size && size - bytes < 1 << 20, "{mib}: {bytes}");
    }
}

#[test]
fn a_layout_is_as_long_as_xapi_expects() {
    let size = DiskLength::new((9 << 20) + 512);
    let data = [
        DiskRange::new(0, 1),
        DiskRange::new((4 << 20) - 1, (4 << 20) + 1),
    ];
    let layout = Layout::dynamic(size, IDENTITY, data).expect("a size");
    assert_eq!(layout.present(), [0, 1, 2]);
    assert_eq!(
        layout.len(),
        512 + 1024 + 512 + 512 + 3 * (512 + (2 << 20)) + 512
    );
    let head = layout.head();
    assert_eq!(head.len(), 2560);
    assert_eq!(&head[2048..2052], &5_u32.to_be_bytes());
    assert_eq!(&head[2060..2064], &UNUSED.to_be_bytes());
    assert_eq!(
        layout.block(2).map(|block| block.bitmap_offset),
        Some(2560 + 2 * (512 + (2 << 20)))
    );
    assert_eq!(layout.block(3), None);
}

#[test]
fn what_is_laid_out_opens() {
    let size = DiskLength::new(5 << 20);
    let differing = [
        DiskRange::new(4096, 4097),
        DiskRange::new((2 << 20) - 512, (2 << 20) + 513),
    ];
    let layout = Layout::differencing(size, IDENTITY, PARENT, differing.into_iter().collect())
        .expect("a size");
    let mut bytes = layout.head();
    for number in layout.present() {
        bytes.extend(layout.bitmap(*number));
        bytes.resize(bytes.len() + (2 << 20), 0);
    }
    bytes.extend(layout.footer());
    assert_eq!(bytes.len() as u64, layout.len());
    let image = open(&bytes).expect("it is whole");
    assert!(image.is_differencing());
    assert_eq!((image.size, image.footer.uuid), (size, IDENTITY.uuid));
    let header = image.header().expect("a header");
    assert_eq!(
        (header.parent_uuid, header.parent_timestamp),
        (PARENT.uuid, PARENT.timestamp)
    );
    let paths = image.parent_paths::<Infallible>(bytes.len() as u64, &mut |out, offset| {
        let offset = offset as usize;
        out.copy_from_slice(&bytes[offset..offset + out.len()]);
        Ok(())
    });
    let name = format!("{}.vhd", PARENT.uuid);
    assert_eq!(paths.expect("readable"), [format!("./{name}"), name]);
    let Content::Blocks { table, .. } = &image.content else {
        panic!("blocks");
    };
    for (number, set) in [(0, vec![8, 4095]), (1, vec![0, 1])] {
        let block = table.get(number).expect("it is there");
        assert_eq!(Some(block), layout.block(number as u32));
        let at = block.bitmap_offset as usize;
        let bits = &bytes[at..at + 512];
        let found: Vec<u32> = (0..4096)
            .filter(|sector| bitmap::is_set(bits, *sector))
            .collect();
        assert_eq!(found, set, "block {number}");
    }
    assert_eq!(table.get(2), None);
}

#[test]
fn disks_that_do_not_fit_are_refused() {
    for size in [0, 511, 1000, DISK_LEN_MAX + 512] {
        let size = DiskLength::new(size);
        let found = Layout::dynamic(size, IDENTITY, []).map(|_| ());
        assert_eq!(found, Err(UnfitSize { size }));
    }
    let largest = Layout::dynamic(DiskLength::new(DISK_LEN_MAX), IDENTITY, []);
    let head = largest.expect("it fits").head();
    assert_eq!(head.len(), 2048 + 4 * 1020 * 1024);
}

#[test]
fn a_small_one_is_read() {
    let bytes = small(
        &[sector(2), UNUSED, sector(0), UNUSED],
        3 * 4096 + 512,
        |_, _| {},
    );
    let image = open(&bytes).expect("it is whole");
    let Content::Blocks { table, .. } = &image.content else {
        panic!("blocks");
    };
    assert_eq!(table.len(), 2);
    assert_eq!(table.next(1).map(|block| block.number), Some(2));
    assert_eq!(table.next(3), None);
    let place = table.get(0).expect("it is there").data_offset as usize;
    assert_eq!(bytes[place], 2);
}

#[test]
fn sizes_of_those_who_count_in_cylinders_are_never_cut() {
    let size = 8192;
    for (creator, cylinders, expected) in [
        (*b"qemu", 2, 2 * 4 * 17 * 512),
        (*b"qemu", 0, size),
        (*b"win ", 2, size),
        (*b"qem2", 2, size),
    ] {
        let bytes = small(&[UNUSED; 64], size, |footer, _| {
            footer.creator = creator;
            footer.geometry = Geometry {
                cylinders,
                heads: 4,
                sectors: 17,
            };
        });
        let image = open(&bytes).expect("it is whole");
        assert_eq!(image.size.get(), expected, "{creator:?}");
    }
}

#[test]
fn fixed_disks_end_with_a_footer() {
    let footer = |size| {
        small(&[], size, |footer, _| {
            footer.disk_type = DiskType::Fixed;
            footer.header_offset = super::footer::NO_HEADER;
        })[..512]
            .to_vec()
    };
    let mut bytes = vec![1; 4096];
    bytes.extend(footer(4096));
    let image = open(&bytes).expect("it is whole");
    assert_eq!((image.size.get(), image.content), (4096, Content::Fixed));
    let past = Problem::PastEnd {
        end: 4096,
        limit: 3584,
    };
    assert_eq!(problem(&bytes[512..]), (Part::Footer, past));
}

#[test]
fn what_is_wrong_is_named() {
    fn small_with(change: &dyn Fn(&mut Footer, &mut DynamicHeader)) -> Vec<u8> {
        small(&[sector(0), sector(1)], 8192, change)
    }
    let bytes = small_with(&|_, _| {});
    assert!(open(&bytes).is_ok());
    let len = bytes.len() as u64;
    let cut = &bytes[..bytes.len() - 512];
    assert!(matches!(
        problem(cut),
        (Part::Footer, Problem::Cookie { .. })
    ));
    let cut = &bytes[..bytes.len() - 1];
    assert_eq!(
        problem(cut),
        (Part::Footer, Problem::FileLength { len: len - 1 })
    );
    assert_eq!(problem(&[]), (Part::Footer, Problem::FileLength { len: 0 }));
    let error = open(&cut[..100]).expect_err("it is short").to_string();
    assert_eq!(
        error,
        "the footer at byte 0: the file has 100 bytes, expected a multiple of 512, and 512 at least"
    );
    let mut other = bytes.clone();
    let end = bytes.len() - 512;
    let grown = small_with(&|footer, _| footer.uuid = PARENT.uuid);
    other[end..].copy_from_slice(&grown[end..]);
    assert_eq!(
        problem(&other),
        (Part::Footer, Problem::Differs { field: "UUID" })
    );
    for (wrong, part, expected) in [
        (
            small_with(&|footer, _| footer.current_size = DISK_LEN_MAX + 512),
            Part::Footer,
            Problem::DiskLength {
                found: DISK_LEN_MAX + 512,
            },
        ),
        (
            small_with(&|footer, _| (footer.creator, footer.creator_version) = (*b"tap\0", 1)),
            Part::Footer,
            Problem::OldTapdisk,
        ),
        (
            small_with(&|footer, _| footer.header_offset = u64::MAX),
            Part::DynamicHeader,
            Problem::PastEnd {
                end: u64::MAX,
                limit: len - 512,
            },
        ),
        (
            small_with(&|footer, _| footer.header_offset = 0),
            Part::DynamicHeader,
            Problem::Overlaps {
                other: "the footer's copy",
                range: DiskRange::new(0, 512),
            },
        ),
        (
            small_with(&|_, header| header.table_offset = 1024),
            Part::BlockTable,
            Problem::Overlaps {
                other: "the dynamic header",
                range: DiskRange::new(512, 1536),
            },
        ),
        (
            small_with(&|_, header| header.table_offset = len),
            Part::BlockTable,
            Problem::PastEnd {
                end: len + 512,
                limit: len - 512,
            },
        ),
        (
            small_with(&|_, header| header.entries = 1),
            Part::DynamicHeader,
            Problem::Entries {
                found: 1,
                needed: 2,
            },
        ),
        (
            small_with(&|_, header| header.entries = u32::MAX),
            Part::DynamicHeader,
            Problem::Entries {
                found: u32::MAX,
                needed: 2,
            },
        ),
        (
            small(&[sector(0), sector(0)], 8192, |_, _| {}),
            Part::BlockEntry(1),
            Problem::Overlaps {
                other: "another block",
                range: DiskRange::new(2048, 6656),
            },
        ),
        (
            small(&[sector(1), sector(0) + 1], 8192, |_, _| {}),
            Part::BlockEntry(0),
            Problem::Overlaps {
                other: "another block",
                range: DiskRange::new(2560, 7168),
            },
        ),
        (
            small(&[3, UNUSED], 8192, |_, _| {}),
            Part::BlockEntry(0),
            Problem::Overlaps {
                other: "the block allocation table",
                range: DiskRange::new(1536, 2048),
            },
        ),
        (
            small(&[UNUSED, sector(3) + 1], 8192, |_, _| {}),
            Part::BlockEntry(1),
            Problem::PastEnd {
                end: len,
                limit: len - 512,
            },
        ),
        (
            small(&[UNUSED, UNUSED - 1], 8192, |_, _| {}),
            Part::BlockEntry(1),
            Problem::PastEnd {
                end: (0xffff_fffe * 512) + 4608,
                limit: len - 512,
            },
        ),
    ] {
        assert_eq!(problem(&wrong), (part, expected));
    }
}

#[test]
fn heads_are_read_piece_by_piece() {
    let bytes = small(&[sector(0), UNUSED, sector(1)], 12288, |_, _| {});
    let needs = |len: usize| Image::of_head(&bytes[..len]).expect("nothing is wrong");
    for (len, expected) in [
        (0, 512),
        (511, 512),
        (512, 1536),
        (1535, 1536),
        (1536, 2048),
    ] {
        assert_eq!(needs(len), Head::Needs(expected), "{len} bytes");
    }
    let image = open(&bytes).expect("it is whole");
    assert_eq!(needs(2048), Head::Open(image.clone()));
    let end = bytes.len() - 512;
    let last = bytes[end..].try_into().expect("a sector");
    assert_eq!(image.check_end(&last, end as u64), Ok(()));
    let other = small(&[UNUSED], 4096, |_, _| {});
    let last = other[other.len() - 512..].try_into().expect("a sector");
    assert!(image.check_end(&last, end as u64).is_err());
    let disorder = small(&[sector(1), sector(0)], 8192, |_, _| {});
    let error = Image::of_head(&disorder[..2048]).expect_err("in no order");
    assert_eq!(
        (error.part, error.problem),
        (Part::BlockEntry(1), Problem::OutOfOrder)
    );
    let far = small(&[UNUSED], 4096, |_, header| header.table_offset = 1 << 40);
    let error = Image::of_head(&far[..1536]).expect_err("too far away");
    assert!(matches!(error.problem, Problem::PastEnd { .. }), "{error}");
}

#[test]
fn no_flipped_bit_of_footer_and_header_goes_unseen() {
    let bytes = small(&[sector(0), UNUSED], 8192, |_, _| {});
    let end = bytes.len() - 512;
    for at in (0..1536).chain(end..bytes.len()) {
        for bit in 0..8 {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << bit;
            assert!(open(&wrong).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn no_cut_goes_unseen() {
    let bytes = small(&[sector(0), UNUSED], 8192, |_, _| {});
    for len in 0..bytes.len() {
        assert!(open(&bytes[..len]).is_err(), "{len} bytes");
    }
}

proptest! {
    #[test]
    fn whatever_the_table_says_blocks_lie_apart_in_the_file(
        entries in proptest::collection::vec(prop_oneof![Just(UNUSED), 0..60_u32, any::<u32>()], 1..40),
    ) {
        let bytes = small(&entries, 4096 * entries.len() as u64, |_, _| {});
        let Ok(Image { content: Content::Blocks { table, .. }, .. }) = open(&bytes) else {
            return Ok(());
        };
        let mut places = vec![DiskRange::new(0, 2048)];
        for (number, entry) in (0..).zip(&entries) {
            let block = table.get(number);
            prop_assert_eq!(block.is_some(), *entry != UNUSED);
            places.extend(block.map(|block| DiskRange::new(block.bitmap_offset, block.data_offset + 4096)));
        }
        places.sort();
        prop_assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start));
        prop_assert!(places.last().unwrap().end <= bytes.len() as u64 - 512);
    }

    #[test]
    fn any_bytes_open_or_are_refused(
        start in proptest::collection::vec(any::<u8>(), 0..2048),
        flips in proptest::collection::vec((0..4096_usize, any::<u8>()), 0..8),
    ) {
        let _ = open(&start);
        let mut bytes = small(&[sector(1), UNUSED, sector(0)], 12288, |_, _| {});
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = open(&bytes);
    }
}
