//! Daemons, watched: figures, health, and what strangers do to the endpoint.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::Value;
use support::exposition::Exposition;
use support::proxied::{Proxied, signal};
use support::served::Served;
use support::{Image, fail_with, json, succeed, workspace};

/// A server with an endpoint for those who watch.
struct Watched {
    served: Served,
    endpoint: SocketAddr,
    log: PathBuf,
}

impl Watched {
    fn start() -> Self {
        Self::start_in(workspace())
    }

    fn start_in(dir: tempfile::TempDir) -> Self {
        let log = dir.path().join("server.log");
        let file = std::fs::File::create(&log).expect("a file");
        let (served, said) = Served::start_in(dir, |command| {
            command
                .args(["--metrics", "127.0.0.1:0"])
                .env("UNDERCROFT_LOG", "info")
                .stderr(file);
        });
        served.init();
        let endpoint = endpoint_of(&said);
        Self {
            served,
            endpoint,
            log,
        }
    }

    fn get(&self, path: &str) -> Answer {
        get(self.endpoint, path)
    }

    fn ask(&self, request: &str) -> Option<Answer> {
        ask(self.endpoint, request)
    }

    fn scrape(&self) -> Exposition {
        scrape(self.endpoint)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }
}

fn get(endpoint: SocketAddr, path: &str) -> Answer {
    ask(endpoint, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).expect("an answer")
}

