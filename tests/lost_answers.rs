//! Answers that are lost: the connection breaks between what a server did and the client's hearing of it.

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::served::Served;
use support::{Image, json, noise, succeed, undercroft};
use undercroft_dataplane::clock::Stopwatch;

/// How long an answer is on its way: longer than it takes to see what the server did, and cut it off.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// Backups whose answer is cut off at one moment or another.
const ROUNDS: u64 = 6;
/// On a machine with much else to do answers can be faster than this test: it goes on until one was not.
const ROUNDS_MAX: u64 = 40;

/// Passes datagrams on, and, when told so, none from the server.
struct Relay {
    port: u16,
    is_cut: Arc<AtomicBool>,
}

impl Relay {
    fn start(server: u16) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let port = front.local_addr().expect("it is bound").port();
        let front = Arc::new(front);
        let is_cut = Arc::<AtomicBool>::default();
        let cut = is_cut.clone();
        std::thread::spawn(move || {
            let mut peers: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut datagram = vec![0; 1 << 16];
            while let Ok((len, from)) = front.recv_from(&mut datagram) {
                let back = peers.entry(from).or_insert_with(|| {
                    let back = UdpSocket::bind("127.0.0.1:0").expect("a port");
                    back.connect(("127.0.0.1", server)).expect("loopback");
                    let back = Arc::new(back);
                    answer(back.clone(), front.clone(), from, cut.clone());
                    back
                });
                // Nobody may listen there for a while.
                let _ = back.send(&datagram[..len]);
            }
        });
        Self { port, is_cut }
    }

    fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::SeqCst);
    }
}

/// Passes on what the server says to one client, a little later, in order.
fn answer(back: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr, is_cut: Arc<AtomicBool>) {
    let (later, due) = std::sync::mpsc::channel::<(Stopwatch, Vec<u8>)>();
    std::thread::spawn(move || {
        for (since, datagram) in due {
            std::thread::sleep(ON_THE_WAY.saturating_sub(since.elapsed()));
            if !is_cut.load(Ordering::SeqCst) {
                let _ = front.send_to(&datagram, to);
            }
        }
    });
    std::thread::spawn(move || {
        let mut datagram = vec![0; 1 << 16];
        loop {
            // A refused port is an error that passes.
            if let Ok(len) = back.recv(&mut datagram) {
                let datagram = datagram[..len].to_vec();
                if later.send((Stopwatch::start(), datagram)).is_err() {
                    return;
                }
            }
        }
    });
}

struct World {
    served: Served,
    relay: Relay,
}

impl World {
    fn start() -> Self {
        let served = Served::start();
        let relay = Relay::start(served.port);
        let config = served.path("admin.config");
        let at = |port: u16| config.join(format!("127.0.0.1:{port}"));
        copy_enrolment(&at(served.port), &at(relay.port));
        Self { served, relay }
    }

    /// The program, over the relay.
    fn undercroft(&self) -> Command {
        let address = format!("quic://127.0.0.1:{}/main", self.relay.port);
        let mut command = undercroft(Path::new(&address));
        command.env("UNDERCROFT_CONFIG", self.served.path("admin.config"));
        command
    }

