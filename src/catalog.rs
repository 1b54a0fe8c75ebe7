//! The snapshots of a repository, and which of them a text means.

use jiff::tz::TimeZone;
use undercroft_control::{SelectError, SnapshotSpec, SnapshotSummary};
use undercroft_dataplane::repository::Repository;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::id::SnapshotId;

use crate::failure::{Outcome, one_line, warn};
use crate::settings::Settings;
use crate::units::timestamp;

/// All snapshots of a repository.
pub struct Catalog {
    /// Those that can be read, oldest first.
    pub snapshots: Vec<StoredSnapshot>,
    summaries: Vec<SnapshotSummary>,
    unreadable: Vec<(SnapshotId, RepositoryError)>,
    time_zone: TimeZone,
}

impl Catalog {
    /// Reads all snapshots of `repository`, and warns of those that cannot be read.
    pub fn read(settings: &Settings, repository: &dyn Repository) -> anyhow::Result<Self> {
        let (snapshots, unreadable) = repository.snapshots().read_all()?;
        for (id, error) in &unreadable {
            warn(format_args!(
                "snapshot {} cannot be read: {}; mend with: undercroft repair",
                id.short(),
                one_line(error)
            ));
        }
        Ok(Self {
            summaries: snapshots.iter().map(summary).collect(),
            snapshots,
            unreadable,
            time_zone: settings.time_zone.clone(),
        })
    }

    /// The snapshot that `spec` means.
    pub fn resolve(&self, spec: &SnapshotSpec) -> anyhow::Result<&StoredSnapshot> {
        let id = spec
            .resolve(&self.summaries, &self.time_zone)
            .map_err(|error| self.explain(spec, error))?;
        let found = self.snapshots.iter().find(|stored| stored.id == id);
        Ok(found.expect("only listed snapshots are resolved"))
    }

    /// A snapshot whose file is damaged is not "not found".
    fn explain(&self, spec: &SnapshotSpec, error: SelectError) -> anyhow::Error {
        let text = spec.to_string().to_ascii_lowercase();
        let damaged = |id: &SnapshotId| text.len() >= 4 && id.to_string().starts_with(&text);
        match self.unreadable.iter().find(|(id, _)| damaged(id)) {
            Some((id, damage)) => anyhow::anyhow!(
                "snapshot {} cannot be read: {}",
                id.short(),
                one_line(damage)
            ),
            None => error.into(),
        }
    }

    /// What selection and retention see of the snapshots.
    pub fn summaries(&self) -> &[SnapshotSummary] {
        &self.summaries
    }

    /// [`Outcome::Damage`] if there are snapshots that cannot be read.
    pub fn outcome(&self) -> Outcome {
        Outcome::of(!self.unreadable.is_empty())
    }
}

fn summary(stored: &StoredSnapshot) -> SnapshotSummary {
    SnapshotSummary {
        id: stored.id,
        vm: stored.snapshot.vm.clone(),
        time: timestamp(stored.snapshot.created_ms),
        tags: stored.snapshot.tags.clone(),
        protected: stored.protected,
    }
}
