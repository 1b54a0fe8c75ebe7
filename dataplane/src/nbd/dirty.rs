//! What changed on an export, as its server's dirty bitmap has it.

use undercroft_format::nbd::uri::NbdUri;
use undercroft_format::ranges::RangeSet;
use undercroft_format::source::changed::ChangedRanges;
use undercroft_format::units::{DiskLength, DiskRange};

use super::client::Client;
use super::connect::Endpoint;
use super::error::NbdError;
use super::source::NbdOptions;
use super::status::Status;

/// Whether the server has the bitmap that `uri` names, asked on a connection of its own. If it has, whatever is written
/// to the export from then on is going to be in it.
///
/// # Errors
/// Whatever a connection can come to.
pub fn has_dirty_bitmap(uri: NbdUri, options: NbdOptions) -> Result<bool, NbdError> {
    let client = Client::open(Endpoint::new(uri, Status::Dirty)?, options)?;
    Ok(client.has_status())
}

/// Asks for all that the bitmap named by `uri` calls dirty, on a connection of its own, before anything of the
/// export is read. `size` is that of the export; what is found is rounded outwards to 64 KiB.
///
/// # Errors
/// [`NbdError::NoBitmap`] if the server does not have the bitmap or stops telling, and whatever else a
/// connection can come to.
pub fn dirty_ranges(
    uri: NbdUri,
    size: DiskLength,
    options: NbdOptions,
) -> Result<RangeSet, NbdError> {
    let bitmap = uri.dirty_bitmap.clone().unwrap_or_default();
    let mut client = Client::open(Endpoint::new(uri, Status::Dirty)?, options)?;
    let now = client.export().size;
    if now != size.get() {
        let before = size.get();
        return Err(NbdError::Changed { before, now });
    }
    let mut changed = ChangedRanges::default();
    let mut at = 0;
    loop {
        let next = client.next_known(at, now).map_err(NbdError::Status)?;
        if !client.has_status() {
            let endpoint = client.endpoint();
            return Err(NbdError::NoBitmap {
                server: endpoint.server(),
                export: endpoint.uri().shown_export(),
                bitmap,
            });
        }
        let Some(range) = next else {
            return Ok(changed.finish(size, size));
        };
        changed.add(DiskRange::new(range.start, range.end));
        at = range.end;
    }
}