/// Sends bytes, and reads the answer to its end; `None` if the connection just ends.
fn ask(endpoint: SocketAddr, request: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(endpoint).ok()?;
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).expect("a timeout");
    // The server may have answered and closed before all was sent.
    let _ = stream.write_all(request.as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8(text).expect("text");
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

fn scrape(endpoint: SocketAddr) -> Exposition {
    let answer = get(endpoint, "/metrics");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let kind = "content-type: text/plain; version=0.0.4";
    assert!(answer.head.contains(kind), "{}", answer.head);
    Exposition::parse(&answer.body)
}

fn endpoint_of(said: &Receiver<String>) -> SocketAddr {
    let line = said.recv_timeout(Duration::from_secs(60));
    let line = line.expect("it says where");
    let address = line.rsplit("//").next().expect("an address");
    address.parse().expect(&line)
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    fn checks(&self) -> Vec<String> {
        let json = self.json();
        let complaints = json["complaints"].as_array().expect("an array");
        complaints
            .iter()
            .map(|complaint| complaint["check"].as_str().expect("text").to_owned())
            .collect()
    }
}

#[test]
fn figures_say_what_the_backup_says_and_every_one_is_documented() {
    let watched = Watched::start();
    let served = &watched.served;
    let image = Image::new(served.path("disk.raw"), 1, 48 << 20);
    let mut backup = served.backup(&image);
    let mut running = backup
        .arg("--json")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut before = watched.scrape();
    while running.try_wait().expect("it runs").is_none() {
        let now = watched.scrape();
        now.assert_grew_from(&before);
        before = now;
    }
    let output = running.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let figure = |name: &str| report[name].as_u64().expect(name) as f64;

    let after = watched.scrape();
    let of = |name: &str| after.get(&format!("undercroft_{name}{{repository=\"main\"}}"));
    assert_eq!(
        of("pushed_bytes_total"),
        figure("stored_bytes") + figure("metadata_bytes")
    );
    assert!(of("pushed_plain_bytes_total") > figure("new_bytes"));
    assert_eq!(of("finished_segments_total"), 48.0);
    assert_eq!(of("commit_duration_seconds_count"), 1.0);
    let event = |event| {
        after.get(&format!(
            "undercroft_session_events_total{{repository=\"main\",event=\"{event}\"}}"
        ))
    };
    assert_eq!(event("begun"), 1.0);
    assert_eq!(event("committed"), 1.0);
    assert_eq!(event("fenced"), 0.0);
    let unknown =
        "undercroft_questions_total{repository=\"main\",kind=\"objects\",answer=\"unknown\"}";
    // Maps and nodes are not asked for one by one; every chunk is, before it is sent.
    let asked_and_sent = of("pushed_records_total") - 48.0 - 8.0;
    assert!(asked_and_sent > 0.0 && after.get(unknown) >= asked_and_sent);
    assert!(of("repository_index_entries") >= of("pushed_records_total"));
    assert!(after.get("undercroft_quic_received_bytes_total") > of("pushed_bytes_total"));
    assert_eq!(after.sum("undercroft_failures_total"), 0.0);
    assert_eq!(after.get("undercroft_ready"), 1.0);

    let id = report["id"].as_str().expect("an id");
    served.assert_restores(id, &image.bytes);
    succeed(served.undercroft().arg("verify"));
    let restored = watched.scrape();
    let fetched = restored.get("undercroft_fetched_plain_bytes_total{repository=\"main\"}");
    assert!(fetched >= figure("new_bytes"), "{fetched}");
    let verified =
        "undercroft_upkeep_runs_total{repository=\"main\",work=\"verify\",outcome=\"done\"}";
    assert_eq!(restored.get(verified), 1.0);

    let shown = restored.label_values();
    assert!(shown.contains("main"));
    for hidden in ["vm", "admin.config", id] {
        assert!(!shown.contains(hidden), "{hidden} is shown");
    }
    assert_documented(&restored, "a repository server");

    let open = watched.ask(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n",
    );
    let open = open.expect("an answer");
    let kind = "content-type: application/openmetrics-text; version=1.0.0";
    assert!(open.head.contains(kind), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"));
}

/// Fails unless the tables of docs/metrics.md for every daemon and for this one have what is exposed, and no more.
fn assert_documented(exposed: &Exposition, daemon: &str) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let docs = std::fs::read_to_string(docs).expect("the document");
    let of = |whose: &str| {
        let (_, section) = docs
            .split_once(&format!("## Figures of {whose}\n"))
            .expect("a section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines();
        let names = rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        names.map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let documented: BTreeSet<String> = of("every daemon").union(&of(daemon)).cloned().collect();
    let exposed: BTreeSet<String> = exposed.kinds.keys().cloned().collect();
    assert_eq!(exposed, documented, "docs/metrics.md has tables of them");
}

#[test]
fn a_repository_that_somebody_makes_up_has_no_figures() {
    let watched = Watched::start();
    let address = format!("{}/madeup", watched.served.address());
    let mut list = support::undercroft(Path::new(&address));
    list.env("UNDERCROFT_CONFIG", watched.served.path("admin.config"));
    let told = fail_with(list.arg("snapshots"), 1);
    assert!(told.contains("no repository madeup"), "{told}");
    assert!(!watched.scrape().label_values().contains("madeup"));
}

#[test]
fn a_refusal_is_logged_once_with_its_reason_and_whose_it_is() {
    let watched = Watched::start();
    watched.served.enroll_as("reader", "restore", "*");
    let ask = || {
        let mut collect = watched.served.undercroft_as("reader");
        fail_with(collect.arg("gc"), 1)
    };
    let told = ask();
    assert!(told.contains("restore"), "{told}");
    let log = watched.log();
    let refusals: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("a request was refused"))
        .collect();
    let [line] = &refusals[..] else {
        panic!("one line, not {refusals:#?}");
    };
    for part in [
        "reason=\"denied\"",
        "peer=reader",
        "address=127.0.0.1:",
        "repository=\"main\"",
    ] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    for _ in 0..14 {
        ask();
    }
    let lines = watched.log().matches("a request was refused").count();
    assert_eq!(lines, 10, "a flood is cut short");
    let figures = watched.scrape();
    assert_eq!(figures.get("undercroft_log_lines_left_out_total"), 5.0);
    assert_eq!(
        figures.get("undercroft_failures_total{code=\"denied\"}"),
        15.0
    );
}

#[test]
fn nothing_that_is_sent_to_the_endpoint_keeps_others_out() {
    let watched = Watched::start();
    let half = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    let hanging: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(watched.endpoint).expect("it listens");
            let _ = stream.write_all(half);
            stream
        })
        .collect();
    watched.scrape();
    assert_eq!(watched.get("/health/live").status, 200);
    drop(hanging);

    let status = |request: &str| watched.ask(request).map(|answer| answer.status);
    assert_eq!(status("\0\u{1}\u{2} garbage\r\n\r\n"), Some(400));
    assert_eq!(status("GET /metrics HTTP/9.9\r\n\r\n"), Some(400));
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "a".repeat(64 << 10)
    );
    let long = status(&long);
    assert!(
        long.is_none_or(|status| (400..500).contains(&status)),
        "{long:?}"
    );
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000));
    assert_eq!(status(&many), Some(431));
    let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(status(post), Some(405));
    assert_eq!(watched.get("/../../etc/passwd").status, 404);
    let head = watched.ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let head = head.expect("an answer");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    watched.scrape();
}

