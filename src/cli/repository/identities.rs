//! `undercroft repository identities`.

use jiff::Timestamp;
use serde::Serialize;
use undercroft_dataplane::net::trust::UnixMs;
use undercroft_dataplane::net::trust::registry::IssuedIdentity;

use super::{Place, show_patterns, show_time, texts, to_timestamp};
use crate::failure::Outcome;
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::units::count;

/// List who was enrolled
///
/// Those whose certificate was revoked or has expired are listed until 90 days after its end. While a
/// certificate is being renewed a name is listed twice.
///
/// JSON: authority (its fingerprint), identities: an array of objects with name, serial, state (live,
/// revoked, expired), role, vms, repositories, issued, expires, revoked_at.
#[derive(clap::Args, Clone, Debug)]
pub struct Args<P: Place> {
    #[command(flatten)]
    place: P,
}

#[derive(Serialize)]
struct Report {
    authority: String,
    identities: Vec<View>,
}

#[derive(Serialize)]
pub(super) struct View {
    name: String,
    serial: String,
    state: &'static str,
    role: &'static str,
    vms: Vec<String>,
    repositories: Vec<String>,
    issued: Timestamp,
    expires: Timestamp,
    revoked_at: Option<Timestamp>,
}

impl View {
    pub fn of(entry: &IssuedIdentity, now: UnixMs) -> Self {
        let identity = &entry.identity;
        Self {
            name: identity.name.to_string(),
            serial: identity.serial.to_string(),
            state: match entry.revoked {
                Some(_) => "revoked",
                None if entry.is_live(now) => "live",
                None => "expired",
            },
            role: identity.role.name(),
            vms: texts(identity.scope.vms()),
            repositories: texts(identity.scope.repositories()),
            issued: to_timestamp(entry.issued),
            expires: to_timestamp(entry.not_after),
            revoked_at: entry.revoked.map(to_timestamp),
        }
    }
}

pub fn run<P: Place>(settings: &Settings, args: Args<P>) -> anyhow::Result<Outcome> {
    let authority = args.place.open()?;
    let now = authority.time().now();
    let mut identities = authority.identities()?;
    identities.sort_by(|a, b| (&a.identity.name, a.issued).cmp(&(&b.identity.name, b.issued)));
    let report = Report {
        authority: authority.fingerprint().to_string(),
        identities: identities
            .iter()
            .map(|entry| View::of(entry, now))
            .collect(),
    };
    report::emit(settings, &report, |text| {
        if identities.is_empty() {
            line!(text, "No identities");
            return;
        }
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("SERIAL", Align::Left),
            ("STATE", Align::Left),
            ("ROLE", Align::Left),
            ("VMS", Align::Left),
            ("REPOSITORIES", Align::Left),
            ("EXPIRES", Align::Left),
        ]);
        for (entry, view) in identities.iter().zip(&report.identities) {
            table.row(vec![
                view.name.clone(),
                view.serial.clone(),
                view.state.to_owned(),
                view.role.to_owned(),
                show_patterns(entry.identity.scope.vms()),
                show_patterns(entry.identity.scope.repositories()),
                show_time(entry.not_after, settings),
            ]);
        }
        table.write(text);
        let number = report.identities.len();
        line!(text, "{}", count(number as u64, "certificate"));
    })?;
    Ok(Outcome::Done)
}
