//! Backups and restores over bad networks: the real program at both ends, in network namespaces.
//!
//! Needs root, `ip`, `nft` and `conntrack`; elsewhere each story says that it is skipped. Long variants
//! run with `make faults`.

mod support;

use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::lab::{Faults, Lab};
use support::server::{Place, Server, local_bytes, wait_for};
use support::{Image, files_below, succeed};

/// What may be stored twice for each time that a session loses its connections: a segment per worker and
/// two read ahead, and what lay in the connections' windows.
const IN_FLIGHT: u64 = (2 + 2) * (1 << 20) + 2 * (4 << 20);
/// Packs that are sealed before they are full cost their table and padding.
const SHORT_PACKS: u64 = 2 << 20;

struct World {
    lab: Lab,
    server: Server,
    image: Image,
    /// Bytes of packs after a backup of the same image without a network.
    clean: u64,
}

impl World {
    /// `None` where namespaces cannot be made.
    fn build(seed: u64, len: usize, set: impl FnOnce(&mut Faults)) -> Option<Self> {
        Self::build_with(seed, len, set, |_| {})
    }

    fn build_with(
        seed: u64,
        len: usize,
        set: impl FnOnce(&mut Faults),
        prepare: impl FnOnce(&Lab),
    ) -> Option<Self> {
        let lab = Lab::build(seed)?;
        lab.set(set);
        prepare(&lab);
        let place = Place {
            options: ["--checkpoint", "1"].map(str::to_owned).to_vec(),
            ..lab.place()
        };
        let server = Server::start(place);
        server.init();
        let image = Image::new(server.path("disk.raw"), seed, len);
        let clean = local_bytes(server.dir.path(), &image.path);
        Some(Self {
            lab,
            server,
            image,
            clean,
        })
    }

