//! What a proxy is to do: a backup or a restore, in structured form. Nothing in it is a secret: keys and
//! passphrases are the proxy's own.

use crate::audit::AuditShare;
use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};
use crate::id::SessionId;
use crate::lock::LockEnd;
use crate::snapshot::NAME_LEN_MAX;
use crate::trust::envelope::{put_option, read_option};

/// Longest encoding of a task, in bytes.
pub const TASK_LEN_MAX: usize = 256 << 10;
/// Longest path, in bytes: PATH_MAX of limits.h.
pub const PATH_LEN_MAX: u64 = 4096;
/// Longest text that names a repository or a snapshot, in bytes.
const SPEC_LEN_MAX: u64 = 512;
/// Longest name of a time zone, in bytes.
const ZONE_LEN_MAX: u64 = 64;
const DISKS_MAX: u64 = 1024;
const TAGS_MAX: u64 = 256;
const LINEAGE_MAX: u64 = 64;
const VALUE_LEN_MAX: u64 = 4096;

/// Something that a proxy does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// From disks to a snapshot.
    Backup(BackupTask),
    /// From a snapshot to disks.
    Restore(RestoreTask),
}

/// A backup of one VM. Paths are those of the proxy's machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupTask {
    /// Where the snapshot goes, as in `quic://HOST:PORT/NAME`.
    pub repository: String,
    /// Name of the VM.
    pub vm: String,
    /// Its disks, in order.
    pub disks: Vec<TaskDisk>,
    /// The snapshot that changed blocks refer to.
    pub parent: Option<String>,
    /// A file with the VM's metadata.
    pub metadata: Option<String>,
    /// Free words.
    pub tags: Vec<String>,
    /// An interrupted session to go on with.
    pub resume: Option<SessionId>,
    /// How the snapshot is locked.
    pub lock: Option<LockEnd>,
    /// How much of what did not change is read all the same.
    pub audit: AuditShare,
    /// The IANA name of the time zone in which `parent` is read; the proxy's if there is none.
    pub time_zone: Option<String>,
}

/// A disk to back up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskDisk {
    /// Its name within the VM.
    pub label: String,
    /// The file or device.
    pub source: String,
    /// A file that says what changed since the parent.
    pub changed_blocks: Option<String>,
    /// Where the disk's state came from.
    pub lineage: Vec<(String, String)>,
}

/// A restore of one snapshot. Paths are those of the proxy's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreTask {
    /// Where the snapshot is, as in `quic://HOST:PORT/NAME`.
    pub repository: String,
    /// Which snapshot, in a person's words.
    pub snapshot: String,
    /// One disk; all of them if there is none.
    pub disk: Option<String>,
    /// A file, a device or a directory.
    pub target: String,
    /// What may become of what is there.
    pub overwrite: Overwrite,
    /// Go on past damage.
    pub allow_damage: bool,
    /// Read the target back, and compare.
    pub verify: bool,
    /// Only say what would be written.
    pub dry_run: bool,
    /// The IANA name of the time zone in which `snapshot` is read; the proxy's if there is none.
    pub time_zone: Option<String>,
}

/// What may become of a target that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Nothing.
    Never,
    /// It is replaced.
    Force,
    /// It is read, and what differs is written.
    InPlace {
        /// A file that is longer than the disk is cut.
        cut: bool,
    },
}

impl Task {
    /// The word for it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Backup(_) => "backup",
            Self::Restore(_) => "restore",
        }
    }

    /// The repository.
    pub fn repository(&self) -> &str {
        match self {
            Self::Backup(task) => &task.repository,
            Self::Restore(task) => &task.repository,
        }
    }

    /// Checks the limits of what is sent.
    ///
    /// # Errors
    /// The field that exceeds one.
    pub fn check(&self) -> Result<(), DecodeError> {
        let mut bytes = Vec::new();
        self.put(&mut bytes);
        let mut reader = Reader::new("task", &bytes);
        Self::read(&mut reader)?;
        reader.finish()
    }

    /// Appends the encoding.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Backup(task) => {
                out.push(1);
                task.put(out);
            }
            Self::Restore(task) => {
                out.push(2);
                task.put(out);
            }
        }
    }

    /// Reads the encoding.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        let task = match reader.u8()? {
            1 => Self::Backup(BackupTask::read(reader)?),
            2 => Self::Restore(RestoreTask::read(reader)?),
            _ => return Err(at.error(Problem::Invalid("kind of task"))),
        };
        let len = reader.offset() - at.offset();
        if len > TASK_LEN_MAX {
            return Err(at.error(Problem::Limit {
                field: "length of a task",
                value: len as u64,
                limit: TASK_LEN_MAX as u64,
            }));
        }
        Ok(task)
    }
}

