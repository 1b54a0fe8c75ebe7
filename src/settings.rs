//! The global options, and the validated settings made of them.

use std::io::{self, IsTerminal, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use jiff::tz::TimeZone;
use undercroft_dataplane::io::{Engine, EngineRequest, choose};
use undercroft_dataplane::net::address::ServerAddress;
use undercroft_dataplane::net::bandwidth::{Rule, Rules};
use undercroft_dataplane::net::client::LinkLimits;
use undercroft_dataplane::repository::keys::Unlock;
use undercroft_dataplane::repository::open::Location;
use zeroize::Zeroizing;

use crate::failure::{Problem, quote};
use crate::logging::{LogFormat, log_to_stderr};
use crate::signals::guard_terminal;

const REPOSITORY_VARIABLE: &str = "UNDERCROFT_REPO";
const LOG_VARIABLE: &str = "UNDERCROFT_LOG";
const UPLOAD_VARIABLE: &str = "UNDERCROFT_LIMIT_UPLOAD";
const DOWNLOAD_VARIABLE: &str = "UNDERCROFT_LIMIT_DOWNLOAD";
const PASSPHRASE_VARIABLE: &str = "UNDERCROFT_PASSPHRASE";
/// Longest passphrase or recovery key file, in bytes: longer ones are some other file.
const SECRET_LEN_MAX: u64 = 64 << 10;

/// Options of every command.
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "the brackets in the help are those of a syntax"
)]
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// The repository: a directory, or quic://HOST:PORT/NAME behind a server
    #[arg(long, global = true, value_name = "REPO", env = REPOSITORY_VARIABLE, hide_env_values = true)]
    repo: Option<String>,
    /// File whose first line is the passphrase (default: $UNDERCROFT_PASSPHRASE, or a question)
    #[arg(long, global = true, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// File that holds the recovery key, in place of the passphrase
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        conflicts_with = "passphrase_file"
    )]
    recovery_key_file: Option<PathBuf>,
    /// Print the result as JSON: sizes in bytes, times in RFC 3339
    #[arg(long, global = true)]
    pub json: bool,
    /// Progress of long work on standard error
    #[arg(long, global = true, value_name = "HOW", default_value = "auto")]
    progress: ProgressMode,
    /// What drives the disks
    #[arg(long, global = true, value_name = "ENGINE", default_value = "auto")]
    io: IoEngine,
    /// Threads for CPU work (default: one per core)
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Bandwidth to a server, as in 50MiB/s or 400Mbit/s@mon-fri 08:00-18:00; of several the lowest counts
    ///
    /// RATE[@[DAYS] [HH:MM-HH:MM] [UTC]], by the clock of this machine; without a schedule always. It is for
    /// data alone, and for repositories behind a server. May be repeated; in the variable, separated by ;
    #[arg(long, global = true, value_name = "LIMIT", env = UPLOAD_VARIABLE, value_delimiter = ';', hide_env_values = true)]
    limit_upload: Vec<Rule>,
    /// Bandwidth from a server, written like --limit-upload
    #[arg(long, global = true, value_name = "LIMIT", env = DOWNLOAD_VARIABLE, value_delimiter = ';', hide_env_values = true)]
    limit_download: Vec<Rule>,
    /// Log what is done on standard error; twice for more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// What is logged, in place of -v: a level, or levels by part, as in info,undercroft_dataplane::net=debug
    #[arg(long, global = true, value_name = "FILTER", env = LOG_VARIABLE, hide_env_values = true)]
    log: Option<String>,
    /// How it is logged: lines of text, or a JSON object per line
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A bar if standard error is a terminal
    Auto,
    /// A bar; lines of text if standard error is no terminal
    Bar,
    /// A JSON object per line, twice a second
    Json,
    /// Nothing
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IoEngine {
    /// io_uring if it works here
    Auto,
    /// io_uring or an error
    #[value(name = "io_uring")]
    IoUring,
    /// Threads that call pread and pwrite
    Posix,
}

impl GlobalArgs {
    /// How a user reaches the same repository again: begins the commands in hints.
    pub fn program(&self) -> String {
        match &self.repo {
            Some(repo) if !is_from(REPOSITORY_VARIABLE, Some(repo)) => {
                format!("undercroft --repo {}", quote(repo))
            }
            _ => "undercroft".to_owned(),
        }
    }
}

