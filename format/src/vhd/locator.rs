//! Parent locators: names of a differencing disk's parent, each as one system writes paths.

use super::{SECTOR_LEN, array, be32, be64};

/// Locators that a dynamic header has.
pub const LOCATORS: usize = 8;
/// Longest name that is read, in bytes.
pub const LOCATOR_LEN_MAX: u32 = 4096;

/// How a name is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// No name.
    None,
    /// A Windows path from the child's directory, in UTF-16, little-endian: `W2ru`.
    WindowsRelative,
    /// A Windows path from a root, in UTF-16, little-endian: `W2ku`.
    WindowsAbsolute,
    /// A `file:` URL in UTF-8: `MacX`. What Xen's tools write.
    FileUrl,
    /// Something else.
    Other([u8; 4]),
}

impl Platform {
    const fn of(code: [u8; 4]) -> Self {
        match &code {
            b"\0\0\0\0" => Self::None,
            b"W2ru" => Self::WindowsRelative,
            b"W2ku" => Self::WindowsAbsolute,
            b"MacX" => Self::FileUrl,
            _ => Self::Other(code),
        }
    }

    const fn code(self) -> [u8; 4] {
        match self {
            Self::None => *b"\0\0\0\0",
            Self::WindowsRelative => *b"W2ru",
            Self::WindowsAbsolute => *b"W2ku",
            Self::FileUrl => *b"MacX",
            Self::Other(code) => code,
        }
    }
}

/// One locator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    /// How the name is written.
    pub platform: Platform,
    /// Room for it: bytes, or sectors where that is less than 512, which writers do not agree about.
    pub space: u32,
    /// Bytes of the name.
    pub len: u32,
    /// Where in the file it is.
    pub offset: u64,
}

impl Locator {
    /// A locator that is not used.
    pub const NONE: Self = Self {
        platform: Platform::None,
        space: 0,
        len: 0,
        offset: 0,
    };

    pub(super) fn parse(bytes: [u8; 24]) -> Self {
        Self {
            platform: Platform::of(array(&bytes, 0)),
            space: be32(&bytes, 4),
            len: be32(&bytes, 8),
            offset: be64(&bytes, 16),
        }
    }

    pub(super) fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[0..4].copy_from_slice(&self.platform.code());
        out[4..8].copy_from_slice(&self.space.to_be_bytes());
        out[8..12].copy_from_slice(&self.len.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out
    }

    /// The path that a locator's bytes name, with `/` between its parts; `None` if they name none.
    pub fn path(&self, bytes: &[u8]) -> Option<String> {
        let path = match self.platform {
            Platform::WindowsRelative | Platform::WindowsAbsolute => utf16(bytes)?,
            Platform::FileUrl => {
                let text = std::str::from_utf8(bytes).ok()?;
                let path = text.trim_end_matches('\0').strip_prefix("file://")?;
                // `file://./name` is what Xen's tools write, with a dot where others have a host.
                percent_decoded(path.strip_prefix("localhost").unwrap_or(path))?
            }
            Platform::None | Platform::Other(_) => return None,
        };
        let path = path.replace('\\', "/");
        (!path.is_empty() && !path.contains('\0')).then_some(path)
    }

    /// The bytes of a path, as this locator writes them, and the locator for them at `offset`.
    pub fn relative(name: &str, offset: u64) -> (Self, Vec<u8>) {
        let path = format!(".\\{name}");
        let bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let locator = Self {
            platform: Platform::WindowsRelative,
            space: bytes.len().next_multiple_of(SECTOR_LEN as usize) as u32,
            len: bytes.len() as u32,
            offset,
        };
        (locator, bytes)
    }
}

fn utf16(bytes: &[u8]) -> Option<String> {
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16(&units).ok()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || (bytes.next()? as char).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(code: &[u8; 4], bytes: &[u8]) -> Option<String> {
        let locator = Locator {
            platform: Platform::of(*code),
            ..Locator::NONE
        };
        locator.path(bytes)
    }

    #[test]
    fn paths_of_all_systems_are_read() {
        let windows =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(path(b"W2ru", &windows(".\\a b.vhd")), some("./a b.vhd"));
        assert_eq!(
            path(b"W2ku", &windows("C:\\d\\a.vhd\0\0")),
            some("C:/d/a.vhd")
        );
        assert_eq!(path(b"MacX", b"file://./a%20b.vhd\0"), some("./a b.vhd"));
        assert_eq!(path(b"MacX", b"file:///d/a.vhd"), some("/d/a.vhd"));
        for (code, bytes) in [
            (b"MacX", &b"file://a%2"[..]),
            (b"MacX", b"file://a%00b"),
            (b"MacX", b"\0\0\0\0"),
            (b"W2ru", b"\0\0"),
            (b"W2ru", b"\x00\xd8"),
            (b"Wi2k", b"a"),
            (b"\0\0\0\0", b"a"),
        ] {
            assert_eq!(path(code, bytes), None, "{code:?} {bytes:?}");
        }
    }

    #[test]
    fn a_relative_name_is_read_back() {
        let (locator, bytes) = Locator::relative("ü.vhd", 1536);
        assert_eq!(Locator::parse(locator.encode()), locator);
        assert_eq!(locator.path(&bytes), Some("./ü.vhd".into()));
        assert_eq!((locator.space, locator.len as usize), (512, bytes.len()));
    }
}
