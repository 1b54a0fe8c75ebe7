//! `undercroft ls`.

use std::ffi::OsString;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use undercroft_dataplane::files::walk::{Descend, Step, walk};
use undercroft_dataplane::files::{
    DirectoryEntry, Escaped, FileError, FileInfo, FileKind, FilePath, Listing,
};
use undercroft_format::id::SnapshotId;

use crate::access::PinnedRead;
use crate::failure::{Outcome, Problem, warn};
use crate::file_spec::FileSpec;
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::units::Size;
use crate::volume::{self, OpenedDisk, Volume, VolumeView};

/// Text is written in pieces of about this length.
const PIECE_LEN: usize = 64 << 10;

/// List files inside a disk, its partitions, or the disks of a snapshot
///
/// SNAPSHOT lists disks, SNAPSHOT:DISK partitions and what they hold, SNAPSHOT:DISK:PART/PATH files. PART, a number as
/// in 2 or p2, is needed only where there are several file systems. What can be read as a time belongs to the
/// SNAPSHOT: `web01@2026-11-22T03:00:root/etc`. Nothing is mounted, and no root is needed. Read are ext2, ext3, ext4 and
/// FAT; other file systems through `undercroft mount`.
///
/// JSON: of a snapshot and of a disk an object; of files a line each: path, type (file, directory, link, special), size,
/// mode, owner, group, modified, target, error. A name that is not UTF-8 has its bytes in path_hex, too.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// What to list
    #[arg(value_name = "SNAPSHOT[:DISK[:PART]][/PATH]")]
    spec: OsString,
    /// Show mode, owner, size, time, and where links lead
    #[arg(short, long)]
    long: bool,
    /// List directories within directories, too
    #[arg(short = 'R', long)]
    recursive: bool,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let spec = FileSpec::parse(args.spec)?;
    let read = volume::open_snapshot(settings, &spec)?;
    if spec.path.is_none() && spec.disk.disk.is_none() {
        return list_disks(settings, &read);
    }
    let disk = OpenedDisk::open(&read, &spec)?;
    let path = match spec.path {
        Some(path) => path,
        None if disk.wanted.is_some() => FilePath::root(),
        None => return list_volumes(settings, &disk),
    };
    let volume = disk.choose()?;
    let style = Style {
        json: settings.json,
        long: args.long,
        time_zone: settings.time_zone.clone(),
    };
    volume::contained(&spec.text, || {
        list_files(&volume, &path, args.recursive, &style)
    })
}

fn list_disks(settings: &Settings, read: &PinnedRead) -> anyhow::Result<Outcome> {
    #[derive(Serialize)]
    struct Disks<'a> {
        snapshot: SnapshotId,
        vm: &'a str,
        disks: Vec<Disk<'a>>,
    }
    #[derive(Serialize)]
    struct Disk<'a> {
        label: &'a str,
        size: u64,
    }
    let stored = &read.snapshots[0];
    let disks = stored.snapshot.disks.iter();
    let disks = disks
        .map(|disk| Disk {
            label: &disk.label,
            size: disk.size.get(),
        })
        .collect();
    let view = Disks {
        snapshot: stored.id,
        vm: &stored.snapshot.vm,
        disks,
    };
    report::emit(settings, &view, |text| {
        let mut table = Table::new(&[("DISK", Align::Left), ("SIZE", Align::Right)]);
        for disk in &view.disks {
            table.row(vec![disk.label.to_owned(), Size(disk.size).to_string()]);
        }
        table.write(text);
    })?;
    Ok(Outcome::Done)
}

fn list_volumes(settings: &Settings, disk: &OpenedDisk) -> anyhow::Result<Outcome> {
    #[derive(Serialize)]
    struct Volumes<'a> {
        snapshot: SnapshotId,
        disk: &'a str,
        size: u64,
        table: String,
        volumes: Vec<VolumeView>,
        notes: Vec<String>,
    }
    let volumes = disk.volumes();
    let notes = disk.table.notes.iter();
    let view = Volumes {
        snapshot: disk.snapshot,
        disk: &disk.label,
        size: disk.disk.size().get(),
        table: disk.table.scheme.to_string(),
        volumes: volumes.iter().map(Volume::view).collect(),
        notes: notes.map(ToString::to_string).collect(),
    };
    report::emit(settings, &view, |text| {
        line!(
            text,
            "Disk {}, {}, partition table: {}",
            disk.label,
            Size(view.size),
            view.table
        );
        volume::write_volumes(text, &volumes);
    })?;
    let damaged = volumes.iter().any(|volume| volume.kind.is_err());
    Ok(Outcome::of(damaged))
}

/// How files are listed.
struct Style {
    json: bool,
    long: bool,
    time_zone: TimeZone,
}

