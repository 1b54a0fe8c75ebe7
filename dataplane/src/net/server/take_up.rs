//! Sessions that an earlier server left are taken up when a server starts, not when somebody asks for their
//! repository: their leases run, and what nobody goes on with gives its space back.

use std::path::Path;

use undercroft_format::id::SessionId;
use undercroft_format::wire::ledger::{LEDGER_LEN_MAX, Ledger};

use super::listener::Shared;
use crate::io::{LocalStorage, Storage};
use crate::net::address::RepositoryName;
use crate::repository::layout;

/// Opens the repositories of the directory `store` that have such sessions.
pub fn take_up(shared: &Shared, store: &Path) {
    let entries = match std::fs::read_dir(store) {
        Ok(entries) => entries,
        Err(error) => return tracing::warn!(%error, "sessions cannot be looked for"),
    };
    for entry in entries.flatten() {
        let name = entry
            .file_name()
            .to_string_lossy()
            .parse::<RepositoryName>();
        let Ok(name) = name else {
            continue;
        };
        if shared.is_draining() || !has_sessions(&entry.path()) {
            continue;
        }
        match shared.open(&name) {
            Ok(_) => tracing::info!(repository = %name, "opened: it has interrupted sessions"),
            Err(failure) => tracing::warn!(
                repository = %name,
                "interrupted sessions cannot be taken up yet: {}",
                failure.text
            ),
        }
    }
}

/// Whether there is a session that can be gone on with.
fn has_sessions(root: &Path) -> bool {
    let storage = LocalStorage::new(root.to_owned());
    let entries = storage.list(layout::SESSIONS).unwrap_or_default();
    entries
        .iter()
        .filter_map(|entry| entry.name.parse::<SessionId>().ok())
        .filter_map(|id| storage.read(&layout::session(id), LEDGER_LEN_MAX).ok())
        .any(|bytes| Ledger::decode(&bytes, 0).is_ok())
}
