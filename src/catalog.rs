//! The snapshots of a repository, and which of them a text means.

use jiff::tz::TimeZone;
use undercroft_control::{SnapshotSpec, SnapshotSummary};
use undercroft_dataplane::repository::Repository;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::scrubber::is_damage;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::id::SnapshotId;

use crate::failure::{Outcome, Problem, one_line, warn};
use crate::settings::Settings;
use crate::snapshot_view;
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
    /// Reads all snapshots of `repository`.
    pub fn read(settings: &Settings, repository: &dyn Repository) -> anyhow::Result<Self> {
        let (snapshots, mut unreadable) = repository.snapshots().read_all()?;
        // That a file may not be read is no damage: nothing can be said, and nothing has to be mended.
        let forbidden = unreadable.iter().position(
            |(_, error)| matches!(error, RepositoryError::Io { source, .. } if !is_damage(source)),
        );
        if let Some(place) = forbidden {
            return Err(unreadable.swap_remove(place).1.into());
        }
        Ok(Self {
            summaries: snapshots.iter().map(summary).collect(),
            snapshots,
            unreadable,
            time_zone: settings.time_zone.clone(),
        })
    }

    /// Warns of the snapshots that cannot be read.
    pub fn warn_unreadable(&self) {
        for (id, error) in &self.unreadable {
            warn(format_args!(
                "snapshot {} cannot be read: {}; mend with: undercroft repair",
                id.short(),
                one_line(error)
            ));
        }
    }

    /// The snapshot that `spec` means.
    ///
    /// A snapshot that cannot be read may be the newest of any VM: none before it may pass for that.
    pub fn resolve(&self, spec: &SnapshotSpec) -> anyhow::Result<&StoredSnapshot> {
        let mut unreadable = self.unreadable.iter();
        if let Some((id, damage)) = unreadable.find(|(id, _)| spec.may_mean(*id)) {
            return Err(unclear(spec, *id, damage));
        }
        let id = spec.resolve(&self.summaries, &self.time_zone)?;
        let found = self.snapshots.iter().find(|stored| stored.id == id);
        Ok(found.expect("only listed snapshots are resolved"))
    }

    /// Those of `ids` that are still there.
    pub fn left_of(&self, ids: &[SnapshotId]) -> Vec<SnapshotId> {
        let is_there = |id: &SnapshotId| {
            self.snapshots.iter().any(|stored| stored.id == *id)
                || self.unreadable.iter().any(|(known, _)| known == id)
        };
        ids.iter().copied().filter(is_there).collect()
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

fn unclear(spec: &SnapshotSpec, id: SnapshotId, damage: &RepositoryError) -> anyhow::Error {
    let problem = format!(
        "snapshot {} cannot be read: {}",
        id.short(),
        one_line(damage)
    );
    let unclear = match id
        .to_string()
        .starts_with(&spec.to_string().to_ascii_lowercase())
    {
        true => Problem::new(problem),
        false => Problem::new(format!("what {spec} means cannot be told: {problem}"))
            .hint("name a snapshot by its id: `undercroft snapshots`"),
    };
    unclear
        .hint("see all that is damaged: `undercroft verify`")
        .hint("set the damaged file aside: `undercroft repair`")
        .into()
}

fn summary(stored: &StoredSnapshot) -> SnapshotSummary {
    SnapshotSummary {
        id: stored.id,
        vm: stored.snapshot.vm.clone(),
        time: timestamp(stored.snapshot.created_ms),
        tags: stored.snapshot.tags.clone(),
        protected: stored.protected,
        locked_until: snapshot_view::lock_that_holds(stored),
    }
}
