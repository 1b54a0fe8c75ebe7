//! `undercroft enroll`.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use undercroft_dataplane::net::address::ServerAddress;
use undercroft_dataplane::net::client::link::exchange;
use undercroft_dataplane::net::client::{LinkLimits, LinkOptions};
use undercroft_dataplane::net::distrust::distrust_in;
use undercroft_dataplane::net::trust::{
    ClientStore, EnrolError, EnrolOptions, Enrolled, HandshakeError, IdentityName, Refusal, Role,
    SERVER_NAME, SystemClock, Token, WallClock, enrol,
};
use undercroft_dataplane::repository::entropy::SystemEntropy;

use zeroize::Zeroizing;

use crate::failure::{Outcome, Problem};
use crate::remote::{PROGRAM, client_store};
use crate::report::{self, line};
use crate::settings::Settings;

/// Get a certificate from a repository server or a proxy
///
/// The token says which server is trusted and what the certificate is for; `undercroft repository tokens`
/// makes one on the server, `undercroft proxy tokens` on a proxy, whose port is 7421. The certificate is kept in
/// ~/.config/undercroft, or in UNDERCROFT_CONFIG, and renewed when its end is near.
///
/// JSON: server, name, role, directory.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The server, as in quic://HOST:PORT
    #[arg(value_name = "SERVER")]
    server: ServerAddress,
    /// The token
    // Not parsed by the command line, whose errors repeat what was given: a token is a secret.
    #[arg(long, value_name = "TOKEN", value_parser = secret)]
    token: Zeroizing<String>,
    /// The role that the token is for: ingest, restore, admin
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// The name of this machine or person at the server (default: the one that the token is for, or this host's)
    #[arg(long, value_name = "NAME")]
    name: Option<IdentityName>,
}

fn secret(text: &str) -> Result<Zeroizing<String>, Infallible> {
    Ok(Zeroizing::new(text.to_owned()))
}

#[derive(Serialize)]
struct Report {
    server: String,
    name: String,
    role: &'static str,
    directory: String,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let token: Token = args.token.parse().map_err(|error| {
        let problem = Problem::usage("the token is none").hint("give it by --token, all of it");
        anyhow::Error::new(error).context(problem)
    })?;
    let store = client_store(&args.server)?;
    let enrol_as = |name: IdentityName| enrol_as(&args.server, &store, &token, args.role, name);
    let enrolled = match &args.name {
        Some(name) => enrol_as(name.clone()),
        None => match enrol_as(host_name()?) {
            // Nobody has asked for another one.
            Err(EnrolError::Refused(Refusal::Name { granted, .. })) => enrol_as(granted),
            other => other,
        },
    };
    let enrolled = enrolled.map_err(|error| explain(error, &args.server))?;
    let report = Report {
        server: args.server.to_string(),
        name: enrolled.identity().name.to_string(),
        role: enrolled.identity().role.name(),
        directory: store.dir().display().to_string(),
    };
    report::emit(settings, &report, |text| {
        line!(
            text,
            "Enrolled as {} with the role {} at {}",
            report.name,
            report.role,
            report.server
        );
    })?;
    Ok(Outcome::Done)
}

fn enrol_as(
    server: &ServerAddress,
    store: &ClientStore,
    token: &Token,
    role: Role,
    name: IdentityName,
) -> Result<Enrolled, EnrolError> {
    let options = EnrolOptions {
        role,
        name,
        scope: None,
    };
    let clock: Arc<dyn WallClock> = Arc::new(SystemClock);
    enrol(
        store,
        token,
        options,
        &clock,
        &SystemEntropy,
        |tls, request| {
            let link = LinkOptions {
                address: server.clone(),
                tls,
                server_name: SERVER_NAME.to_owned(),
                program: PROGRAM.to_owned(),
                connections: 1,
                limits: LinkLimits::default(),
            };
            exchange(&link, request)
        },
    )
}

fn explain(error: EnrolError, server: &ServerAddress) -> anyhow::Error {
    match error {
        EnrolError::Exchange(cause)
            if distrust_in(&*cause) == Some(HandshakeError::WrongServer) =>
        {
            let text = format!("the token was not made by the server or proxy at {server}");
            Problem::new(text)
                .hint("a repository server and a proxy have tokens of their own: `undercroft repository tokens` makes those of a server, `undercroft proxy tokens` those of a proxy, whose port is 7421")
                .hint("if it was made there, either that machine's directory `trust` was made anew, and it takes a new token, or somebody is in the middle: ask its administrator")
                .into()
        }
        EnrolError::Refused(refusal @ (Refusal::Name { .. } | Refusal::NameTaken { .. })) => {
            Problem::new(refusal.to_string())
                .hint("the name is given by --name NAME")
                .into()
        }
        error => error.into(),
    }
}

fn host_name() -> anyhow::Result<IdentityName> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = match name.trim() {
        "" => "localhost",
        name => name,
    };
    name.parse().context(
        Problem::usage("this host's name cannot be the name of an identity")
            .hint("give one by --name NAME"),
    )
}
