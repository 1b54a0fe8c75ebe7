//! The authority's and the client's files: damage, loss, mixtures and permissions are told.

use std::os::unix::fs::PermissionsExt;

use super::*;

const FILES: [&str; 4] = [
    layout::AUTHORITY,
    layout::SERVER,
    layout::REGISTRY,
    layout::TIME,
];

#[test]
fn an_authority_is_made_once_and_opened_from_then_on() {
    let world = World::new(1);
    let again = Authority::open_or_create(
        &world.authority_dir(),
        world.clock.clone(),
        world.entropy.clone(),
    );
    assert_eq!(again.unwrap().fingerprint(), world.authority.fingerprint());
    let nowhere = world.dir.path().join("nowhere");
    assert!(matches!(
        world.open_at(&nowhere),
        Err(TrustError::NoAuthority { .. })
    ));
    assert!(!nowhere.exists());
}

#[test]
fn all_files_are_for_their_owner_alone() {
    let world = World::new(1);
    world.enrolled(Role::Ingest, "p");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for dir in [world.authority_dir(), world.store("p").dir().to_owned()] {
        assert_eq!(mode(&dir), 0o700);
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
    let identity = world.store("p").dir().join(layout::IDENTITY);
    std::fs::set_permissions(identity, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = world.store("p").load().unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn what_root_makes_belongs_to_the_owner_of_the_store() {
    use std::os::unix::fs::{MetadataExt, chown};
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let store = tempfile::tempdir().unwrap();
    chown(store.path(), Some(1234), Some(4321)).unwrap();
    let world = World::new(1);
    let dir = store.path().join(DIRECTORY);
    let authority =
        Authority::open_or_create(&dir, world.clock.clone(), world.entropy.clone()).unwrap();
    let options = TokenOptions {
        role: Role::Ingest,
        scope: Scope::everything(),
        name: None,
        lifetime: HOUR,
    };
    authority.issue_token(&options).unwrap();
    for path in std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .chain([dir])
    {
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (1234, 4321),
            "{}",
            path.display()
        );
    }
}

#[test]
fn any_changed_byte_in_any_file_is_told_with_its_name() {
    let world = World::new(1);
    world.enrolled(Role::Ingest, "p");
    for name in FILES {
        let path = world.authority_dir().join(name);
        let whole = std::fs::read(&path).unwrap();
        for place in (0..whole.len()).step_by(5) {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << (place % 8);
            std::fs::write(&path, damaged).unwrap();
            let error = world.reopen().unwrap_err();
            assert!(matches!(&error, TrustError::Damaged { path: told, .. } if *told == path));
        }
        std::fs::write(&path, whole).unwrap();
        assert!(world.reopen().is_ok());
    }
}

#[test]
fn a_damaged_registry_lets_nobody_in() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Ingest, "p");
    std::fs::write(world.authority_dir().join(layout::REGISTRY), "rubbish").unwrap();
    assert_eq!(
        world.authority.admit(enrolled.identity()),
        Err(Refusal::Unavailable)
    );
}

#[test]
fn nothing_is_made_in_place_of_a_lost_authority() {
    let world = World::new(1);
    world.token(Role::Ingest);
    std::fs::remove_file(world.authority_dir().join(layout::AUTHORITY)).unwrap();
    let error = Authority::open_or_create(
        &world.authority_dir(),
        world.clock.clone(),
        world.entropy.clone(),
    );
    assert!(matches!(error, Err(TrustError::Missing { .. })));
}

#[test]
fn a_registry_is_missed_and_that_of_another_authority_is_told() {
    let (world, other) = (World::new(1), World::new(2));
    let registry = |world: &World| world.authority_dir().join(layout::REGISTRY);
    std::fs::copy(registry(&other), registry(&world)).unwrap();
    assert!(matches!(world.reopen(), Err(TrustError::Foreign { .. })));
    std::fs::remove_file(registry(&world)).unwrap();
    assert!(matches!(world.reopen(), Err(TrustError::Missing { .. })));
}

#[test]
fn a_crash_in_the_first_start_leaves_a_second_start_that_works() {
    let world = World::new(1);
    // `authority` is written last: without it, and with the others in any state, all is made anew.
    for present in 0..8_u8 {
        let dir = tempfile::tempdir().unwrap();
        for (bit, name) in [layout::REGISTRY, layout::TIME, layout::SERVER]
            .iter()
            .enumerate()
        {
            if present & 1 << bit != 0 {
                std::fs::copy(world.authority_dir().join(name), dir.path().join(name)).unwrap();
            }
        }
        let made =
            Authority::open_or_create(dir.path(), world.clock.clone(), world.entropy.clone());
        assert_ne!(made.unwrap().fingerprint(), world.authority.fingerprint());
    }
}

#[test]
fn a_lost_server_certificate_is_made_anew() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Ingest, "p");
    std::fs::remove_file(world.authority_dir().join(layout::SERVER)).unwrap();
    let reopened = Arc::new(world.reopen().unwrap());
    let config = enrolled.client_config(&world.clock()).unwrap();
    let wire = wire::Wire::connect(&reopened, config);
    assert!(wire.admit(&reopened).is_ok());
}

#[test]
fn a_backup_of_the_directory_is_the_same_authority() {
    let world = World::new(1);
    let enrolled = world.enrolled(Role::Ingest, "p");
    let elsewhere = tempfile::tempdir().unwrap();
    copy_files(&world.authority_dir(), elsewhere.path());
    let moved = Arc::new(world.open_at(elsewhere.path()).unwrap());
    let config = enrolled.client_config(&world.clock()).unwrap();
    let wire = wire::Wire::connect(&moved, config);
    assert!(wire.admit(&moved).is_ok());
}
