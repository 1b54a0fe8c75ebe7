//! The seal of a cleanly closed index: length and checksum of every file, so that one flipped bit is found.
//!
//! | size | field |
//! | --- | --- |
//! | 8 | magic `UCSEAL` 00 01, the last byte is the version |
//! | varint | number of files |
//! | | per file, by name: name (length-prefixed), length (varint), XXH3-64 (8) |
//! | 8 | XXH3-64 of all before |
//!
//! An owner breaks the seal before it touches anything else, and seals again after everything is closed
//! and synced. Table files of RocksDB never change: their checksums are carried over from seal to seal, so
//! that damage done in between is not sealed in.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use undercroft_format::codec::{DecodeError, Problem, Reader, checksum, put_string, put_varint};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"UCSEAL\0\x01";
const SEAL: &str = "seal";
/// What files are called until they are whole.
const NEW: &str = ".new";
const NAME_LEN_MAX: u64 = 255;
const READ_LEN: usize = 1 << 20;

/// What [`check_seal`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealState {
    /// Every file is as it was sealed.
    Clean,
    /// No seal: in use, or never cleanly closed. Nothing can be said about the files.
    Open,
    /// These files, named relative to the directory, changed or vanished. `seal`: the seal itself did.
    Damaged(Vec<String>),
}

/// Compares an index's files with its seal. Reads all of them; changes nothing.
///
/// Files that the seal does not name are not looked at. A directory that does not exist is `Open`.
///
/// # Errors
/// When a file cannot be read at all, for a reason other than that it is missing.
pub fn check_seal(dir: &Path) -> io::Result<SealState> {
    let bytes = match fs::read(dir.join(SEAL)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SealState::Open),
        Err(error) => return Err(error),
    };
    let Ok(seal) = Seal::decode(&bytes) else {
        return Ok(SealState::Damaged(vec![SEAL.to_owned()]));
    };
    let mut damaged = Vec::new();
    for (name, sealed) in seal.files {
        match SealedFile::of(&dir.join(&name)) {
            Ok(found) if found == sealed => {}
            Ok(_) => damaged.push(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => damaged.push(name),
            Err(error) => return Err(error),
        }
    }
    Ok(if damaged.is_empty() {
        SealState::Clean
    } else {
        SealState::Damaged(damaged)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SealedFile {
    len: u64,
    sum: u64,
}

/// The files of an index as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seal {
    files: BTreeMap<String, SealedFile>,
}

impl Seal {
    /// The seal of a directory. One that is missing or unreadable names no files.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        match fs::read(dir.join(SEAL)) {
            Ok(bytes) => Ok(Self::decode(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Takes the seal off a directory, durably, if there is one.
    pub(super) fn remove(dir: &Path) -> io::Result<()> {
        match fs::remove_file(dir.join(SEAL)) {
            Ok(()) => sync_dir(dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The first file that differs, as far as that can be told quickly: lengths of table files, contents
    /// of others. RocksDB takes a manifest that was cut short for an older state. `except` checks itself.
    pub(super) fn glance(&self, dir: &Path, except: &str) -> io::Result<Option<PathBuf>> {
        for (name, sealed) in self.files.iter().filter(|(name, _)| *name != except) {
            let path = dir.join(name);
            let same = if is_table(name) {
                fs::metadata(&path).map(|found| found.len() == sealed.len)
            } else {
                SealedFile::of(&path).map(|found| found == *sealed)
            };
            match same {
                Ok(true) => {}
                Ok(false) => return Ok(Some(path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(path)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Seals a directory whose files are closed and synced. Table files that this earlier seal knows are
    /// not read again.
    pub(super) fn renew(&self, dir: &Path) -> io::Result<()> {
        let mut seal = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let metadata = entry.metadata()?;
            if !metadata.is_file() || name == SEAL || name.ends_with(NEW) {
                continue;
            }
            let known = self.files.get(&name);
            let known = known.filter(|file| file.len == metadata.len() && is_table(&name));
            let file = match known {
                Some(file) => *file,
                None => SealedFile::of(&entry.path())?,
            };
            seal.files.insert(name, file);
        }
        replace_file(dir, SEAL, |file| file.write_all(&seal.encode()))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, self.files.len() as u64);
        for (name, file) in &self.files {
            put_string(&mut out, name);
            put_varint(&mut out, file.len);
            out.extend_from_slice(&file.sum.to_le_bytes());
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("index seal", bytes);
        let covered = reader.clone().take(bytes.len().saturating_sub(8))?;
        reader.magic(MAGIC)?;
        let count = reader.count("files", u64::MAX, 10)?;
        let mut files = BTreeMap::new();
        for _ in 0..count {
            let name = reader.string("file name", NAME_LEN_MAX)?;
            let len = reader.varint("file length", u64::MAX)?;
            let sum = reader.u64()?;
            files.insert(name, SealedFile { len, sum });
        }
        if reader.u64()? != checksum(covered) {
            return Err(reader.error(Problem::Checksum));
        }
        reader.finish()?;
        Ok(Self { files })
    }
}

impl SealedFile {
    fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hash = Xxh3::new();
        let mut buffer = vec![0; READ_LEN];
        let mut len = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            len += read as u64;
        }
        let sum = hash.digest();
        Ok(Self { len, sum })
    }
}

/// Puts a whole, synced file in the place of the one of that name.
pub(super) fn replace_file(
    dir: &Path,
    name: &str,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let new = dir.join(format!("{name}{NEW}"));
    let mut file = File::create(&new)?;
    write(&mut file)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name))?;
    sync_dir(dir)
}

/// Table files never change once written.
fn is_table(name: &str) -> bool {
    name.ends_with(".sst")
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("a.sst"), [1; 100]).expect("writes");
        fs::write(dir.path().join("CURRENT"), b"MANIFEST-1\n").expect("writes");
        Seal::default().renew(dir.path()).expect("seals");
        dir
    }

    #[test]
    fn a_sealed_directory_is_clean_until_any_bit_flips() {
        let dir = sealed();
        assert_eq!(check_seal(dir.path()).expect("reads"), SealState::Clean);
        for name in ["a.sst", "CURRENT", "seal"] {
            let path = dir.path().join(name);
            let whole = fs::read(&path).expect("reads");
            for place in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[place] ^= 1 << (place % 8);
                fs::write(&path, flipped).expect("writes");
                let state = check_seal(dir.path()).expect("reads");
                assert_eq!(
                    state,
                    SealState::Damaged(vec![name.to_owned()]),
                    "byte {place}"
                );
            }
            fs::write(&path, &whole[1..]).expect("writes");
            assert_ne!(check_seal(dir.path()).expect("reads"), SealState::Clean);
            fs::write(&path, whole).expect("writes");
        }
        fs::remove_file(dir.path().join("a.sst")).expect("removes");
        let state = check_seal(dir.path()).expect("reads");
        assert_eq!(state, SealState::Damaged(vec!["a.sst".to_owned()]));
    }

    #[test]
    fn damage_between_two_seals_is_not_sealed_in() {
        let dir = sealed();
        let seal = Seal::read(dir.path()).expect("reads");
        Seal::remove(dir.path()).expect("removes");
        assert_eq!(check_seal(dir.path()).expect("reads"), SealState::Open);
        let mut flipped = [1; 100];
        flipped[50] = 0;
        fs::write(dir.path().join("a.sst"), flipped).expect("writes");
        seal.renew(dir.path()).expect("seals");
        let state = check_seal(dir.path()).expect("reads");
        assert_eq!(state, SealState::Damaged(vec!["a.sst".to_owned()]));
    }
}
