//! Exports as targets.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use undercroft_dataplane::io::BlockFile;
use undercroft_dataplane::nbd::NbdFile;
use undercroft_dataplane::restore::{Target, TargetContent};
use undercroft_format::snapshot::DiskManifest;

use super::finish::Finish;
use super::{Format, OpenTarget, Overwrite, Plan};
use crate::failure::Problem;
use crate::nbd_source::{self, shown_source};
use crate::units::Size;

impl Plan<'_> {
    fn export(&self, uri: &str) -> anyhow::Result<&Arc<NbdFile>> {
        if let Some(file) = self.export.get() {
            return Ok(file);
        }
        let file = nbd_source::open_target(uri)?;
        Ok(self.export.get_or_init(|| file))
    }

    pub(super) fn check_export(&self, uri: &str, disk: &DiskManifest) -> anyhow::Result<()> {
        let name = shown_source(Path::new(uri));
        if self.format != Format::Raw {
            return Err(Problem::usage(format!(
                "the target {name} is an NBD export: {} is written to a file",
                self.format.article()
            ))
            .hint(format!(
                "leave out --format {}: the server knows how to store the disk",
                self.format.name()
            ))
            .into());
        }
        let file = self.export(uri)?;
        if file.size() < disk.size.get() {
            return Err(Problem::new(format!(
                "the NBD export {name} is smaller than disk {}: {} against {} ({} bytes are missing)",
                disk.label,
                Size(file.size()),
                Size(disk.size.get()),
                disk.size.get() - file.size(),
            ))
            .hint(format!("export at least {} bytes", disk.size))
            .into());
        }
        if self.overwrite != Overwrite::Never {
            return Ok(());
        }
        let asking = || format!("asking the target {name} for its holes");
        match file.next_data(0, file.size()).with_context(asking)? {
            None => Ok(()),
            Some(data) => Err(Problem::new(format!(
                "the NBD export {name} may hold data, from byte {} on",
                data.start
            ))
            .hint("overwrite it: --force; or write only what differs: --in-place")
            .into()),
        }
    }

    pub(super) fn export_target(&self, uri: &str) -> anyhow::Result<OpenTarget> {
        let file = self.export(uri)?.clone();
        file.forget_holes();
        let mut finish = Finish::plain(shown_source(Path::new(uri)), Some(file.clone()));
        finish.export = Some(file.clone());
        Ok(OpenTarget {
            target: Target::Disk {
                file: file.clone(),
                content: match self.overwrite {
                    Overwrite::InPlace { .. } => TargetContent::Similar,
                    // What the server says of holes is no reason to leave them to it.
                    Overwrite::Never | Overwrite::Force => TargetContent::Unknown,
                },
                reads: Some(file),
            },
            finish,
        })
    }
}
