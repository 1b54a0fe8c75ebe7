//! Names and paths as a guest has them: bytes.

use std::fmt;

use super::error::{FileError, Result};

/// Bytes of a path; longer ones the kernel does not take either.
const PATH_LEN_MAX: usize = 4096;

/// The name of something in a directory, fit to be one anywhere: not empty, no dots alone, no slash, no NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(Vec<u8>);

impl FileName {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`FileError::BadName`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        let is_bad = bytes.is_empty()
            || bytes == b"."
            || bytes == b".."
            || bytes.iter().any(|byte| matches!(byte, b'/' | 0));
        if is_bad {
            Err(FileError::BadName)
        } else {
            Ok(Self(bytes))
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// [`Escaped`].
impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

/// Where something lies, from the root of a file system: `/a/b`, with names that are fit to be some.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(Vec<u8>);

impl FilePath {
    /// The root.
    pub fn root() -> Self {
        Self(b"/".to_vec())
    }

    /// From `/a/b`: repeated slashes and single dots count for nothing, two dots take a name away, as far as there is
    /// one. Links are not looked at.
    ///
    /// # Errors
    /// [`FileError::BadName`] for a NUL, [`FileError::TooLong`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > PATH_LEN_MAX {
            return Err(FileError::TooLong);
        }
        let mut names = Vec::new();
        for part in bytes.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(names.pop()),
                part => names.push(FileName::new(part)?),
            }
        }
        Ok(names
            .iter()
            .fold(Self::root(), |path, name| path.join(name)))
    }

    /// The names on the way.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = FileName> {
        let parts = self.0.split(|byte| *byte == b'/');
        parts
            .filter(|part| !part.is_empty())
            .map(|part| FileName(part.to_vec()))
    }

    /// The last of them, which the root has not.
    pub fn name(&self) -> Option<FileName> {
        self.names().next_back()
    }

    /// `name` in this directory.
    pub fn join(&self, name: &FileName) -> Self {
        let mut bytes = self.0.clone();
        if bytes != b"/" {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
        Self(bytes)
    }

    /// The name, and the directory that it is in.
    pub fn split(&self) -> Option<(FileName, Self)> {
        let name = self.name()?;
        let above = self.0.len() - name.0.len() - 1;
        Some((name, Self(self.0[..above.max(1)].to_vec())))
    }

    /// Where a link at this path leads that says `to`.
    ///
    /// # Errors
    /// As of [`parse`](Self::parse).
    pub fn beside(&self, to: &[u8]) -> Result<Self> {
        let above = match self.split() {
            Some((_, above)) if !to.starts_with(b"/") => above,
            _ => Self::root(),
        };
        Self::parse(&[&above.0, &b"/"[..], to].concat())
    }

    /// What comes after `start`, which this path begins with.
    pub(super) fn below(&self, start: &Self) -> &[u8] {
        let rest = self.0.strip_prefix(&start.0[..]).unwrap_or_default();
        rest.strip_prefix(b"/").unwrap_or(rest)
    }

    /// Beginning with a slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// [`Escaped`].
impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

/// Bytes that a guest chose, to be shown: as they are, but as `\n`, `\u{1b}` or `\xff` what a terminal would act upon or
/// is no text.
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                // Marks that turn the direction of writing can make a name look like another.
                let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
                let breaks = matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
                if c.is_control() || c == '\\' || turns || breaks {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    fmt::Write::write_char(f, c)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"../a", b"a\0"] {
            assert!(FileName::new(bad).is_err(), "{bad:?}");
        }
        for good in [&b"..."[..], b".a", b"a b", b"\xff\n"] {
            assert_eq!(FileName::new(good).unwrap().as_bytes(), good);
        }
    }

    #[test]
    fn paths_are_made_plain() {
        for (text, plain) in [
            ("", "/"),
            ("/", "/"),
            ("//a/./b/", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../a", "/a"),
            ("a/..", "/"),
        ] {
            let path = FilePath::parse(text.as_bytes()).unwrap();
            assert_eq!(path.as_bytes(), plain.as_bytes(), "{text}");
        }
        assert!(FilePath::parse(b"/a\0").is_err());
        assert!(FilePath::parse(&vec![b'a'; 4097]).is_err());
    }

    #[test]
    fn links_lead_from_where_they_are() {
        let path = FilePath::parse(b"/a/link").unwrap();
        for (to, leads) in [
            ("b", "/a/b"),
            ("../b", "/b"),
            ("/b", "/b"),
            ("../../..", "/"),
            (".", "/a"),
        ] {
            assert_eq!(
                path.beside(to.as_bytes()).unwrap().to_string(),
                leads,
                "{to}"
            );
        }
        assert_eq!(
            FilePath::parse(b"/a").unwrap().split().unwrap().1,
            FilePath::root()
        );
        let (name, above) = path.split().unwrap();
        assert_eq!(
            (name.to_string(), above.to_string()),
            ("link".into(), "/a".into())
        );
        assert_eq!(path.below(&above), b"link");
        assert_eq!(path.below(&FilePath::root()), b"a/link");
        assert_eq!(path.below(&path), b"");
    }

    #[test]
    fn what_a_terminal_would_act_upon_is_escaped() {
        let shown = |bytes: &[u8]| FileName::new(bytes).unwrap().to_string();
        assert_eq!(shown("grün.txt".as_bytes()), "grün.txt");
        assert_eq!(shown(b"\x1b[31m\r\n\t\x7f"), "\\u{1b}[31m\\r\\n\\t\\u{7f}");
        assert_eq!(shown(b"a\\n\xff\xc3"), "a\\\\n\\xff\\xc3");
        assert_eq!(
            shown("a\u{9b}m\u{202e}txt".as_bytes()),
            "a\\u{9b}m\\u{202e}txt"
        );
    }
}