impl BackupTask {
    fn put(&self, out: &mut Vec<u8>) {
        put_string(out, &self.repository);
        put_string(out, &self.vm);
        put_varint(out, self.disks.len() as u64);
        self.disks.iter().for_each(|disk| disk.put(out));
        put_text(out, self.parent.as_ref());
        put_text(out, self.metadata.as_ref());
        put_varint(out, self.tags.len() as u64);
        self.tags.iter().for_each(|tag| put_string(out, tag));
        put_option(out, self.resume.as_ref(), |out, session| {
            out.extend_from_slice(session.as_bytes());
        });
        LockEnd::put(self.lock, out);
        put_varint(out, self.audit.ppm().into());
        put_text(out, self.time_zone.as_ref());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            repository: reader.string("repository", SPEC_LEN_MAX)?,
            vm: reader.string("VM name", NAME_LEN_MAX)?,
            disks: read_list(reader, "disks", DISKS_MAX, 4, TaskDisk::read)?,
            parent: read_text(reader, "parent", SPEC_LEN_MAX)?,
            metadata: read_text(reader, "metadata", PATH_LEN_MAX)?,
            tags: read_list(reader, "tags", TAGS_MAX, 1, |reader| {
                reader.string("tag", NAME_LEN_MAX)
            })?,
            resume: read_option(reader, |reader| Ok(SessionId::from_bytes(reader.array()?)))?,
            lock: LockEnd::read(reader)?,
            audit: read_share(reader)?,
            time_zone: read_text(reader, "time zone", ZONE_LEN_MAX)?,
        })
    }
}

impl TaskDisk {
    fn put(&self, out: &mut Vec<u8>) {
        put_string(out, &self.label);
        put_string(out, &self.source);
        put_text(out, self.changed_blocks.as_ref());
        put_varint(out, self.lineage.len() as u64);
        for (key, value) in &self.lineage {
            put_string(out, key);
            put_string(out, value);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            label: reader.string("disk label", NAME_LEN_MAX)?,
            source: reader.string("source", PATH_LEN_MAX)?,
            changed_blocks: read_text(reader, "changed blocks", PATH_LEN_MAX)?,
            lineage: read_list(reader, "lineage", LINEAGE_MAX, 2, |reader| {
                Ok((
                    reader.string("lineage key", NAME_LEN_MAX)?,
                    reader.string("lineage value", VALUE_LEN_MAX)?,
                ))
            })?,
        })
    }
}

impl RestoreTask {
    fn put(&self, out: &mut Vec<u8>) {
        put_string(out, &self.repository);
        put_string(out, &self.snapshot);
        put_text(out, self.disk.as_ref());
        put_string(out, &self.target);
        out.push(match self.overwrite {
            Overwrite::Never => 0,
            Overwrite::Force => 1,
            Overwrite::InPlace { cut: false } => 2,
            Overwrite::InPlace { cut: true } => 3,
        });
        out.push(self.allow_damage.into());
        out.push(self.verify.into());
        out.push(self.dry_run.into());
        put_text(out, self.time_zone.as_ref());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            repository: reader.string("repository", SPEC_LEN_MAX)?,
            snapshot: reader.string("snapshot", SPEC_LEN_MAX)?,
            disk: read_text(reader, "disk label", NAME_LEN_MAX)?,
            target: reader.string("target", PATH_LEN_MAX)?,
            overwrite: {
                let at = reader.clone();
                match reader.u8()? {
                    0 => Overwrite::Never,
                    1 => Overwrite::Force,
                    2 => Overwrite::InPlace { cut: false },
                    3 => Overwrite::InPlace { cut: true },
                    _ => return Err(at.error(Problem::Invalid("way to overwrite"))),
                }
            },
            allow_damage: reader.bool()?,
            verify: reader.bool()?,
            dry_run: reader.bool()?,
            time_zone: read_text(reader, "time zone", ZONE_LEN_MAX)?,
        })
    }
}