/// A small file system, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(&at).expect("a directory");
        let options = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "undercroft-test"])
            .arg(&at)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_server_whose_disk_is_full_is_not_ready_until_there_is_room() {
    let dir = workspace();
    let Some(disk) = SmallDisk::mount(dir.path().join("store"), 64 << 20) else {
        eprintln!("not root: cannot mount a small file system");
        return;
    };
    let watched = Watched::start_in(dir);
    let ready = watched.get("/health/ready");
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert_eq!(ready.json()["ok"], true);

    let filler = disk.0.join(".filler");
    let mut file = std::fs::File::create(&filler).expect("a file");
    let block = vec![1_u8; 1 << 20];
    while file.write_all(&block).is_ok() {}
    // Open, it would take its room though it is removed.
    drop(file);
    let full = watched.get("/health/ready");
    assert_eq!(full.status, 503);
    assert_eq!(full.checks(), ["disk_space"], "{}", full.body);
    assert_eq!(watched.scrape().get("undercroft_ready"), 0.0);
    assert_eq!(watched.get("/health/live").status, 200);

    let image = Image::new(watched.served.path("disk.raw"), 1, 16 << 20);
    let failed = watched.served.backup(&image).output().expect("it starts");
    assert!(!failed.status.success(), "there is no room");
    std::fs::remove_file(&filler).expect("it is there");
    let still = watched.get("/health/ready");
    assert!(!still.checks().contains(&"disk_space".to_owned()));
    json(&mut watched.served.backup(&image));
    let ready = watched.get("/health/ready");
    assert_eq!(ready.status, 200, "{}", ready.body);
}

#[test]
fn a_server_that_shuts_down_says_so_and_is_not_ready() {
    let mut watched = Watched::start();
    let image = Image::new(watched.served.path("disk.raw"), 1, 16 << 20);
    succeed(&mut watched.served.backup(&image));
    assert_eq!(watched.get("/health/ready").status, 200);
    let terminate = rustix::process::kill_process(
        rustix::process::Pid::from_child(&watched.served.process),
        rustix::process::Signal::TERM,
    );
    assert_eq!(terminate, Ok(()));
    let mut draining = 0;
    while watched
        .served
        .process
        .try_wait()
        .expect("a process")
        .is_none()
    {
        let ready = watched.ask("GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n");
        if let Some(ready) = ready.filter(|ready| ready.status == 503) {
            assert_eq!(ready.checks(), ["draining"], "{}", ready.body);
            draining += 1;
        }
    }
    assert!(draining > 0, "it was seen to drain");
}

/// A task that the proxy was given, and how it stands.
fn submit(proxied: &Proxied, served: &Served, who: &str, vm: &str, disk: &Path) -> String {
    let mut command = proxied.backup(served, who, vm, disk);
    let submitted = json(command.arg("--detach"));
    submitted["task"].as_str().expect("an id").to_owned()
}

