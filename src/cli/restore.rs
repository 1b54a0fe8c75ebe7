//! `undercroft restore`.

use std::path::{Path, PathBuf};

use clap::builder::NonEmptyStringValueParser;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::nbd::export::Listen;
use undercroft_dataplane::view::CACHE_LEN_DEFAULT;
use undercroft_format::xva::ChecksumKind;

use crate::cli::export::parse_listen;
use crate::disk_spec::DiskSpec;
use crate::export_run;
use crate::failure::{Outcome, Problem};
use crate::live_restore::Live;
use crate::proxy::{Through, tasks};
use crate::report;
use crate::restore_run::{self, Form, Request, run_through};
use crate::restore_target::{Format, Overwrite};
use crate::runner::Terminal;
use crate::settings::Settings;

/// Restore disks of a snapshot
///
/// TARGET is a file, a block device, a directory (one that exists, or a name ending in `/`) or `-` for
/// standard output; or the NBD URI of an export that can be written, as `qemu-nbd` serves it for any format that QEMU
/// knows. Into a directory go all disks as LABEL.raw and the VM's metadata. A file appears
/// under its name only when it is complete.
///
/// With --format vhd a disk becomes a dynamic VHD, LABEL.vhd in a directory, in which only blocks of 2 MiB with data are
/// there; with --vhd-since a differencing one, which holds what differs from an older snapshot and whose parent is the
/// VHD of that. With --format qcow2 it becomes a qcow2 image, LABEL.qcow2, in which only clusters of 64 KiB with data
/// are there. The same snapshot always gives the same file.
///
/// With --xva the VM becomes one file to import, always the same for a snapshot. Its ova.xml is the one that was
/// backed up, where what was exported from a snapshot is no template any more; for a snapshot without one it is
/// made up: 1 GiB of memory, one processor, no network.
///
/// Damaged data never passes for good: the restore fails, or with --allow-damage it leaves the damaged
/// ranges as zeros (with --in-place as they are), says which they are and ends with exit code 3.
///
/// With --in-place the target is read, and only what differs is written; EQUAL says how much was spared, and --dry-run
/// what would be written. With --verify the target is read back and every chunk of it compared with the snapshot's; a
/// file gets its name only after that.
///
/// With --live the disk can be used at once: it is exported over NBD as that of --nbd, for clients that read and write, and
/// brought to TARGET meanwhile; what a client asks for goes first, and what it writes goes to TARGET. A state file
/// says what is there already: the same command goes on after a crash, and loses nothing that was flushed. It says when
/// all is there, and exports on from TARGET until SIGTERM or Ctrl-C. JSON then: that of `undercroft export`, and event restored,
/// with target.
///
/// With --proxy the target is on the proxy's machine, named by an absolute path.
///
/// JSON: snapshot, duration_ms, dry_run, disks (disk, target, verified, size, data_bytes, written_bytes, zeroed_bytes,
/// equal_bytes, fetched_bytes, damage, engine), metadata (the file written, or null), with --xva xva (the file written). It goes to standard error when
/// the disk goes to standard output. With --detach: task, proxy, is_new.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which snapshot
    snapshot: SnapshotSpec,
    /// Which disk; all of them if left out, where TARGET is a directory
    #[arg(long, value_name = "LABEL")]
    disk: Option<String>,
    /// Where to
    #[arg(
        long,
        value_name = "TARGET",
        value_parser = NonEmptyStringValueParser::new(),
        required_unless_present = "xva"
    )]
    to: Option<String>,
    /// Write one XVA of all disks to FILE, or to standard output (`-`), to import into XenServer or XCP-ng
    #[arg(
        long,
        value_name = "FILE",
        value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["to", "disk", "in_place", "format", "vhd_since"]
    )]
    xva: Option<String>,
    /// The checksums in the XVA: sha1 is for releases before 8.1
    #[arg(long, value_name = "KIND", default_value = "xxhash", requires = "xva")]
    xva_checksum: XvaChecksum,
    /// Read the target and write only what differs; a longer file is cut only with --force
    #[arg(long)]
    in_place: bool,
    /// With --in-place: write nothing, and say what would be written
    #[arg(long, requires = "in_place", conflicts_with = "verify")]
    dry_run: bool,
    /// Read the target back, past the cache where that can be, and compare it with the snapshot
    #[arg(long, conflicts_with = "xva")]
    verify: bool,
    /// Overwrite a file or device that is there
    #[arg(long)]
    force: bool,
    /// Go on past damage
    #[arg(long)]
    allow_damage: bool,
    /// What to write
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    format: Format,
    /// Write what differs from this snapshot, as a differencing VHD
    #[arg(long, value_name = "SNAPSHOT")]
    vhd_since: Option<SnapshotSpec>,
    /// Export the disk while it is restored
    #[arg(long, requires_all = ["nbd", "to"], conflicts_with_all = ["in_place", "format", "vhd_since", "allow_damage", "xva", "dry_run", "verify"])]
    live: bool,
    /// With --live, where to listen: an address of this machine, see `undercroft export`, or unix:PATH
    #[arg(long, value_name = "ADDR|unix:PATH", value_parser = parse_listen, requires = "live")]
    nbd: Option<Listen>,
    /// With --live, where to note what is restored already (default: TARGET.live)
    #[arg(long, value_name = "FILE", requires = "live")]
    state: Option<PathBuf>,
    #[command(flatten)]
    through: Through,
}

