//! A network of three namespaces: a client's, a router's with NAT, a server's. Between router and server
//! lies a line whose faults are set at any time.
//!
//! The line is two TUN devices and this process, which does to packets what `tc netem` does. Not every
//! kernel has netem built in, and its faults cannot be seeded; NAT, routes and addresses are the kernel's.
#![allow(
    clippy::disallowed_methods,
    reason = "these lines and waits take real time"
)]

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::Random;
use super::server::Place;

/// The server's address.
pub const SERVER: &str = "10.77.1.2";
/// Packets that wait for the line at most, in bytes; more are dropped.
const QUEUE_LEN: u64 = 256 << 10;
/// Longest packet, in bytes.
const PACKET_LEN_MAX: usize = 9000;

/// What a line does to packets, in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Of a million packets, so many are lost.
    pub loss_ppm: u32,
    /// Each packet takes so long ...
    pub delay: Duration,
    /// ... but of a million, so many overtake: they take no time.
    pub overtaking_ppm: u32,
    /// Of a million packets, so many arrive twice.
    pub duplicate_ppm: u32,
    /// Of a million packets, so many have a byte changed, under a checksum that fits.
    pub corrupt_ppm: u32,
    /// Bytes per second.
    pub rate: u64,
    /// Longer packets are lost without a word.
    pub mtu: usize,
    /// Nothing gets through.
    pub is_down: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            loss_ppm: 0,
            delay: Duration::ZERO,
            overtaking_ppm: 0,
            duplicate_ppm: 0,
            corrupt_ppm: 0,
            rate: 50 << 20,
            mtu: 1500,
            is_down: false,
        }
    }
}

/// What a direction of the line has done.
#[derive(Debug, Default)]
pub struct Counters {
    pub bytes: AtomicU64,
    pub lost: AtomicU64,
    pub overtook: AtomicU64,
    pub duplicated: AtomicU64,
    pub corrupted: AtomicU64,
    pub too_long: AtomicU64,
    /// UDP source ports that were seen.
    ports: Mutex<BTreeSet<u16>>,
}

/// The network, removed when dropped.
pub struct Lab {
    prefix: String,
    faults: Arc<Mutex<Faults>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Towards the server, and back.
    pub up: Arc<Counters>,
    pub down: Arc<Counters>,
}

