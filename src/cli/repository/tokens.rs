//! `undercroft repository tokens`.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use undercroft_dataplane::net::trust::authority::{TOKEN_LIFETIME_DEFAULT, TOKEN_LIFETIME_MAX};
use undercroft_dataplane::net::trust::pattern::Pattern;
use undercroft_dataplane::net::trust::registry::IssuedToken;
use undercroft_dataplane::net::trust::token::SecretHash;
use undercroft_dataplane::net::trust::{IdentityName, Role, Scope, TokenOptions, UnixMs};

use super::{Place, show_patterns, show_time, texts, to_timestamp};
use crate::failure::{Outcome, Problem, warn};
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::units::{count, parse_duration};

/// Make a token that enrols one machine or person, or list tokens
///
/// With --role a token is made and printed, once: the store keeps only a hash of it. Without, the tokens
/// that were made are listed. A token enrols once, as nothing else than what it is for. It also carries
/// the fingerprint of the server's authority, so whoever has it knows that it talks to this server. The
/// first token makes the authority, if the server has not.
///
/// A PATTERN has `*` for any characters and `?` for one.
///
/// JSON, with --role: token, id, authority, role, name (null if it is chosen at enrolment), vms,
/// repositories, expires. Without: an array of objects with id, state (usable, used, expired), role,
/// name, vms, repositories, issued, expires, used_by, used_at. With --cancel: cancelled (the id).
#[derive(clap::Args, Clone, Debug)]
pub struct Args<P: Place> {
    #[command(flatten)]
    place: P,
    /// Make a token for this role: ingest (adds snapshots), restore (reads them), admin (everything)
    #[arg(long, value_name = "ROLE")]
    role: Option<Role>,
    /// The one name that it enrols; otherwise chosen at enrolment
    #[arg(long, value_name = "NAME", requires = "role")]
    name: Option<IdentityName>,
    /// The VMs that it is for; may be given more than once (default: all)
    #[arg(long = "vm", value_name = "PATTERN", requires = "role")]
    vms: Vec<Pattern>,
    /// The repositories that it is for; may be given more than once (default: all)
    #[arg(long = "repository", value_name = "PATTERN", requires = "role")]
    repositories: Vec<Pattern>,
    /// How long it can be used, as in 30min, 12h or 7d: at most 30d (default: 24h)
    #[arg(long, value_name = "DURATION", requires = "role", value_parser = parse_lifetime)]
    expires: Option<Duration>,
    /// Cancel the token with this ID, as it is listed
    #[arg(long, value_name = "ID", conflicts_with = "role")]
    cancel: Option<String>,
}

#[derive(Serialize)]
struct Made<'a> {
    token: &'a str,
    id: String,
    authority: String,
    role: &'static str,
    name: Option<&'a str>,
    vms: Vec<String>,
    repositories: Vec<String>,
    expires: Timestamp,
}

#[derive(Serialize)]
struct Listed {
    id: String,
    state: &'static str,
    role: &'static str,
    name: Option<String>,
    vms: Vec<String>,
    repositories: Vec<String>,
    issued: Timestamp,
    expires: Timestamp,
    used_by: Option<String>,
    used_at: Option<Timestamp>,
}

#[derive(Serialize)]
struct Cancelled {
    cancelled: String,
}

pub fn run<P: Place>(settings: &Settings, args: Args<P>) -> anyhow::Result<Outcome> {
    match (args.role, &args.cancel) {
        (Some(role), _) => make(settings, &args, role),
        (None, Some(id)) => cancel(settings, &args.place, id),
        (None, None) => list(settings, &args.place),
    }
}

