//! `undercroft man`.

use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;

use super::Cli;
use crate::failure::Outcome;
use crate::report::{self, line};
use crate::settings::Settings;

/// Write manual pages, one per command
///
/// JSON: pages (the files written).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The directory to write them to; made if it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(serde::Serialize)]
struct Report {
    pages: Vec<String>,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let writing = || format!("writing manual pages to {}", args.out.display());
    std::fs::create_dir_all(&args.out).with_context(writing)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let subcommands = command.get_subcommands().cloned().collect::<Vec<_>>();
    for command in std::iter::once(command.clone()).chain(subcommands) {
        let man = clap_mangen::Man::new(command);
        let mut page = Vec::new();
        man.render(&mut page).with_context(writing)?;
        let path = args.out.join(man.get_filename());
        std::fs::write(&path, page).with_context(writing)?;
        pages.push(path.display().to_string());
    }
    let report = Report { pages };
    report::emit(settings, &report, |text| {
        for page in &report.pages {
            line!(text, "{page}");
        }
    })?;
    Ok(Outcome::Done)
}
