//! A QEMU of pretence, which knows the commands that a backup gives and refuses what the real one does, and
//! the histories in which one of them fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use undercroft_format::qmp::message::{Refusal, Version};

use super::error::QemuError;
use super::guest::{Connect, Guest};
use super::live::{LivePoint, Outcome};
use super::monitor::Monitor;
use super::names::{Owner, PointId};
use super::point::PlannedDisk;
use super::scratch::ScratchDir;

/// What is in QEMU.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    /// Nodes, and the nodes below each.
    nodes: BTreeMap<String, Vec<String>>,
    /// Jobs: status, and the nodes that each uses.
    jobs: BTreeMap<String, (String, Vec<String>)>,
    /// Exports: node and bitmaps.
    exports: BTreeMap<String, (String, Vec<String>)>,
    serves: bool,
    /// Sets of descriptors, and what each is for.
    files: BTreeMap<u64, String>,
    /// Bitmaps by node and name: whether they record.
    bitmaps: BTreeMap<(String, String), bool>,
    status: String,
    /// What has an I/O thread: a disk's device or its controller.
    threaded: Option<&'static str>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The command of this number is refused.
    Refuse(usize),
    /// The connection breaks before or after it is carried out.
    Break {
        at: usize,
        is_done: bool,
    },
}

struct Qemu {
    state: State,
    version: Version,
    asked: usize,
    fault: Fault,
    log: Vec<&'static str>,
}

const DISKS: [&str; 2] = ["root", "data"];

fn refused(command: &'static str, description: &str) -> QemuError {
    QemuError::Refused {
        command,
        source: Refusal {
            class: "GenericError".to_owned(),
            description: description.to_owned(),
        },
    }
}

impl State {
    fn new() -> Self {
        let nodes = DISKS.map(|disk| (format!("node-{disk}"), Vec::new()));
        Self {
            nodes: nodes.into(),
            status: "running".to_owned(),
            ..Self::default()
        }
    }