fn list_files(
    volume: &Volume,
    path: &FilePath,
    recursive: bool,
    style: &Style,
) -> anyhow::Result<Outcome> {
    let tree = volume.open()?;
    let fail = |error: FileError| Problem::new(format!("{path} on {}: {error}", volume.name()));
    let (mut found, mut info) = tree.find(path).map_err(fail)?;
    // As `ls` does: a link to a directory shows what is in that.
    if let FileKind::Link(_) = info.kind
        && let Ok(followed) = tree.follow(path)
        && followed.1.is_directory()
    {
        (found, info) = followed;
    }
    let mut out = Output {
        style,
        text: String::new(),
        damaged: false,
    };
    if !info.is_directory() {
        let (name, above) = found.split().ok_or(FileError::NotFound).map_err(fail)?;
        out.entry(
            &above,
            &DirectoryEntry {
                name,
                info: Ok(info),
            },
            false,
        )?;
    } else if recursive {
        walk(&*tree, &found, &mut |step| {
            match step {
                Step::Entry(path, entry) => out.entry(path, entry, true)?,
                Step::Fault(path, fault) => out.fault(path, fault),
                Step::Enter(_) | Step::Leave(_) => {}
            }
            Ok::<_, anyhow::Error>(Descend::Yes)
        })?;
    } else {
        let Listing {
            mut entries,
            faults,
        } = tree.list(&found).map_err(fail)?;
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        for entry in &entries {
            out.entry(&found, entry, false)?;
        }
        faults.iter().for_each(|fault| out.fault(&found, fault));
    }
    report::print(out.text.as_bytes())?;
    Ok(Outcome::of(out.damaged))
}

struct Output<'a> {
    style: &'a Style,
    text: String,
    damaged: bool,
}

/// A file in JSON.
#[derive(Serialize)]
struct FileView {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    r#type: Option<&'static str>,
    size: Option<u64>,
    mode: Option<String>,
    owner: Option<u32>,
    group: Option<u32>,
    modified: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Output<'_> {
    fn fault(&mut self, path: &FilePath, error: &FileError) {
        self.damaged = true;
        warn(format_args!("{path}: {error}"));
    }

    /// The name, or the whole path; JSON always has the path.
    fn entry(
        &mut self,
        directory: &FilePath,
        entry: &DirectoryEntry,
        whole: bool,
    ) -> anyhow::Result<()> {
        let path = directory.join(&entry.name);
        if self.style.json {
            let view = file_view(&path, entry);
            line!(self.text, "{}", serde_json::to_string(&view)?);
        } else {
            let name = if whole {
                path.to_string()
            } else {
                entry.name.to_string()
            };
            match (&entry.info, self.style.long) {
                (Ok(info), true) => self.long_line(&name, info),
                _ => line!(self.text, "{name}"),
            }
        }
        if let Err(error) = &entry.info {
            self.fault(&path, error);
        }
        if self.text.len() >= PIECE_LEN {
            report::print(self.text.as_bytes())?;
            self.text.clear();
        }
        Ok(())
    }

    fn long_line(&mut self, name: &str, info: &FileInfo) {
        let letter = match info.kind {
            FileKind::File => '-',
            FileKind::Directory => 'd',
            FileKind::Link(_) => 'l',
            FileKind::Special(letter) => letter,
        };
        let mode = info.mode.map_or("?????????".to_owned(), mode_text);
        let owner = match info.owner {
            Some(owner) => format!("{}:{}", owner.user, owner.group),
            None => "-".to_owned(),
        };
        let time = match modified(info) {
            Some(time) => time
                .to_zoned(self.style.time_zone.clone())
                .strftime("%Y-%m-%d %H:%M")
                .to_string(),
            None => "-".to_owned(),
        };
        let target = match &info.kind {
            FileKind::Link(to) => format!(" -> {}", Escaped(to)),
            _ => String::new(),
        };
        line!(
            self.text,
            "{letter}{mode} {owner:>11} {:>12} {time:>16} {name}{target}",
            info.len
        );
    }
}

fn modified(info: &FileInfo) -> Option<Timestamp> {
    let modified = info.modified?;
    Timestamp::new(modified.seconds, i32::try_from(modified.nanoseconds).ok()?).ok()
}

/// As `ls -l` has it.
fn mode_text(mode: u16) -> String {
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut text = String::new();
    for (class, (bit, with, without)) in special.into_iter().enumerate() {
        let bits = mode >> (6 - 3 * class);
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & bit != 0, bits & 1 != 0) {
            (true, true) => with,
            (true, false) => without,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn file_view(path: &FilePath, entry: &DirectoryEntry) -> FileView {
    let bytes = path.as_bytes();
    let info = entry.info.as_ref().ok();
    let is_text = std::str::from_utf8(bytes).is_ok();
    let hex = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    FileView {
        path: String::from_utf8_lossy(bytes).into_owned(),
        path_hex: (!is_text).then(hex),
        r#type: info.map(|info| match info.kind {
            FileKind::File => "file",
            FileKind::Directory => "directory",
            FileKind::Link(_) => "link",
            FileKind::Special(_) => "special",
        }),
        size: info.map(|info| info.len),
        mode: info
            .and_then(|info| info.mode)
            .map(|mode| format!("{mode:04o}")),
        owner: info.and_then(|info| info.owner).map(|owner| owner.user),
        group: info.and_then(|info| info.owner).map(|owner| owner.group),
        modified: info.and_then(modified),
        target: info.and_then(|info| match &info.kind {
            FileKind::Link(to) => Some(String::from_utf8_lossy(to).into_owned()),
            _ => None,
        }),
        error: entry.info.as_ref().err().map(ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_ls_writes_them() {
        for (mode, text) in [
            (0o755, "rwxr-xr-x"),
            (0o4755, "rwsr-xr-x"),
            (0o6644, "rwSr-Sr--"),
            (0o1777, "rwxrwxrwt"),
            (0o1000, "--------T"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }
}