fn read_share(reader: &mut Reader<'_>) -> Result<AuditShare, DecodeError> {
    let ppm = reader.varint("share of an audit", AuditShare::ALL.ppm().into())? as u32;
    let too_large = || reader.error(Problem::Invalid("share of an audit"));
    AuditShare::from_ppm(ppm).ok_or_else(too_large)
}

fn put_text(out: &mut Vec<u8>, text: Option<&String>) {
    put_option(out, text, |out, text| put_string(out, text));
}

fn read_text(
    reader: &mut Reader<'_>,
    field: &'static str,
    limit: u64,
) -> Result<Option<String>, DecodeError> {
    read_option(reader, |reader| reader.string(field, limit))
}

/// A count and as many items of at least `item_len` bytes each.
pub(super) fn read_list<'a, T>(
    reader: &mut Reader<'a>,
    field: &'static str,
    limit: u64,
    item_len: usize,
    read: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.count(field, limit, item_len)?;
    (0..count).map(|_| read(reader)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;
    use crate::trust::time::UnixMs;

    fn text() -> impl Strategy<Value = String> {
        "[a-zö0-9/@ ]{0,20}"
    }

    fn disk() -> impl Strategy<Value = TaskDisk> {
        (text(), text(), of(text()), vec((text(), text()), 0..3)).prop_map(
            |(label, source, changed_blocks, lineage)| TaskDisk {
                label,
                source,
                changed_blocks,
                lineage,
            },
        )
    }

    pub fn any_task() -> impl Strategy<Value = Task> {
        let session = any::<[u8; 16]>().prop_map(SessionId::from_bytes);
        let lock = prop_oneof![
            (0..1_u64 << 40).prop_map(|ms| LockEnd::At(UnixMs::from_millis(ms))),
            (0..1_u64 << 30).prop_map(|ms| LockEnd::After(Duration::from_millis(ms))),
        ];
        let overwrite = prop_oneof![
            Just(Overwrite::Never),
            Just(Overwrite::Force),
            any::<bool>().prop_map(|cut| Overwrite::InPlace { cut }),
        ];
        prop_oneof![
            (
                (text(), text(), vec(disk(), 0..3), of(text())),
                (
                    of(text()),
                    vec(text(), 0..3),
                    of(session),
                    of(lock),
                    (0..=1_000_000_u32).prop_map(|ppm| AuditShare::from_ppm(ppm).unwrap()),
                    of(text()),
                ),
            )
                .prop_map(
                    |(
                        (repository, vm, disks, parent),
                        (metadata, tags, resume, lock, audit, time_zone),
                    )| {
                        Task::Backup(BackupTask {
                            repository,
                            vm,
                            disks,
                            parent,
                            metadata,
                            tags,
                            resume,
                            lock,
                            audit,
                            time_zone,
                        })
                    }
                ),
            (
                (text(), text(), of(text()), text()),
                (overwrite, any::<[bool; 3]>(), of(text())),
            )
                .prop_map(
                    |((repository, snapshot, disk, target), (overwrite, flags, zone))| {
                        let [allow_damage, verify, dry_run] = flags;
                        Task::Restore(RestoreTask {
                            repository,
                            snapshot,
                            disk,
                            target,
                            overwrite,
                            allow_damage,
                            verify,
                            dry_run,
                            time_zone: zone,
                        })
                    }
                ),
        ]
    }

    #[test]
    fn a_task_that_is_too_long_is_found_before_it_is_sent() {
        let disk = TaskDisk {
            source: "x".repeat(PATH_LEN_MAX as usize),
            ..TaskDisk::default()
        };
        let task = |disks| {
            Task::Backup(BackupTask {
                disks: vec![disk.clone(); disks],
                ..BackupTask::default()
            })
        };
        assert_eq!(task(60).check(), Ok(()));
        assert!(task(70).check().is_err());
        let source = "x".repeat(PATH_LEN_MAX as usize + 1);
        let disks = vec![TaskDisk {
            source,
            ..TaskDisk::default()
        }];
        let longer = Task::Backup(BackupTask {
            disks,
            ..BackupTask::default()
        });
        assert!(longer.check().is_err());
    }
}
