//! `undercroft repository status`.

use std::time::Duration;

use undercroft_dataplane::net::address::ServerAddress;
use undercroft_dataplane::net::status::ServerStatus;
use undercroft_format::wire::upkeep;

use super::server_of;
use crate::failure::Outcome;
use crate::remote;
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::units::{Size, Took, count};

/// Show what a server does
///
/// JSON: program, uptime_ms, connections (peer, role, address, repository), repositories, sessions,
/// is_draining, limits (direction: in or out; bytes_per_second, null while there is none; rules).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The server, as in quic://HOST:PORT (default: that of --repo)
    #[arg(value_name = "SERVER")]
    server: Option<ServerAddress>,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let server = server_of(settings, args.server.as_ref())?;
    let status: ServerStatus = remote::connect(settings, server)?.inquire(&upkeep::Status)?;
    report::emit(settings, &status, |text| {
        line!(
            text,
            "{} at {server}, up for {}{}",
            status.program,
            Took(Duration::from_millis(status.uptime_ms)),
            if status.is_draining {
                ", shutting down"
            } else {
                ""
            }
        );
        line!(
            text,
            "{} open, {}",
            count(status.repositories.len() as u64, "repository"),
            count(status.sessions, "session")
        );
        for limit in &status.limits {
            let now = match limit.bytes_per_second {
                None => "no limit now".to_owned(),
                Some(rate) => format!("{}/s now", Size(rate)),
            };
            let rules = limit.rules.join("; ");
            line!(text, "Bandwidth {}: {now} ({rules})", limit.direction);
        }
        let mut table = Table::new(&[
            ("PEER", Align::Left),
            ("ROLE", Align::Left),
            ("FROM", Align::Left),
            ("REPOSITORY", Align::Left),
        ]);
        for connection in &status.connections {
            table.row(vec![
                connection.peer.clone(),
                connection.role.clone(),
                connection.address.clone(),
                connection
                    .repository
                    .clone()
                    .unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        table.write(text);
    })?;
    Ok(Outcome::Done)
}
