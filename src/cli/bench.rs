//! `undercroft bench`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use undercroft_dataplane::measure::{MeasureOptions, Measurement, generate, measure};

use crate::failure::Outcome;
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::units::parse_size;

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

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(settings.threads)
        .build()
        .context("starting threads")?;
    let generated = args.dir.join("undercroft-bench-image.raw");
    let show = std::io::stderr().is_terminal();
    let mut started = |name: &'static str| {
        if show {
            let _ = writeln!(std::io::stderr(), "measuring: {name}");
        }
    };
    let image = match &args.image {
        Some(image) => image.clone(),
        None => {
            started("nothing yet: the image is generated");
            let _ = std::fs::remove_file(&generated);
            generate(&generated, args.size)
                .with_context(|| format!("generating {}", generated.display()))?;
            generated.clone()
        }
    };
    let options = MeasureOptions {
        directory: args.dir,
        encrypted: args.encrypt,
        zstd_level: args.zstd_level,
    };
    let engine = settings.engine()?;
    let measured = measure(&image, &options, &engine, &threads, &mut started);
    if args.image.is_none() {
        let _ = std::fs::remove_file(&generated);
    }
    let measured = measured?;
    report::emit(settings, &measured, |text| write(text, &measured))?;
    Ok(Outcome::Done)
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
