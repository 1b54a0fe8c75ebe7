//! Who is let in, and what the others are told, at both ends.

use super::wire::{Failed, Wire};
use super::*;

fn connect(world: &World, config: rustls::ClientConfig) -> Result<Admitted, Failed> {
    Wire::connect(&world.authority, config).admit(&world.authority)
}

fn failed(at_client: HandshakeError, at_server: HandshakeError) -> Result<Admitted, Failed> {
    Err(Failed {
        at_client: Some(at_client),
        at_server: Some(at_server),
        closed: None,
    })
}

#[test]
fn an_enrolled_peer_is_let_in_as_what_it_was_enrolled() {
    let world = World::new(1);
    let token = world.token_for(Role::Ingest, scope(&["web*"], &["main"]), Some("proxy-1"));
    let enrolled = world.enrol(&token, "proxy-1").unwrap();
    let stored = world.store("proxy-1").load().unwrap();
    assert_eq!(stored.identity(), enrolled.identity());
    let wire = Wire::connect(
        &world.authority,
        stored.client_config(&world.clock()).unwrap(),
    );
    let Ok(Admitted::Peer(peer)) = wire.admit(&world.authority) else {
        panic!("{:?}", wire.admit(&world.authority));
    };
    assert_eq!(&peer, enrolled.identity());
    assert_eq!((peer.role, peer.name.as_str()), (Role::Ingest, "proxy-1"));
    assert_eq!(peer.scope, scope(&["web*"], &["main"]));
    let suite = wire.server.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(
        wire.server.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
}

#[test]
fn a_server_with_another_authority_is_not_trusted() {
    let (world, other) = (World::new(1), World::new(2));
    let enrolled = world.enrolled(Role::Ingest, "proxy-1");
    let config = enrolled.client_config(&world.clock()).unwrap();
    assert_eq!(
        connect(&other, config),
        failed(HandshakeError::WrongServer, HandshakeError::Distrusted)
    );
}

#[test]
fn a_client_of_another_authority_is_not_let_in() {
    let (world, other) = (World::new(1), World::new(2));
    let foreign = other.enrolled(Role::Admin, "admin");
    // It trusts this server, and shows what the other one gave it.
    let certified = foreign.certified().unwrap();
    let config = tls::enrolled_config(
        world.authority.certificate(),
        certified,
        &world.clock(),
        tls::REPOSITORY,
    );
    assert_eq!(
        connect(&world, config.unwrap()),
        failed(
            HandshakeError::OtherAuthority,
            HandshakeError::ForeignClient
        )
    );
}

#[test]
fn an_expired_certificate_is_told_at_both_ends() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Ingest, "proxy-1");
    world.clock.advance(CERTIFICATE_LIFETIME - DAY);
    world.authority.upkeep().unwrap();
    let config = || enrolled.client_config(&world.clock()).unwrap();
    assert!(connect(&world, config()).is_ok());
    world.clock.advance(DAY + DAY);
    assert!(enrolled.has_ended(world.clock.now()));
    assert_eq!(
        connect(&world, config()),
        failed(HandshakeError::Expired, HandshakeError::ClientExpired)
    );
}

#[test]
fn a_revoked_certificate_is_told_at_both_ends_and_on_open_connections() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Ingest, "proxy-1");
    let config = || enrolled.client_config(&world.clock()).unwrap();
    let open = Wire::connect(&world.authority, config());
    assert!(open.admit(&world.authority).is_ok());
    // Another process revokes: the running server sees it.
    let revoked = world.reopen().unwrap().revoke("proxy-1").unwrap();
    assert_eq!(revoked.len(), 1);
    assert!(matches!(
        world.authority.admit(enrolled.identity()),
        Err(Refusal::Revoked { .. })
    ));
    assert_eq!(
        connect(&world, config()),
        failed(HandshakeError::Revoked, HandshakeError::ClientRevoked)
    );
    assert!(matches!(
        open.admit(&world.authority).unwrap_err().closed,
        Some(AdmitError::Refused(Refusal::Revoked { .. }))
    ));
}

#[test]
fn a_certificate_that_is_not_on_the_list_is_told_at_both_ends() {
    let world = World::new(1);
    let before = tempfile::tempdir().unwrap();
    copy_files(&world.authority_dir(), before.path());
    let enrolled = world.enrolled(Role::Ingest, "proxy-1");
    // The trust directory is put back from an older copy.
    copy_files(before.path(), &world.authority_dir());
    assert_eq!(
        connect(&world, enrolled.client_config(&world.clock()).unwrap()),
        failed(HandshakeError::NotListed, HandshakeError::ClientNotListed)
    );
}

