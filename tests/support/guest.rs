//! A real QEMU guest under software emulation, whose program numbers the sectors that it writes.
//!
//! For N = 1, 2, 3 ... it writes the number N all over one sector, first of its disk `root`, then of its disk
//! `data`, each after the one before is done. So the state of both disks at any moment is known from how
//! many writes were done, and whatever is no such state is no point in time.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{noise, succeed};

/// Length of both disks.
pub const DISK_LEN: usize = 64 << 20;
/// Where numbered sectors begin ...
const WINDOW_START: usize = 2048;
/// ... and how many there are, in sectors.
const WINDOW_LEN: usize = 16384;
/// Number N stands in sector N times this, modulo the window's length.
const STRIDE: usize = 0x9e5;
const SECTOR: usize = 512;

/// The boot sector's code, assembled for 16 bits.
const PROGRAM: &[&[u8]] = &[
    &[0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0], // cli; ds, es, ss := 0
    &[0xbc, 0x00, 0x7c, 0xfb, 0xfc],                         // sp := 0x7c00; sti; cld
    &[0x66, 0x31, 0xed],                                     // ebp := 0, the number
    &[0x66, 0x45],                                           // next: ebp += 1
    &[0xbf, 0x00, 0x80, 0x66, 0x89, 0xe8],                   // di := 0x8000; eax := ebp
    &[0xb9, 0x80, 0x00, 0x66, 0xf3, 0xab],                   // 128 times: [di] := eax; di += 4
    &[0x66, 0x69, 0xc5, 0xe5, 0x09, 0x00, 0x00],             // eax := ebp * STRIDE
    &[0x66, 0x25, 0xff, 0x3f, 0x00, 0x00],                   // eax := eax modulo WINDOW_LEN
    &[0x66, 0x05, 0x00, 0x08, 0x00, 0x00],                   // eax += WINDOW_START
    &[0x66, 0xa3, 0x56, 0x7c],                               // sector of the packet := eax
    &[0xb2, 0x80, 0xe8, 0x07, 0x00],                         // write to the first disk
    &[0xb2, 0x81, 0xe8, 0x02, 0x00],                         // write to the second disk
    &[0xeb, 0xcf],                                           // next
    &[0xbe, 0x4e, 0x7c, 0xb8, 0x00, 0x43, 0xcd, 0x13],       // write: the BIOS writes the packet
    &[0x73, 0x01, 0xf4, 0xc3],                               // an error halts; return
    // The packet at 0x7c4e: its length, one sector, from 0000:8000, to this sector.
    &[16, 0, 1, 0, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];

/// A guest that is ended with its test.
pub struct Guest {
    process: Child,
    monitor: Monitor,
    dir: PathBuf,
}

impl Guest {
    /// Boots a guest with its files in `dir`: `root` is a qcow2 image of a `-drive`, `data` a raw one of a
    /// `-blockdev`. Both hold the same noise besides what is written.
    ///
    /// The device of `data` has these properties, too.
    pub fn boot(dir: &Path, properties: &str) -> Self {
        let raw = Self::make_disks(dir);
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
        succeed(convert.arg(&raw).arg(dir.join("root.qcow2")));
        std::fs::remove_file(&raw).expect("it is there");
        let root = [
            "-drive",
            "file=root.qcow2,format=qcow2,if=none,id=root,cache=unsafe",
            "-device",
            "virtio-blk-pci,drive=root,bootindex=0",
        ];
        Self::boot_from(dir, &root, properties)
    }

    /// Makes both disks as raw images; where the bootable one is.
    pub fn make_disks(dir: &Path) -> PathBuf {
        let mut disk = vec![0; DISK_LEN];
        disk[24 << 20..32 << 20].copy_from_slice(&noise(1, 8 << 20));
        write_sparsely(&dir.join("data.raw"), &disk);
        let code = PROGRAM.concat();
        disk[..code.len()].copy_from_slice(&code);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let raw = dir.join("root.raw");
        std::fs::write(&raw, &disk).expect("the disk");
        raw
    }

    /// Boots a guest whose first disk is what `root` says.
    pub fn boot_from(dir: &Path, root: &[&str], properties: &str) -> Self {
        let data = format!("virtio-blk-pci,drive=data-node,id=data,bootindex=1{properties}");
        // KVM is of no use here: where tests run it may be nested, or absent.
        let process = Command::new("qemu-system-x86_64")
            .current_dir(dir)
            .args(["-accel", "tcg", "-M", "pc", "-m", "32", "-display", "none"])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-object",
                "iothread,id=io",
            ])
            .args(root)
            .args([
                "-blockdev",
                "driver=file,node-name=data-file,filename=data.raw,cache.no-flush=on",
            ])
            .args([
                "-blockdev",
                "driver=raw,node-name=data-node,file=data-file,cache.no-flush=on",
            ])
            .args(["-device", &data])
            .args(["-qmp", "unix:backup.qmp,server=on,wait=off"])
            .args(["-qmp", "unix:test.qmp,server=on,wait=off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("QEMU starts: scripts/setup.sh test installs it");
        let monitor = Monitor::connect(&dir.join("test.qmp"));
        let mut guest = Self {
            process,
            monitor,
            dir: dir.to_owned(),
        };
        guest.let_write(64);
        guest
    }

    /// The socket for backups.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("backup.qmp")
    }

    /// Carries out a command that does not fail.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.monitor.ask(command, &arguments);
        assert!(answer["error"].is_null(), "{command} {arguments}: {answer}");
        answer["return"].clone()
    }

    /// Waits until the guest did `count` more writes to its second disk.
    pub fn let_write(&mut self, count: u64) {
        let enough = self.writes() + count;
        wait_until("the guest writes", || self.writes() >= enough);
    }

    fn writes(&mut self) -> u64 {
        let drives = self.run("query-blockstats", Value::Null);
        let drives = drives.as_array().expect("drives");
        let data = drives
            .iter()
            .find(|drive| drive["node-name"] == "data-node");
        // While a backup runs, another node is on top.
        let data = data.unwrap_or_else(|| drives.last().expect("a drive"));
        data["stats"]["wr_operations"].as_u64().expect("a number")
    }

    /// The guest's state: `running`, `paused`, `io-error`.
    pub fn status(&mut self) -> String {
        let status = self.run("query-status", Value::Null);
        status["status"].as_str().expect("text").to_owned()
    }

    /// Everything that a backup makes in QEMU, by name.
    pub fn inside(&mut self) -> Value {
        let nodes = self.run("query-named-block-nodes", json!({"flat": true}));
        let bitmaps: Vec<_> = nodes
            .as_array()
            .expect("nodes")
            .iter()
            .flat_map(|node| names(&node["dirty-bitmaps"], "name"))
            .collect();
        json!({
            "nodes": names(&nodes, "node-name"),
            "bitmaps": bitmaps,
            "exports": names(&self.run("query-block-exports", Value::Null), "id"),
            "jobs": names(&self.run("query-jobs", Value::Null), "id"),
            "files": self.run("query-fdsets", Value::Null),
        })
    }

    /// Whether a backup has made its point in time.
    pub fn has_export(&mut self) -> bool {
        let exports = self.run("query-block-exports", Value::Null);
        exports
            .as_array()
            .is_some_and(|exports| !exports.is_empty())
    }

    /// What a disk holds while the guest is paused, as another program sees it.
    pub fn disk(&self, label: &str) -> Vec<u8> {
        if label == "data" {
            return std::fs::read(self.dir.join("data.raw")).expect("the disk");
        }
        let raw = self.dir.join("as-qemu-img-sees-it.raw");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-U", "-f", "qcow2", "-O", "raw"]);
        succeed(convert.arg(self.dir.join("root.qcow2")).arg(&raw));
        std::fs::read(raw).expect("the disk")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How many writes were done when the disk was like this.
///
/// # Panics
/// If it never was.
pub fn writes_done(disk: &[u8]) -> usize {
    assert_eq!(disk.len(), DISK_LEN);
    let number_in = |sector: usize| {
        let bytes = &disk[(WINDOW_START + sector) * SECTOR..][..SECTOR];
        let number = u32::from_le_bytes(*bytes.first_chunk().expect("it has 512"));
        let is_whole = bytes.chunks(4).all(|word| word == number.to_le_bytes());
        assert!(is_whole, "sector {sector} was torn");
        number as usize
    };
    let found: Vec<usize> = (0..WINDOW_LEN).map(number_in).collect();
    let done = found.iter().copied().max().expect("sectors");
    let mut expected = vec![0; WINDOW_LEN];
    for number in done.saturating_sub(WINDOW_LEN - 1).max(1)..=done {
        expected[number * STRIDE % WINDOW_LEN] = number;
    }
    let wrong = (0..WINDOW_LEN).find(|sector| found[*sector] != expected[*sector]);
    if let Some(sector) = wrong {
        let (found, expected) = (found[sector], expected[sector]);
        panic!("with write {done} done, sector {sector} has {found}, not {expected}");
    }
    assert!(
        disk[24 << 20..32 << 20] == noise(1, 8 << 20),
        "what was not written changed"
    );
    done
}

/// Waits for something that happens in a few seconds.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited for a minute: {what}");
}