impl Lab {
    /// Builds the network; `None` where that is not permitted or a tool is missing, with the reason on
    /// standard error.
    pub fn build(seed: u64) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("faults-{}-{number}", std::process::id());
        let mut lab = Self {
            prefix,
            faults: Arc::default(),
            is_over: Arc::default(),
            threads: Vec::new(),
            up: Arc::default(),
            down: Arc::default(),
        };
        if let Err(why) = lab.make_namespaces() {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI runs as root with all tools: {why}"
            );
            eprintln!("skipped: network namespaces cannot be made: {why}");
            return None;
        }
        let ends = [lab.open_tun("r"), lab.open_tun("s")];
        let [router, server] = ends.map(Arc::new);
        for (from, to, counters, seed) in [
            (router.clone(), server.clone(), &lab.up, seed),
            (server, router, &lab.down, !seed),
        ] {
            let direction = Direction {
                from,
                to,
                faults: lab.faults.clone(),
                is_over: lab.is_over.clone(),
                counters: counters.clone(),
                random: Random(seed),
                busy_until: Instant::now(),
                number: 0,
                waiting: BinaryHeap::new(),
            };
            lab.threads
                .push(std::thread::spawn(move || direction.run()));
        }
        Some(lab)
    }

    fn make_namespaces(&self) -> Result<(), String> {
        let p = &self.prefix;
        self.script(&format!(
            "for n in c r s; do ip netns add {p}-$n; ip -n {p}-$n link set lo up; done
             ip -n {p}-c link add c0 type veth peer name r0 netns {p}-r
             ip -n {p}-c addr add 10.77.0.2/24 dev c0
             ip -n {p}-c link set c0 mtu {PACKET_LEN_MAX} up
             ip -n {p}-c route add default via 10.77.0.1
             ip -n {p}-r addr add 10.77.0.1/24 dev r0
             ip -n {p}-r link set r0 mtu {PACKET_LEN_MAX} up
             for n in r s; do
               ip -n {p}-$n tuntap add dev t0 mode tun
               ip -n {p}-$n link set t0 mtu {PACKET_LEN_MAX} txqueuelen 1000 up
             done
             ip -n {p}-r addr add 10.77.1.1/24 dev t0
             ip -n {p}-s addr add {SERVER}/24 dev t0
             ip netns exec {p}-r sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
             ip netns exec {p}-r nft '
               add table ip nat
               add chain ip nat post {{ type nat hook postrouting priority 100; }}
               add rule ip nat post oifname t0 masquerade fully-random'
             ip netns exec {p}-r conntrack -C"
        ))
    }

    /// The end of a TUN device. Only an `ioctl` attaches a process to one, which Perl has without `unsafe`.
    fn open_tun(&self, namespace: &str) -> File {
        let attach = r#"
            $| = 1;
            open(my $tun, "+<", "/dev/net/tun") or die "/dev/net/tun: $!";
            my $request = pack("a16 s x22", "t0", 0x1001); # IFF_TUN | IFF_NO_PI
            ioctl($tun, 0x400454ca, $request) or die "TUNSETIFF: $!";
            print fileno($tun), "\n";
            <STDIN>;
        "#;
        let mut perl = self
            .within(namespace)
            .args(["perl", "-e", attach])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("perl starts");
        let mut said = [0; 1];
        let mut number = String::new();
        let out = perl.stdout.as_mut().expect("a pipe");
        while out.read_exact(&mut said).is_ok() && said != *b"\n" {
            number.push(said[0].into());
        }
        let number = number.parse().expect("the descriptor's number");
        let pid = rustix::process::Pid::from_child(&perl);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a child of this process");
        let tun: OwnedFd =
            pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()).expect("its descriptor");
        drop(perl.stdin.take());
        perl.wait().expect("it ends");
        rustix::fs::fcntl_setfl(&tun, rustix::fs::OFlags::NONBLOCK).expect("a descriptor");
        tun.into()
    }

    fn within(&self, namespace: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{namespace}", self.prefix)]);
        command
    }

    fn script(&self, text: &str) -> Result<(), String> {
        let output = Command::new("sh").args(["-ec", text]).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(said)
    }

    /// Where a server and its clients run.
    pub fn place(&self) -> Place {
        let words = |namespace: &str| {
            let name = format!("{}-{namespace}", self.prefix);
            ["ip", "netns", "exec", &name].map(OsString::from).to_vec()
        };
        Place {
            server: words("s"),
            client: words("c"),
            address: Some(SERVER.into()),
            options: Vec::new(),
        }
    }

    /// Changes what the line does from now on.
    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().expect("no thread panics with it"));
    }

    /// The router forgets its mappings: what the client sends next comes from other ports.
    pub fn rebind(&self) {
        let p = &self.prefix;
        self.script(&format!("ip netns exec {p}-r conntrack -F"))
            .expect("conntrack works");
    }

    /// The client moves to another address, and is without one for a while.
    pub fn move_client(&self) {
        let p = &self.prefix;
        self.script(&format!(
            "ip -n {p}-c addr flush dev c0
             sleep 0.7
             ip -n {p}-c addr add 10.77.0.77/24 dev c0
             ip -n {p}-c route replace default via 10.77.0.1"
        ))
        .expect("addresses can be set");
    }

    /// The client's own interface takes no longer packets than this.
    pub fn set_client_mtu(&self, mtu: usize) {
        let p = &self.prefix;
        self.script(&format!("ip -n {p}-c link set c0 mtu {mtu}"))
            .expect("an MTU can be set");
    }

    /// Ports that the router sent from since the line was built.
    pub fn ports(&self) -> usize {
        self.up.ports.lock().expect("no thread panics").len()
    }

    /// Bytes of packets that went to the server.
    pub fn sent(&self) -> u64 {
        self.up.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for namespace in ["c", "r", "s"] {
            let name = format!("{}-{namespace}", self.prefix);
            let mut remove = Command::new("ip");
            remove.args(["netns", "del", &name]);
            let _ = remove.stderr(Stdio::null()).status();
        }
    }
}

