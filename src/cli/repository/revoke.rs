//! `undercroft repository revoke`.

use serde::Serialize;

use super::Place;
use super::identities::View;
use crate::failure::Outcome;
use crate::report::{self, line};
use crate::settings::Settings;
use crate::units::count;

/// Let somebody in no more
///
/// A name stands for all its certificates. A running server refuses new connections from then on, and ends
/// those that are open within seconds; a backup that it ends can be gone on with by somebody else. There is no
/// way back: whoever is to be let in again is enrolled anew.
///
/// JSON: revoked: an array like that of `repository identities`; empty if all were revoked or expired.
#[derive(clap::Args, Clone, Debug)]
pub struct Args<P: Place> {
    #[command(flatten)]
    place: P,
    /// The name, or the serial number of one certificate
    #[arg(value_name = "NAME|SERIAL")]
    identity: String,
}

#[derive(Serialize)]
struct Report {
    revoked: Vec<View>,
}

pub fn run<P: Place>(settings: &Settings, args: Args<P>) -> anyhow::Result<Outcome> {
    let authority = args.place.open()?;
    let revoked = authority.revoke(&args.identity)?;
    let now = authority.time().now();
    let report = Report {
        revoked: revoked.iter().map(|entry| View::of(entry, now)).collect(),
    };
    report::emit(settings, &report, |text| match revoked.len() {
        0 => line!(
            text,
            "Nothing to do: every certificate of {} is revoked or expired",
            args.identity
        ),
        number => line!(
            text,
            "Revoked {} of {}",
            count(number as u64, "certificate"),
            revoked[0].identity.name
        ),
    })?;
    Ok(Outcome::Done)
}
