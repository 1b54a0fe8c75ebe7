//! `undercroft bench`.

use std::path::PathBuf;

use undercroft_dataplane::measure::{MeasureOptions, Measurement, generate, measure};
use undercroft_dataplane::repository::error::RepositoryError;

use crate::failure::{Outcome, Problem};
use crate::progress::Activity;
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::units::parse_size;
use crate::work::Work;

/// The generated image.
const IMAGE: &str = "undercroft-bench-image.raw";

/// Measure each stage of the pipeline, and the whole, on this machine
///
/// Reads the given disk image, or one that is generated, and measures reading, cutting, hashing,
/// compressing and decoding alone, then a full backup, a re-read, both scrubs and a restore with a
/// repository made for the purpose. Nothing is left behind.
///
/// JSON: threads, engine, kernel, figures[name, bytes, seconds, cpu_seconds, gb_per_second,
/// cpu_seconds_per_gb, note].
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// A disk image to read; without, one is generated
    image: Option<PathBuf>,
    /// Directory for what is written; it should lie on the repository's disk
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Size of the generated image
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    size: u64,
    /// zstd level
    #[arg(long, value_name = "LEVEL", default_value_t = 1)]
    zstd_level: i8,
    /// Measure the whole with encryption too
    #[arg(long)]
    encrypt: bool,
}

/// A file that goes away with its owner.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let engine = settings.engine()?;
    let work = Work::start(
        settings,
        Activity {
            name: "bench",
            total_bytes: 0,
        },
    )?;
    let generated = Temporary(args.dir.join(IMAGE));
    let image = match &args.image {
        Some(image) => image,
        None => {
            let _ = std::fs::remove_file(&generated.0);
            generate(&generated.0, args.size, &work.progress).map_err(explain)?;
            &generated.0
        }
    };
    let options = MeasureOptions {
        directory: args.dir,
        encrypted: args.encrypt,
        zstd_level: args.zstd_level,
    };
    let measured = measure(image, &options, &engine, &work.threads, &work.progress);
    let measured = measured.map_err(explain)?;
    drop(work);
    report::emit(settings, &measured, |text| write(text, &measured))?;
    Ok(Outcome::Done)
}

fn explain(error: RepositoryError) -> anyhow::Error {
    if matches!(error, RepositoryError::Cancelled) {
        return Problem::new("stopped on request: nothing was left behind").into();
    }
    let measuring =
        Problem::new("measuring").hint("to measure elsewhere: --dir DIR; less: --size SIZE");
    anyhow::Error::new(error).context(measuring.at_target())
}

fn write(text: &mut String, measured: &Measurement) {
    line!(
        text,
        "{} threads, {}, {}",
        measured.threads,
        measured.engine,
        measured.kernel
    );
    let mut table = Table::new(&[
        ("STAGE", Align::Left),
        ("GB", Align::Right),
        ("SECONDS", Align::Right),
        ("GB/S", Align::Right),
        ("CPU-S/GB", Align::Right),
        ("NOTE", Align::Left),
    ]);
    for figure in &measured.figures {
        table.row(vec![
            figure.name.to_owned(),
            format!("{:.3}", figure.bytes as f64 / 1e9),
            format!("{:.3}", figure.seconds),
            format!("{:.2}", figure.gb_per_second),
            format!("{:.3}", figure.cpu_seconds_per_gb),
            figure.note.clone(),
        ]);
    }
    table.write(text);
}
