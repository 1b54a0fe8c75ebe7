//! Tokens enrol once, as what they are for; certificates are renewed.

use proptest::prelude::*;

use super::super::token::TokenError;
use super::*;

#[test]
fn a_token_enrols_once() {
    let world = World::new(1);
    let token = world.token(Role::Ingest);
    world.enrol(&token, "proxy-1").unwrap();
    let by = "proxy-1".parse().unwrap();
    let refused = refusal(world.enrol(&token, "proxy-2"));
    assert!(matches!(&refused, Refusal::TokenUsed { by: told, .. } if *told == by));
    assert!(refused.to_string().contains("revoke proxy-1"), "{refused}");
    assert_eq!(world.live(), 1);
}

#[test]
fn a_token_that_has_ended_was_cancelled_or_never_was_is_told() {
    let world = World::new(1);
    let token = world.token(Role::Ingest);
    world.clock.advance(HOUR);
    assert!(matches!(
        refusal(world.enrol(&token, "p")),
        Refusal::TokenExpired { .. }
    ));
    let token = world.token(Role::Ingest);
    let short = token.secret.hash().short();
    world.authority.cancel_token(&short).unwrap();
    assert_eq!(refusal(world.enrol(&token, "p")), Refusal::TokenUnknown);
    assert!(matches!(
        world.authority.cancel_token(&short),
        Err(TrustError::NoSuchToken { .. })
    ));
}

#[test]
fn a_token_grants_no_more_than_it_is_for() {
    let world = World::new(1);
    let token = world.token_for(Role::Ingest, scope(&["web*"], &["main"]), Some("proxy-1"));
    // A client that lies about what its token says: the server decides.
    let forged = Token {
        role: Role::Admin,
        ..token.clone()
    };
    assert_eq!(
        refusal(world.enrol(&forged, "proxy-1")),
        Refusal::Role {
            asked: Role::Admin,
            granted: Role::Ingest,
        }
    );
    assert!(matches!(
        refusal(world.enrol_as(&token, options(Role::Admin, "proxy-1"))),
        Refusal::Role { .. }
    ));
    assert!(matches!(
        refusal(world.enrol(&token, "proxy-2")),
        Refusal::Name { .. }
    ));
    let with_scope = |scope| EnrolOptions {
        scope: Some(scope),
        ..options(Role::Ingest, "proxy-1")
    };
    assert_eq!(
        refusal(world.enrol_as(&token, with_scope(Scope::everything()))),
        Refusal::Scope
    );
    // None of these used it up.
    let less = scope(&["web1"], &["main"]);
    let enrolled = world.enrol_as(&token, with_scope(less.clone())).unwrap();
    assert_eq!(enrolled.identity().scope, less);
}

#[test]
fn a_name_is_given_to_one_live_identity() {
    let world = World::new(1);
    world.enrolled(Role::Ingest, "proxy-1");
    let token = world.token(Role::Restore);
    let other_machine = EnrolOptions {
        role: Role::Restore,
        ..options(Role::Restore, "proxy-1")
    };
    assert!(matches!(
        refusal(world.enrol_as(&token, other_machine.clone())),
        Refusal::NameTaken { .. }
    ));
    let taken = TokenOptions {
        role: Role::Ingest,
        scope: Scope::everything(),
        name: Some("proxy-1".parse().unwrap()),
        lifetime: HOUR,
    };
    assert!(matches!(
        world.authority.issue_token(&taken),
        Err(TrustError::NameTaken { .. })
    ));
    assert_eq!(world.authority.revoke("proxy-1").unwrap().len(), 1);
    assert_eq!(world.authority.revoke("proxy-1").unwrap().len(), 0);
    assert!(world.enrol_as(&token, other_machine).is_ok());
}

#[test]
fn revoking_takes_a_name_or_a_serial_number() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Ingest, "proxy-1");
    let serial = enrolled.identity().serial.to_string();
    assert!(matches!(
        world.authority.revoke("proxy-2"),
        Err(TrustError::NoSuchIdentity { .. })
    ));
    assert_eq!(world.authority.revoke(&serial).unwrap().len(), 1);
}