fn write_sparsely(path: &Path, bytes: &[u8]) {
    let file = File::create(path).expect("the disk");
    file.set_len(bytes.len() as u64).expect("it can be sized");
    for (number, block) in bytes.chunks(1 << 20).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            let offset = (number as u64) << 20;
            file.write_all_at(block, offset).expect("it can be written");
        }
    }
}

fn names(list: &Value, field: &str) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    // Bitmaps of jobs have none.
    let named = items.filter_map(|item| item[field].as_str());
    let mut names: Vec<_> = named.map(str::to_owned).collect();
    names.sort();
    names
}

struct Monitor {
    answers: BufReader<UnixStream>,
    commands: UnixStream,
}

impl Monitor {
    fn connect(socket: &Path) -> Self {
        let mut stream = None;
        // A path through a descriptor is short enough for an address.
        wait_until("QEMU makes its sockets", || {
            let dir = File::open(socket.parent().expect("it has one")).expect("a directory");
            let name = socket.file_name().expect("it has one").to_string_lossy();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
            stream = UnixStream::connect(format!("/proc/self/fd/{fd}/{name}")).ok();
            stream.is_some()
        });
        let commands = stream.expect("connected");
        let answers = BufReader::new(commands.try_clone().expect("a copy"));
        let mut monitor = Self { answers, commands };
        monitor.ask("qmp_capabilities", &Value::Null);
        monitor
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let mut message = json!({"execute": command});
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        writeln!(self.commands, "{message}").expect("sent");
        loop {
            let mut line = String::new();
            self.answers.read_line(&mut line).expect("an answer");
            let answer: Value = serde_json::from_str(&line).expect("JSON");
            if !answer["return"].is_null() || !answer["error"].is_null() {
                return answer;
            }
        }
    }
}
