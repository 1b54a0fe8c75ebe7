//! What tasks may read and write: what lies below some directories, links followed, and exports of some NBD
//! servers.
//!
//! Paths are looked at when a task comes and again when it opens them, and what is opened is the path that was
//! looked at, without links. Whoever can rename directories below a root can still race with that; a root is to
//! be given only where those who can are trusted.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

use super::exports::AllowedExport;
use crate::failure::Problem;
use crate::nbd_source::is_nbd;

/// The directories and servers.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    reads: Vec<PathBuf>,
    exports: Vec<AllowedExport>,
    writes: Vec<PathBuf>,
    /// The proxy's own files: never.
    own: Vec<PathBuf>,
}

impl Bounds {
    /// Below `reads` tasks may read, below `writes` they may write, below `own` neither.
    pub fn new(reads: &[PathBuf], writes: &[PathBuf], own: &[PathBuf]) -> anyhow::Result<Self> {
        let real = |roots: &[PathBuf]| -> anyhow::Result<Vec<PathBuf>> {
            let real = roots.iter().map(|root| {
                root.canonicalize()
                    .with_context(|| format!("looking at the directory {}", root.display()))
            });
            real.collect()
        };
        Ok(Self {
            reads: real(reads)?,
            exports: Vec::new(),
            writes: real(writes)?,
            own: real(own)?,
        })
    }

    /// The same, and tasks may read the exports that `exports` name.
    pub fn with_exports(mut self, exports: &[AllowedExport]) -> Self {
        self.exports = exports.to_vec();
        self
    }

    /// What tasks may read, as it may be shown: directories, then NBD servers.
    pub fn shown_reads(&self) -> Vec<String> {
        let dirs = self.reads.iter().map(|dir| dir.display().to_string());
        let exports = self.exports.iter().map(ToString::to_string);
        dirs.chain(exports).collect()
    }

    /// Below which directories tasks may write.
    pub fn writes(&self) -> &[PathBuf] {
        &self.writes
    }

    /// A disk that may be read: what `source` leads to, or, of an export, its URI with what the proxy was told
    /// of the server's TLS.
    pub fn readable_disk(&self, source: &Path) -> anyhow::Result<PathBuf> {
        match source.to_str().filter(|_| is_nbd(source)) {
            Some(uri) => AllowedExport::find(&self.exports, uri).map(PathBuf::from),
            None => self.readable(source),
        }
    }

    /// The file or block device that `path` leads to, if it may be read.
    pub fn readable(&self, path: &Path) -> anyhow::Result<PathBuf> {
        check_absolute(path)?;
        if self.reads.is_empty() {
            return Err(
                Problem::new("this proxy reads no files: it was started without --read")
                    .hint("start it with --read DIR for each directory below which tasks may read")
                    .into(),
            );
        }
        let real = path.canonicalize();
        let real = match real {
            Ok(real) => real,
            // Whether there is something outside is nobody's business.
            Err(error) if self.is_below(&self.reads, path) => {
                return Err(error).with_context(|| {
                    let path = path.display();
                    format!("looking for {path} on the proxy's machine, where paths are looked up")
                });
            }
            Err(_) => return Err(outside(path, "--read")),
        };
        if !self.is_below(&self.reads, &real) {
            return Err(outside(path, "--read"));
        }
        let kind = fs::metadata(&real)
            .with_context(|| format!("looking at {}", real.display()))?
            .file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Problem::new(format!(
                "{} is no file and no block device: a proxy reads nothing else",
                path.display()
            ))
            .into());
        }
        Ok(real)
    }

    /// Whether `path`, which need not be there, may be written.
    pub fn check_writable(&self, path: &Path) -> anyhow::Result<()> {
        check_absolute(path)?;
        if self.writes.is_empty() {
            return Err(Problem::new(
                "this proxy writes nothing: it was started without --write, so it takes no restores",
            )
            .hint("start it with --write DIR for each directory below which tasks may write")
            .into());
        }
        let real = real_part(path).map_err(|_| outside(path, "--write"))?;
        if !self.is_below(&self.writes, &real) {
            return Err(outside(path, "--write"));
        }
        let kind = fs::metadata(&real).map(|meta| meta.file_type());
        if kind.is_ok_and(|kind| kind.is_fifo() || kind.is_char_device() || kind.is_socket()) {
            return Err(Problem::new(format!(
                "{} is a stream: a proxy writes to files and block devices",
                path.display()
            ))
            .into());
        }
        Ok(())
    }

    fn is_below(&self, roots: &[PathBuf], path: &Path) -> bool {
        let is_below = |root: &PathBuf| path.starts_with(root);
        roots.iter().any(is_below) && !self.own.iter().any(is_below)
    }
}

