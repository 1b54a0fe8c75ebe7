//! `undercroft completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use crate::failure::Outcome;
use crate::report;

/// Print completions for a shell
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

pub fn run(args: Args) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "undercroft", &mut script);
    report::print(&script)?;
    Ok(Outcome::Done)
}