    fn snapshot_files(&self) -> Vec<PathBuf> {
        let dir = self.served.path("store/main/snapshots");
        let Ok(entries) = std::fs::read_dir(dir) else {
            return Vec::new();
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(|path| path.extension().is_none()).collect()
    }

    /// The server dies, with nothing of what it said having arrived.
    fn lose_the_server(&mut self) {
        self.relay.cut(true);
        self.served.kill();
        self.served.start_again();
        self.relay.cut(false);
    }
}

fn copy_enrolment(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("enrolled") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(to, mode).expect("its owner's");
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    for _ in 0..30_000 {
        if is_there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("waited for {what} in vain");
}

fn report_of(child: Child) -> serde_json::Value {
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The server publishes, the answer is lost, the server is killed: the client learns what was published, and
/// nothing is published twice. At the moment of publication, and before and after it.
#[test]
fn a_commit_whose_answer_is_lost_publishes_once_and_is_a_success() {
    let mut world = World::start();
    world.served.init();
    let mut image = Image::new(world.served.path("disk.raw"), 1, 6 << 20);
    let mut told = 0;
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS && told > 0 {
            break;
        }
        image.change(round, &[3, 20 + round as usize]);
        let before = world.snapshot_files().len();
        let mut backup = world.undercroft();
        backup
            .args(["backup", "--vm", "vm", "--lock-until", "1h", "--json"])
            .args(["--progress", "none"])
            .arg(&image.path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = backup.spawn().expect("it starts");
        match round % 3 {
            // Some time in between, from the beginning on.
            2 => {
                let sessions = world.served.path("store/main/sessions");
                wait_for("a session", || {
                    std::fs::read_dir(&sessions).is_ok_and(|mut entries| entries.next().is_some())
                });
                std::thread::sleep(Duration::from_millis(round % ROUNDS * 50));
            }
            wait => {
                wait_for("the snapshot", || world.snapshot_files().len() > before);
                std::thread::sleep(Duration::from_millis(wait * 5));
            }
        }
        let was_there = world.snapshot_files().len() > before;
        world.lose_the_server();
        let report = report_of(child);
        let listed = json(world.served.undercroft().arg("snapshots"));
        let listed = listed.as_array().expect("an array");
        assert_eq!(listed.len(), round as usize + 1, "one more, and no other");
        assert_eq!(listed[round as usize]["id"], report["id"]);
        assert_eq!(
            listed[round as usize]["locked_until"],
            report["locked_until"]
        );
        assert!(report["locked_until"].is_string(), "{report}");
        let is_told = report["warnings"]
            .to_string()
            .contains("was published before");
        told += u64::from(is_told);
        assert!(was_there || !is_told);
        world.served.assert_restores("vm@latest", &image.bytes);
    }
    assert!(told > 0, "every answer arrived");
    succeed(world.served.undercroft().args(["verify", "--deep"]));
}

/// What comes from a pipe cannot be read again, but asking needs none of it.
#[test]
fn a_stream_whose_commit_is_not_answered_is_a_success() {
    let mut world = World::start();
    world.served.init();
    // About every second answer is faster than this test.
    for round in 1..=40 {
        let content = noise(round, 3 << 20);
        let before = world.snapshot_files().len();
        let mut backup = world.undercroft();
        backup
            .args(["backup", "--vm", "vm", "--json", "--progress", "none", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = backup.spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(&content).expect("it reads");
        drop(stdin);
        wait_for("the snapshot", || world.snapshot_files().len() > before);
        world.lose_the_server();
        let report = report_of(child);
        assert_eq!(world.snapshot_files().len(), before + 1);
        world.served.assert_restores("vm@latest", &content);
        if report["warnings"]
            .to_string()
            .contains("was published before")
        {
            return;
        }
    }
    panic!("every answer arrived");
}

/// The same of what an administrator does: asked again, it is done once and reported as done.
#[test]
fn what_an_administrator_does_is_asked_again() {
    let mut world = World::start();
    let config = world.served.path("store/main/config");
    let spawn = |world: &World, words: &[&str]| {
        let mut command = world.undercroft();
        command.args(words).arg("--json");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("it starts")
    };
    let child = spawn(&world, &["init", "--segment-size", "1M"]);
    wait_for("the config", || config.exists());
    world.lose_the_server();
    report_of(child);

    let image = Image::new(world.served.path("disk.raw"), 1, 2 << 20);
    succeed(&mut world.served.backup(&image));
    succeed(&mut world.served.backup(&image));
    for (words, suffix) in [
        (&["protect", "vm@latest"][..], "protected"),
        (&["lock", "vm@latest", "--until", "2030-01-01"], "locked"),
    ] {
        let dir = world.served.path("store/main/snapshots");
        let child = spawn(&world, words);
        wait_for(suffix, || {
            let mut entries = std::fs::read_dir(&dir).expect("a directory");
            entries.any(|entry| {
                let path = entry.expect("an entry").path();
                path.extension()
                    .is_some_and(|extension| extension == suffix)
            })
        });
        world.lose_the_server();
        report_of(child);
    }
    let child = spawn(&world, &["forget", "vm@latest-1"]);
    wait_for("its end", || world.snapshot_files().len() == 1);
    world.lose_the_server();
    let report = report_of(child);
    assert_eq!(report["forgotten"].as_array().map(Vec::len), Some(1));
    assert_eq!(world.snapshot_files().len(), 1);
}