/// Kinds of checksums by their names.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum XvaChecksum {
    Xxhash,
    Sha1,
}

pub fn run(settings: &Settings, mut args: Args) -> anyhow::Result<Outcome> {
    if let (true, Some(nbd), Some(to)) = (args.live, args.nbd.take(), &args.to) {
        return run_live(settings, &args, nbd, to);
    }
    let checksums = match args.xva_checksum {
        XvaChecksum::Xxhash => ChecksumKind::Xxh64,
        XvaChecksum::Sha1 => ChecksumKind::Sha1,
    };
    let format = match args.vhd_since {
        Some(_) if args.format == Format::Qcow2 => {
            return Err(
                Problem::usage("--vhd-since makes a VHD, and --format qcow2 does not")
                    .hint("leave out one of them")
                    .into(),
            );
        }
        Some(_) => Format::Vhd,
        None => args.format,
    };
    let (to, form) = match (args.xva, args.to) {
        (Some(xva), _) => (xva, Form::Xva(checksums)),
        (None, to) => (to.unwrap_or_default(), Form::Disks(format)),
    };
    let request = Request {
        snapshot: args.snapshot,
        disk: args.disk,
        to,
        form,
        overwrite: match (args.in_place, args.force) {
            (true, cut) => Overwrite::InPlace { cut },
            (false, true) => Overwrite::Force,
            (false, false) => Overwrite::Never,
        },
        allow_damage: args.allow_damage,
        verify: args.verify,
        dry_run: args.dry_run,
        vhd_since: args.vhd_since,
    };
    if args.through.is_used() {
        let task = tasks::restore(settings, &request)?;
        return args.through.run(settings, task);
    }
    let report = run_through(settings, &request, &Terminal)?;
    let write = |text: &mut String| restore_run::write(text, &report);
    if request.to == "-" {
        report::emit_to_stderr(settings, &report, write);
    } else {
        report::emit(settings, &report, write)?;
    }
    Ok(report.outcome())
}

fn run_live(settings: &Settings, args: &Args, listen: Listen, to: &str) -> anyhow::Result<Outcome> {
    if args.through.is_used() {
        return Err(Problem::usage("a proxy restores nothing live")
            .hint("run it without --proxy, on the machine where the disk is to be")
            .into());
    }
    if to == "-" || to.ends_with('/') || Path::new(to).is_dir() {
        return Err(Problem::usage("--live restores to a file or a device")
            .hint("name it: --to FILE")
            .into());
    }
    export_run::run(
        settings,
        export_run::Request {
            spec: DiskSpec {
                snapshot: args.snapshot.clone(),
                disk: args.disk.clone(),
            },
            listen,
            name: None,
            tls: None,
            insecure: false,
            overlay: None,
            discard: false,
            live: Some(Live {
                target: to.into(),
                state: args
                    .state
                    .clone()
                    .unwrap_or_else(|| format!("{to}.live").into()),
                force: args.force,
            }),
            cache_len: CACHE_LEN_DEFAULT,
        },
    )
}