    fn start_backup(&self) -> Child {
        self.server
            .backup("vm", &self.image.path)
            .args(["--threads", "2"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    }

    /// Waits until a backup has sent about `bytes`.
    fn wait_sent(&self, bytes: u64) {
        let from = self.lab.sent();
        let limit = Duration::from_secs(60);
        wait_for("bytes on the line", limit, || {
            self.lab.sent() - from > bytes
        });
    }

    /// The backup ends well, once; what it stored is what a clean one stores, but for what `breaks` may
    /// have left in flight; and it restores over the same line.
    fn finish(&self, backup: Child, breaks: u64) -> Output {
        let output = backup.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(self.server.snapshots().len(), 1, "one snapshot: {said}");
        let stored = self.server.pack_bytes();
        let most = self.clean + SHORT_PACKS + breaks * IN_FLIGHT;
        assert!(stored <= most, "{stored} bytes of packs, at most {most}");
        self.server.assert_restores("vm@latest", &self.image.bytes);
        succeed(self.server.undercroft().args(["verify", "--deep"]));
        assert!(self.server.sessions().is_empty());
        output
    }

    fn backup_and_restore(&self) {
        self.finish(self.start_backup(), 0);
    }
}

fn happened(counter: &AtomicU64) {
    assert!(counter.load(Ordering::Relaxed) > 0, "the line had no fault");
}

#[test]
fn one_packet_in_a_hundred_is_lost() {
    let faults = |faults: &mut Faults| {
        faults.loss_ppm = 10_000;
        faults.delay = Duration::from_millis(2);
    };
    let Some(world) = World::build(1, 24 << 20, faults) else {
        return;
    };
    world.backup_and_restore();
    happened(&world.lab.up.lost);
    happened(&world.lab.down.lost);
}

#[test]
fn packets_take_long_and_overtake_each_other() {
    let faults = |faults: &mut Faults| {
        faults.delay = Duration::from_millis(50);
        faults.overtaking_ppm = 250_000;
    };
    let Some(world) = World::build(2, 4 << 20, faults) else {
        return;
    };
    world.backup_and_restore();
    happened(&world.lab.up.overtook);
    happened(&world.lab.down.overtook);
}

#[test]
fn a_line_is_narrow_and_loses() {
    let faults = |faults: &mut Faults| {
        faults.rate = 20_000_000;
        faults.loss_ppm = 3_000;
        faults.delay = Duration::from_millis(5);
    };
    let Some(world) = World::build(3, 48 << 20, faults) else {
        return;
    };
    world.backup_and_restore();
    happened(&world.lab.up.lost);
}

#[test]
fn packets_arrive_twice_and_changed() {
    let faults = |faults: &mut Faults| {
        faults.duplicate_ppm = 50_000;
        faults.corrupt_ppm = 5_000;
        faults.delay = Duration::from_millis(2);
    };
    let Some(world) = World::build(4, 24 << 20, faults) else {
        return;
    };
    world.backup_and_restore();
    happened(&world.lab.up.corrupted);
    happened(&world.lab.up.duplicated);
    happened(&world.lab.down.corrupted);
}

/// Nothing gets through for `gap`, in mid-backup.
fn partition(gap: Duration, breaks: u64) {
    let slow = |faults: &mut Faults| faults.rate = 4 << 20;
    let Some(world) = World::build(5, 32 << 20, slow) else {
        return;
    };
    let backup = world.start_backup();
    world.wait_sent(3 << 20);
    world.lab.set(|faults| faults.is_down = true);
    std::thread::sleep(gap);
    world.lab.set(|faults| faults.is_down = false);
    world.finish(backup, breaks);
}

#[test]
fn a_partition_of_half_a_minute_costs_nothing() {
    partition(Duration::from_secs(30), 0);
}

/// Longer than a connection lives: the session goes on over new ones.
#[test]
#[ignore = "takes minutes: make faults"]
fn a_partition_longer_than_connections_live() {
    partition(Duration::from_secs(150), 1);
}

/// The server publishes, and dies before the client hears of it: that is no reason for a second snapshot.
#[test]
fn the_answer_to_a_commit_is_lost() {
    let Some(mut world) = World::build(12, 2 << 20, |_| {}) else {
        return;
    };
    // Far enough that the answer is still under way when the snapshot has been seen.
    let far = Duration::from_millis(300);
    world.lab.set(|faults| faults.delay = far);
    let mut backup = world.start_backup();
    let snapshots = world.server.store().join("main/snapshots");
    let limit = Duration::from_secs(60);
    wait_for("the snapshot", limit, || {
        files_below(&snapshots)
            .iter()
            .any(|file| file.extension().is_none())
    });
    world.lab.set(|faults| faults.is_down = true);
    let ended = backup.try_wait().expect("a child");
    assert!(ended.is_none(), "the client has not heard of it");
    world.server.kill();
    world.server.start_again();
    world.lab.set(|faults| *faults = Faults::default());
    world.finish(backup, 1);
}

#[test]
fn a_router_forgets_its_mappings() {
    let slow = |faults: &mut Faults| faults.rate = 4 << 20;
    let Some(world) = World::build(6, 32 << 20, slow) else {
        return;
    };
    let backup = world.start_backup();
    for _ in 0..3 {
        world.wait_sent(3 << 20);
        let before = world.lab.ports();
        world.lab.rebind();
        world.wait_sent(1 << 20);
        assert!(world.lab.ports() > before, "the client has other ports");
    }
    let output = world.finish(backup, 0);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("interrupted"), "{said}");
}

#[test]
fn a_client_moves_to_another_address() {
    let slow = |faults: &mut Faults| faults.rate = 4 << 20;
    let Some(world) = World::build(7, 24 << 20, slow) else {
        return;
    };
    let backup = world.start_backup();
    world.wait_sent(3 << 20);
    world.lab.move_client();
    let output = world.finish(backup, 0);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("interrupted"), "{said}");
}

/// A tunnel carries less than Ethernet and says nothing: the handshake, too, has to fit.
fn narrow_path(seed: u64, mtu: usize) {
    let faults = |faults: &mut Faults| {
        faults.mtu = mtu;
        faults.delay = Duration::from_millis(2);
    };
    let Some(world) = World::build(seed, 24 << 20, faults) else {
        return;
    };
    world.backup_and_restore();
}

#[test]
fn a_path_of_1400_bytes() {
    narrow_path(8, 1400);
}

#[test]
fn a_path_of_1280_bytes() {
    narrow_path(9, 1280);
}

#[test]
fn an_interface_of_1280_bytes() {
    let prepare = |lab: &Lab| lab.set_client_mtu(1280);
    let Some(world) = World::build_with(10, 24 << 20, |_| {}, prepare) else {
        return;
    };
    world.backup_and_restore();
}

/// The path was longer when the connection was made.
#[test]
fn a_path_shrinks() {
    let long = |faults: &mut Faults| {
        faults.rate = 8 << 20;
        faults.mtu = 9000;
    };
    let Some(world) = World::build(11, 32 << 20, long) else {
        return;
    };
    let backup = world.start_backup();
    world.wait_sent(4 << 20);
    world.lab.set(|faults| faults.mtu = 1400);
    let output = world.finish(backup, 0);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("interrupted"), "{said}");
    happened(&world.lab.up.too_long);
}
