//! `undercroft proxy status`.

use std::time::Duration;

use crate::failure::Outcome;
use crate::proxy::Named;
use crate::report::{self, line};
use crate::settings::Settings;
use crate::units::{Size, Took};

/// Show what a proxy does, and what it could do
///
/// JSON: program, uptime_ms, is_suspended, is_draining, cores, memory_total_bytes, memory_available_bytes,
/// resident_bytes and resident_max_bytes (of the proxy itself), streams, streams_busy, streams_free, queued,
/// rate_bytes_per_s, reads, writes (directories below which tasks may).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    proxy: Named,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let status = args.proxy.connect()?.status()?;
    report::emit(settings, &status, |text| {
        line!(
            text,
            "{} at {}, up for {}{}",
            status.program,
            args.proxy
                .address()
                .map(ToString::to_string)
                .unwrap_or_default(),
            Took(Duration::from_millis(status.uptime_ms)),
            match (status.is_draining, status.is_suspended) {
                (true, _) => ", shutting down",
                (false, true) => ", suspended",
                (false, false) => "",
            }
        );
        line!(
            text,
            "{} cores, {} of {} memory available, {} used by the proxy ({} at most)",
            status.cores,
            Size(status.memory_available_bytes),
            Size(status.memory_total_bytes),
            Size(status.resident_bytes),
            Size(status.resident_max_bytes),
        );
        line!(
            text,
            "{} of {} streams busy, {} queued, {}/s",
            status.streams_busy,
            status.streams,
            status.queued,
            Size(status.rate_bytes_per_s as u64),
        );
        for (what, roots) in [("Reads", &status.reads), ("Writes", &status.writes)] {
            let roots = match roots.is_empty() {
                true => "nothing".to_owned(),
                false => roots.join(", "),
            };
            line!(text, "{what}: {roots}");
        }
    })?;
    Ok(Outcome::Done)
}