/// A packet under way: when it arrives, in which order it came, what it is.
type Waiting = Reverse<(Instant, u64, Vec<u8>)>;

struct Direction {
    from: Arc<File>,
    to: Arc<File>,
    faults: Arc<Mutex<Faults>>,
    is_over: Arc<AtomicBool>,
    counters: Arc<Counters>,
    random: Random,
    busy_until: Instant,
    number: u64,
    waiting: BinaryHeap<Waiting>,
}

impl Direction {
    fn run(mut self) {
        let mut packet = vec![0; PACKET_LEN_MAX + 100];
        while !self.is_over.load(Ordering::Relaxed) {
            self.deliver();
            let next = self.waiting.peek().map(|Reverse((due, ..))| *due);
            let pause = next.map_or(Duration::from_millis(50), |due| {
                due.saturating_duration_since(Instant::now())
                    .min(Duration::from_millis(50))
            });
            let pause = Timespec {
                tv_sec: 0,
                tv_nsec: pause.as_nanos() as _,
            };
            let mut ready = [PollFd::new(&*self.from, PollFlags::IN)];
            if !matches!(poll(&mut ready, Some(&pause)), Ok(1..)) {
                continue;
            }
            for _ in 0..64 {
                let Ok(len) = (&*self.from).read(&mut packet) else {
                    break;
                };
                self.take(&packet[..len]);
            }
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((due, ..))) = self.waiting.peek()
            && *due <= now
        {
            let Reverse((_, _, packet)) = self.waiting.pop().expect("just seen");
            if self.faults.lock().expect("no thread panics").is_down {
                continue;
            }
            // A full queue drops, as real ones do.
            let _ = (&*self.to).write(&packet);
        }
    }

    fn take(&mut self, packet: &[u8]) {
        let faults = *self.faults.lock().expect("no thread panics with it");
        let counters = self.counters.clone();
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let backlog = self.busy_until.saturating_duration_since(now);
        let backlog = backlog.as_secs_f64() * faults.rate as f64;
        if faults.is_down || backlog as u64 > QUEUE_LEN || self.is_one_of(faults.loss_ppm) {
            count(&counters.lost);
            return;
        }
        if packet.len() > faults.mtu {
            count(&counters.too_long);
            return;
        }
        // IPv4 without options, UDP.
        if packet.len() > 28 && packet[0] == 0x45 && packet[9] == 17 {
            let port = u16::from_be_bytes([packet[20], packet[21]]);
            counters
                .ports
                .lock()
                .expect("no thread panics")
                .insert(port);
        }
        counters
            .bytes
            .fetch_add(packet.len() as u64, Ordering::Relaxed);
        let sending = Duration::from_secs_f64(packet.len() as f64 / faults.rate as f64);
        self.busy_until = self.busy_until.max(now) + sending;
        let mut due = self.busy_until + faults.delay;
        if self.is_one_of(faults.overtaking_ppm) {
            count(&counters.overtook);
            due = self.busy_until;
        }
        let mut packet = packet.to_vec();
        if self.is_one_of(faults.corrupt_ppm) && packet.len() > 60 {
            count(&counters.corrupted);
            self.corrupt(&mut packet);
        }
        if self.is_one_of(faults.duplicate_ppm) {
            count(&counters.duplicated);
            self.push(due + Duration::from_millis(1), packet.clone());
        }
        self.push(due, packet);
    }

    fn push(&mut self, due: Instant, packet: Vec<u8>) {
        self.number += 1;
        self.waiting.push(Reverse((due, self.number, packet)));
    }

    /// Changes a byte of the payload; without a UDP checksum, the kernel lets it pass.
    fn corrupt(&mut self, packet: &mut [u8]) {
        let at = 28 + self.random.below(packet.len() as u64 - 28) as usize;
        packet[at] ^= 1 << self.random.below(8);
        packet[26..28].fill(0);
    }

    fn is_one_of(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.random.below(1_000_000) < u64::from(ppm)
    }
}
