//! Who knocks too often, stays too long or is let in no more, against a real server on loopback.

mod world;

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use undercroft_dataplane::net::client::Link;
use undercroft_dataplane::net::door::Limits;
use undercroft_dataplane::net::transport;
use undercroft_dataplane::net::trust::{Enrolled, SERVER_NAME, SystemClock, WallClock};
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_format::wire::failure::FailureCode;
use world::World;

fn refused_as(error: &RepositoryError) -> Option<FailureCode> {
    match error {
        RepositoryError::Remote(failure) => Some(failure.code),
        _ => None,
    }
}

/// Connects and opens the repository: whether somebody is let in says the first answer.
fn enter(world: &World, enrolled: &Enrolled) -> Result<Link, RepositoryError> {
    let link = world.connect(enrolled)?;
    link.open(&"main".parse().expect("a name"))?;
    Ok(link)
}

/// Whoever is let in no more is told so, at once, and cannot come back.
#[test]
fn revoking_ends_open_connections() {
    let world = World::start(Duration::from_secs(60));
    let (revoked, stays) = (world.enrol(), world.enrol());
    let name = "main".parse().expect("a name");
    let link = world.connect(&revoked).expect("it is let in");
    let other = world.connect(&stays).expect("it is let in");
    link.open(&name).expect("it opens");
    world
        .authority
        .revoke(revoked.identity().name.as_str())
        .expect("it is listed");
    let mut idle = link.converse().expect("still connected");
    let error = RepositoryError::from(idle.read().expect_err("the connection ends"));
    assert_eq!(refused_as(&error), Some(FailureCode::Denied), "{error:?}");
    assert!(error.to_string().contains("revoked"), "{error}");
    let Err(error) = enter(&world, &revoked) else {
        panic!("it is let in");
    };
    assert!(format!("{error:?}").contains("Revoked"), "{error:?}");
    other.open(&name).expect("others notice nothing");
}

#[test]
fn one_identity_has_so_many_connections_and_others_have_theirs() {
    let world = World::start_with(Duration::from_secs(60), |options| {
        options.door = Limits {
            identity_connections: 2,
            ..Limits::default()
        };
    });
    let (greedy, modest) = (world.enrol(), world.enrol());
    let mut links: Vec<_> = (0..2)
        .map(|_| enter(&world, &greedy).expect("it is let in"))
        .collect();
    let Err(error) = enter(&world, &greedy) else {
        panic!("a third is let in");
    };
    assert_eq!(refused_as(&error), Some(FailureCode::Busy), "{error:?}");
    assert!(error.to_string().contains("one identity"), "{error}");
    enter(&world, &modest).expect("others are let in");
    // Who leaves makes room.
    links.pop();
    let again = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        enter(&world, &greedy).is_ok()
    });
    assert!(again, "a place is not given back");
}

/// Handshakes that begin and go no further, by the thousand, from the address of an honest client: it costs
/// that client a round trip.
#[test]
fn handshakes_that_are_never_finished_keep_nobody_out() {
    let world = World::start(Duration::from_secs(60));
    let enrolled = world.enrol();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let _entered = runtime.enter();
    // What begins a connection arrives here and is passed on; the answers are not.
    let sink = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    let to_sink = sink.local_addr().expect("it is bound");
    let clock: Arc<dyn WallClock> = Arc::new(SystemClock);
    let tls = enrolled.client_config(&clock).expect("TLS");
    let config = transport::client_config(tls).expect("settings");
    let endpoint = transport::endpoint(([127, 0, 0, 1], 0).into(), None).expect("a socket");
    let timeout = Some(Duration::from_millis(50));
    sink.set_read_timeout(timeout).expect("a timeout");
    let mut packet = vec![0; 2000];
    let mut passed_on = 0;
    let mut begun = Vec::new();
    while passed_on < 1000 {
        // Few at a time, so that the sink takes them all.
        for _ in 0..20 {
            let connecting = endpoint.connect_with(config.clone(), to_sink, SERVER_NAME);
            begun.push(connecting.expect("it begins"));
        }
        while let Ok((len, from)) = sink.recv_from(&mut packet) {
            if from != world.address {
                sink.send_to(&packet[..len], world.address).expect("sent");
                passed_on += 1;
            }
        }
    }
    let link = world.connect(&enrolled).expect("others are let in");
    link.open(&"main".parse().expect("a name"))
        .expect("it opens");
}
