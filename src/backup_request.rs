//! From the words of `undercroft backup` to a request: disks get their labels, bitmaps and lineages their
//! disks.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use undercroft_format::audit::AuditShare;
use undercroft_format::lock::LockEnd;
use undercroft_format::overlay::Header;

use crate::backup_job::{DiskRequest, Request, check_label, is_stdin};
use crate::failure::Problem;
use crate::guest::GuestRequest;
use crate::nbd_source::export_name;
use crate::vhd_source;
use crate::xva_source::XvaRequest;

/// Label of a stream on standard input.
const STREAM_LABEL: &str = "stream";

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Words {
    /// May be left out with an XVA, which has a name for it.
    pub vm: Option<String>,
    /// Instead of disks.
    pub xva: Option<PathBuf>,
    pub disks: Vec<String>,
    pub sources: Vec<PathBuf>,
    pub vhd_deltas: Vec<String>,
    /// Each with what it lies over.
    pub overlays: Vec<(PathBuf, Header)>,
    pub excluded: Vec<String>,
    pub guest: Option<GuestRequest>,
    pub changed_blocks: Vec<String>,
    pub metadata: Option<PathBuf>,
    pub tags: Vec<String>,
    pub lineage: Vec<String>,
    pub lock: Option<LockEnd>,
    pub audit: AuditShare,
}

impl Words {
    /// What they mean.
    pub fn request(self) -> anyhow::Result<Request> {
        let named = name_disks(&self.disks, &self.sources)?.into_iter();
        let is_labelled = |place| place < self.disks.len();
        let mut disks: Vec<_> = (0..)
            .zip(named)
            .map(|(place, (label, source))| DiskRequest {
                label,
                is_labelled: is_labelled(place),
                source,
                is_delta: false,
                overlay: None,
                changed_blocks: None,
                lineage: Vec::new(),
            })
            .collect();
        for text in &self.vhd_deltas {
            disks.push(vhd_delta(text)?);
        }
        disks.extend(
            self.overlays
                .into_iter()
                .map(|(source, header)| DiskRequest {
                    label: header.label.clone(),
                    is_labelled: true,
                    source,
                    is_delta: false,
                    overlay: Some(header),
                    changed_blocks: None,
                    lineage: Vec::new(),
                }),
        );
        for text in &self.changed_blocks {
            add_changed_blocks(&mut disks, text)?;
        }
        for text in &self.lineage {
            add_lineage(&mut disks, text)?;
        }
        Ok(Request {
            disks: match self.xva.is_some() || self.guest.is_some() {
                true => disks,
                false => leave_out(disks, &self.excluded, |disk| &disk.label)?,
            },
            excluded: self.excluded,
            xva: self
                .xva
                .map(|source| XvaRequest::new(source, self.vm.is_none())),
            vm: self.vm.unwrap_or_default(),
            guest: self.guest,
            metadata: self.metadata,
            tags: self.tags,
            lock: self.lock,
            audit: self.audit,
        })
    }
}

/// The disks with their labels: first those of `--disk`, then the others.
fn name_disks(disks: &[String], sources: &[PathBuf]) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut named: Vec<(String, PathBuf)> = Vec::new();
    for text in disks {
        let Some((label, source)) = text
            .split_once('=')
            .filter(|(_, source)| !source.is_empty())
        else {
            return Err(Problem::usage(format!("--disk {text}: should be LABEL=SOURCE")).into());
        };
        check_label(label)?;
        if named.iter().any(|(known, _)| known == label) {
            return Err(Problem::usage(format!("two disks are labelled {label}"))
                .hint("give each disk a label of its own")
                .into());
        }
        named.push((label.to_owned(), source.into()));
    }
    let mut taken: HashSet<String> = named.iter().map(|(label, _)| label.clone()).collect();
    for (place, source) in sources.iter().enumerate() {
        let stem = stem_label(source);
        let clashes = |label: &String| {
            let others = sources
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != place);
            taken.contains(label)
                || others
                    .into_iter()
                    .any(|(_, path)| stem_label(path) == *label)
        };
        let numbered = (named.len()..).map(|number| format!("disk{number}"));
        let label = std::iter::once(stem)
            .chain(numbered)
            .find(|label| check_label(label).is_ok() && !clashes(label))
            .expect("there is a number that is not taken");
        taken.insert(label.clone());
        named.push((label, source.clone()));
    }
    Ok(named)
}

fn stem_label(source: &Path) -> String {
    if is_stdin(source) {
        return STREAM_LABEL.to_owned();
    }
    let export = export_name(source).map(PathBuf::from);
    let vhd = vhd_source::files(source).and_then(|files| files.into_iter().next());
    let inner = export.or(vhd);
    let source = inner.as_deref().unwrap_or(source);
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    // What stands before the first '=' of --changed-blocks is a label.
    stem.replace('=', "_")
}

/// `[LABEL=]FILE[,OLDER...]`.
fn vhd_delta(text: &str) -> anyhow::Result<DiskRequest> {
    let split = text.split_once('=').filter(|_| !Path::new(text).exists());
    if split.is_some_and(|(_, files)| files.is_empty()) || text.is_empty() {
        return Err(
            Problem::usage(format!("--vhd-delta {text}: should be LABEL=FILE, or FILE")).into(),
        );
    }
    let (label, source) = match split {
        Some((label, files)) => (label.to_owned(), PathBuf::from(files)),
        None => (stem_label(Path::new(text)), PathBuf::from(text)),
    };
    check_label(&label)?;
    Ok(DiskRequest {
        label,
        is_labelled: split.is_some(),
        source,
        is_delta: true,
        overlay: None,
        changed_blocks: None,
        lineage: Vec::new(),
    })
}

