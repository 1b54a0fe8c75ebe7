//! The server as those see it who watch it: what can be read of its state, and its health.

use std::fmt::Error;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use super::listener::Shared;
use super::repository_figures::RepositoryFigures;
use super::served::Served;
use crate::clock::Stopwatch;
use crate::net::daemon_figures::{encode_certificates, encode_program};
use crate::net::door::DoorFigures;
use crate::net::refusal::code_text;
use crate::net::trust::Authority;
use crate::observe::exposition::{Figures, OnDemand};
use crate::observe::health::Space;
use crate::observe::{Complaint, Observed};
use crate::repository::Repository;
use crate::repository::maintenance::Maintenance;

/// A loop that has not gone round for so long does not run any more. A checkpoint on a slow disk takes a
/// while, and the loop waits for it.
const BEAT_MS_MAX: u64 = 180_000;
/// What takes a walk through directories is not read more often than this.
const SIZES_MS_MIN: u128 = 60_000;

/// A server, watched.
pub struct Watched {
    shared: Arc<Shared>,
    authority: Arc<Authority>,
    door: DoorFigures,
    sizes: Mutex<Option<(Stopwatch, Vec<(String, Sizes)>)>>,
}

/// How large a repository is.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    pack_bytes: u64,
    snapshots: u64,
    index_disk_bytes: u64,
}

impl Sizes {
    fn of(served: &Served) -> Option<Self> {
        let repository = served.repository();
        Some(Self {
            pack_bytes: repository.pack_bytes().ok()?,
            snapshots: repository.snapshots().list().ok()?.ids.len() as u64,
            index_disk_bytes: repository.lookup().index().disk_bytes().ok()?,
        })
    }
}

type Open = Vec<(String, Arc<RepositoryFigures>, Arc<Served>)>;

impl Watched {
    pub(super) fn new(shared: Arc<Shared>, authority: Arc<Authority>, door: DoorFigures) -> Self {
        Self {
            shared,
            authority,
            door,
            sizes: Mutex::default(),
        }
    }

    fn open(&self) -> Open {
        let all = self.shared.figures().repositories.all().into_iter();
        all.filter_map(|(name, figures)| {
            let served = figures.served()?;
            Some((name, figures, served))
        })
        .collect()
    }

    fn sizes(&self, open: &Open) -> Vec<(String, Sizes)> {
        let mut sizes = self.sizes.lock();
        if let Some((since, known)) = &*sizes
            && since.elapsed().as_millis() < SIZES_MS_MIN
            && known.len() == open.len()
        {
            return known.clone();
        }
        let known: Vec<_> = open
            .iter()
            .filter_map(|(name, _, served)| Some((name.clone(), Sizes::of(served)?)))
            .collect();
        *sizes = Some((Stopwatch::start(), known.clone()));
        known
    }

    fn encode(&self, figures: &mut Figures<'_>) -> Result<(), Error> {
        encode_program(
            figures,
            self.shared.program(),
            self.shared.is_draining(),
            self.readiness().is_empty(),
        )?;
        if let Ok(space) = Space::of(self.shared.store()) {
            figures.gauge(
                "store_size_bytes",
                "Size of the store's file system",
                space.size,
            )?;
            figures.gauge(
                "store_free_bytes",
                "Free space of the store's file system",
                space.free,
            )?;
        }
        encode_certificates(figures, &self.authority)?;
        let open = self.open();
        figures.gauge(
            "repositories_open",
            "Repositories that are open",
            open.len(),
        )?;
        encode_sessions(figures, &open)?;
        encode_work(figures, &open)?;
        self.encode_sizes(figures, &open)
    }

