//! How a run ends: the exit code, and for a failure the chain of causes and what to do now.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use undercroft_control::{PolicyError, SelectError};
use undercroft_dataplane::ingest::xva::http::HttpError;
use undercroft_dataplane::nbd::NbdError;
use undercroft_dataplane::net::distrust::distrust_in;
use undercroft_dataplane::net::proxy::status::TaskFailure;
use undercroft_dataplane::net::trust::TrustError;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::index::IndexError;
use undercroft_dataplane::repository::layout;
use undercroft_dataplane::repository::open::LocationError;
use undercroft_format::codec::{DecodeError, Problem as DecodeProblem};
use undercroft_format::wire::failure::FailureCode;
use undercroft_format::xva::reader::{XvaError, XvaProblem};

/// What a command that did not fail came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Done, but stored data is damaged.
    Damage,
    /// Done, but something that was relied on turned out to be wrong.
    Warned,
}

impl Outcome {
    /// [`Outcome::Damage`] if `damaged`.
    pub fn of(damaged: bool) -> Self {
        if damaged { Self::Damage } else { Self::Done }
    }
}

/// A failure found by the command line itself, or a wrapping of another one with advice.
#[derive(Debug)]
pub struct Problem {
    text: String,
    hints: Vec<String>,
    is_usage: bool,
    at_target: bool,
}

impl Problem {
    /// A failure described by `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            hints: Vec::new(),
            is_usage: false,
            at_target: false,
        }
    }

    /// Says that what failed was the user's own output, not the repository: room is made elsewhere.
    pub fn at_target(self) -> Self {
        Self {
            at_target: true,
            ..self
        }
    }

    /// A command line that cannot be meant.
    pub fn usage(text: impl Into<String>) -> Self {
        Self {
            is_usage: true,
            ..Self::new(text)
        }
    }

    /// Adds a line of advice. Commands stand in backquotes, as in `` `undercroft gc` ``.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Problem {}

/// A failure that another process described.
#[derive(Debug)]
pub struct Reported(pub TaskFailure);

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.error)
    }
}

impl std::error::Error for Reported {}

/// What is told of a failure. Commands in its hints still begin with `` `undercroft ``.
pub fn describe(error: &anyhow::Error) -> TaskFailure {
    if let Some(Reported(failure)) = error.downcast_ref() {
        return failure.clone();
    }
    let mut causes: Vec<String> = Vec::new();
    let text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Transparent wrappings say the same again.
        if !causes.last().unwrap_or(&text).ends_with(&cause) {
            causes.push(cause);
        }
    }
    TaskFailure {
        error: text,
        causes,
        hints: hints(error),
        exit_code: if is_usage(error) { 2 } else { 1 },
    }
}

fn lines(failure: &TaskFailure) -> String {
    let mut text = format!("Error: {}\n", failure.error);
    for cause in &failure.causes {
        text += &format!("Caused by: {cause}\n");
    }
    for hint in &failure.hints {
        text += &format!("Hint: {hint}\n");
    }
    text
}

/// Tells of a failure on stderr, as text or as a line of JSON, and gives the exit code. `program` is how
/// this run's repository is reached: it begins the commands in hints.
pub fn exit_code(result: anyhow::Result<Outcome>, program: &str, json: bool) -> ExitCode {
    let error = match result {
        Ok(Outcome::Done) => return ExitCode::SUCCESS,
        Ok(Outcome::Damage) => return ExitCode::from(3),
        Ok(Outcome::Warned) => return ExitCode::from(4),
        Err(error) => error,
    };
    let mut report = describe(&error);
    for hint in &mut report.hints {
        *hint = hint.replace("`undercroft ", &format!("`{program} "));
    }
    let text = match json {
        true => report.json() + "\n",
        false => lines(&report),
    };
    // Nobody is left to be told if this fails.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(report.exit_code)
}

/// Tells of a command line that was not understood, or shows the help that was asked for, and gives the exit
/// code.
pub fn misused(error: &clap::Error, command: &clap::Command, json: bool) -> ExitCode {
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    let variable = variable_of(error, command);
    if !error.use_stderr() || is_help || (!json && variable.is_none()) {
        error.exit();
    }
    let variable =
        variable.map(|name| format!("the value comes from the environment: {name} is set"));
    if !json {
        // Nobody is left to be told if this fails.
        let _ = error.print();
        let _ = writeln!(io::stderr(), "\nHint: {}", variable.unwrap_or_default());
        return ExitCode::from(2);
    }
    let text = error.render().to_string();
    let mut parts = text.trim_end().split("\n\n");
    let what = parts.next().unwrap_or_default();
    let failure = TaskFailure {
        error: what.strip_prefix("error: ").unwrap_or(what).to_owned(),
        causes: Vec::new(),
        hints: parts
            .map(|part| part.trim().to_owned())
            .chain(variable)
            .collect(),
        exit_code: 2,
    };
    let _ = io::stderr().write_all((failure.json() + "\n").as_bytes());
    ExitCode::from(failure.exit_code)
}