/// Whether a command has to have the key of an encrypted repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// It does, so it may ask for the passphrase.
    Needed,
    /// It uses it if it was given.
    IfGiven,
}

/// The global options, validated.
#[derive(Clone)]
pub struct Settings {
    repo: Option<Location>,
    may_ask: bool,
    passphrase_file: Option<PathBuf>,
    recovery_key_file: Option<PathBuf>,
    /// Results as JSON.
    pub json: bool,
    /// How progress is shown.
    pub progress: ProgressMode,
    /// Threads for CPU work.
    pub threads: usize,
    engine: EngineRequest,
    /// How much of a path to a server may be taken.
    pub limits: LinkLimits,
    /// The time zone in which times are read and shown.
    pub time_zone: TimeZone,
}

impl Settings {
    /// Validates `args` and sets up logging.
    pub fn new(args: GlobalArgs) -> anyhow::Result<Self> {
        let logging = log_to_stderr(args.verbose, args.log.as_deref(), args.log_format);
        logging.map_err(|error| match is_from(LOG_VARIABLE, args.log.as_deref()) {
            true => error.context(Problem::usage(format!(
                "reading the variable {LOG_VARIABLE}"
            ))),
            false => error,
        })?;
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let progress = match args.progress {
            // Log lines and a bar would run into each other.
            ProgressMode::Auto if args.verbose > 0 || !io::stderr().is_terminal() => {
                ProgressMode::None
            }
            ProgressMode::Auto => ProgressMode::Bar,
            asked => asked,
        };
        Ok(Self {
            repo: args.repo.map(|repo| location(&repo)).transpose()?,
            may_ask: io::stderr().is_terminal(),
            passphrase_file: args.passphrase_file,
            recovery_key_file: args.recovery_key_file,
            json: args.json,
            progress,
            threads: args.threads.map_or_else(cores, usize::from),
            engine: match args.io {
                IoEngine::Auto => EngineRequest::Auto,
                IoEngine::IoUring => EngineRequest::Uring,
                IoEngine::Posix => EngineRequest::Posix,
            },
            limits: LinkLimits {
                upload: Rules::new(args.limit_upload, TimeZone::system()),
                download: Rules::new(args.limit_download, TimeZone::system()),
            },
            time_zone: TimeZone::system(),
        })
    }

    /// The same for a task of a daemon, about another repository: nobody is there to be asked.
    pub fn of_task(&self, repo: Location, time_zone: TimeZone) -> Self {
        Self {
            repo: Some(repo),
            may_ask: false,
            progress: ProgressMode::None,
            time_zone,
            ..self.clone()
        }
    }

    /// The directory of the repository, for what works on a directory alone.
    pub fn root(&self) -> anyhow::Result<&Path> {
        match self.location()? {
            Location::Local(root) => Ok(root),
            Location::Remote(address) => Err(Problem::usage(format!(
                "{address} is behind a server: this command works on the directory of a repository"
            ))
            .hint("run it on the server's machine, with the server stopped: --repo STORE/NAME")
            .into()),
        }
    }

    /// The directory of the repository, if it is on this machine.
    pub fn local_root(&self) -> anyhow::Result<Option<&Path>> {
        Ok(match self.location()? {
            Location::Local(root) => Some(root),
            Location::Remote(_) => None,
        })
    }

    /// The server that was named, if the repository is behind one.
    pub fn server(&self) -> Option<&ServerAddress> {
        match &self.repo {
            Some(Location::Remote(address)) => Some(&address.server),
            _ => None,
        }
    }

    /// Where the repository is.
    pub fn location(&self) -> anyhow::Result<&Location> {
        match &self.repo {
            Some(location) => Ok(location),
            None => Err(Problem::usage("no repository was given")
                .hint(format!(
                    "name it by --repo DIR, or once for all: export {REPOSITORY_VARIABLE}=DIR"
                ))
                .into()),
        }
    }

    /// The same for a process that is going to leave its directory.
    pub fn with_absolute_root(mut self) -> anyhow::Result<Self> {
        if let Some(Location::Local(root)) = &mut self.repo {
            *root = std::path::absolute(&*root).context("finding the repository's directory")?;
        }
        Ok(self)
    }

