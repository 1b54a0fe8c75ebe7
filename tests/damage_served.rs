//! Damage behind a server: found, worked around and healed as in a directory.

mod support;

use std::path::PathBuf;
use std::process::Command;

use undercroft_format::pack::{PackKind, RECORD_HEADER_LEN};

use support::packs::{flip, forge, largest_data_pack, packs_of};
use support::served::Served;
use support::{Image, copy_tree, fail_with, json, succeed, undercroft};

struct World {
    served: Served,
    image: Image,
    passphrase: Option<&'static str>,
}

impl World {
    /// A server with a backup of a disk.
    fn start(passphrase: Option<&'static str>) -> Self {
        let served = Served::start();
        let image = Image::new(served.path("disk.raw"), 3, (5 << 20) + 777);
        let world = Self {
            served,
            image,
            passphrase,
        };
        let mut init = world.undercroft();
        init.args(["init", "--segment-size", "1M", "--pack-size", "1M"]);
        if passphrase.is_some() {
            init.arg("--encrypt");
        }
        succeed(&mut init);
        succeed(&mut world.backup());
        world
    }

    fn undercroft(&self) -> Command {
        let mut command = self.served.undercroft();
        if let Some(passphrase) = self.passphrase {
            command.env("UNDERCROFT_PASSPHRASE", passphrase);
        }
        command
    }

    fn backup(&self) -> Command {
        let mut command = self.undercroft();
        command.args(["backup", "--vm", "vm"]).arg(&self.image.path);
        command
    }

    /// The repository's directory at the server.
    fn repository(&self) -> PathBuf {
        self.served.path("store/main")
    }

    /// Does something to the repository's files while nobody has them open.
    fn meddle(&mut self, how: impl FnOnce(&Self)) {
        self.served.kill();
        how(self);
        self.served.start_again();
    }

    fn assert_restores(&self) {
        let target = self.served.path("restored.raw");
        let mut restore = self.undercroft();
        restore.args(["restore", "vm@latest", "--force", "--to"]);
        succeed(restore.arg(&target));
        let restored = std::fs::read(&target).expect("the file");
        assert!(restored == self.image.bytes, "the newest snapshot");
    }
}

/// `verify --deep`, which must find damage: what it printed, without the time that it took.
fn found_by(command: &mut Command) -> serde_json::Value {
    let output = command.args(["verify", "--deep", "--json"]).output();
    let output = output.expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    let mut report: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    report["duration_ms"].take();
    report
}

#[test]
fn an_increment_on_damaged_maps_is_a_full_read_behind_a_server() {
    let mut world = World::start(None);
    let bitmap = world.served.path("changed");
    std::fs::write(&bitmap, world.image.change(9, &[1])).expect("a bitmap");
    let pristine = world.served.path("pristine");
    world.meddle(|world| copy_tree(&world.repository(), &pristine));
    let mut full_reads = 0;
    for (pack, records) in packs_of(&pristine, PackKind::Meta) {
        let name = pack.strip_prefix(&pristine).expect("below").to_owned();
        for (position, len) in records {
            world.meddle(|world| {
                std::fs::remove_dir_all(world.repository()).expect("it goes");
                copy_tree(&pristine, &world.repository());
                let place = position + (RECORD_HEADER_LEN + len) / 2;
                flip(&world.repository().join(&name), place, 3);
            });
            let mut increment = world.backup();
            increment.args(["--parent", "vm@latest", "--changed-blocks"]);
            let report = json(increment.arg(&bitmap));
            if report.to_string().contains("full:parent-damaged") {
                full_reads += 1;
                world.assert_restores();
            }
        }
    }
    assert!(
        full_reads >= 2,
        "of the first map and of the root: {full_reads}"
    );
}

/// A pack that goes while the server has it open: as long as the index knew it, backups would build upon what is lost.
#[test]
fn a_pack_that_is_lost_under_a_running_server_is_sent_again_after_a_repair() {
    let world = World::start(None);
    let lost = largest_data_pack(&world.repository());
    std::fs::remove_file(&lost).expect("it is there");
    let repair = |code: i32| {
        let mut repair = world.undercroft();
        let output = repair
            .args(["repair", "--json"])
            .output()
            .expect("it starts");
        assert_eq!(output.status.code(), Some(code));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let report = repair(3);
    assert_eq!(report["damage"][0]["problem"], "the pack is gone");
    assert!(report["records_lost"].as_u64() > Some(0), "{report}");
    assert_eq!(
        report["snapshots_incomplete"].as_array().map(Vec::len),
        Some(1)
    );
    let again = json(&mut world.backup());
    assert!(again["new_bytes"].as_u64() > Some(0), "{again}");
    world.assert_restores();
    let report = repair(0);
    assert_eq!(report["damage"], serde_json::json!([]));
    assert_eq!(
        report["snapshots_whole_again"].as_array().map(Vec::len),
        Some(1)
    );
    succeed(world.undercroft().args(["verify", "--deep"]));
}

#[test]
fn a_damaged_chunk_is_sent_again_behind_a_server() {
    let mut world = World::start(None);
    world.meddle(|world| flip(&largest_data_pack(&world.repository()), 300_000, 2));
    fail_with(world.undercroft().arg("verify"), 3);
    fail_with(world.undercroft().arg("repair"), 3);
    let report = json(&mut world.backup());
    assert_ne!(report["disks"][0]["new_bytes"], 0, "{report}");
    world.assert_restores();
    succeed(world.undercroft().arg("repair"));
    succeed(world.undercroft().args(["verify", "--deep"]));
}

/// What only the key shows: a sealed chunk whose checksums fit.
#[test]
fn deep_checks_of_an_encrypted_repository_are_done_by_who_has_the_key() {
    let mut world = World::start(Some("horse"));
    let sound = json(world.undercroft().args(["verify", "--deep"]));
    assert_ne!(sound["records"], 0);
    let local = |world: &World| {
        let mut command = undercroft(&world.repository());
        command.env("UNDERCROFT_PASSPHRASE", "horse");
        command
    };
    world.meddle(|world| {
        for (pack, records) in packs_of(&world.repository(), PackKind::Data) {
            forge(&pack, records[records.len() / 2]);
        }
    });
    succeed(world.undercroft().arg("verify"));
    let there = found_by(&mut world.undercroft());
    assert!(
        there["damage"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
    assert!(
        there["affected"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
    // Beside the server, which owns it.
    assert_eq!(there, found_by(&mut local(&world)), "as in a directory");
    let text = fail_with(world.served.undercroft().args(["verify", "--deep"]), 1);
    assert!(text.contains("key is needed"), "{text}");

    let text = fail_with(world.undercroft().args(["repair", "--deep"]), 3);
    assert!(!text.contains("panicked"), "{text}");
    let aside = std::fs::read_dir(world.repository().join("damaged")).expect("a directory");
    assert_ne!(aside.count(), 0, "what is set aside is kept");
    let report = json(&mut world.backup());
    assert_ne!(report["disks"][0]["new_bytes"], 0, "{report}");
    world.assert_restores();
    succeed(world.undercroft().args(["repair", "--deep"]));
    succeed(world.undercroft().args(["verify", "--deep"]));
    let text = fail_with(world.undercroft().arg("rebuild-index"), 2);
    assert!(text.contains("on the server's machine"), "{text}");
}
