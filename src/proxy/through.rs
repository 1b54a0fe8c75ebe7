//! The options that name a proxy.

use serde::Serialize;
use undercroft_dataplane::net::address::ProxyAddress;
use undercroft_dataplane::net::proxy::ProxyLink;
use undercroft_dataplane::repository::entropy::{Entropy, SystemEntropy};
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_format::id::TaskId;
use undercroft_format::wire::failure::FailureCode;
use undercroft_format::wire::task::Task;

use super::follow::follow;
use crate::failure::{Outcome, Problem};
use crate::remote;
use crate::report::{self, line};
use crate::settings::Settings;

/// A proxy that is looked after.
#[derive(clap::Args, Clone, Debug)]
pub struct Named {
    /// The proxy, as in quic://HOST:PORT; the port is 7421 if it is left out
    #[arg(
        long,
        value_name = "PROXY",
        env = "UNDERCROFT_PROXY",
        hide_env_values = true
    )]
    proxy: Option<ProxyAddress>,
}

impl Named {
    /// Where it is.
    pub fn address(&self) -> anyhow::Result<&ProxyAddress> {
        self.proxy.as_ref().ok_or_else(|| {
            Problem::usage("no proxy was given")
                .hint("name it by --proxy quic://HOST:PORT, or once for all: export UNDERCROFT_PROXY=...")
                .into()
        })
    }

    /// Connects to it.
    pub fn connect(&self) -> anyhow::Result<ProxyLink> {
        remote::connect_to_proxy(self.address()?)
    }
}

/// Work that may be done by a proxy.
#[derive(clap::Args, Clone, Debug)]
pub struct Through {
    /// Have a proxy do it, as in quic://HOST:PORT; paths are those of its machine
    #[arg(
        long,
        value_name = "PROXY",
        env = "UNDERCROFT_PROXY",
        hide_env_values = true
    )]
    proxy: Option<ProxyAddress>,
    /// With --proxy: do not wait for the end, print the task's id
    #[arg(long, requires = "proxy")]
    detach: bool,
    /// With --proxy: the task's id, 32 hexadecimal digits; the same again is the same task, not another one
    #[arg(long = "task", value_name = "ID", requires = "proxy")]
    task: Option<TaskId>,
}

#[derive(Serialize)]
struct Detached {
    task: TaskId,
    proxy: String,
    is_new: bool,
}

/// A proxy's codes are those of a repository server, but other things are to be done about them.
fn not_taken(error: RepositoryError, proxy: &ProxyAddress) -> anyhow::Error {
    let RepositoryError::Remote(failure) = error else {
        return anyhow::Error::new(error)
            .context(format!("submitting the task to the proxy {proxy}"));
    };
    let problem = Problem::new(format!(
        "the proxy {proxy} does not take the task: {}",
        failure.text
    ));
    let problem = match failure.code {
        FailureCode::AlreadyExists => problem.hint("leave out --task, or give another id"),
        FailureCode::Suspended => problem.hint(format!(
            "an administrator resumes it: `undercroft proxy resume --proxy {proxy}`"
        )),
        FailureCode::Busy | FailureCode::Draining => problem.hint("try again later"),
        _ => problem,
    };
    problem.into()
}

impl Through {
    /// Whether a proxy is to do it.
    pub fn is_used(&self) -> bool {
        self.proxy.is_some()
    }

    /// Submits `task` and, unless that is not wanted, follows it to its end.
    pub fn run(&self, settings: &Settings, task: Task) -> anyhow::Result<Outcome> {
        let proxy = self.proxy.as_ref();
        let proxy = proxy.expect("asked for only if a proxy is to do it");
        if settings.names_key_file() {
            return Err(Problem::usage(
                "keys are not sent to a proxy: it has its own, from the files or the environment that it was started with",
            )
            .hint("leave out --passphrase-file and --recovery-key-file here")
            .into());
        }
        let id = match self.task {
            Some(id) => id,
            None => TaskId::from_bytes((&SystemEntropy as &dyn Entropy).array()?),
        };
        let link = remote::connect_to_proxy(proxy)?;
        let is_new = link
            .submit(id, &task)
            .map_err(|error| not_taken(error, proxy))?;
        if !self.detach {
            return follow(settings, proxy, link, id, &task);
        }
        let detached = Detached {
            task: id,
            proxy: proxy.to_string(),
            is_new,
        };
        report::emit(settings, &detached, |text| {
            line!(text, "Task {id}");
            line!(
                text,
                "How it goes: undercroft proxy show {id} --proxy {proxy}"
            );
        })?;
        Ok(Outcome::Done)
    }
}
