//! `undercroft proxy suspend` and `undercroft proxy resume`.

use serde::Serialize;

use crate::failure::Outcome;
use crate::proxy::Named;
use crate::report::{self, line};
use crate::settings::Settings;

/// Have a proxy take and begin no tasks
///
/// What runs goes on. The proxy stays suspended over restarts, until it is resumed.
///
/// JSON: is_suspended.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    proxy: Named,
}

/// Have a proxy take tasks again
///
/// JSON: is_suspended.
#[derive(clap::Args, Clone, Debug)]
pub struct ResumeArgs {
    #[command(flatten)]
    proxy: Named,
}

#[derive(Serialize)]
struct Report {
    is_suspended: bool,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    set(settings, &args.proxy, true)
}

pub fn resume(settings: &Settings, args: ResumeArgs) -> anyhow::Result<Outcome> {
    set(settings, &args.proxy, false)
}

fn set(settings: &Settings, proxy: &Named, is_suspended: bool) -> anyhow::Result<Outcome> {
    proxy.connect()?.suspend(is_suspended)?;
    report::emit(settings, &Report { is_suspended }, |text| {
        line!(
            text,
            "{}",
            match is_suspended {
                true => "Suspended: no task is taken or begun until it is resumed",
                false => "Resumed",
            }
        );
    })?;
    Ok(Outcome::Done)
}