    fn run(&mut self, command: &'static str, given: &Value) -> Result<Value, String> {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        match command {
            "query-status" => return Ok(json!({"status": self.status})),
            "query-block" => {
                let drives = DISKS.map(|disk| {
                    let node = format!("node-{disk}");
                    json!({"device": disk, "qdev": format!("/dev/{disk}"), "inserted": {"node-name": node, "drv": "qcow2",
                        "image": {"virtual-size": 1 << 20}, "dirty-bitmaps": self.bitmaps_of(&node)}})
                });
                return Ok(json!(drives));
            }
            "qom-get" => {
                let path = text(&given["path"]);
                return match text(&given["property"]).as_str() {
                    "parent_bus" if path == "/dev/data" => Ok(json!("/hba/bus.0")),
                    "iothread" if self.threaded == Some(&path) => Ok(json!("/objects/io")),
                    "iothread" if path == "/dev/root" => Ok(json!("")),
                    _ => Err("no such property".to_owned()),
                };
            }
            "query-named-block-nodes" => {
                let nodes = self
                    .nodes
                    .keys()
                    .map(|node| json!({"node-name": node, "dirty-bitmaps": self.bitmaps_of(node)}));
                return Ok(nodes.collect());
            }
            "query-block-exports" => {
                return Ok(self.exports.keys().map(|id| json!({"id": id})).collect());
            }
            "query-jobs" => {
                let jobs = self.jobs.iter();
                let jobs = jobs.map(|(id, (status, _))| json!({"id": id, "status": status}));
                return Ok(jobs.collect());
            }
            "query-fdsets" => {
                let sets = self.files.iter().map(
                    |(id, opaque)| json!({"fdset-id": id, "fds": [{"fd": 9, "opaque": opaque}]}),
                );
                return Ok(sets.collect());
            }
            "add-fd" => {
                let id = self.files.keys().next_back().map_or(0, |last| last + 1);
                self.files.insert(id, text(&given["opaque"]));
                return Ok(json!({"fdset-id": id, "fd": 9}));
            }
            "remove-fd" => {
                let id = given["fdset-id"].as_u64().expect("a number");
                self.files.remove(&id).ok_or("no such set")?;
            }
            "blockdev-add" => {
                let below = ["file", "backing"]
                    .iter()
                    .filter_map(|child| given[child].as_str());
                let below: Vec<_> = below.map(str::to_owned).collect();
                if below.iter().any(|node| !self.nodes.contains_key(node)) {
                    return Err("no such node".to_owned());
                }
                self.nodes.insert(text(&given["node-name"]), below);
            }
            "blockdev-create" => {
                let file = text(&given["options"]["file"]);
                let job = ("concluded".to_owned(), vec![file]);
                self.jobs.insert(text(&given["job-id"]), job);
            }
            "job-dismiss" => _ = self.jobs.remove(&text(&given["id"])).ok_or("no job")?,
            "job-cancel" => {
                let id = text(&given["id"]);
                self.jobs.remove(&id).ok_or("no job")?;
                self.nodes.retain(|node, _| *node != format!("{id}c"));
            }
            "blockdev-del" => {
                let node = text(&given["node-name"]);
                let is_used = self.nodes.values().any(|below| below.contains(&node))
                    || self.jobs.values().any(|(_, used)| used.contains(&node))
                    || self.exports.values().any(|(used, _)| *used == node);
                if is_used {
                    return Err("node is in use".to_owned());
                }
                self.nodes.remove(&node).ok_or("no such node")?;
            }
            "getfd" | "closefd" | "qmp_capabilities" => {}
            "nbd-server-start" if self.serves => return Err("server already running".to_owned()),
            "nbd-server-start" => self.serves = true,
            "nbd-server-stop" if !self.serves => return Err("server not running".to_owned()),
            "nbd-server-stop" => {
                self.serves = false;
                self.exports.clear();
            }
            "block-export-add" => {
                let node = text(&given["node-name"]);
                let below = self.nodes.get(&node).ok_or("no such node")?;
                let bitmaps = given["bitmaps"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(text);
                let bitmaps: Vec<_> = bitmaps.collect();
                for name in &bitmaps {
                    let known = below.iter().map(|node| (node.clone(), name.clone()));
                    let known = known.filter_map(|key| self.bitmaps.get(&key)).next();
                    if *known.ok_or("no such bitmap")? {
                        return Err("enabled bitmap incompatible with readonly export".to_owned());
                    }
                }
                self.exports.insert(text(&given["id"]), (node, bitmaps));
            }
            "block-export-del" => {
                self.exports
                    .remove(&text(&given["id"]))
                    .ok_or("no such export")?;
            }
            "block-dirty-bitmap-remove" => {
                let name = text(&given["name"]);
                if self
                    .exports
                    .values()
                    .any(|(_, bitmaps)| bitmaps.contains(&name))
                {
                    return Err("bitmap is in use".to_owned());
                }
                let key = (text(&given["node"]), name);
                self.bitmaps.remove(&key).ok_or("no such bitmap")?;
            }
            "transaction" => {
                let mut next = self.clone();
                for action in given["actions"].as_array().expect("a list") {
                    next.act(&text(&action["type"]), &action["data"])?;
                }
                *self = next;
            }
            "cont" => self.status = "running".to_owned(),
            other => panic!("nobody asks for {other}"),
        }
        Ok(json!({}))
    }

    fn act(&mut self, action: &str, data: &Value) -> Result<(), String> {
        let text = |field: &str| data[field].as_str().expect("text").to_owned();
        match action {
            "blockdev-backup" => {
                let used = vec![text("device"), text("target")];
                self.jobs
                    .insert(text("job-id"), ("running".to_owned(), used.clone()));
                self.nodes.insert(text("filter-node-name"), used);
            }
            "block-dirty-bitmap-add" => {
                let records = data["disabled"] != true;
                if self
                    .bitmaps
                    .insert((text("node"), text("name")), records)
                    .is_some()
                {
                    return Err("bitmap exists".to_owned());
                }
            }
            "block-dirty-bitmap-merge" => {
                let old = data["bitmaps"][0].as_str().expect("text").to_owned();
                let known = self.bitmaps.get(&(text("node"), old));
                known.ok_or("no such bitmap")?;
            }
            other => panic!("nobody asks for {other}"),
        }
        Ok(())
    }

    fn bitmaps_of(&self, node: &str) -> Vec<Value> {
        let of_node = self.bitmaps.iter().filter(|((of, _), _)| of == node);
        of_node
            .map(|((_, name), records)| json!({"name": name, "recording": records}))
            .collect()
    }

    fn bitmap_names(&self) -> BTreeSet<String> {
        self.bitmaps.keys().map(|(_, name)| name.clone()).collect()
    }

    /// The same without bitmaps, which may outlive a failure of their removal.
    fn without_bitmaps(&self) -> Self {
        Self {
            bitmaps: BTreeMap::new(),
            ..self.clone()
        }
    }
}

/// A connection.
struct Line {
    qemu: Arc<Mutex<Qemu>>,
    is_broken: bool,
}