/// The variable that gave the option whose value is wrong, if it was not on the command line.
fn variable_of(error: &clap::Error, command: &clap::Command) -> Option<String> {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let long = option.split([' ', '=']).next()?.strip_prefix("--")?;
    let is_given = std::env::args_os().any(|word| {
        let word = word.to_string_lossy();
        let word = word.strip_prefix("--").map(|word| word.split('=').next());
        word.flatten() == Some(long)
    });
    let variable = variable_in(command, long)?;
    (!is_given && std::env::var_os(&variable).is_some()).then_some(variable)
}

fn variable_in(command: &clap::Command, long: &str) -> Option<String> {
    let of_command = command.get_arguments().find_map(|argument| {
        let variable = argument.get_env()?.to_str()?;
        (argument.get_long() == Some(long)).then(|| variable.to_owned())
    });
    of_command.or_else(|| {
        let mut commands = command.get_subcommands();
        commands.find_map(|command| variable_in(command, long))
    })
}

/// Writes a warning to stderr, or tells whoever hears this thread's.
pub fn warn(text: impl fmt::Display) {
    HEARER.with_borrow(|hearer| match hearer {
        Some(hear) => hear(&text.to_string()),
        None => {
            let _ = writeln!(io::stderr(), "Warning: {text}");
        }
    });
}

type Hearer = Box<dyn Fn(&str)>;

thread_local! {
    static HEARER: RefCell<Option<Hearer>> = const { RefCell::new(None) };
}

/// Gives the warnings of this thread to `hear` from now on: it is a task's, whose user is elsewhere.
pub fn hear_warnings(hear: impl Fn(&str) + 'static) {
    HEARER.set(Some(Box::new(hear)));
}

/// The error and its causes on one line.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn is_usage(error: &anyhow::Error) -> bool {
    let problem = error.downcast_ref::<Problem>();
    problem.is_some_and(|problem| problem.is_usage)
        || error.is::<LocationError>()
        || error.is::<PolicyError>()
}

fn hints(error: &anyhow::Error) -> Vec<String> {
    let mut hints: Vec<String> = error
        .downcast_ref::<Problem>()
        .map(|problem| problem.hints.clone())
        .unwrap_or_default();
    let mut has_config = true;
    let mut in_repository = false;
    let at_target = error
        .downcast_ref::<Problem>()
        .is_some_and(|problem| problem.at_target);
    let is_trust = error.chain().any(|cause| cause.is::<TrustError>());
    for cause in error.chain() {
        if let Some(RepositoryError::Damaged { path, .. }) = cause.downcast_ref() {
            has_config = path != layout::CONFIG;
        }
        if let Some(problem) = cause.downcast_ref::<Problem>() {
            hints.extend(problem.hints.iter().cloned());
        } else if let Some(error) = cause.downcast_ref::<RepositoryError>() {
            in_repository = !at_target;
            hints.extend(repository_hints(error));
        } else if let Some(error) = cause.downcast_ref::<IndexError>() {
            in_repository = true;
            hints.extend(index_hint(error));
        } else if let Some(error) = cause.downcast_ref::<TrustError>() {
            hints.extend(trust_hint(error));
        } else if let Some(error) = cause.downcast_ref::<DecodeError>() {
            let is_version = matches!(error.problem, DecodeProblem::Version { .. });
            hints.extend(
                (is_version || !is_trust)
                    .then(|| decode_hint(error, has_config))
                    .flatten(),
            );
        } else if let Some(error) = cause.downcast_ref::<io::Error>() {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            hints.extend(match inner {
                Some(error) => xva_hint(error),
                None => io_hint(error, in_repository),
            });
        } else if let Some(error) = cause.downcast_ref::<XvaError>() {
            hints.extend(xva_hint(error));
        } else if let Some(error) = cause.downcast_ref::<HttpError>() {
            hints.extend(http_hint(error));
        } else if let Some(error) = cause.downcast_ref::<NbdError>() {
            hints.extend(error.advice().map(str::to_owned));
        } else if let Some(error) = cause.downcast_ref::<SelectError>() {
            hints.extend(select_hint(error));
        } else if cause.is::<LocationError>() {
            hints.push("a directory is named like this: --repo /backup/repository".into());
        }
    }
    let mut seen = std::collections::HashSet::new();
    hints.retain(|hint| seen.insert(hint.clone()));
    hints
}

