//! Disks named by NBD URIs. An export's name can hold a session: it is shown and stored without.

use std::path::Path;

use anyhow::Context;
use undercroft_dataplane::ingest::source::Source;
use undercroft_dataplane::nbd::{self, NbdOptions};
use undercroft_format::nbd::uri::{NbdUri, UriError};

use crate::failure::Problem;
use crate::signals::is_stopping;

/// True if a source is named by an NBD URI.
pub fn is_nbd(path: &Path) -> bool {
    path.to_str().is_some_and(NbdUri::is_like)
}

/// The export that a source names, if it is named by an NBD URI.
pub fn export_name(path: &Path) -> Option<String> {
    parsed(path)?.ok().map(|uri| uri.export)
}

/// A source as it may be shown and stored.
pub fn shown_source(path: &Path) -> String {
    match parsed(path) {
        Some(Ok(uri)) => uri.to_string(),
        Some(Err(_)) => "nbd".to_owned(),
        None => path.display().to_string(),
    }
}

/// Opens the export that `path`, an NBD URI, names.
pub fn open_export(path: &Path) -> anyhow::Result<Source> {
    let uri = parsed(path)
        .unwrap_or(Err(UriError::Scheme))
        .map_err(|error| Problem::usage(format!("the NBD URI of a source {error}")))?;
    let options = NbdOptions { is_stopping };
    let opening = format!("opening the source {uri}");
    let disk = nbd::open(uri, options).context(opening)?;
    Ok(Source::Disk(disk))
}

/// Refuses NBD URIs among what a proxy is to read: nothing says which servers its tasks may reach, and with
/// whose certificates.
pub fn check_no_export(path: &Path) -> anyhow::Result<()> {
    if !is_nbd(path) {
        return Ok(());
    }
    Err(Problem::usage(format!(
        "the source {} is an NBD export: a proxy reads only files and block devices of its machine",
        shown_source(path)
    ))
    .hint("back it up without --proxy, on a machine that reaches the NBD server")
    .into())
}

fn parsed(path: &Path) -> Option<Result<NbdUri, UriError>> {
    let text = path.to_str().filter(|text| NbdUri::is_like(text))?;
    Some(NbdUri::parse(text))
}
