//! `undercroft init`.

use jiff::Timestamp;
use serde::Serialize;
use undercroft_dataplane::io::LocalStorage;
use undercroft_dataplane::net::address::RemoteAddress;
use undercroft_dataplane::repository::entropy::SystemEntropy;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::open::{
    CreateOptions, Location, create_local, new_config, read_config,
};
use undercroft_format::chunker::ChunkerSpec;
use undercroft_format::config::{Config, PACK_LEN_TARGET_MAX};
use undercroft_format::id::RepositoryId;
use undercroft_format::units::SegmentSize;

use crate::failure::{Outcome, Problem, warn};
use crate::remote;
use crate::report::{self, line};
use crate::settings::Settings;
use crate::units::{Size, parse_size};

/// Create a repository
///
/// The directory is made if it does not exist, and must be empty if it does. With --encrypt a recovery
/// key is printed, once: it opens the repository when the passphrase is lost. Keep it off this machine.
///
/// JSON: id, location, encrypted, recovery_key (null without --encrypt), chunker, segment_size,
/// pack_size, zstd_level, index_memory.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Encrypt what is stored; asks for a passphrase
    #[arg(long)]
    encrypt: bool,
    /// How disks are cut into chunks, as in aligned-v1:32K-64K-128K or fastcdc-v2020:32K-64K-256K
    #[arg(long, value_name = "SPEC", default_value_t)]
    chunker: ChunkerSpec,
    /// Size of the segments whose maps an increment rewrites: a power of two from 1M to 64M
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse_segment_size)]
    segment_size: SegmentSize,
    /// Level of zstd's compression: -7 (fast) to 22 (small)
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i8).range(-7..=22)
    )]
    zstd_level: i8,
    /// Packs are sealed at this size: 1M to 64M
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_pack_size)]
    pack_size: u32,
    /// Most memory that the index may take: at least 16M
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_index_memory)]
    index_memory: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    id: RepositoryId,
    location: String,
    encrypted: bool,
    recovery_key: Option<&'a str>,
    chunker: String,
    segment_size: u64,
    pack_size: u32,
    zstd_level: i8,
    index_memory: u64,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let location = settings.location()?;
    if settings.has_passphrase_file() && !args.encrypt {
        return Err(
            Problem::usage("--passphrase-file was given without --encrypt")
                .hint("add --encrypt to encrypt what is stored")
                .into(),
        );
    }
    if !args.encrypt && settings.given_unlock()?.is_some() {
        warn("a passphrase or key was given, but without --encrypt nothing is encrypted");
    }
    let passphrase = match args.encrypt {
        true => Some(settings.new_passphrase()?),
        false => None,
    };
    let options = CreateOptions {
        chunker: args.chunker,
        segment_size: args.segment_size,
        pack_len_target: args.pack_size,
        zstd_level: args.zstd_level,
        index_memory_max: args.index_memory,
        passphrase,
        now_ms: Timestamp::now().as_millisecond().max(0) as u64,
    };
    let (config, recovery_key, location) = match location {
        Location::Local(root) => {
            let recovery_key = create_local(root, &options)?;
            let location = root.display().to_string();
            let config = read_config(&LocalStorage::new(root.clone()), &location)?;
            (config, recovery_key, location)
        }
        Location::Remote(address) => {
            // Made here: neither the passphrase nor the recovery key goes to the server.
            let (config, recovery_key) = new_config(&options, &SystemEntropy)?;
            create_remote(settings, address, &config)?;
            (config, recovery_key, address.to_string())
        }
    };
    let report = Report {
        id: config.repository,
        location,
        encrypted: config.is_encrypted(),
        recovery_key: recovery_key.as_ref().map(|key| key.as_str()),
        chunker: config.chunker.to_string(),
        segment_size: config.segment_size.bytes(),
        pack_size: config.pack_len_target,
        zstd_level: config.zstd_level,
        index_memory: config.index_memory_max,
    };
    report::emit(settings, &report, |text| write(text, &report))?;
    Ok(Outcome::Done)
}

/// Makes a repository at a server; if the answer is lost, looks whether it was made.
fn create_remote(
    settings: &Settings,
    address: &RemoteAddress,
    config: &Config,
) -> anyhow::Result<()> {
    let link = remote::connect(settings, &address.server)?;
    let Err(lost) = link.create(&address.name, config) else {
        return Ok(());
    };
    if !matches!(lost, RepositoryError::Connection(_)) {
        return Err(lost.into());
    }
    remote::again(|| {
        let link = remote::connect(settings, &address.server)?;
        match link.create(&address.name, config) {
            Ok(()) => Ok(()),
            // Nobody else has this id.
            Err(exists) if link.open(&address.name)?.repository == config.repository => {
                tracing::debug!(%exists, "it was made before the connection broke");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    })
}

fn write(text: &mut String, report: &Report<'_>) {
    let kind = if report.encrypted { "encrypted " } else { "" };
    line!(
        text,
        "Created {kind}repository {} in {}",
        report.id,
        report.location
    );
    line!(
        text,
        "Chunker {}, segments of {}, packs of {}, zstd level {}",
        report.chunker,
        Size(report.segment_size),
        Size(report.pack_size.into()),
        report.zstd_level
    );
    if let Some(key) = report.recovery_key {
        line!(text);
        line!(text, "Recovery key: {key}");
        line!(
            text,
            "It is shown this once. Keep it away from this machine: without it and without the passphrase"
        );
        line!(text, "nobody can read what is stored.");
    }
}

fn parse_segment_size(text: &str) -> Result<SegmentSize, String> {
    let bytes = parse_size(text)?;
    let size = SegmentSize::from_log2(bytes.checked_ilog2().unwrap_or(0) as u8);
    size.filter(|size| size.bytes() == bytes)
        .ok_or_else(|| "must be a power of two from 1M to 64M".to_owned())
}

fn parse_pack_size(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|_| (1 << 20..=PACK_LEN_TARGET_MAX).contains(&bytes))
        .ok_or_else(|| "must be from 1M to 64M".to_owned())
}

fn parse_index_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    match bytes {
        ..16_777_216 => Err("must be at least 16M".to_owned()),
        _ => Ok(bytes),
    }
}