fn check_absolute(path: &Path) -> anyhow::Result<()> {
    if path.as_os_str() == "-" {
        return Err(Problem::usage("a proxy has no standard input or output").into());
    }
    if !path.is_absolute() {
        let text = format!("the path {} is not absolute", path.display());
        return Err(Problem::usage(text).into());
    }
    Ok(())
}

fn outside(path: &Path, option: &str) -> anyhow::Error {
    Problem::new(format!(
        "{} is outside of what this proxy may touch: it lies below no {option} of it",
        path.display()
    ))
    .hint("`undercroft proxy status` lists the directories; an administrator starts the proxy with more of them")
    .into()
}

/// `path` with links followed as far as it is there, and the rest as it is.
fn real_part(path: &Path) -> io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut there = path;
    loop {
        match there.canonicalize() {
            Ok(real) => {
                missing.reverse();
                return Ok(missing.into_iter().fold(real, |path, name| path.join(name)));
            }
            // A link that leads nowhere is there, too: what it will lead to cannot be told.
            Err(error)
                if error.kind() != io::ErrorKind::NotFound || there.symlink_metadata().is_ok() =>
            {
                return Err(error);
            }
            Err(_) => {}
        }
        let Some(Component::Normal(name)) = there.components().next_back() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        missing.push(name);
        there = there
            .parent()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        bounds: Bounds,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["in", "in/own", "out"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            for name in ["in/disk", "in/own/key", "out/disk"] {
                fs::write(dir.path().join(name), "x").unwrap();
            }
            let roots = [dir.path().join("in")];
            let own = [dir.path().join("in/own")];
            let bounds = Bounds::new(&roots, &roots, &own).unwrap();
            Self { dir, bounds }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn reads(&self, name: &str) -> bool {
            self.bounds.readable(&self.path(name)).is_ok()
        }

        fn writes(&self, name: &str) -> bool {
            self.bounds.check_writable(&self.path(name)).is_ok()
        }
    }

    #[test]
    fn only_what_lies_inside_is_touched_wherever_links_lead() {
        let place = Place::new();
        let link = |name: &str, to: &str| symlink(to, place.path(name)).unwrap();
        link("in/good", "disk");
        link("in/bad", "../out/disk");
        link("in/bad-dir", "../out");
        link("in/nowhere", "../out/later");
        link("out/back", "../in/disk");
        for (name, is_in) in [
            ("in/disk", true),
            ("in/good", true),
            ("out/back", true),
            ("in/bad", false),
            ("in/bad-dir/disk", false),
            ("in/../out/disk", false),
            ("in/own/key", false),
            ("out/disk", false),
            ("in", false),
            ("in/missing", false),
        ] {
            assert_eq!(place.reads(name), is_in, "reading {name}");
        }
        for (name, is_in) in [
            ("in/disk", true),
            ("in/new", true),
            ("in/new/deeper/", true),
            ("in/good", true),
            ("in/bad", false),
            ("in/bad-dir/new", false),
            ("in/nowhere", false),
            ("in/new/../../out/new", false),
            ("in/own/key", false),
            ("in/own/new", false),
            ("out/new", false),
        ] {
            assert_eq!(place.writes(name), is_in, "writing {name}");
        }
    }

    #[test]
    fn without_roots_nothing_is_touched() {
        let bounds = Bounds::default();
        let refused = bounds.readable(Path::new("/etc/passwd")).unwrap_err();
        assert!(refused.to_string().contains("without --read"));
        let export = Path::new("nbd://host/disk");
        let refused = bounds.readable_disk(export).unwrap_err();
        assert!(refused.to_string().contains("reads no exports of host"));
        let refused = bounds.check_writable(Path::new("/tmp/x")).unwrap_err();
        assert!(refused.to_string().contains("without --write"));
    }

    #[test]
    fn streams_and_relative_paths_are_refused() {
        let bounds = Bounds::new(&["/".into()], &["/".into()], &[]).unwrap();
        for path in ["-", "disk", "../disk", "/dev/zero", "/"] {
            assert!(bounds.readable(Path::new(path)).is_err(), "{path}");
        }
        for path in ["-", "disk", "/dev/null"] {
            assert!(bounds.check_writable(Path::new(path)).is_err(), "{path}");
        }
    }
}
