//! `undercroft backup`.

use std::path::PathBuf;

use undercroft_control::SnapshotSpec;
use undercroft_format::audit::AuditShare;
use undercroft_format::id::SessionId;

use crate::backup_request::Words;
use crate::backup_run::{self, Report, Resume, run_through};
use crate::failure::{Outcome, warn};
use crate::guest::GuestRequest;
use crate::lock_end::LockTime;
use crate::overlay_source;
use crate::proxy::{Through, tasks};
use crate::report;
use crate::runner::Terminal;
use crate::settings::Settings;

/// Back up the disks of a virtual machine as one snapshot
///
/// All disks become one snapshot, or none does. A SOURCE is a raw file, a block device, an NBD export as
/// in `nbd://HOST[:PORT]/EXPORT`, `nbds://...` (TLS) or `nbd+unix:///EXPORT?socket=PATH`, or `-` for a stream on
/// standard input. What the repository has already is not stored again, so a backup that was
/// interrupted goes on where it stopped when it is run again.
///
/// With --xva the disks are those of an export of XenServer or XCP-ng, labelled xvda, xvdb, ... by where they are
/// plugged in. Nothing is published unless the XVA is complete and all its checksums fit.
///
/// With --qmp the disks are those of a running QEMU guest, all as they were at one moment. The guest goes on
/// meanwhile. Dirty bitmaps in QEMU tell the next backup what to read: it needs no --parent.
///
/// With --parent, and --changed-blocks or an NBD export's `x-dirty-bitmap=NAME`, only what changed since the
/// parent is read. What does not fit leads to a full read and a reason code, never to wrong data. A random
/// sample of what did not change is read as well (--audit); if it differs from the parent, the disk is read in
/// full and the exit code is 4.
///
/// With --vhd-delta and --parent a differencing VHD is laid over a disk of the parent. One that changes something else
/// ends the backup: nothing can stand in for it.
///
/// With --overlay what clients wrote to an export becomes a snapshot: only that is read. The export has to be stopped
/// first.
///
/// With --proxy the disks are files and block devices of the proxy's machine, named by absolute paths. Ctrl-C then cancels the
/// task; if only the connection breaks, it goes on.
///
/// JSON: what `undercroft snapshots` prints for a snapshot, and waits (source_percent, cpu_percent,
/// repository_percent), engine, packs, pack_bytes, warnings, audits (disk, unchanged_blocks, blocks,
/// unknown_blocks, read_bytes, mismatch, missed: the probability, per size of a fault, that it was missed);
/// with a server wire_bytes_sent and
/// wire_bytes_received, all that its connections carried. With --detach: task, proxy, is_new.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Name of the virtual machine
    #[arg(long, value_name = "NAME", required_unless_present = "xva")]
    vm: Option<String>,
    /// A disk and its label
    #[arg(long = "disk", value_name = "LABEL=SOURCE")]
    disks: Vec<String>,
    /// Disks labelled by their file names without extension
    #[arg(value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    /// The VM as an XVA: a file, `-` for standard input, or a URL (http://, https://); plain, gzip or zstd. All
    /// its disks are backed up, its ova.xml becomes the metadata, and --vm may be left out
    #[arg(
        long,
        value_name = "FILE|URL",
        conflicts_with_all = ["disks", "sources", "vhd_deltas", "changed_blocks", "metadata", "lineage"]
    )]
    xva: Option<PathBuf>,
    /// Leave a disk out; may be given several times
    #[arg(long = "exclude-disk", value_name = "LABEL")]
    excluded: Vec<String>,
    /// The QMP socket of a running QEMU guest, whose disks are backed up: all that the guest can write to, but
    /// removable media. Not one that libvirt or another program is connected to
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["xva", "disks", "sources", "vhd_deltas", "changed_blocks", "lineage", "resume"])]
    qmp: Option<PathBuf>,
    /// Where to keep what the guest overwrites while it is backed up
    #[arg(long, value_name = "DIR", default_value = "/var/tmp", requires = "qmp")]
    qmp_scratch: PathBuf,
    /// The snapshot that changed blocks and deltas refer to
    #[arg(long, value_name = "SNAPSHOT")]
    parent: Option<SnapshotSpec>,
    /// What changed since the parent: XAPI's bitmap in base64, a bit per 64 KiB, or a list of extents in
    /// JSON, as in `[{"offset":0,"length":65536}]`, as nbdinfo tells dirty bitmaps and as qemu-img maps an
    /// overlay; the label may be left out if there is one disk
    #[arg(long, value_name = "[LABEL=]FILE")]
    changed_blocks: Vec<String>,
    /// A differencing VHD with what changed since the parent; of several that changed each other all, the newest first.
    /// The label may be left out if the parent has one disk
    #[arg(
        long = "vhd-delta",
        value_name = "[LABEL=]FILE[,OLDER]",
        requires = "parent"
    )]
    vhd_deltas: Vec<String>,
    /// What was written to an export, as what changed since the snapshot that it lies over; see `undercroft export`
    #[arg(
        long = "overlay",
        value_name = "FILE",
        conflicts_with_all = ["parent", "xva", "qmp"]
    )]
    overlays: Vec<PathBuf>,
    /// A file with the VM's metadata, stored with the snapshot
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// A word to find or keep the snapshot by
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Where a disk's state came from, as in root:vdi-uuid=3f9c...; if vdi-uuid, cbt-id or bitmap differ from
    /// the parent's, or base from its snapshot-uuid, the disk is read in full
    #[arg(long, value_name = "LABEL:KEY=VALUE")]
    lineage: Vec<String>,
    /// How much of what did not change is read all the same and compared with the parent: 16 blocks of 64 KiB at
    /// least; 0 for none, 100% for all
    #[arg(long, value_name = "PERCENTAGE", default_value_t)]
    audit: AuditShare,
    /// Go on with an interrupted session of a repository server: only what it had not finished is read
    #[arg(long, value_name = "SESSION")]
    resume: Option<SessionId>,
    /// Lock the snapshot from the moment it can be seen: nobody can forget it before this time, as in
    /// 2027-01-31 (all of that day) or 2027-01-31T03:00, or for so long from the end of the backup, as in
    /// 12h, 30d or 52w. Can be extended, never shortened
    #[arg(long, value_name = "TIME|DURATION")]
    lock_until: Option<LockTime>,
    #[command(flatten)]
    through: Through,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let overlays = args.overlays.into_iter().map(|path| {
        let header = overlay_source::read_header(&path)?;
        Ok((path, header))
    });
    let overlays: Vec<_> = overlays.collect::<anyhow::Result<_>>()?;
    let headers: Vec<_> = overlays.iter().map(|(_, header)| header.clone()).collect();
    let parent = args.parent.or(overlay_source::parent_of(&headers)?);
    let request = Words {
        vm: args.vm,
        xva: args.xva,
        disks: args.disks,
        sources: args.sources,
        vhd_deltas: args.vhd_deltas,
        overlays,
        excluded: args.excluded,
        guest: args.qmp.map(|socket| GuestRequest {
            socket,
            scratch: args.qmp_scratch,
        }),
        changed_blocks: args.changed_blocks,
        metadata: args.metadata,
        tags: args.tags,
        lineage: args.lineage,
        lock: args
            .lock_until
            .map(|time| time.resolve(&settings.time_zone))
            .transpose()?,
        audit: args.audit,
    }
    .request()?;
    if args.through.is_used() {
        let task = tasks::backup(settings, request, parent.as_ref(), args.resume)?;
        return args.through.run(settings, task);
    }
    let resume = Resume {
        asked: args.resume,
        left: None,
    };
    let report = run_through(settings, &request, parent.as_ref(), resume, &Terminal)?;
    report.warnings.iter().for_each(warn);
    report::emit(settings, &Report::of(&report), |text| {
        backup_run::write(text, settings, &report);
    })?;
    Ok(backup_run::outcome(&report))
}