/// Of locks.
const LOCKED: &str = "see until when snapshots are locked: `undercroft snapshots`";

fn repository_hints(error: &RepositoryError) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        RepositoryError::Locked { .. } => hint(
            "wait for it to end, or stop it; snapshots, show, diff, restore, verify and stats work beside it",
        ),
        RepositoryError::KeyNeeded => hint(
            "give --passphrase-file FILE or --recovery-key-file FILE, or set UNDERCROFT_PASSPHRASE",
        ),
        RepositoryError::WrongKey => hint(
            "check for a trailing space and the keyboard layout; the recovery key that init printed opens it too: --recovery-key-file FILE",
        ),
        RepositoryError::NotARepository { .. } => vec![
            "create one: `undercroft init`".into(),
            "or name another one by --repo DIR or UNDERCROFT_REPO".into(),
        ],
        RepositoryError::ConfigLost { .. } => hint(
            "put back a copy of the file `config`, which never changes: it holds the key, and without it nothing can be read. A new repository belongs in another directory",
        ),
        RepositoryError::AlreadyExists { .. } => {
            hint("use it as it is: `undercroft snapshots`; or name another directory by --repo DIR")
        }
        RepositoryError::NotEmpty { .. } => hint("name an empty or a new directory by --repo DIR"),
        RepositoryError::NoSuchSnapshot { .. } => hint("see what there is: `undercroft snapshots`"),
        RepositoryError::Protected { id } => {
            vec![format!(
                "lift the protection first: `undercroft protect --off {}`",
                id.short()
            )]
        }
        RepositoryError::Retention { .. } | RepositoryError::Lock(_) => hint(LOCKED),
        RepositoryError::IncompleteSnapshot { .. } => vec![
            "nothing was removed. See what is damaged: `undercroft verify --deep`".into(),
            "set the damage aside, then collect: `undercroft repair`, `undercroft gc`".into(),
        ],
        RepositoryError::CorruptObject { .. } | RepositoryError::MissingObject { .. } => vec![
            "see all that is damaged: `undercroft verify --deep`".into(),
            "set the damage aside so that the next backup sends the data again: `undercroft repair`"
                .into(),
            "restore what is left: `undercroft restore SNAPSHOT --allow-damage --to TARGET`".into(),
        ],
        RepositoryError::SessionFailed(_) if error.is_disk_full() => hint(DISK_FULL),
        // Transparent: the chain of causes goes past it.
        RepositoryError::Index(error) => index_hint(error).into_iter().collect(),
        RepositoryError::Interrupted {
            session,
            is_committing: true,
            ..
        } => vec![format!(
            "whether the snapshot was published, tells the same command with --resume {session}"
        )],
        RepositoryError::Interrupted { session, .. } => vec![format!(
            "what was finished is kept for a while: run the same command with --resume {session}"
        )],
        // It says itself what to do.
        RepositoryError::Connection(cause) if distrust_in(&**cause).is_some() => Vec::new(),
        RepositoryError::Connection(_) => {
            hint("see that the server runs and that UDP gets through to its port")
        }
        RepositoryError::Remote(failure) => remote_hint(failure.code),
        RepositoryError::Collecting => hint("wait for it to end, then run the same command again"),
        RepositoryError::Cancelled => hint("nothing is lost: run the same command again"),
        _ => Vec::new(),
    }
}

fn remote_hint(code: FailureCode) -> Vec<String> {
    let hint = match code {
        FailureCode::NoSuchRepository => {
            "create one: `undercroft init`; or name another: --repo quic://HOST:PORT/NAME"
        }
        FailureCode::AlreadyExists => "use it as it is: `undercroft snapshots`",
        FailureCode::DiskFull => {
            "make room on the server: `undercroft prune --keep-last N --gc`, or `undercroft gc`"
        }
        FailureCode::KeyNeeded => {
            "the server has no key: run the command on the server's machine, with the server stopped"
        }
        FailureCode::RetentionLocked => LOCKED,
        FailureCode::NoSuchSession | FailureCode::DisksChanged => {
            "leave out --resume: what was stored is found, and not stored again"
        }
        FailureCode::Draining | FailureCode::Busy => "try again later",
        _ => return Vec::new(),
    };
    vec![hint.to_owned()]
}

