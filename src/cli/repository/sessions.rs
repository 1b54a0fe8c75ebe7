//! `undercroft repository sessions`.

use undercroft_dataplane::net::address::ServerAddress;
use undercroft_dataplane::net::status::SessionStatus;
use undercroft_format::wire::upkeep;

use super::server_of;
use crate::failure::Outcome;
use crate::remote;
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::units::{Size, count};

/// List the backups that are under way, and those that were interrupted
///
/// An interrupted one goes on by `undercroft backup --resume SESSION`, from any machine that can read the
/// same disks.
///
/// JSON: an array of objects with session, repository, vm, peer, is_attached, epoch, finished_segments,
/// pending_segments, pushed_bytes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The server, as in quic://HOST:PORT (default: that of --repo)
    #[arg(value_name = "SERVER")]
    server: Option<ServerAddress>,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let server = server_of(settings, args.server.as_ref())?;
    let link = remote::connect(settings, server)?;
    let sessions: Vec<SessionStatus> = link.inquire(&upkeep::Sessions)?;
    report::emit(settings, &sessions, |text| {
        if sessions.is_empty() {
            line!(text, "No sessions");
            return;
        }
        let mut table = Table::new(&[
            ("SESSION", Align::Left),
            ("REPOSITORY", Align::Left),
            ("VM", Align::Left),
            ("PEER", Align::Left),
            ("STATE", Align::Left),
            ("SEGMENTS", Align::Right),
            ("PUSHED", Align::Right),
        ]);
        for session in &sessions {
            table.row(vec![
                session.session.clone(),
                session.repository.clone(),
                session.vm.clone(),
                session.peer.clone().unwrap_or_else(|| "-".to_owned()),
                if session.is_attached {
                    "running"
                } else {
                    "interrupted"
                }
                .to_owned(),
                session.finished_segments.to_string(),
                Size(session.pushed_bytes).to_string(),
            ]);
        }
        table.write(text);
        line!(text, "{}", count(sessions.len() as u64, "session"));
    })?;
    Ok(Outcome::Done)
}