fn make<P: Place>(settings: &Settings, args: &Args<P>, role: Role) -> anyhow::Result<Outcome> {
    args.place.check()?;
    let or_all = |patterns: &[Pattern]| match patterns {
        [] => vec![Pattern::any()],
        patterns => patterns.to_vec(),
    };
    let scope = Scope::new(or_all(&args.vms), or_all(&args.repositories))
        .map_err(|error| Problem::usage(error.to_string()))?;
    let authority = args.place.open_or_create()?;
    warn_of_clock(authority.time().behind());
    let (token, issued) = authority.issue_token(&TokenOptions {
        role,
        scope,
        name: args.name.clone(),
        lifetime: args.expires.unwrap_or(TOKEN_LIFETIME_DEFAULT),
    })?;
    let text = token.to_text();
    let made = Made {
        token: &text,
        id: token.secret.hash().short(),
        authority: token.authority.to_string(),
        role: role.name(),
        name: args.name.as_ref().map(IdentityName::as_str),
        vms: texts(issued.scope.vms()),
        repositories: texts(issued.scope.repositories()),
        expires: to_timestamp(issued.not_after),
    };
    report::emit(settings, &made, |out| {
        line!(out, "{}", made.token);
        line!(out);
        line!(
            out,
            "It enrols one {role}{}, for VMs {} in repositories {}, until {}.",
            made.name
                .map(|name| format!(" named {name}"))
                .unwrap_or_default(),
            show_patterns(issued.scope.vms()),
            show_patterns(issued.scope.repositories()),
            show_time(issued.not_after, settings)
        );
        line!(
            out,
            "It is shown this once. There: undercroft enroll quic://HOST:PORT --role {role} --token TOKEN"
        );
    })?;
    Ok(Outcome::Done)
}

fn cancel(settings: &Settings, place: &impl Place, id: &str) -> anyhow::Result<Outcome> {
    place.open()?.cancel_token(id)?;
    let report = Cancelled {
        cancelled: id.to_owned(),
    };
    report::emit(settings, &report, |text| {
        line!(text, "Cancelled token {id}: it enrols nobody any more");
    })?;
    Ok(Outcome::Done)
}

fn list(settings: &Settings, place: &impl Place) -> anyhow::Result<Outcome> {
    let authority = place.open()?;
    let now = authority.time().now();
    let mut tokens = authority.tokens()?;
    tokens.sort_by_key(|(hash, token)| (token.issued, *hash));
    let listed: Vec<Listed> = tokens
        .iter()
        .map(|(hash, token)| view(*hash, token, now))
        .collect();
    report::emit(settings, &listed, |text| {
        if tokens.is_empty() {
            line!(text, "No tokens");
            return;
        }
        let mut table = Table::new(&[
            ("ID", Align::Left),
            ("STATE", Align::Left),
            ("ROLE", Align::Left),
            ("NAME", Align::Left),
            ("VMS", Align::Left),
            ("REPOSITORIES", Align::Left),
            ("EXPIRES", Align::Left),
        ]);
        for ((_, token), listed) in tokens.iter().zip(&listed) {
            let state = match &listed.used_by {
                Some(by) => format!("used by {by}"),
                None => listed.state.to_owned(),
            };
            table.row(vec![
                listed.id.clone(),
                state,
                listed.role.to_owned(),
                listed.name.clone().unwrap_or_else(|| "-".to_owned()),
                show_patterns(token.scope.vms()),
                show_patterns(token.scope.repositories()),
                show_time(token.not_after, settings),
            ]);
        }
        table.write(text);
        line!(text, "{}", count(tokens.len() as u64, "token"));
    })?;
    Ok(Outcome::Done)
}

fn view(hash: SecretHash, token: &IssuedToken, now: UnixMs) -> Listed {
    let used = token.used.as_ref();
    Listed {
        id: hash.short(),
        state: match used {
            Some(_) => "used",
            None if now >= token.not_after => "expired",
            None => "usable",
        },
        role: token.role.name(),
        name: token.name.as_ref().map(ToString::to_string),
        vms: texts(token.scope.vms()),
        repositories: texts(token.scope.repositories()),
        issued: to_timestamp(token.issued),
        expires: to_timestamp(token.not_after),
        used_by: used.map(|used| used.by.to_string()),
        used_at: used.map(|used| to_timestamp(used.at)),
    }
}

/// A clock may be some seconds behind one that was put right.
fn warn_of_clock(behind: Duration) {
    if behind > Duration::from_secs(60) {
        warn(format_args!(
            "this machine's clock is {} s behind the latest time that the store has seen, which counts",
            behind.as_secs()
        ));
    }
}

fn parse_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = parse_duration(text)?;
    if lifetime > TOKEN_LIFETIME_MAX {
        return Err("a token can be used for 30 days at most".to_owned());
    }
    Ok(lifetime)
}
