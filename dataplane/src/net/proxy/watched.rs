//! The proxy as those see it who watch it: what can be read of its state, and its health.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::registry::Registry;

use super::agent::Agent;
use crate::net::daemon_figures::{encode_certificates, encode_program};
use crate::net::door::DoorFigures;
use crate::net::trust::Authority;
use crate::observe::exposition::{Figures, OnDemand};
use crate::observe::health::Space;
use crate::observe::{Complaint, Observed};

/// A loop that has not gone round for so long does not run any more. It waits for the files of tasks, which
/// take a while on a slow disk.
const BEAT_MS_MAX: u64 = 180_000;

/// A proxy, watched.
pub struct Watched {
    agent: Agent,
    authority: Arc<Authority>,
    door: DoorFigures,
}

impl Watched {
    pub(super) fn new(agent: Agent, authority: Arc<Authority>, door: DoorFigures) -> Self {
        Self {
            agent,
            authority,
            door,
        }
    }

    fn encode(&self, figures: &mut Figures<'_>) -> Result<(), Error> {
        let status = self.agent.status_now();
        encode_program(
            figures,
            &status.program,
            status.is_draining,
            self.readiness().is_empty(),
        )?;
        encode_certificates(figures, &self.authority)?;
        let (phases, moved) = self.agent.tallies();
        let phases = phases.map(|(phase, count)| ([("state", phase.name())], count));
        figures.gauges(
            "proxy_tasks",
            "Tasks that are not over, by state",
            phases
                .iter()
                .map(|(labels, count)| (&labels[..], *count as u64)),
        )?;
        for (name, help, value) in [
            (
                "proxy_read_bytes",
                "Bytes that tasks read since the proxy started",
                moved.read_bytes,
            ),
            (
                "proxy_stored_bytes",
                "Bytes that tasks wrote since the proxy started",
                moved.stored_bytes,
            ),
        ] {
            figures.counter(name, help, value as f64)?;
        }
        figures.gauge(
            "proxy_rate_bytes_per_second",
            "Bytes read or written by running tasks, over the last seconds",
            status.rate_bytes_per_s,
        )?;
        for (name, help, value) in [
            (
                "proxy_suspended",
                "1 while no tasks are taken and begun",
                u64::from(status.is_suspended),
            ),
            (
                "proxy_streams",
                "Tasks that can run at once",
                status.streams,
            ),
            ("proxy_streams_busy", "Tasks that run", status.streams_busy),
            ("proxy_cores", "Cores that the proxy may use", status.cores),
            (
                "proxy_memory_total_bytes",
                "Memory of the machine, or what the proxy may use of it",
                status.memory_total_bytes,
            ),
            (
                "proxy_memory_available_bytes",
                "Memory of the machine that is to be had",
                status.memory_available_bytes,
            ),
            (
                "proxy_resident_max_bytes",
                "Most memory that the proxy had",
                status.resident_max_bytes,
            ),
        ] {
            figures.gauge(name, help, value)?;
        }
        let Ok(space) = Space::of(self.agent.state_dir()) else {
            return Ok(());
        };
        figures.gauge(
            "proxy_state_size_bytes",
            "Size of the file system with the proxy's state",
            space.size,
        )?;
        figures.gauge(
            "proxy_state_free_bytes",
            "Free space of the file system with the proxy's state",
            space.free,
        )
    }
}

impl Observed for Watched {
    fn register(self: Arc<Self>, registry: &mut Registry) {
        self.door.register(registry);
        self.agent.figures().register(registry);
        registry.register_collector(Box::new(OnDemand(move |figures: &mut Figures<'_>| {
            self.encode(figures)
        })));
    }

    fn liveness(&self) -> Vec<Complaint> {
        let figures = self.agent.figures();
        let since = self
            .agent
            .uptime_ms()
            .saturating_sub(figures.last_beat_ms());
        // The loop ends when the proxy shuts down, which is bounded by itself.
        if figures.is_draining() || since <= BEAT_MS_MAX {
            return Vec::new();
        }
        let text = format!("the proxy's loop has not gone round for {} s", since / 1000);
        vec![Complaint::new("loop", text)]
    }

    fn readiness(&self) -> Vec<Complaint> {
        let mut complaints = self.liveness();
        if self.agent.figures().is_draining() {
            complaints.push(Complaint::new("draining", "the proxy shuts down"));
        }
        if self.agent.is_suspended() {
            let text = "the proxy is suspended: it takes no tasks until it is resumed";
            complaints.push(Complaint::new("suspended", text));
        }
        match Space::of(self.agent.state_dir()) {
            Ok(space) if space.is_short() => complaints.push(Complaint::new(
                "disk_space",
                format!(
                    "{} of {} bytes are free on the file system with the proxy's state",
                    space.free, space.size
                ),
            )),
            Ok(_) => {}
            Err(error) => complaints.push(Complaint::new(
                "state",
                format!("the proxy's state cannot be reached: {error}"),
            )),
        }
        complaints
    }
}
