//! A VHD: of what opens, each block lies in the file, apart from the others and from what describes them; nothing is
//! read past the file's end; footers and headers are read back as they are written.
#![no_main]

use std::convert::Infallible;

use libfuzzer_sys::fuzz_target;
use undercroft_format::units::DiskRange;
use undercroft_format::vhd::bitmap::{is_set, run_end};
use undercroft_format::vhd::error::Part;
use undercroft_format::vhd::footer::Footer;
use undercroft_format::vhd::header::DynamicHeader;
use undercroft_format::vhd::image::{Content, Head, Image};
use undercroft_format::vhd::locator::{Locator, Platform};
use undercroft_format::vhd::{DISK_LEN_MAX, SECTOR_LEN};

fuzz_target!(|bytes: &[u8]| {
    let [mode, bytes @ ..] = bytes else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if mode % 4 == 0 {
        names(&bytes);
    }
    if mode % 2 == 1 {
        forge(&mut bytes);
    }
    head(&bytes);
    let len = bytes.len() as u64;
    let mut read = |out: &mut [u8], offset: u64| -> Result<(), Infallible> {
        let offset = offset as usize;
        out.copy_from_slice(&bytes[offset..offset + out.len()]);
        Ok(())
    };
    let Ok(image) = Image::open(len, &mut read) else {
        return;
    };
    let _ = image.parent_paths(len, &mut read);
    assert!(image.size.get() > 0 && image.size.get() <= DISK_LEN_MAX);
    let footer = Footer::parse(&image.footer.encode(), Part::Footer, 0);
    assert_eq!(footer, Ok(image.footer));
    let Content::Blocks { header, table } = &image.content else {
        assert!(image.size.get() <= len - SECTOR_LEN);
        return;
    };
    let again = DynamicHeader::parse(&header.encode(), 0, image.size).expect("it was read before");
    assert_eq!((again.locators, again.entries), (header.locators, header.entries));
    let mut taken = vec![
        DiskRange::new(0, SECTOR_LEN),
        DiskRange::new(image.footer.header_offset, image.footer.header_offset + 1024),
        DiskRange::new(header.table_offset, header.table_offset + header.table_len()),
    ];
    let size = table.block_size();
    let mut next = 0;
    while let Some(block) = table.next(next) {
        next = u64::from(block.number) + 1;
        assert!(size.range_of(block.number.into()).start < image.size.get());
        taken.push(DiskRange::new(block.bitmap_offset, block.data_offset + size.bytes()));
        let bits = &bytes[block.bitmap_offset as usize..block.data_offset as usize];
        let mut at = 0;
        while at < size.sectors() {
            let end = run_end(bits, at, size.sectors());
            assert!(end > at && is_set(bits, end - 1) == is_set(bits, at));
            at = end;
        }
    }
    taken.sort_unstable();
    assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert!(taken.last().is_some_and(|last| last.end <= len - SECTOR_LEN));
});

/// A stream asks for no more than it says, and comes to an end with that.
fn head(bytes: &[u8]) {
    let mut len = 0;
    while let Some(head) = bytes.get(..len) {
        match Image::of_head(head) {
            Ok(Head::Needs(more)) => {
                assert!(more > len as u64 && more < 32 << 20);
                len = more as usize;
            }
            Ok(Head::Open(_)) | Err(_) => return,
        }
    }
}

fn names(bytes: &[u8]) {
    for platform in [Platform::WindowsRelative, Platform::WindowsAbsolute, Platform::FileUrl] {
        let locator = Locator {
            platform,
            ..Locator::NONE
        };
        if let Some(path) = locator.path(bytes) {
            assert!(!path.is_empty() && !path.contains(['\0', '\\']));
        }
    }
}

/// Makes the checksums fit.
fn forge(bytes: &mut [u8]) {
    let Some(end) = bytes.len().checked_sub(512) else {
        return;
    };
    let place = bytes[16..24].try_into().expect("eight bytes");
    let place = usize::try_from(u64::from_be_bytes(place)).unwrap_or(usize::MAX);
    for (at, len, field) in [(0, 512, 64), (end, 512, 64), (place, 1024, 36)] {
        if let Some(part) = at.checked_add(len).and_then(|end| bytes.get_mut(at..end)) {
            part[field..field + 4].fill(0);
            let sum: u32 = part.iter().map(|byte| u32::from(*byte)).sum();
            part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }
}
