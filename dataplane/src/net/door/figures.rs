//! What a door counts: handshakes, enrolments, connections, and what they carried.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Error;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use quinn::{Connection, ConnectionStats};

use crate::net::trust::Role;
use crate::observe::exposition::{Figures, OnDemand};

/// How a handshake ended. Texts are values of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// An enrolled peer was let in.
    Admitted,
    /// Somebody without a certificate was let in to be enrolled.
    ToEnrol,
    /// It failed: no certificate of ours, another protocol, gone.
    Failed,
    /// It took too long.
    TimedOut,
    /// The certificate is valid, and yet not let in: revoked, ended, not listed.
    NotAdmitted,
    /// There are too many connections or handshakes.
    Refused,
    /// The address has to be proven first.
    Retried,
}

impl Handshake {
    const ALL: [Self; 7] = [
        Self::Admitted,
        Self::ToEnrol,
        Self::Failed,
        Self::TimedOut,
        Self::NotAdmitted,
        Self::Refused,
        Self::Retried,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::ToEnrol => "to_enrol",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::NotAdmitted => "not_admitted",
            Self::Refused => "refused",
            Self::Retried => "retried",
        }
    }
}

/// How an enrolment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// With a certificate.
    Granted,
    /// With a refusal: the token does not do.
    Refused,
    /// Without an answer.
    Broken,
}

impl Enrolment {
    const ALL: [Self; 3] = [Self::Granted, Self::Refused, Self::Broken];

    const fn text(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Broken => "broken",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRole {
    role: String,
}

/// The figures of a door. Cheap to clone: clones count together.
#[derive(Clone, Debug, Default)]
pub struct DoorFigures {
    handshakes: Family<Outcome, Counter>,
    enrolments: Family<Outcome, Counter>,
    opened: Family<OfRole, Counter>,
    links: Arc<Mutex<Links>>,
}

/// Connections of enrolled peers, and what those carried that are over.
#[derive(Debug, Default)]
struct Links {
    next: u64,
    open: HashMap<u64, (Connection, Role)>,
    over: Carried,
}

/// What connections carried.
#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    sent_bytes: u64,
    received_bytes: u64,
    sent_packets: u64,
    lost_packets: u64,
    congestion_events: u64,
}

impl Carried {
    fn add(&mut self, stats: &ConnectionStats) {
        self.sent_bytes += stats.udp_tx.bytes;
        self.received_bytes += stats.udp_rx.bytes;
        self.sent_packets += stats.path.sent_packets;
        self.lost_packets += stats.path.lost_packets;
        self.congestion_events += stats.path.congestion_events;
    }
}

impl DoorFigures {
    /// Counts a handshake.
    pub fn handshake(&self, how: Handshake) {
        let outcome = Outcome {
            outcome: how.text(),
        };
        self.handshakes.get_or_create(&outcome).inc();
    }

    /// Counts an enrolment.
    pub fn enrolment(&self, how: Enrolment) {
        let outcome = Outcome {
            outcome: how.text(),
        };
        self.enrolments.get_or_create(&outcome).inc();
    }

    /// Counts a connection, and what it carries, until what is returned is dropped.
    pub fn connection(&self, connection: &Connection, role: Role) -> Counted {
        let of_role = OfRole {
            role: role.to_string(),
        };
        self.opened.get_or_create(&of_role).inc();
        let mut links = self.links.lock();
        links.next += 1;
        let number = links.next;
        links.open.insert(number, (connection.clone(), role));
        Counted {
            links: self.links.clone(),
            number,
        }
    }

    /// Adds the figures to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        // All that can happen is shown from the beginning: an alert sees the first of its kind.
        for how in Handshake::ALL {
            drop(self.handshakes.get_or_create(&Outcome {
                outcome: how.text(),
            }));
        }
        for how in Enrolment::ALL {
            drop(self.enrolments.get_or_create(&Outcome {
                outcome: how.text(),
            }));
        }
        for role in Role::ALL {
            let role = role.to_string();
            drop(self.opened.get_or_create(&OfRole { role }));
        }
        registry.register(
            "handshakes",
            "Handshakes by how they ended",
            self.handshakes.clone(),
        );
        registry.register(
            "enrolments",
            "Enrolments by how they ended",
            self.enrolments.clone(),
        );
        registry.register(
            "connections_opened",
            "Connections of enrolled peers, by role",
            self.opened.clone(),
        );
        let links = self.links.clone();
        registry.register_collector(Box::new(OnDemand(move |figures: &mut Figures<'_>| {
            links.lock().encode(figures)
        })));
    }
}

impl Links {
    fn encode(&self, figures: &mut Figures<'_>) -> Result<(), Error> {
        let mut roles: BTreeMap<String, u64> = Role::ALL
            .into_iter()
            .map(|role| (role.to_string(), 0))
            .collect();
        let mut carried = self.over;
        let (mut rtt_sum, mut rtt_max) = (0.0, 0.0_f64);
        for (connection, role) in self.open.values() {
            *roles.entry(role.to_string()).or_default() += 1;
            let stats = connection.stats();
            carried.add(&stats);
            rtt_sum += stats.path.rtt.as_secs_f64();
            rtt_max = rtt_max.max(stats.path.rtt.as_secs_f64());
        }
        let labels: Vec<_> = roles
            .iter()
            .map(|(role, count)| ([("role", role.as_str())], *count))
            .collect();
        figures.gauges(
            "connections",
            "Open connections of enrolled peers, by role",
            labels.iter().map(|(labels, count)| (&labels[..], *count)),
        )?;
        for (name, help, value) in [
            (
                "quic_sent_bytes",
                "Bytes of UDP datagrams sent to enrolled peers",
                carried.sent_bytes,
            ),
            (
                "quic_received_bytes",
                "Bytes of UDP datagrams received from enrolled peers",
                carried.received_bytes,
            ),
            (
                "quic_sent_packets",
                "Packets sent to enrolled peers",
                carried.sent_packets,
            ),
            (
                "quic_lost_packets",
                "Packets to enrolled peers that were lost",
                carried.lost_packets,
            ),
            (
                "quic_congestion_events",
                "Times that a connection slowed down for a congested path",
                carried.congestion_events,
            ),
        ] {
            figures.counter(name, help, value as f64)?;
        }
        let open = self.open.len().max(1) as f64;
        figures.gauge(
            "quic_rtt_mean_seconds",
            "Mean round trip time of open connections; 0 without any",
            rtt_sum / open,
        )?;
        figures.gauge(
            "quic_rtt_max_seconds",
            "Longest round trip time of open connections; 0 without any",
            rtt_max,
        )
    }
}

/// A connection that is counted.
pub struct Counted {
    links: Arc<Mutex<Links>>,
    number: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut links = self.links.lock();
        if let Some((connection, _)) = links.open.remove(&self.number) {
            links.over.add(&connection.stats());
        }
    }
}