    /// What drives the disks.
    pub fn engine(&self) -> anyhow::Result<Arc<dyn Engine>> {
        choose(self.engine).map_err(|error| {
            anyhow::Error::new(error).context(
                Problem::new("io_uring does not work here")
                    .hint("leave out --io, or use --io posix"),
            )
        })
    }

    /// True if a file with a passphrase or a recovery key was named on the command line.
    pub fn names_key_file(&self) -> bool {
        self.passphrase_file.is_some() || self.recovery_key_file.is_some()
    }

    /// What was given to unlock an encrypted repository, without asking.
    pub fn given_unlock(&self) -> anyhow::Result<Option<Unlock>> {
        if let Some(file) = &self.passphrase_file {
            return Ok(Some(Unlock::Passphrase(first_line(file)?)));
        }
        if let Some(file) = &self.recovery_key_file {
            return Ok(Some(Unlock::RecoveryKey(first_line(file)?)));
        }
        match std::env::var(PASSPHRASE_VARIABLE) {
            Ok(passphrase) if !passphrase.is_empty() => {
                Ok(Some(Unlock::Passphrase(Zeroizing::new(passphrase))))
            }
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(Problem::new(format!("{PASSPHRASE_VARIABLE} is not UTF-8")).into())
            }
            _ => Ok(None),
        }
    }

    /// What unlocks an encrypted repository; asked for on a terminal if it was not given and is needed.
    pub fn unlock(&self, key: Key) -> anyhow::Result<Option<Unlock>> {
        let given = self.given_unlock()?;
        if given.is_some() || key == Key::IfGiven || !self.may_ask {
            return Ok(given);
        }
        let passphrase = ask("Passphrase of the repository: ")?;
        Ok(Some(Unlock::Passphrase(passphrase)))
    }

    /// The passphrase of a repository to be made.
    pub fn new_passphrase(&self) -> anyhow::Result<Zeroizing<String>> {
        let passphrase = match self.given_unlock()? {
            Some(Unlock::Passphrase(passphrase)) => passphrase,
            Some(Unlock::RecoveryKey(_)) => {
                return Err(Problem::usage(
                    "a new repository makes its own recovery key: leave out --recovery-key-file",
                )
                .into());
            }
            None if self.may_ask => {
                let passphrase = ask("Passphrase of the new repository: ")?;
                if ask("The same again: ")? != passphrase {
                    return Err(Problem::new("the two passphrases differ: nothing was made").into());
                }
                passphrase
            }
            None => {
                return Err(Problem::new(
                    "a passphrase is needed, and there is no terminal to ask on",
                )
                .hint("give --passphrase-file FILE or set UNDERCROFT_PASSPHRASE")
                .into());
            }
        };
        if passphrase.is_empty() {
            return Err(Problem::new("the passphrase is empty").into());
        }
        Ok(passphrase)
    }

    /// Whether a passphrase file was named.
    pub fn has_passphrase_file(&self) -> bool {
        self.passphrase_file.is_some()
    }
}

fn location(repo: &str) -> anyhow::Result<Location> {
    repo.parse().map_err(|error| {
        let error = anyhow::Error::new(error);
        match is_from(REPOSITORY_VARIABLE, Some(repo)) {
            true => {
                let text = format!("reading the variable {REPOSITORY_VARIABLE}");
                error.context(Problem::usage(text))
            }
            false => error,
        }
    })
}

/// Whether the environment's variable gave this value, as far as can be told.
fn is_from(variable: &str, value: Option<&str>) -> bool {
    value.is_some() && std::env::var(variable).ok().as_deref() == value
}

fn ask(question: &str) -> anyhow::Result<Zeroizing<String>> {
    let answer = guard_terminal(|| rpassword::prompt_password(question));
    let answer = answer.context("reading a passphrase")?;
    Ok(Zeroizing::new(answer))
}

fn first_line(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(SECRET_LEN_MAX).read_to_string(&mut text))
        .with_context(|| format!("reading {}", path.display()))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(Problem::new(format!("the first line of {} is empty", path.display())).into());
    }
    Ok(Zeroizing::new(line.to_owned()))
}