    fn encode_sizes(&self, figures: &mut Figures<'_>, open: &Open) -> Result<(), Error> {
        let sizes = self.sizes(open);
        let sizes: Vec<_> = sizes
            .iter()
            .map(|(name, sizes)| ([("repository", name.as_str())], sizes))
            .collect();
        let of_sizes: [(&str, &str, fn(&Sizes) -> u64); 3] = [
            (
                "repository_pack_bytes",
                "Bytes of sealed packs; read once a minute",
                |sizes| sizes.pack_bytes,
            ),
            (
                "repository_snapshots",
                "Snapshots; read once a minute",
                |sizes| sizes.snapshots,
            ),
            (
                "repository_index_disk_bytes",
                "Bytes of the index on disk; read once a minute",
                |sizes| sizes.index_disk_bytes,
            ),
        ];
        for (name, help, value) in of_sizes {
            let values = sizes.iter();
            let values = values.map(|(labels, sizes)| (&labels[..], value(sizes)));
            figures.gauges(name, help, values)?;
        }
        let indexes: Vec<_> = open
            .iter()
            .map(|(name, _, served)| {
                let index = served.repository().lookup().index();
                let (entries, memory) = (index.len(), index.memory_bytes());
                ([("repository", name.as_str())], entries, memory)
            })
            .collect();
        figures.gauges(
            "repository_index_entries",
            "Objects in the index",
            indexes
                .iter()
                .map(|(labels, entries, _)| (&labels[..], *entries)),
        )?;
        figures.gauges(
            "repository_index_memory_bytes",
            "Memory of the index, caches included",
            indexes
                .iter()
                .map(|(labels, _, memory)| (&labels[..], *memory)),
        )
    }
}

fn encode_sessions(figures: &mut Figures<'_>, open: &Open) -> Result<(), Error> {
    let mut counts = Vec::new();
    for (name, _, served) in open {
        let statuses = served.session_statuses();
        let attached = statuses.iter().filter(|status| status.is_attached).count();
        let states = [
            ("attached", attached),
            ("detached", statuses.len() - attached),
        ];
        for (state, count) in states {
            counts.push(([("repository", name.as_str()), ("state", state)], count));
        }
    }
    figures.gauges(
        "sessions",
        "Open sessions, with a client or without",
        counts.iter().map(|(labels, count)| (&labels[..], *count)),
    )
}

fn encode_work(figures: &mut Figures<'_>, open: &Open) -> Result<(), Error> {
    let mut works = Vec::new();
    for (name, of, _) in open {
        for (work, running, done, total) in of.running() {
            let labels = [("repository", name.as_str()), ("work", work.text())];
            works.push((labels, [running, done, total]));
        }
    }
    for (at, name, help) in [
        (0, "upkeep_running", "Long work that runs"),
        (
            1,
            "upkeep_done_bytes",
            "Bytes that running long work went through",
        ),
        (
            2,
            "upkeep_expected_bytes",
            "Bytes that running long work will go through, as far as known",
        ),
    ] {
        let values = works.iter();
        figures.gauges(
            name,
            help,
            values.map(|(labels, values)| (&labels[..], values[at])),
        )?;
    }
    Ok(())
}

impl Observed for Watched {
    fn register(self: Arc<Self>, registry: &mut Registry) {
        self.door.register(registry);
        self.shared.figures().register(registry);
        registry.register_collector(Box::new(OnDemand(move |figures: &mut Figures<'_>| {
            self.encode(figures)
        })));
    }

    fn liveness(&self) -> Vec<Complaint> {
        let since = self
            .shared
            .now_ms()
            .saturating_sub(self.shared.figures().last_beat_ms());
        // The loop ends when the server shuts down, which is bounded by itself.
        if self.shared.is_draining() || since <= BEAT_MS_MAX {
            return Vec::new();
        }
        let text = format!(
            "the server's loop has not gone round for {} s",
            since / 1000
        );
        vec![Complaint::new("loop", text)]
    }

    fn readiness(&self) -> Vec<Complaint> {
        let mut complaints = self.liveness();
        if self.shared.is_draining() {
            complaints.push(Complaint::new("draining", "the server shuts down"));
        }
        match Space::of(self.shared.store()) {
            Ok(space) if space.is_short() => complaints.push(Complaint::new(
                "disk_space",
                format!(
                    "{} of {} bytes are free on the store's file system",
                    space.free, space.size
                ),
            )),
            Ok(_) => {}
            Err(error) => complaints.push(Complaint::new(
                "store",
                format!("the store cannot be reached: {error}"),
            )),
        }
        for (name, figures, _) in self.open() {
            if let Some(code) = figures.failed_write() {
                let text = format!("the last durable write failed: {}", code_text(code));
                complaints.push(Complaint::new("last_write", text).of(name));
            }
        }
        complaints
    }
}