#[test]
fn a_proxy_shows_its_tasks_and_says_when_it_takes_none() {
    let served = Served::start();
    served.init();
    let log = served.path("proxy.log");
    let file = std::fs::File::create(&log).expect("a file");
    let options = [
        "--read",
        "disks",
        "--write",
        "out",
        "--streams",
        "1",
        "--metrics",
        "127.0.0.1:0",
    ];
    served.enroll_as("p", "admin", "*");
    let mut proxied = Proxied::start_by(&served, "p", &options, None, |command| {
        command.env("UNDERCROFT_LOG", "info").stderr(file);
    });
    let endpoint = endpoint_of(&proxied.said);
    let ended = |of: &Exposition, kind: &str, outcome: &str| {
        of.get(&format!(
            "undercroft_proxy_tasks_ended_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}"
        ))
    };
    let tasks = |of: &Exposition, state: &str| {
        of.get(&format!("undercroft_proxy_tasks{{state=\"{state}\"}}"))
    };
    let fresh = scrape(endpoint);
    assert_documented(&fresh, "a proxy");
    assert_eq!(fresh.sum("undercroft_proxy_tasks_ended_total"), 0.0);
    assert_eq!(fresh.get("undercroft_proxy_streams"), 1.0);
    assert_eq!(fresh.get("undercroft_ready"), 1.0);

    let disk = Image::new(served.path("disks/disk.raw"), 1, 48 << 20);
    // A server that stands still keeps the first task on the only stream.
    signal(&served.process, "STOP");
    let first = submit(&proxied, &served, "admin", "vm", &disk.path);
    let waits = submit(&proxied, &served, "admin", "other", &disk.path);
    let busy = scrape(endpoint);
    assert_eq!(busy.get("undercroft_proxy_streams_busy"), 1.0);
    assert_eq!(
        (tasks(&busy, "running"), tasks(&busy, "queued")),
        (1.0, 1.0)
    );
    succeed(&mut proxied.proxy(&served, &["cancel", &waits]));
    assert_eq!(ended(&scrape(endpoint), "backup", "cancelled"), 1.0);
    signal(&served.process, "CONT");
    let mut before = busy;
    while proxied.state_of(&served, &first) == "running" {
        let now = scrape(endpoint);
        now.assert_grew_from(&before);
        before = now;
    }
    assert_eq!(proxied.state_of(&served, &first), "done");
    let report = proxied.show(&served, &first);
    let to = served.path("out").join("vm");
    succeed(&mut proxied.restore(&served, "admin", "vm@latest", &to));
    fail_with(
        &mut proxied.backup(&served, "admin", "vm", &served.path("disks/none.raw")),
        1,
    );
    let after = scrape(endpoint);
    after.assert_grew_from(&before);
    assert_eq!(ended(&after, "backup", "done"), 1.0);
    assert_eq!(ended(&after, "restore", "done"), 1.0);
    assert_eq!(after.get("undercroft_proxy_streams_busy"), 0.0);
    let size = (48 << 20) as f64;
    let read = after.get("undercroft_proxy_read_bytes_total");
    assert!(read >= size, "{read}");
    let stored = report["result"]["stored_bytes"].as_u64().expect("bytes") as f64;
    let written = after.get("undercroft_proxy_stored_bytes_total");
    assert!(written >= stored, "{written}");
    let shown = after.label_values();
    for hidden in ["vm", "other", "admin.config", first.as_str()] {
        assert!(!shown.contains(hidden), "{hidden} is shown");
    }

    succeed(&mut proxied.proxy(&served, &["suspend"]));
    let suspended = get(endpoint, "/health/ready");
    assert_eq!(suspended.status, 503);
    assert_eq!(suspended.checks(), ["suspended"], "{}", suspended.body);
    assert_eq!(get(endpoint, "/health/live").status, 200);
    succeed(&mut proxied.proxy(&served, &["resume"]));
    assert_eq!(get(endpoint, "/health/ready").status, 200);

    proxied.enroll_as("restores", "restore", "*");
    let refused = |text: &str| {
        let lines = text.lines();
        lines
            .filter(|line| line.contains("refused") && line.contains("peer=restores"))
            .map(str::to_owned)
            .collect::<Vec<String>>()
    };
    fail_with(&mut proxied.proxy_as(&served, "restores", &["suspend"]), 1);
    let text = std::fs::read_to_string(&log).expect("a log");
    let lines = refused(&text);
    let [line] = &lines[..] else {
        panic!("one line, not {lines:#?}");
    };
    for part in ["reason=\"denied\"", "address=127.0.0.1:"] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    let denied = scrape(endpoint).get("undercroft_failures_total{code=\"denied\"}");
    // The other one is the disk that is not there.
    assert_eq!(denied, text.matches("reason=\"denied\"").count() as f64);

    signal(&proxied.process, "TERM");
    let mut draining = 0;
    while proxied.process.try_wait().expect("a process").is_none() {
        let ready = ask(endpoint, "GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n");
        if let Some(ready) = ready.filter(|ready| ready.status == 503) {
            assert_eq!(ready.checks(), ["draining"], "{}", ready.body);
            draining += 1;
        }
    }
    assert!(draining > 0, "it was seen to drain");
}
