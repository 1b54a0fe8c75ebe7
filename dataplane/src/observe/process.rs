//! Figures of the process, by the names that every Prometheus client uses.

use std::fmt::Error;

use procfs::WithCurrentSystemInfo;
use procfs::process::{LimitValue, Process};
use prometheus_client::registry::Registry;

use super::exposition::{Figures, OnDemand};

/// Adds the figures of this process.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(OnDemand(encode)));
}

fn encode(figures: &mut Figures<'_>) -> Result<(), Error> {
    // What the system does not tell is left out.
    let Ok(process) = Process::myself() else {
        return Ok(());
    };
    if let Ok(stat) = process.stat() {
        let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        figures.counter("process_cpu_seconds", "User and system CPU time", seconds)?;
        figures.gauge(
            "process_resident_memory_bytes",
            "Resident memory",
            stat.rss_bytes().get(),
        )?;
        figures.gauge("process_virtual_memory_bytes", "Virtual memory", stat.vsize)?;
        figures.gauge("process_threads", "Threads", stat.num_threads)?;
        if let Ok(boot) = procfs::boot_time_secs() {
            let since_boot = stat.starttime as f64 / procfs::ticks_per_second() as f64;
            figures.gauge(
                "process_start_time_seconds",
                "Start, in seconds since 1970",
                boot as f64 + since_boot,
            )?;
        }
    }
    if let Ok(open) = process.fd_count() {
        figures.gauge("process_open_fds", "Open file descriptors", open as u64)?;
    }
    if let Ok(limits) = process.limits()
        && let LimitValue::Value(most) = limits.max_open_files.soft_limit
    {
        figures.gauge("process_max_fds", "Most file descriptors", most)?;
    }
    Ok(())
}
