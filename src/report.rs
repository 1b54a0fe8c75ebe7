//! Results on stdout: text for people, JSON for machines.

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;
use undercroft_dataplane::repository::damage::{AffectedRange, Damage};

use crate::settings::Settings;
use crate::units::Size;

/// Adds a line to `text`.
macro_rules! line {
    ($text:expr) => { $text.push('\n') };
    ($text:expr, $($arg:tt)*) => {{
        use std::fmt::Write as _;
        // Writing to a string cannot fail.
        let _ = writeln!($text, $($arg)*);
    }};
}
pub(crate) use line;

/// Writes a result to stdout: `value` as JSON if that was asked for, else the text that `write` makes.
pub fn emit<T: Serialize>(
    settings: &Settings,
    value: &T,
    write: impl FnOnce(&mut String),
) -> anyhow::Result<()> {
    let mut text = String::new();
    if settings.json {
        text = serde_json::to_string_pretty(value).context("writing JSON")?;
        text.push('\n');
    } else {
        write(&mut text);
    }
    print(text.as_bytes())
}

/// Writes `value` to stdout as JSON, in one line.
pub fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string(value).context("writing JSON")?;
    text.push('\n');
    print(text.as_bytes())
}

/// A result both ways: as JSON and as text, for whoever prints it elsewhere.
pub fn both<T: Serialize>(
    value: &T,
    write: impl FnOnce(&mut String),
) -> anyhow::Result<(String, String)> {
    let mut json = serde_json::to_string_pretty(value).context("writing JSON")?;
    json.push('\n');
    let mut text = String::new();
    write(&mut text);
    Ok((json, text))
}

/// As [`emit`], to stderr: for a result whose data took stdout.
pub fn emit_to_stderr<T: Serialize>(
    settings: &Settings,
    value: &T,
    write: impl FnOnce(&mut String),
) {
    let mut text = String::new();
    match serde_json::to_string_pretty(value) {
        Ok(json) if settings.json => line!(text, "{json}"),
        _ => write(&mut text),
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Adds ranges that cannot be restored to `text`, a line each.
pub fn write_affected<'a>(text: &mut String, ranges: impl IntoIterator<Item = &'a AffectedRange>) {
    for affected in ranges {
        // No disk is labelled so: it is the VM's metadata.
        let what = match affected.disk.as_str() {
            "" => "metadata".to_owned(),
            label => format!("disk {label}"),
        };
        line!(
            text,
            "  {} {} {what}: bytes {}..{} ({}): {}",
            affected.snapshot.short(),
            affected.vm,
            affected.range.start,
            affected.range.end,
            Size(affected.range.len()),
            affected.problem
        );
    }
}

/// Adds what is damaged in the repository to `text`, a line each.
pub fn write_damage(text: &mut String, damage: &[Damage]) {
    for damage in damage {
        match damage.position {
            Some(position) => {
                line!(text, "  {}+{position}: {}", damage.path, damage.problem);
            }
            None => line!(text, "  {}: {}", damage.path, damage.problem),
        }
    }
}

/// Writes `bytes` to stdout. A reader that has gone away has seen enough: no error.
pub fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(()),
    }
}

/// Which side of its column a cell stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// Rows under headings.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of one cell per column.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell per column");
        self.rows.push(cells);
    }

    /// Adds the table to `text`.
    pub fn write(&self, text: &mut String) {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0).max(self.columns[column].0.len())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut write_row = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for ((cell, width), (_, align)) in cells.zip(&widths).zip(&self.columns) {
                let _ = match align {
                    Align::Left => write!(line, "{cell:<width$}  "),
                    Align::Right => write!(line, "{cell:>width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        write_row(&mut self.columns.iter().map(|(name, _)| *name));
        for row in &self.rows {
            write_row(&mut row.iter().map(String::as_str));
        }
    }
}

#[cfg(test)]
mod tests {
    use undercroft_format::units::DiskRange;

    use super::*;

    #[test]
    fn metadata_is_no_disk_without_a_name() {
        let affected = |disk: &str| AffectedRange {
            snapshot: undercroft_format::id::SnapshotId::from_bytes([1; 16]),
            vm: "web01".into(),
            disk: disk.into(),
            range: DiskRange { start: 0, end: 6 },
            problem: "lost".into(),
        };
        let mut text = String::new();
        write_affected(&mut text, &[affected("root"), affected("")]);
        assert_eq!(
            text,
            "  01010101 web01 disk root: bytes 0..6 (6 B): lost\n  \
             01010101 web01 metadata: bytes 0..6 (6 B): lost\n"
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("VM", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec!["web01".into(), "4 KiB".into()]);
        table.row(vec!["größe".into(), "-".into()]);
        let mut text = String::new();
        table.write(&mut text);
        assert_eq!(text, "VM      SIZE\nweb01  4 KiB\ngröße      -\n");
    }
}
