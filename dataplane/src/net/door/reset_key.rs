//! The secret for resets, which outlives a daemon: see [`ServerSide`](crate::net::transport::ServerSide).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::DoorError;
use crate::net::transport::RESET_KEY_LEN;
use crate::repository::entropy::{Entropy, SystemEntropy};

/// The secret in the file at `path`, made if there is none. Losing it costs peers of a killed daemon a wait.
///
/// # Errors
/// [`DoorError::ResetKey`].
pub(super) fn load_or_make(path: &Path) -> Result<[u8; RESET_KEY_LEN], DoorError> {
    if let Ok(found) = std::fs::read(path)
        && let Ok(key) = <[u8; RESET_KEY_LEN]>::try_from(found)
    {
        return Ok(key);
    }
    let key: [u8; RESET_KEY_LEN] = (&SystemEntropy as &dyn Entropy)
        .array()
        .map_err(|error| DoorError::ResetKey(error.into()))?;
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(&key)
    };
    write().map_err(|error| DoorError::ResetKey(error.into()))?;
    Ok(key)
}