fn index_hint(error: &IndexError) -> Option<String> {
    if error.needs_rebuild() && !error.is_disk_full() {
        return Some("make the index anew from the packs: `undercroft rebuild-index`".into());
    }
    error.is_disk_full().then(|| DISK_FULL.into())
}

const NO_XVA: &str =
    "--xva takes what `xe vm-export` writes; a raw disk is named by --disk LABEL=FILE";

fn http_hint(error: &HttpError) -> Option<String> {
    let HttpError::Status { status, .. } = error else {
        return None;
    };
    let hint = match status {
        401 | 403 => {
            "say who asks: http(s)://USER:PASSWORD@HOST/export?..., or with a session_id that is still valid"
        }
        404 => "check the path, and the uuid or ref of the VM in it",
        500.. => "the host failed: its log says why (/var/log/xensource.log on XenServer)",
        _ => return None,
    };
    Some(hint.to_owned())
}

fn xva_hint(error: &XvaError) -> Option<String> {
    let hint = match error.problem {
        XvaProblem::Truncated { .. } if error.offset == 0 => NO_XVA,
        XvaProblem::Truncated { .. }
        | XvaProblem::DiskShort { .. }
        | XvaProblem::DiskMissing { .. } => {
            "the export or the copy did not come to its end: make it again"
        }
        XvaProblem::Checksum { .. } => "copy the XVA again, or export the VM again",
        XvaProblem::Header(_) if error.offset > 0 => {
            "the archive is damaged, or the host failed while it exported: make the export or the copy again"
        }
        XvaProblem::Header(_) | XvaProblem::NotFirst => NO_XVA,
        _ => return None,
    };
    Some(hint.to_owned())
}

fn trust_hint(error: &TrustError) -> Option<String> {
    match error {
        TrustError::Damaged { .. } | TrustError::Missing { .. } | TrustError::Foreign { .. } => Some(
            "files of trust are put back together, from one copy: docs/trust.md says how, and what to do without one"
                .into(),
        ),
        TrustError::NoAuthority { .. } => Some(
            "--store, or --state of a proxy, names the directory in which the directory `trust` is"
                .into(),
        ),
        _ => None,
    }
}

fn decode_hint(error: &DecodeError, has_config: bool) -> Option<String> {
    match error.problem {
        DecodeProblem::Version { .. } => {
            Some("use the version of undercroft that wrote it, or a newer one".into())
        }
        _ if !has_config => Some(
            "nothing can be read without the config: put back a copy of this file, which never changes"
                .into(),
        ),
        _ => Some(
            "see all that is damaged: `undercroft verify`; what can be mended is by `undercroft repair`"
                .into(),
        ),
    }
}

const DISK_FULL: &str = "make room: `undercroft prune --keep-last N --gc` or `undercroft forget SNAPSHOT`, then \
     `undercroft gc`, which works on a full disk; snapshots already there are intact";

const TARGET_FULL: &str = "make room there, or choose another place for what is written";

fn io_hint(error: &io::Error, in_repository: bool) -> Option<String> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => match in_repository {
            true => Some(DISK_FULL.into()),
            false => Some(TARGET_FULL.into()),
        },
        io::ErrorKind::PermissionDenied => {
            Some("run as a user who may, or change the permissions".into())
        }
        io::ErrorKind::ReadOnlyFilesystem => Some("mount the file system for writing".into()),
        io::ErrorKind::AddrInUse => {
            Some("something listens there already: stop it, or give another port".into())
        }
        io::ErrorKind::AddrNotAvailable => {
            Some("give an address of this machine, or 0.0.0.0 for all of them".into())
        }
        _ => None,
    }
}

fn select_hint(error: &SelectError) -> Option<String> {
    match error {
        SelectError::NotFound { .. }
        | SelectError::NoSnapshotOfVm { .. }
        | SelectError::ShortId { .. } => Some("see what there is: `undercroft snapshots`".into()),
        _ => None,
    }
}

/// `text` as a word of a shell.
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_the_shell_would_split_them() {
        for (text, quoted) in [
            ("/srv/images/web01.raw", "/srv/images/web01.raw"),
            ("two words", "'two words'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quote(text), quoted);
        }
    }
}