fn unknown_label(option: &str, label: &str, disks: &[DiskRequest]) -> anyhow::Error {
    let labels: Vec<_> = disks.iter().map(|disk| disk.label.as_str()).collect();
    Problem::usage(format!("{option}: no disk is labelled {label:?}"))
        .hint(format!("the disks are labelled: {}", labels.join(", ")))
        .into()
}

/// The disks without those labelled as `excluded`; the others in their order.
pub fn leave_out<T>(
    mut disks: Vec<T>,
    excluded: &[String],
    label: impl Fn(&T) -> &str,
) -> anyhow::Result<Vec<T>> {
    let labels: Vec<String> = disks.iter().map(|disk| label(disk).to_owned()).collect();
    for text in excluded {
        if !labels.contains(text) {
            return Err(
                Problem::usage(format!("--exclude-disk: no disk is labelled {text:?}"))
                    .hint(format!("the disks are labelled: {}", labels.join(", ")))
                    .into(),
            );
        }
    }
    disks.retain(|disk| !excluded.iter().any(|text| text == label(disk)));
    if disks.is_empty() && !labels.is_empty() {
        return Err(Problem::usage("--exclude-disk leaves no disk to back up").into());
    }
    Ok(disks)
}

fn add_changed_blocks(disks: &mut [DiskRequest], text: &str) -> anyhow::Result<()> {
    let (disk, path) = match (text.split_once('='), &mut *disks) {
        (Some((label, path)), disks) if disks.iter().any(|disk| disk.label == label) => {
            let disk = disks.iter_mut().find(|disk| disk.label == label);
            (disk.expect("just seen"), path)
        }
        // A name with an '=' in it, for the only disk.
        (Some(_), [disk]) if Path::new(text).exists() => (disk, text),
        (Some((label, _)), disks) => return Err(unknown_label("--changed-blocks", label, disks)),
        (None, [disk]) => (disk, text),
        (None, disks) => {
            let labels: Vec<_> = disks.iter().map(|disk| disk.label.as_str()).collect();
            return Err(Problem::usage(format!(
                "--changed-blocks {text}: there are several disks, say which one: LABEL={text}"
            ))
            .hint(format!("the disks are labelled: {}", labels.join(", ")))
            .into());
        }
    };
    if disk.changed_blocks.is_some() {
        return Err(Problem::usage(format!(
            "--changed-blocks was given twice for disk {}",
            disk.label
        ))
        .into());
    }
    disk.changed_blocks = Some(path.into());
    Ok(())
}

/// Gives the only delta without a label this one, which its parent's disk has.
fn name_delta(disks: &mut [DiskRequest], label: &str) -> Option<usize> {
    let is_open = |disk: &&mut DiskRequest| disk.is_delta && !disk.is_labelled;
    let mut open = disks.iter_mut().filter(is_open);
    let (delta, None) = (open.next()?, open.next()) else {
        return None;
    };
    (delta.label, delta.is_labelled) = (label.to_owned(), true);
    disks.iter().position(|disk| disk.label == label)
}

fn add_lineage(disks: &mut [DiskRequest], text: &str) -> anyhow::Result<()> {
    let parts = text
        .split_once('=')
        .and_then(|(place, value)| Some((place.rsplit_once(':')?, value)))
        .filter(|((_, key), _)| !key.is_empty());
    let Some(((label, key), value)) = parts else {
        return Err(Problem::usage(format!("--lineage {text}: should be LABEL:KEY=VALUE")).into());
    };
    let place = disks.iter().position(|disk| disk.label == label);
    let Some(place) = place.or_else(|| name_delta(disks, label)) else {
        return Err(unknown_label("--lineage", label, disks));
    };
    disks[place]
        .lineage
        .push((key.to_owned(), value.to_owned()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(disks: &[&str], sources: &[&str]) -> Vec<String> {
        let disks: Vec<String> = disks.iter().map(|text| (*text).to_owned()).collect();
        let sources: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
        let named = name_disks(&disks, &sources).unwrap();
        named.into_iter().map(|(label, _)| label).collect()
    }

    #[test]
    fn disks_are_labelled_by_their_stem_or_number() {
        assert_eq!(
            labels(&[], &["/a/root.raw", "b/swap.img"]),
            ["root", "swap"]
        );
        assert_eq!(labels(&[], &["a/d.raw", "b/d.raw"]), ["disk0", "disk1"]);
        assert_eq!(labels(&["root=x"], &["root.raw"]), ["root", "disk1"]);
        assert_eq!(
            labels(&["disk1=x"], &["a/d", "b/d"]),
            ["disk1", "disk2", "disk3"]
        );
        assert_eq!(labels(&[], &["-"]), ["stream"]);
        assert_eq!(labels(&[], &["a=b.raw"]), ["a_b"]);
        assert_eq!(labels(&[], &["nbd://host:1/vm/root.raw"]), ["root"]);
        assert_eq!(labels(&[], &["nbd://host"]), ["disk0"]);
        assert_eq!(labels(&[], &["vhd:a/b.vhd,c.vhd"]), ["b"]);
    }
}