impl Monitor for Line {
    fn ask(
        &mut self,
        command: &'static str,
        given: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QemuError> {
        assert_eq!(
            file.is_some(),
            ["add-fd", "getfd"].contains(&command),
            "{command}"
        );
        let broken = || QemuError::Connection {
            command,
            source: io::ErrorKind::UnexpectedEof.into(),
        };
        if self.is_broken {
            return Err(broken());
        }
        let mut qemu = self.qemu.lock();
        let number = qemu.asked;
        qemu.asked += 1;
        qemu.log.push(command);
        match qemu.fault {
            Fault::Refuse(at) if at == number => return Err(refused(command, "as a test")),
            Fault::Break { at, is_done } if at == number => {
                self.is_broken = true;
                if is_done {
                    let _ = qemu.state.run(command, &given);
                }
                return Err(broken());
            }
            _ => {}
        }
        let done = qemu.state.run(command, &given);
        done.map_err(|text| refused(command, &text))
    }

    fn version(&self) -> Version {
        self.qemu.lock().version
    }
}

struct Story {
    qemu: Arc<Mutex<Qemu>>,
    dir: tempfile::TempDir,
}

const OWNER: [&[u8]; 2] = [b"repository", b"other"];

impl Story {
    fn new() -> Self {
        Self::of(State::new())
    }

