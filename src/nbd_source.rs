//! Disks named by NBD URIs, to be read or written. An export's name can hold a session: it is shown and stored without.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use undercroft_dataplane::ingest::changes::{ChangedBlocks, NotTold};
use undercroft_dataplane::ingest::source::Source;
use undercroft_dataplane::nbd::{self, NbdFile, NbdOptions};
use undercroft_format::nbd::uri::{NbdUri, UriError};

use crate::failure::{Problem, one_line, warn};
use crate::signals::is_stopping;

/// True if a source is named by an NBD URI.
pub fn is_nbd(path: &Path) -> bool {
    path.to_str().is_some_and(NbdUri::is_like)
}

/// The export that a source names, if it is named by an NBD URI, without the session that may follow its name.
pub fn export_name(path: &Path) -> Option<String> {
    let uri = parsed(path)?.ok()?;
    let name = uri.export.split('?').next().unwrap_or_default();
    Some(name.to_owned())
}

/// A source as it may be shown and stored.
pub fn shown_source(path: &Path) -> String {
    match parsed(path) {
        Some(Ok(uri)) => uri.to_string(),
        Some(Err(_)) => "nbd".to_owned(),
        None => path.display().to_string(),
    }
}

/// As long as the user does not ask to stop.
pub fn until_stopped() -> NbdOptions {
    NbdOptions {
        is_stopping: Arc::new(is_stopping),
    }
}

/// Opens the export that `path`, an NBD URI, names.
pub fn open_export(path: &Path, options: NbdOptions) -> anyhow::Result<Source> {
    let uri = parsed(path)
        .unwrap_or(Err(UriError::Scheme))
        .map_err(|error| Problem::usage(format!("the NBD URI of a source {error}")))?;
    let opening = format!("opening the source {uri}");
    let disk = nbd::open(uri, options).context(opening)?;
    Ok(Source::Disk(disk))
}

/// Opens the export that `text`, an NBD URI, names to be written.
pub fn open_target(text: &str) -> anyhow::Result<Arc<NbdFile>> {
    let uri = NbdUri::parse(text)
        .map_err(|error| Problem::usage(format!("the NBD URI of the target {error}")))?;
    let opening = format!("opening the target {uri}");
    nbd::open_target(uri, until_stopped()).context(opening)
}

/// What the dirty bitmap that `path` names, if it is an NBD URI that names one, is going to say of the disk
/// `source`; with the bitmap's name.
pub fn dirty_bitmap(
    path: &Path,
    source: &Source,
    options: NbdOptions,
) -> Option<(String, ChangedBlocks)> {
    let uri = parsed(path)?.ok()?;
    let name = uri.dirty_bitmap.clone()?;
    let Source::Disk(disk) = source else {
        return None;
    };
    let size = disk.size();
    let what = format!("dirty bitmap {name:?}");
    let changed = ChangedBlocks::asked(move || {
        nbd::dirty_ranges(uri, size, options).map_err(|error| NotTold {
            what,
            source: error.into(),
        })
    });
    Some((name, changed))
}

/// Whether the dirty bitmap that `path` names is there before anything is read. Only then does it tell, next time, all
/// that was written since.
pub fn is_bitmap_there(path: &Path, options: NbdOptions) -> bool {
    let Some(Ok(uri)) = parsed(path) else {
        return false;
    };
    let shown = uri.to_string();
    let name = uri.dirty_bitmap.clone().unwrap_or_default();
    let problem = match nbd::has_dirty_bitmap(uri, options) {
        Ok(true) => return true,
        Ok(false) => "the server has no such bitmap".to_owned(),
        Err(error) => one_line(&error),
    };
    warn(format_args!(
        "{shown}: nothing will tell what changes from now on by the dirty bitmap {name:?}: {problem}; a bitmap has to be \
         there before the backup that it is to continue (qemu-img bitmap --add; qemu-nbd --bitmap)"
    ));
    false
}

fn parsed(path: &Path) -> Option<Result<NbdUri, UriError>> {
    let text = path.to_str().filter(|text| NbdUri::is_like(text))?;
    Some(NbdUri::parse(text))
}