#[test]
fn who_lost_the_answer_gets_the_same_certificate_again() {
    let world = World::new(1);
    let token = world.token(Role::Ingest);
    let store = world.store("proxy-1");
    let lost = ask(&world, &world.authority, &store, &token);
    assert!(matches!(lost, Answer::Granted(_)));
    // Also after the server was restarted, and some time passed.
    world.clock.advance(DAY);
    let restarted = world.reopen().unwrap();
    assert_eq!(ask(&world, &restarted, &store, &token), lost);
    assert_eq!(world.live(), 1);
    let enrolled = world.enrol(&token, "proxy-1").unwrap();
    let Answer::Granted(grant) = lost else {
        panic!("{lost:?}");
    };
    assert_eq!(
        identity_of(&[grant.certificate.into()]).as_ref(),
        Ok(enrolled.identity())
    );
    // But whoever else has the token gets nothing, and neither does a revoked machine.
    let thief = world.store("thief");
    let refused = ask(&world, &world.authority, &thief, &token);
    assert!(matches!(
        refused,
        Answer::Refused(Refusal::TokenUsed { .. })
    ));
    world.authority.revoke("proxy-1").unwrap();
    world.enrol(&token, "proxy-1").unwrap_err();
    assert_eq!(world.live(), 0);
}

#[test]
fn an_attempt_that_was_certainly_in_vain_leaves_nothing() {
    let world = World::new(1);
    let token = world.token_for(Role::Ingest, Scope::everything(), Some("proxy-1"));
    let attempt = |name: &str, exchange: fn() -> NoAnswer| {
        let (store, options) = (world.store("proxy-1"), options(Role::Ingest, name));
        let clock = world.clock();
        let exchange = |_, _: &[u8]| Err(exchange());
        enrol(&store, &token, options, &clock, &*world.entropy, exchange).unwrap_err()
    };
    let dir = world.store("proxy-1").dir().to_owned();
    let _ = attempt("proxy-1", || NoAnswer::unsent("nobody answers"));
    assert!(!dir.exists());
    let store = world.store("proxy-2");
    refusal(world.enrol(&token, "proxy-2"));
    assert!(!store.dir().exists());
    // What was sent may have been granted: the key stays, whatever comes of the attempts after it.
    let _ = attempt("proxy-1", || NoAnswer::lost("cut off"));
    let kept = std::fs::read(dir.join(layout::PENDING)).unwrap();
    let _ = attempt("proxy-1", || NoAnswer::unsent("nobody answers"));
    assert_eq!(std::fs::read(dir.join(layout::PENDING)).unwrap(), kept);
    world.enrol(&token, "proxy-1").unwrap();
    assert!(!dir.join(layout::PENDING).exists());
}

#[test]
fn a_crash_anywhere_in_an_enrolment_issues_at_most_once() {
    let world = World::new(1);
    let token = world.token(Role::Ingest);
    let before = tempfile::tempdir().unwrap();
    copy_files(&world.authority_dir(), before.path());
    let store = world.store("proxy-1");
    assert!(matches!(
        ask(&world, &world.authority, &store, &token),
        Answer::Granted(_)
    ));
    let registry = std::fs::read(world.authority_dir().join(layout::REGISTRY)).unwrap();

    // Every state that a crash can leave: the old files with the new one begun, or renamed.
    let mut states: Vec<(Vec<u8>, bool)> = (0..=registry.len())
        .step_by(7)
        .map(|len| (registry[..len].to_vec(), false))
        .collect();
    states.push((registry, true));
    for (bytes, is_renamed) in states {
        let crashed = tempfile::tempdir().unwrap();
        copy_files(before.path(), crashed.path());
        let name = if is_renamed {
            "registry"
        } else {
            "registry.new"
        };
        std::fs::write(crashed.path().join(name), bytes).unwrap();
        let authority = world.open_at(crashed.path()).unwrap();
        // Somebody else comes first with the same token.
        let other = world.store(&format!("other-{is_renamed}"));
        let first = ask(&world, &authority, &other, &token);
        let second = ask(&world, &authority, &store, &token);
        let granted = [&first, &second].map(|answer| matches!(answer, Answer::Granted(_)));
        assert_eq!(granted, [!is_renamed, is_renamed]);
        assert_eq!(authority.identities().unwrap().len(), 1);
    }
}

