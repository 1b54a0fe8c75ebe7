//! A snapshot as an XVA: its description, then its disks, in the order that xapi demands.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use undercroft_dataplane::restore::write::InOrder;
use undercroft_dataplane::restore::{RestoreOptions, RestoreReport, Target, restore_disk};
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::xva::compose::{MadeUp, adapted, made_up};
use undercroft_format::xva::writer::{
    DiskEncoder, END, description_member, in_order, may_omit_zeros,
};
use undercroft_format::xva::{ChecksumKind, Disk, OvaXml};

use crate::access::PinnedRead;
use crate::failure::{Problem, warn};
use crate::restore_run::{DiskReport, explain, is_damage, read_metadata};
use crate::restore_target::Plan;
use crate::work::Work;
use crate::xva_source::OVA_XML;

/// Makes an XVA of a snapshot.
pub struct XvaRestore<'a> {
    pub read: &'a PinnedRead,
    pub checksums: ChecksumKind,
    pub allow_damage: bool,
}

/// The description, and for each disk of it the snapshot's.
struct Contents<'a> {
    text: Vec<u8>,
    disks: Vec<(Disk, &'a DiskManifest)>,
}

/// Where the members go, one disk after the other.
type Output = Arc<Mutex<Box<dyn Write + Send>>>;

impl<'a> XvaRestore<'a> {
    /// Writes the XVA; gives what was done for each disk, and the target's name.
    pub fn run(&self, plan: &Plan<'_>, work: &Work) -> anyhow::Result<(Vec<DiskReport>, String)> {
        let Contents { text, disks } = self.contents()?;
        let (output, finish) = plan.open_archive()?;
        let output: Output = Arc::new(Mutex::new(output));
        let target = finish.name();
        let write = |bytes: &[u8]| {
            let written = output.lock().write_all(bytes);
            written.map_err(|error| {
                let writing = Problem::new(format!("writing the XVA {target}")).at_target();
                anyhow::Error::new(error).context(writing)
            })
        };
        write(&description_member(&text))?;
        let sizes: Vec<Disk> = disks.iter().map(|(disk, _)| disk.clone()).collect();
        let omit_zeros = may_omit_zeros(&sizes);
        let mut reports = Vec::new();
        for (disk, manifest) in disks {
            let encoder =
                DiskEncoder::new(disk.reference, manifest.size, self.checksums, omit_zeros);
            let members = Members {
                encoder: Some(encoder),
                output: output.clone(),
            };
            reports.push(DiskReport {
                disk: manifest.label.clone(),
                target: target.clone(),
                is_verified: false,
                report: self.disk(manifest, members, work, &target)?,
            });
        }
        write(&END)?;
        output
            .lock()
            .flush()
            .with_context(|| format!("writing the XVA {target}"))?;
        finish.publish()?;
        Ok((reports, target))
    }

    fn disk(
        &self,
        manifest: &DiskManifest,
        members: Members,
        work: &Work,
        target: &str,
    ) -> anyhow::Result<RestoreReport> {
        let report = restore_disk(
            &*self.read.repository,
            &self.read.snapshots[0],
            manifest,
            Target::Stream(Box::new(members)),
            RestoreOptions {
                allow_damage: self.allow_damage,
                dry_run: false,
            },
            &work.threads,
            &work.progress,
        );
        report.map_err(|error| explain(error, manifest, target))
    }

    fn contents(&self) -> anyhow::Result<Contents<'a>> {
        let stored = &self.read.snapshots[0];
        let snapshot = &stored.snapshot;
        let (text, manifests) = match self.stored_description()? {
            Some(text) => {
                let described = OvaXml::parse(&text)?.disks()?;
                let manifests: Vec<_> = described
                    .into_iter()
                    .filter_map(|disk| Some((disk.reference, snapshot.disk(&disk.label)?)))
                    .collect();
                let size_of = |disk: &Disk| {
                    let found = manifests.iter().find(|(name, _)| *name == disk.reference);
                    found.map(|(_, manifest)| manifest.size)
                };
                let text = adapted(&text, &size_of).context("adapting the snapshot's ova.xml")?;
                (text, manifests)
            }
            None => {
                let labels = snapshot.disks.iter();
                let text = made_up(&MadeUp {
                    vm: &snapshot.vm,
                    disks: labels
                        .map(|disk| (disk.label.as_str(), disk.size))
                        .collect(),
                    seed: *blake3::hash(stored.id.as_bytes()).as_bytes(),
                });
                // It has the snapshot's disks in their order, under labels of its own.
                let disks = OvaXml::parse(&text)?.disks()?.into_iter();
                let manifests = disks.map(|disk| disk.reference).zip(&snapshot.disks);
                (text, manifests.collect())
            }
        };
        let mut disks = OvaXml::parse(&text)?.disks()?;
        in_order(&mut disks);
        let disks = disks.into_iter().map(|disk| {
            let found = manifests.iter().find(|(name, _)| *name == disk.reference);
            let (_, manifest) = found.expect("what has no counterpart was left out");
            (disk, *manifest)
        });
        Ok(Contents {
            text,
            disks: disks.collect(),
        })
    }

    /// The `ova.xml` that was backed up, if it describes the snapshot's disks.
    fn stored_description(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let snapshot = &self.read.snapshots[0].snapshot;
        let Some(metadata) = snapshot
            .metadata
            .as_ref()
            .filter(|found| found.name == OVA_XML)
        else {
            return Ok(None);
        };
        let text = match read_metadata(self.read, &metadata.chunks) {
            Ok(text) => text,
            Err(error) if self.allow_damage && is_damage(&error) => {
                warn(format_args!(
                    "the snapshot's ova.xml is lost, one is made up: {error}"
                ));
                return Ok(None);
            }
            Err(error) => return Err(error.context("restoring the snapshot's ova.xml")),
        };
        let described = OvaXml::parse(&text).and_then(|ova| ova.disks());
        let described = match described {
            Ok(disks) => disks,
            Err(error) => {
                warn(format_args!(
                    "the snapshot's ova.xml cannot be used, one is made up: {error}"
                ));
                return Ok(None);
            }
        };
        // It may have more disks than were backed up: those are left out of the XVA, too.
        let is_described =
            |manifest: &DiskManifest| described.iter().any(|disk| disk.label == manifest.label);
        let fits = snapshot.disks.iter().all(is_described);
        if !fits {
            let labels: Vec<_> = described.iter().map(|disk| disk.label.as_str()).collect();
            warn(format_args!(
                "the snapshot's ova.xml describes other disks ({}), one is made up",
                labels.join(", ")
            ));
        }
        Ok(fits.then_some(text))
    }
}

/// A disk on its way into the archive.
struct Members {
    encoder: Option<DiskEncoder>,
    output: Output,
}

impl Members {
    fn with(
        &mut self,
        add: impl FnOnce(&mut DiskEncoder, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<()> {
        let encoder = self.encoder.as_mut().expect("nothing comes after the end");
        add(encoder, &mut |members| {
            self.output.lock().write_all(members)
        })
    }
}

impl InOrder for Members {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.with(|encoder, emit| encoder.data(bytes, emit))
    }

    fn zeros(&mut self, len: u64) -> io::Result<()> {
        self.with(|encoder, emit| encoder.zeros(len, emit))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.encoder.take().expect("it ends once").finish();
        Ok(())
    }
}