#[test]
fn who_shows_no_certificate_can_only_enrol() {
    let world = World::new(1);
    let token = world.token(Role::Ingest);
    let mut config = tls::enrolment_config(token.authority, &world.clock()).unwrap();
    assert_eq!(connect(&world, config.clone()), Ok(Admitted::ToEnrol));
    config.alpn_protocols = vec![ALPN.to_vec()];
    let refused = connect(&world, config.clone()).unwrap_err();
    assert_eq!(
        refused.closed,
        Some(AdmitError::Identity(identity::IdentityError::NoCertificate))
    );
    config.alpn_protocols = vec![b"h3".to_vec()];
    assert_eq!(
        connect(&world, config.clone()),
        failed(HandshakeError::Protocol, HandshakeError::Protocol)
    );
    config.alpn_protocols.clear();
    let refused = connect(&world, config).unwrap_err();
    assert_eq!(refused.closed, Some(AdmitError::Protocol));
}

#[test]
fn a_token_of_another_server_enrols_nobody() {
    let (world, other) = (World::new(1), World::new(2));
    let token = other.token(Role::Ingest);
    let result = world.enrol(&token, "proxy-1");
    let Err(EnrolError::Exchange(source)) = result else {
        panic!("{result:?}");
    };
    assert_eq!(
        *source.downcast::<Failed>().unwrap(),
        Failed {
            at_client: Some(HandshakeError::WrongServer),
            at_server: Some(HandshakeError::Distrusted),
            closed: None,
        }
    );
    assert_eq!(world.live() + other.live(), 0);
}

#[test]
fn a_server_that_only_quotes_the_fingerprint_is_not_trusted() {
    // The one in the middle has the real authority's certificate, which is public, but not its key: it
    // sends it beside a certificate of its own authority.
    let (world, middle) = (World::new(1), World::new(2));
    let token = world.token(Role::Ingest);
    let own = middle.authority.server();
    let mut chain = own.certified.cert.clone();
    chain.push(world.authority.certificate().clone());
    let forged = rustls::sign::CertifiedKey::new(chain, own.certified.key.clone());
    let mut server = server_config(&middle.authority, tls::REPOSITORY).unwrap();
    server.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(forged));
    let config = tls::enrolment_config(token.authority, &world.clock()).unwrap();
    let mut wire = Wire::connect(&middle.authority, config.clone());
    wire.client = rustls::ClientConnection::new(Arc::new(config), SERVER_NAME.try_into().unwrap())
        .unwrap()
        .into();
    wire.server = rustls::ServerConnection::new(Arc::new(server))
        .unwrap()
        .into();
    (wire.client_error, wire.server_error) = (None, None);
    wire.pump();
    assert_eq!(
        HandshakeError::of(Side::Client, &wire.client_error.unwrap()),
        Some(HandshakeError::WrongServer)
    );
}

#[test]
fn a_client_certificate_makes_no_server_and_a_server_certificate_no_client() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Admin, "admin");
    let mut server = server_config(&world.authority, tls::REPOSITORY).unwrap();
    server.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
        enrolled.certified().unwrap(),
    ));
    let config = enrolled.client_config(&world.clock()).unwrap();
    let mut wire = Wire::connect(&world.authority, config.clone());
    wire.client = rustls::ClientConnection::new(Arc::new(config), SERVER_NAME.try_into().unwrap())
        .unwrap()
        .into();
    wire.server = rustls::ServerConnection::new(Arc::new(server))
        .unwrap()
        .into();
    wire.pump();
    assert_eq!(
        HandshakeError::of(Side::Client, &wire.client_error.unwrap()),
        Some(HandshakeError::WrongServer)
    );

    let own = world.authority.server().certified.clone();
    let config = tls::enrolled_config(
        world.authority.certificate(),
        own,
        &world.clock(),
        tls::REPOSITORY,
    );
    assert_eq!(
        connect(&world, config.unwrap()),
        failed(
            HandshakeError::OtherAuthority,
            HandshakeError::ForeignClient
        )
    );
}

#[test]
fn no_session_is_resumed_so_that_each_is_looked_at() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Ingest, "proxy-1");
    let mut config = enrolled.client_config(&world.clock()).unwrap();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    for _ in 0..3 {
        let wire = Wire::connect(&world.authority, config.clone());
        assert!(wire.admit(&world.authority).is_ok());
        assert_eq!(
            wire.client.handshake_kind(),
            Some(rustls::HandshakeKind::Full)
        );
    }
}

#[test]
fn a_clock_that_is_wrong_at_the_client_is_told() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Ingest, "proxy-1");
    for now in [UnixMs::ZERO, UnixMs::MAX] {
        let clock: Arc<dyn WallClock> = Arc::new(SetClock::new(now));
        let result = connect(&world, enrolled.client_config(&clock).unwrap());
        assert_eq!(
            result.unwrap_err().at_client,
            Some(HandshakeError::ServerExpired)
        );
    }
}