    fn of(state: State) -> Self {
        Self {
            qemu: Arc::new(Mutex::new(Qemu {
                state,
                version: Version { major: 7, minor: 2 },
                asked: 0,
                fault: Fault::None,
                log: Vec::new(),
            })),
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    fn connect(&self) -> Connect {
        let qemu = self.qemu.clone();
        Box::new(move || {
            Ok(Box::new(Line {
                qemu: qemu.clone(),
                is_broken: false,
            }))
        })
    }

    fn owner(&self) -> Owner {
        Owner::new(OWNER[0], "web")
    }

    /// Begins a backup; each disk's changes since `parent`, if the guest has its bitmap.
    fn begin(&self, number: u8, parent: Option<u8>) -> Result<LivePoint, QemuError> {
        let guest = Guest::open(self.connect())?;
        let since = parent.map(|number| self.owner().bitmap(id(number)));
        let disks = guest.devices().iter().map(|device| PlannedDisk {
            since: since.clone().filter(|name| device.bitmap(name).is_some()),
            device: device.clone(),
        });
        let disks: Vec<_> = disks.collect();
        let scratch = ScratchDir::open(self.dir.path())?;
        guest.point(id(number), self.owner(), &disks, scratch)
    }

    fn backup(&self, number: u8, parent: Option<u8>) -> Result<(), QemuError> {
        let point = self.begin(number, parent)?;
        point.check().expect("all jobs run");
        match point.release(Outcome::Published).pop() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn state(&self) -> State {
        self.qemu.lock().state.clone()
    }
}

fn id(number: u8) -> PointId {
    PointId::from_bytes([number; 16])
}

fn names(owner: Owner, numbers: &[u8]) -> BTreeSet<String> {
    numbers
        .iter()
        .map(|number| owner.bitmap(id(*number)))
        .collect()
}

#[test]
fn a_backup_leaves_one_bitmap_per_disk_and_nothing_else() {
    let story = Story::new();
    for number in 1..4 {
        let point = story.begin(number, Some(number - 1)).expect("a point");
        let has_changes = point.disks().iter().map(|disk| disk.changes.is_some());
        assert_eq!(has_changes.collect::<Vec<_>>(), [number > 1; 2]);
        assert_eq!(point.failure().map(|error| error.to_string()), None);
        assert!(point.release(Outcome::Published).is_empty());
        let state = story.state();
        assert_eq!(state.without_bitmaps(), State::new());
        assert_eq!(state.bitmap_names(), names(story.owner(), &[number]));
        assert_eq!(state.bitmaps.len(), 2, "one per disk");
    }
}

#[test]
fn a_backup_that_fails_leaves_the_bitmap_of_the_last_one() {
    let story = Story::new();
    story.backup(1, None).expect("it is published");
    let before = story.state();
    let point = story.begin(2, Some(1)).expect("a point");
    assert_ne!(story.state(), before);
    drop(point);
    assert_eq!(story.state(), before);
}

#[test]
fn after_any_refusal_qemu_is_as_before_or_the_next_run_mends_it() {
    let clean = Story::new();
    clean.backup(1, None).expect("it is published");
    let before = clean.state();
    let start = clean.qemu.lock().log.len();
    clean.backup(2, Some(1)).expect("it is published");
    let commands = clean.qemu.lock().log[start..].to_vec();
    assert!(commands.len() > 25, "{commands:?}");
    for (number, command) in commands.iter().enumerate() {
        for fault in [
            Fault::Refuse(number),
            Fault::Break {
                at: number,
                is_done: false,
            },
            Fault::Break {
                at: number,
                is_done: true,
            },
        ] {
            let story = Story::of(before.clone());
            story.qemu.lock().fault = fault;
            let ended = story.begin(2, Some(1)).map(drop);
            let after = story.state();
            let is_as_before = after == before;
            if ended.is_err() {
                assert!(is_as_before, "{command} {fault:?}: {after:?}");
            }
            // What is left, if it could not be taken out, goes with the next run.
            story.qemu.lock().fault = Fault::None;
            story.backup(3, Some(1)).expect("the next run works");
            let last = story.state();
            assert_eq!(last.without_bitmaps(), State::new(), "{command} {fault:?}");
            assert_eq!(
                last.bitmap_names(),
                names(story.owner(), &[3]),
                "{command} {fault:?}"
            );
        }
    }
}

#[test]
fn what_a_killed_run_left_goes_with_the_next() {
    let story = Story::new();
    story.backup(1, None).expect("it is published");
    let point = story.begin(2, Some(1)).expect("a point");
    let left = story.state();
    assert!(point.release(Outcome::Failed).is_empty());
    let story = Story::of(left);
    story.backup(3, Some(1)).expect("it is published");
    let state = story.state();
    assert_eq!(state.without_bitmaps(), State::new());
    assert_eq!(state.bitmap_names(), names(story.owner(), &[3]));
}

#[test]
fn what_others_have_in_qemu_stays() {
    let mut state = State::new();
    let node = "node-root".to_owned();
    let other = Owner::new(OWNER[1], "web").bitmap(id(9));
    state.bitmaps.insert((node.clone(), other), true);
    state
        .bitmaps
        .insert((node.clone(), "libvirt-1".to_owned()), false);
    state
        .jobs
        .insert("mirror0".to_owned(), ("ready".to_owned(), Vec::new()));
    state.files.insert(3, "of a pipe".to_owned());
    let story = Story::of(state.clone());
    story.backup(1, None).expect("it is published");
    let mut after = story.state();
    after
        .bitmaps
        .retain(|(_, name), _| *name != story.owner().bitmap(id(1)));
    assert_eq!(after, state);
    // QEMU has one NBD server: that of somebody else is not touched, with or without exports.
    for exports in [vec![], vec![("vda".to_owned(), (node, Vec::new()))]] {
        let mut state = state.clone();
        state.serves = true;
        state.exports.extend(exports);
        let story = Story::of(state.clone());
        let error = story
            .backup(1, None)
            .expect_err("there is a server already");
        assert!(error.to_string().contains("nbd-server-start"), "{error}");
        assert_eq!(story.state(), state);
    }
}

#[test]
fn disks_whose_export_would_end_qemu_are_refused() {
    for threaded in ["/dev/root", "/dev/data", "/hba"] {
        let mut state = State::new();
        state.threaded = Some(threaded);
        let story = Story::of(state.clone());
        let error = story.backup(1, None).expect_err("QEMU 7.2 would end");
        assert!(
            error.to_string().contains("I/O thread /objects/io"),
            "{error}"
        );
        assert_eq!(story.state(), state);
        story.qemu.lock().version = Version { major: 9, minor: 0 };
        story.backup(1, None).expect("newer ones do not");
    }
}

#[test]
fn a_job_that_ends_before_the_backup_does_is_noticed() {
    let story = Story::new();
    let point = story.begin(1, None).expect("a point");
    let job = point.disks()[1].export.clone();
    story
        .qemu
        .lock()
        .state
        .run("job-cancel", &json!({"id": job}))
        .expect("somebody else did");
    let error = point.check().expect_err("it is no point any more");
    assert!(error.to_string().contains("disk data"), "{error}");
    assert_eq!(story.state(), State::new(), "it was given up at once");
    assert!(point.check().is_err() && point.failure().is_some());
}

#[test]
fn a_guest_that_a_full_scratch_directory_stopped_goes_on() {
    for (status, expected) in [("io-error", "running"), ("paused", "paused")] {
        let story = Story::new();
        let point = story.begin(1, None).expect("a point");
        story.qemu.lock().state.status = status.to_owned();
        drop(point);
        assert_eq!(story.state().status, expected);
    }
}
