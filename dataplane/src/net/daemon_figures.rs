//! Figures that every daemon has, beside those of its door and its process.

use std::fmt::Error;

use super::trust::Authority;
use crate::observe::exposition::Figures;

/// The program, named with its version at the end, and how it is.
pub fn encode_program(
    figures: &mut Figures<'_>,
    program: &str,
    is_draining: bool,
    is_ready: bool,
) -> Result<(), Error> {
    let version = program.rsplit(' ').next().unwrap_or(program);
    figures.gauges(
        "build_info",
        "The program; the value is 1",
        [(&[("version", version)][..], 1_u64)],
    )?;
    figures.gauge(
        "draining",
        "1 while the daemon shuts down",
        u64::from(is_draining),
    )?;
    figures.gauge("ready", "1 if /health/ready says so", u64::from(is_ready))
}

/// When the certificates end.
pub fn encode_certificates(figures: &mut Figures<'_>, authority: &Authority) -> Result<(), Error> {
    let expiry = authority.expiry();
    let expiry = [
        ([("certificate", "authority")], expiry.authority),
        ([("certificate", "server")], Some(expiry.server)),
    ];
    figures.gauges(
        "certificate_expiry_timestamp_seconds",
        "End of a certificate, in seconds since 1970",
        expiry.iter().filter_map(|(labels, end)| {
            let end = end.as_ref()?.as_millis() as f64 / 1000.0;
            Some((&labels[..], end))
        }),
    )
}
