//! `undercroft rebuild-index`.

use serde::Serialize;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::io::LocalStorage;
use undercroft_dataplane::repository::lock::OwnerLock;
use undercroft_dataplane::repository::open::{OpenNote, read_config, rebuild_index};

use crate::access;
use crate::failure::Outcome;
use crate::progress::Activity;
use crate::report::{self, line};
use crate::settings::Settings;
use crate::units::{Took, count};
use crate::work::Work;

/// Make the index anew from the packs alone
///
/// The index is a cache: this loses nothing, and is needed only if the index is damaged. Needs no key.
/// Exit code 3 if a pack could not be read.
///
/// JSON: packs, unreadable_packs, duration_ms.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {}

#[derive(Serialize)]
struct Report {
    packs: u64,
    unreadable_packs: u64,
    duration_ms: u64,
}

pub fn run(settings: &Settings, _: Args) -> anyhow::Result<Outcome> {
    let root = settings.root()?;
    let storage = LocalStorage::new(root.to_owned());
    let config = read_config(&storage, &root.display().to_string())?;
    let _lock = OwnerLock::acquire(root, &access::owner(settings, "rebuild-index"))?;
    let work = Work::start(
        settings,
        Activity {
            name: "rebuild-index",
            total_bytes: 0,
        },
    )?;
    let clock = Stopwatch::start();
    let mut notes = Vec::new();
    let index = rebuild_index(root, &storage, &config, &mut notes, &work.progress)?;
    let packs = index.packs()?.len() as u64;
    index.shutdown()?;
    drop(work);
    notes.iter().for_each(access::tell);
    let took = clock.elapsed();
    let unreadable = notes
        .iter()
        .filter(|note| matches!(note, OpenNote::PackUnreadable(..)));
    let report = Report {
        packs,
        unreadable_packs: unreadable.count() as u64,
        duration_ms: took.as_millis() as u64,
    };
    report::emit(settings, &report, |text| {
        line!(text, "Indexed {} in {}", count(packs, "pack"), Took(took));
    })?;
    Ok(Outcome::of(report.unreadable_packs > 0))
}
