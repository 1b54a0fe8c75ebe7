//! What the stories share: images, changed-block bitmaps, and runs of the real binary.
#![allow(dead_code, reason = "each story uses a part of it")]

pub mod certificates;
pub mod exporter;
pub mod exports;
pub mod exposition;
pub mod guest;
pub mod lab;
pub mod mounted;
pub mod packs;
pub mod proxied;
pub mod served;
pub mod server;
pub mod vhd;

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine;

/// A temporary directory of this crate's tests.
pub fn workspace() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

/// The binary with a repository and what every run here wants.
pub fn undercroft(repo: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
    command
        .env_remove("UNDERCROFT_REPO")
        .env_remove("UNDERCROFT_PASSPHRASE")
        .env_remove("UNDERCROFT_PROXY")
        .arg("--repo")
        .arg(repo)
        .stdin(Stdio::null());
    command
}

/// Runs and expects success.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the binary starts");
    assert!(
        output.status.success(),
        "{command:?}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs and expects this exit code; returns what was printed on standard error.
pub fn fail_with(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{text}");
    text
}

/// Runs with `--json` and parses what it prints.
pub fn json(command: &mut Command) -> serde_json::Value {
    let output = succeed(command.arg("--json"));
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// `len` bytes of noise from `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Numbers from a seed: SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A sparse disk image: holes, text, noise and repetitions, with a short last block.
pub struct Image {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub bytes: Vec<u8>,
}

impl Image {
    /// An image of `len` bytes from `seed`.
    pub fn new(path: PathBuf, seed: u64, len: usize) -> Self {
        let mut bytes = vec![0; len];
        const RUN: usize = 192 << 10;
        for (number, run) in bytes.chunks_mut(RUN).enumerate() {
            let seed = seed.wrapping_mul(1000) + number as u64;
            match number % 4 {
                0 => {}
                1 => run.copy_from_slice(&noise(seed, run.len())),
                2 => run.fill(b'a' + (number % 26) as u8),
                _ => run.copy_from_slice(&noise(number as u64 / 8, run.len())),
            }
        }
        let image = Self { path, bytes };
        image.write();
        image
    }

    /// Writes the image anew, sparsely.
    pub fn write(&self) {
        let mut file = std::fs::File::create(&self.path).expect("the image can be made");
        file.set_len(self.bytes.len() as u64)
            .expect("it can be sized");
        for (number, block) in self.bytes.chunks(4096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.seek(SeekFrom::Start(number as u64 * 4096))
                    .expect("it can be sought");
                file.write_all(block).expect("it can be written");
            }
        }
    }

    /// Overwrites 64 KiB blocks with noise and returns the bitmap of what changed, as XAPI gives it.
    pub fn change(&mut self, seed: u64, blocks: &[usize]) -> Vec<u8> {
        const BLOCK: usize = 64 << 10;
        let mut bitmap = vec![0_u8; self.bytes.len().div_ceil(BLOCK).div_ceil(8)];
        for block in blocks {
            let start = block * BLOCK;
            let end = (start + BLOCK).min(self.bytes.len());
            let new = noise(seed + *block as u64, end - start);
            self.bytes[start..end].copy_from_slice(&new);
            bitmap[block / 8] |= 0x80 >> (block % 8);
        }
        self.write();
        base64::engine::general_purpose::STANDARD
            .encode(bitmap)
            .into_bytes()
    }
}

/// All regular files below `root`, sorted.
pub fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("the directory can be listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Copies a directory tree.
pub fn copy_tree(source: &Path, target: &Path) {
    for file in files_below(source) {
        let to = target.join(file.strip_prefix(source).expect("it lies below"));
        std::fs::create_dir_all(to.parent().expect("it has one")).expect("a directory");
        std::fs::copy(&file, &to).expect("a copy");
    }
    for dir in ["packs", "snapshots", "index", "sessions", "damaged", "pins"] {
        std::fs::create_dir_all(target.join(dir)).expect("a directory");
    }
}

/// Restores `snapshot`'s only disk and compares it with `expected`.
pub fn assert_restores(repo: &Path, snapshot: &str, expected: &[u8], scratch: &Path) {
    let target = scratch.join("restored.raw");
    let _ = std::fs::remove_file(&target);
    succeed(
        undercroft(repo)
            .args(["restore", snapshot, "--to"])
            .arg(&target),
    );
    let restored = std::fs::read(&target).expect("the restored file");
    assert_eq!(restored.len(), expected.len(), "{snapshot}");
    let differs = restored.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{snapshot}: first byte that differs");
}
