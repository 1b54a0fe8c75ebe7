use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    source_handshakes: Rate {
        per_second: 2,
        burst: 6,
    },
    handshakes: Rate {
        per_second: 5,
        burst: 20,
    },
    source_unfinished: 4,
    unfinished: 8,
    source_connections: 6,
    identity_connections: 5,
    connections: 16,
    idle_sources: 4,
};

fn source(number: u8) -> Source {
    IpAddr::from([10, 0, 0, number]).into()
}

#[test]
fn sources_are_addresses_or_networks() {
    let of = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
    assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
    assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
}

#[test]
fn forged_knocks_cost_the_true_owner_a_round_trip_and_no_more() {
    let mut limiter = Limiter::new(LIMITS, 0);
    let victim = source(1);
    for _ in 0..1000 {
        if limiter.knock(victim, false, 0) == Verdict::Begin {
            limiter.left(victim, None);
        }
    }
    assert_eq!(limiter.knock(victim, false, 0), Verdict::Prove);
    assert_eq!(limiter.knock(victim, true, 0), Verdict::Begin);
}

#[test]
fn refusals_name_what_is_too_many() {
    let mut limiter = Limiter::new(LIMITS, 0);
    for _ in 0..4 {
        assert_eq!(limiter.knock(source(1), true, 0), Verdict::Begin);
    }
    let refused = |verdict| Verdict::Refuse(verdict);
    assert_eq!(
        limiter.knock(source(1), true, 0),
        refused(Refused::SourceUnfinished)
    );
    for _ in 0..4 {
        limiter.admitted(source(1), "one").unwrap();
    }
    assert_eq!(limiter.knock(source(1), true, 0), Verdict::Begin);
    assert_eq!(limiter.knock(source(1), true, 0), Verdict::Begin);
    assert_eq!(
        limiter.knock(source(1), true, 0),
        refused(Refused::SourceConnections)
    );
    limiter.admitted(source(1), "one").unwrap();
    assert_eq!(
        limiter.admitted(source(1), "one"),
        Err(Refused::IdentityConnections)
    );
    limiter.left(source(1), None);
    limiter.left(source(1), Some("one"));
    assert_eq!(
        limiter.knock(source(1), true, 0),
        refused(Refused::SourceRate)
    );
    // Half a second gives one.
    assert_eq!(limiter.knock(source(1), true, 500), Verdict::Begin);
    for number in 2..9 {
        assert_eq!(limiter.knock(source(number), true, 500), Verdict::Begin);
    }
    assert_eq!(
        limiter.knock(source(9), true, 500),
        refused(Refused::Unfinished)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Knock { source: u8, is_proven: bool },
    Admit { which: usize, identity: u8 },
    Leave { which: usize },
    Pass { ms: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..40_u8, any::<bool>()).prop_map(|(source, is_proven)| Step::Knock { source, is_proven }),
        2 => (any::<usize>(), 0..3_u8).prop_map(|(which, identity)| Step::Admit { which, identity }),
        2 => any::<usize>().prop_map(|which| Step::Leave { which }),
        1 => (0..400_u64).prop_map(|ms| Step::Pass { ms }),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    /// Whatever happens, in whatever order: no limit is exceeded, the tables stay small, and when all have
    /// left, the books are empty.
    #[test]
    fn limits_hold(steps in steps()) {
        let mut limiter = Limiter::new(LIMITS, 0);
        let mut now = 0;
        // Source, and as whom it was let in.
        let mut open: Vec<(u8, Option<u8>)> = Vec::new();
        let mut begun: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Knock { source: from, is_proven } => {
                    if limiter.knock(source(from), is_proven, now) == Verdict::Begin {
                        open.push((from, None));
                        begun.push(now);
                    }
                }
                Step::Admit { which, identity } => {
                    let waiting: Vec<usize> = (0..open.len()).filter(|at| open[*at].1.is_none()).collect();
                    if waiting.is_empty() {
                        continue;
                    }
                    let at = waiting[which % waiting.len()];
                    let admitted = limiter.admitted(source(open[at].0), &identity.to_string());
                    let of_identity = open.iter().filter(|(_, who)| *who == Some(identity)).count();
                    prop_assert_eq!(admitted.is_ok(), of_identity < LIMITS.identity_connections);
                    if admitted.is_ok() {
                        open[at].1 = Some(identity);
                    }
                }
                Step::Leave { which } if !open.is_empty() => {
                    let (from, identity) = open.swap_remove(which % open.len());
                    let identity = identity.map(|identity| identity.to_string());
                    limiter.left(source(from), identity.as_deref());
                }
                Step::Leave { .. } => {}
                Step::Pass { ms } => now += ms,
            }
            let unfinished = open.iter().filter(|(_, identity)| identity.is_none()).count();
            prop_assert_eq!(limiter.open(), (open.len(), unfinished));
            prop_assert!(open.len() <= LIMITS.connections && unfinished <= LIMITS.unfinished);
            let mut by_source: BTreeMap<u8, (usize, usize)> = BTreeMap::new();
            for (from, identity) in &open {
                let counts = by_source.entry(*from).or_default();
                counts.0 += 1;
                counts.1 += usize::from(identity.is_none());
            }
            for (connections, unfinished) in by_source.values() {
                prop_assert!(*connections <= LIMITS.source_connections);
                prop_assert!(*unfinished <= LIMITS.source_unfinished);
            }
            prop_assert!(limiter.sources() <= by_source.len() + LIMITS.idle_sources);
        }
        for (place, first) in begun.iter().enumerate() {
            for (more, last) in begun[place..].iter().enumerate() {
                let most = u64::from(LIMITS.handshakes.burst)
                    + (last - first) * u64::from(LIMITS.handshakes.per_second) / 1000;
                prop_assert!((more as u64) < most + 1, "{} in {} ms", more + 1, last - first);
            }
        }
        for (from, identity) in open {
            let identity = identity.map(|identity| identity.to_string());
            limiter.left(source(from), identity.as_deref());
        }
        prop_assert_eq!(limiter.open(), (0, 0));
        prop_assert!(limiter.identities.is_empty());
        prop_assert!(limiter.sources() <= LIMITS.idle_sources);
        // In time everybody is welcome again.
        prop_assert_eq!(limiter.knock(source(1), false, now + 10_000), Verdict::Begin);
    }
}
