//! The server's time never goes back, and what ends by it stays ended.

use super::*;
use crate::repository::retention::{RetentionClock, check_forget, extend_lock};

#[test]
fn a_clock_set_back_revives_nothing_not_even_after_a_restart() {
    let world = World::new(1);
    let start = world.clock.now();
    let enrolled = world.enrolled(Role::Restore, "r");
    world.clock.advance(CERTIFICATE_LIFETIME);
    let token = world.token(Role::Ingest);
    world.clock.advance(DAY);
    let latest = world.clock.now();
    world.authority.upkeep().unwrap();
    world.clock.set(start);
    let restarted = world.reopen().unwrap();
    for authority in [&*world.authority, &restarted] {
        assert_eq!(authority.time().now(), latest);
        assert!(authority.time().behind() > CERTIFICATE_LIFETIME);
        assert!(matches!(
            authority.admit(enrolled.identity()),
            Err(Refusal::Expired { .. })
        ));
        let locked_until = start.after(DAY);
        // A lock that a clock running ahead seemed to have ended holds again.
        assert!(check_forget(Some(locked_until), authority.time().shown()).is_err());
        let extended = extend_lock(None, locked_until, authority.time().latest());
        assert!(extended.is_err(), "a lock that ends before it begins");
    }
    let answer = ask(&world, &restarted, &world.store("p"), &token);
    assert!(matches!(
        answer,
        Answer::Refused(Refusal::TokenExpired { .. })
    ));
}

#[test]
fn without_the_file_of_time_the_last_change_of_the_registry_is_the_floor() {
    let world = World::new(1);
    world.clock.advance(DAY);
    world.token(Role::Ingest);
    let latest = world.clock.now();
    world.clock.set(UnixMs::ZERO);
    std::fs::remove_file(world.authority_dir().join(layout::TIME)).unwrap();
    assert_eq!(world.reopen().unwrap().time().now(), latest);
}

#[test]
fn upkeep_takes_the_time_that_another_process_saw() {
    let world = World::new(1);
    let start = world.clock.now();
    world.clock.advance(DAY);
    let latest = world.clock.now();
    world.reopen().unwrap();
    world.clock.set(start);
    world.authority.upkeep().unwrap();
    assert_eq!(world.authority.time().now(), latest);
}

#[test]
fn the_server_certificate_is_renewed_in_time_and_what_ended_long_ago_is_forgotten() {
    let world = World::new(1);
    world.token(Role::Ingest);
    world.enrolled(Role::Ingest, "p");
    let first = world.authority.server();
    world.authority.upkeep().unwrap();
    assert_eq!(world.authority.server().not_after, first.not_after);
    world.clock.advance(CERTIFICATE_LIFETIME - RENEWAL_LEAD);
    world.authority.upkeep().unwrap();
    let second = world.authority.server();
    assert!(second.not_after > first.not_after);
    assert_ne!(second.certified.cert[0], first.certified.cert[0]);
    assert_eq!(world.reopen().unwrap().server().not_after, second.not_after);
    assert_eq!(world.authority.identities().unwrap().len(), 1);
    world.clock.advance(3 * CERTIFICATE_LIFETIME);
    world.authority.upkeep().unwrap();
    assert!(world.authority.identities().unwrap().is_empty());
    assert!(world.authority.tokens().unwrap().is_empty());
}
