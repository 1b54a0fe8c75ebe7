//! VHDs made by other hands than the program's: differencing ones, which no tool at hand makes, and damaged ones.

use std::collections::BTreeMap;

const SECTOR: usize = 512;
pub const BLOCK: usize = 2 << 20;

/// A dynamic or differencing VHD.
#[derive(Clone)]
pub struct Vhd {
    pub size: u64,
    pub uuid: [u8; 16],
    /// The parent's UUID and file name.
    pub parent: Option<([u8; 16], String)>,
    pub creator: [u8; 4],
    /// Bitmap and data of the blocks that are there.
    blocks: BTreeMap<u32, (Vec<u8>, Vec<u8>)>,
}

impl Vhd {
    pub fn dynamic(size: usize, uuid: u8) -> Self {
        Self {
            size: size as u64,
            uuid: [uuid; 16],
            parent: None,
            creator: *b"tap\0",
            blocks: BTreeMap::new(),
        }
    }

    pub fn child(size: usize, uuid: u8, parent: u8, name: &str) -> Self {
        Self {
            parent: Some(([parent; 16], name.to_owned())),
            ..Self::dynamic(size, uuid)
        }
    }

    /// Writes whole sectors.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        for (number, sector) in bytes.chunks(SECTOR).enumerate() {
            let at = offset + number * SECTOR;
            let new = || (vec![0; SECTOR], vec![0; BLOCK]);
            let (bitmap, data) = self.blocks.entry((at / BLOCK) as u32).or_insert_with(new);
            let within = at % BLOCK;
            data[within..within + sector.len()].copy_from_slice(sector);
            let bit = within / SECTOR;
            bitmap[bit / 8] |= 1 << (7 - bit % 8);
        }
    }

    /// The file. Its blocks lie in no order, as they do when a guest wrote them.
    pub fn encode(&self) -> Vec<u8> {
        let entries = (self.size as usize).div_ceil(BLOCK);
        let table_len = (4 * entries).next_multiple_of(SECTOR);
        let mut out = self.footer();
        out.extend(self.header(entries as u32));
        out.extend(self.locator());
        let mut table = vec![0xff; table_len];
        let mut blocks: Vec<u8> = Vec::new();
        for (number, (bitmap, data)) in self.blocks.iter().rev() {
            let sector = (2048 + table_len + blocks.len()) / SECTOR;
            let at = 4 * *number as usize;
            table[at..at + 4].copy_from_slice(&(sector as u32).to_be_bytes());
            blocks.extend(bitmap);
            blocks.extend(data);
        }
        out.extend(table);
        out.extend(blocks);
        out.extend(self.footer());
        out
    }

    fn footer(&self) -> Vec<u8> {
        let mut out = vec![0; SECTOR];
        out[..8].copy_from_slice(b"conectix");
        out[11] = 2;
        out[13] = 1;
        out[22] = 2;
        out[28..32].copy_from_slice(&self.creator);
        out[33] = 1;
        out[35] = 3;
        out[40..48].copy_from_slice(&self.size.to_be_bytes());
        out[48..56].copy_from_slice(&self.size.to_be_bytes());
        out[56..60].copy_from_slice(&[0xff, 0xff, 16, 255]);
        out[63] = if self.parent.is_some() { 4 } else { 3 };
        out[68..84].copy_from_slice(&self.uuid);
        sum(&mut out, 64);
        out
    }

    fn header(&self, entries: u32) -> Vec<u8> {
        let mut out = vec![0; 1024];
        out[..8].copy_from_slice(b"cxsparse");
        out[8..16].fill(0xff);
        out[22] = 8;
        out[25] = 1;
        out[28..32].copy_from_slice(&entries.to_be_bytes());
        out[32..36].copy_from_slice(&(BLOCK as u32).to_be_bytes());
        if let Some((uuid, name)) = &self.parent {
            out[40..56].copy_from_slice(uuid);
            out[576..580].copy_from_slice(b"MacX");
            out[580..584].copy_from_slice(&1_u32.to_be_bytes());
            out[584..588].copy_from_slice(&(self.url(name).len() as u32).to_be_bytes());
            out[592..600].copy_from_slice(&1536_u64.to_be_bytes());
        }
        sum(&mut out, 36);
        out
    }

    fn url(&self, name: &str) -> String {
        format!("file://./{name}")
    }

    fn locator(&self) -> Vec<u8> {
        let mut out = match &self.parent {
            Some((_, name)) => self.url(name).into_bytes(),
            None => Vec::new(),
        };
        out.resize(SECTOR, 0);
        out
    }
}

/// Sets the checksum of a footer (64) or a header (36).
pub fn sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}