#[test]
fn many_at_once_with_one_token_enrol_one() {
    let world = World::new(1);
    let token = world.token(Role::Ingest);
    let granted: usize = std::thread::scope(|threads| {
        let workers: Vec<_> = (0..8)
            .map(|n| {
                let (world, token) = (&world, &token);
                threads.spawn(move || {
                    // Half of them ask another process.
                    let other = world.reopen().unwrap();
                    let authority = if n % 2 == 0 {
                        &*world.authority
                    } else {
                        &other
                    };
                    let store = world.store(&format!("machine-{n}"));
                    let answer = ask(world, authority, &store, token);
                    usize::from(matches!(answer, Answer::Granted(_)))
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    assert_eq!((granted, world.live()), (1, 1));
}

#[test]
fn a_certificate_is_renewed_before_its_end_and_the_one_before_stays_for_a_while() {
    let world = World::new(1);
    let first = world.enrolled(Role::Ingest, "proxy-1");
    assert!(!first.needs_renewal(world.clock.now()));
    world.clock.advance(CERTIFICATE_LIFETIME - RENEWAL_LEAD);
    assert!(first.needs_renewal(world.clock.now()));
    world.authority.upkeep().unwrap();
    let second = world.renew("proxy-1").unwrap();
    assert!(second.not_after() > first.not_after());
    assert_ne!(second.identity().serial, first.identity().serial);
    assert!(world.authority.admit(first.identity()).is_ok());
    let mut last = second;
    for _ in 0..5 {
        last = world.renew("proxy-1").unwrap();
    }
    assert!(matches!(
        world.authority.admit(first.identity()),
        Err(Refusal::NotListed { .. })
    ));
    assert_eq!(world.live(), 2);
    assert_eq!(
        world.store("proxy-1").load().unwrap().identity(),
        last.identity()
    );
    // Revoking the name ends all of them.
    assert_eq!(world.authority.revoke("proxy-1").unwrap().len(), 2);
    assert!(matches!(
        world.renew("proxy-1"),
        Err(EnrolError::Exchange(_))
    ));
    let request = Renewal::begin(&world.store("proxy-1"), &last, &*world.entropy).unwrap();
    let request = RenewRequest::decode(request.request()).unwrap();
    assert!(matches!(
        world.authority.renew(last.identity(), &request),
        Answer::Refused(Refusal::Revoked { .. })
    ));
}

#[test]
fn a_grant_for_something_else_is_not_kept() {
    let world = World::new(1);
    let begin = |name: &str| {
        let token = world.token(Role::Ingest);
        let options = options(Role::Ingest, name);
        Enrolment::begin(&world.store(name), &token, options, &*world.entropy).unwrap()
    };
    let (a, b) = (begin("a"), begin("b"));
    let answer = world
        .authority
        .enrol(&EnrolRequest::decode(b.request()).unwrap());
    let result = a.finish(&answer.encode());
    assert!(matches!(
        result,
        Err(EnrolError::Trust(TrustError::BadGrant { .. }))
    ));
    let other = World::new(2);
    let token = other.token(Role::Ingest);
    let Answer::Granted(grant) = ask(&other, &other.authority, &world.store("c"), &token) else {
        panic!("no grant");
    };
    assert!(matches!(
        b.finish(&Answer::Granted(grant).encode()),
        Err(EnrolError::Trust(TrustError::WrongAuthority { .. }))
    ));
    assert!(matches!(
        world.store("a").load(),
        Err(TrustError::NotEnrolled { .. })
    ));
}

#[test]
fn the_server_keeps_no_secret_of_a_token() {
    let world = World::new(1);
    let token = world.token(Role::Ingest);
    let secret = *token.secret.as_bytes();
    for entry in std::fs::read_dir(world.authority_dir()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_mistyped_token_is_told_before_anything_is_sent(place in 4..92_usize, letter in "[0-9a-hjkmnp-tv-z]") {
        let world = World::new(1);
        let text = world.token(Role::Ingest).to_text();
        let mut typed = text.to_string();
        typed.replace_range(place..=place, &letter);
        prop_assume!(typed != *text);
        prop_assert_eq!(typed.parse::<Token>().err(), Some(TokenError::Mistyped));
    }
}
