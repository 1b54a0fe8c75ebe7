//! Snapshots as files: bytes, names and sizes through the kernel; damage, lost repositories, signals, memory.
//!
//! They mount, so they run as root.

mod support;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::SeekFrom as Seek;
use undercroft_format::pack::{PackKind, RECORD_HEADER_LEN};

use support::mounted::{Mounted, is_mounted};
use support::packs::{flip, packs_of};
use support::served::Served;
use support::{Image, Random, fail_with, json, noise, succeed, undercroft, workspace};

/// A repository with a full snapshot of a disk and an increment, and what each held.
struct Story {
    dir: tempfile::TempDir,
    repo: PathBuf,
    old: Vec<u8>,
    image: Image,
}

impl Story {
    fn new(encrypted: bool) -> Self {
        let dir = workspace();
        let repo = dir.path().join("repo");
        let mut story = Self {
            image: Image::new(dir.path().join("disk.raw"), 3, (7 << 20) + 512),
            old: Vec::new(),
            dir,
            repo,
        };
        let mut init = story.undercroft();
        init.args(["init", "--segment-size", "1M", "--pack-size", "1M"]);
        if encrypted {
            init.arg("--encrypt");
        }
        succeed(&mut init);
        std::fs::write(story.path("ova.xml"), "<vm/>").expect("metadata");
        story.old = story.image.bytes.clone();
        succeed(&mut story.backup("vm"));
        let bitmap = story.image.change(9, &[3, 40, 41, 77]);
        std::fs::write(story.path("bitmap"), bitmap).expect("a bitmap");
        let mut increment = story.backup("vm");
        increment.args(["--parent", "vm@latest", "--changed-blocks"]);
        increment.arg(format!("root={}", story.path("bitmap").display()));
        succeed(&mut increment);
        story
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn undercroft(&self) -> Command {
        let mut command = undercroft(&self.repo);
        command.env("UNDERCROFT_PASSPHRASE", "horse");
        command
    }

    fn backup(&self, vm: &str) -> Command {
        let mut backup = self.undercroft();
        backup.args(["backup", "--vm", vm, "--disk"]);
        backup.arg(format!("root={}", self.image.path.display()));
        backup.arg("--metadata").arg(self.path("ova.xml"));
        backup
    }

    fn mount(&self, options: &[&str]) -> Mounted {
        Mounted::start(&mut self.undercroft(), &self.path("mnt"), options)
    }
}

fn assert_same(path: &Path, expected: &[u8]) {
    assert!(
        std::fs::read(path).expect("it can be read") == expected,
        "{}",
        path.display()
    );
}

#[test]
fn snapshots_are_files() {
    for encrypted in [false, true] {
        let mut story = Story::new(encrypted);
        // Encrypted ones are in clear if nobody has the key. A path that begins here is the same for who leaves it.
        let mut relative = undercroft(Path::new("repo"));
        relative.env("UNDERCROFT_PASSPHRASE", "horse");
        relative.current_dir(story.dir.path());
        let mounted = Mounted::start(&mut relative, &story.path("mnt"), &[]);
        let times = mounted.times("vm");
        assert_eq!(times.len(), 2);
        for (time, content) in times.iter().zip([&story.old, &story.image.bytes]) {
            assert_same(&time.join("root.raw"), content);
            assert_same(&time.join("ova.xml"), b"<vm/>");
            let shown = std::fs::read(time.join("snapshot.json")).expect("it is there");
            let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
            let id = shown["id"].as_str().expect("an id");
            assert_eq!(shown, json(story.undercroft().args(["show", id])));
            let disk = std::fs::metadata(time.join("root.raw")).expect("it is there");
            assert_eq!(disk.len(), content.len() as u64);
            assert_eq!(disk.permissions().mode() & 0o7777, 0o400);
            let name = time.file_name().expect("a name").to_str().expect("a time");
            let second = &shown["time"].as_str().expect("a time")[..19];
            assert_eq!(&name[..19], second);
            let data = shown["data_bytes"].as_u64().expect("a size");
            assert_eq!(disk.blocks(), data.div_ceil(512));
            let mut made = Command::new("date");
            made.args(["-u", "-d"]).arg(format!("{second}Z"));
            let made = String::from_utf8(succeed(made.arg("+%s")).stdout).expect("a number");
            assert_eq!(disk.mtime().to_string(), made.trim());
        }
        let latest = std::fs::read_link(mounted.at.join("vm/latest")).expect("a link");
        assert_eq!(mounted.at.join("vm").join(latest), times[1]);

        let write = OpenOptions::new()
            .write(true)
            .open(times[0].join("root.raw"));
        let error = write.expect_err("nothing can be written");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        let made = std::fs::create_dir(mounted.at.join("new"));
        let error = made.expect_err("nothing can be made");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));

        // What is made meanwhile appears.
        story.image.change(11, &[5]);
        succeed(&mut story.backup("vm"));
        support::guest::wait_until("the new snapshot is shown", || {
            mounted.times("vm").len() == 3
        });
        support::guest::wait_until("it is the latest", || {
            std::fs::read(mounted.latest("vm", "root.raw")).expect("a disk") == story.image.bytes
        });
        mounted.unmount();
        mounted.wait();
        let pins = std::fs::read_dir(story.repo.join("pins")).expect("pins");
        assert_eq!(pins.count(), 0);
    }
}

#[test]
fn reads_of_all_kinds_give_the_bytes() {
    let story = Story::new(false);
    let mounted = story.mount(&["--cache-size", "8M"]);
    let disk = mounted.latest("vm", "root.raw");
    let content = &story.image.bytes;
    let size = content.len() as u64;
    for block in ["512", "4k", "1M"] {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", disk.display()))
            .arg(format!("bs={block}"));
        let read = succeed(dd.args(["iflag=direct", "status=none"])).stdout;
        assert!(read == *content, "by {block}, past the page cache");
    }
    let file = File::open(&disk).expect("it opens");
    let mut out = vec![0; 64];
    assert_eq!(file.read_at(&mut out, size).expect("nothing"), 0);
    assert_eq!(file.read_at(&mut out, size + 4096).expect("nothing"), 0);
    assert_eq!(file.read_at(&mut out, size - 3).expect("the end"), 3);
    assert_eq!(out[..3], content[content.len() - 3..]);
    assert_eq!(file.read_at(&mut [], 5).expect("nothing"), 0);

    // Holes are told, and only zeros are in them.
    let (mut at, mut holes) = (0, 0);
    while at < size {
        let data = match rustix::fs::seek(&file, Seek::Data(at)) {
            Ok(data) => data,
            Err(errno) => {
                assert_eq!(errno, rustix::io::Errno::NXIO);
                size
            }
        };
        assert!(
            content[at as usize..data as usize]
                .iter()
                .all(|byte| *byte == 0)
        );
        holes += data - at;
        at = match data < size {
            true => rustix::fs::seek(&file, Seek::Hole(data)).expect("the end is a hole"),
            false => size,
        };
    }
    assert!(holes > 1 << 20, "{holes} bytes of holes");

    // Many at once, each its own places.
    std::thread::scope(|scope| {
        for reader in 0..64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut random = Random(reader);
                let mut file = File::open(disk).expect("it opens");
                for _ in 0..30 {
                    let at = random.below(size);
                    let len = (1 + random.below(100_000)).min(size - at) as usize;
                    let mut out = vec![0; len];
                    file.read_exact_at(&mut out, at).expect("it can be read");
                    assert!(out == content[at as usize..at as usize + len], "{at}+{len}");
                }
                if reader % 8 == 0 {
                    let mut whole = Vec::new();
                    file.read_to_end(&mut whole).expect("it can be read");
                    assert!(whole == *content);
                }
            });
        }
    });
}

#[test]
fn only_what_is_asked_for_is_shown() {
    let story = Story::new(false);
    succeed(&mut story.backup("other/vm"));
    let names = |mounted: &Mounted| {
        let entries = std::fs::read_dir(&mounted.at).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    let mounted = story.mount(&[]);
    assert_eq!(names(&mounted), ["other%2Fvm", "vm"]);
    assert_same(
        &mounted.latest("other%2Fvm", "root.raw"),
        &story.image.bytes,
    );
    mounted.unmount();
    let mounted = story.mount(&["--vm", "vm"]);
    assert_eq!(names(&mounted), ["vm"]);
    mounted.unmount();
    let mounted = story.mount(&["--snapshot", "vm@latest-1"]);
    assert_eq!(mounted.times("vm").len(), 1);
    assert_same(&mounted.latest("vm", "root.raw"), &story.old);
    mounted.unmount();
    let at = story.path("mnt");
    let mut unknown = story.undercroft();
    let said = fail_with(unknown.arg("mount").arg(&at).args(["--vm", "nobody"]), 1);
    assert!(said.contains("nobody"), "{said}");
}

#[test]
fn a_mistaken_mountpoint_is_explained() {
    let story = Story::new(false);
    let refused = |at: &Path| {
        let said = fail_with(story.undercroft().arg("mount").arg(at), 1);
        assert!(said.contains("Hint: "), "{said}");
        said
    };
    assert!(refused(&story.path("missing")).contains("mkdir -p"));
    assert!(refused(&story.path("bitmap")).contains("no directory"));
    assert!(refused(&story.repo).contains("not empty"));
    // Errors of the process in the background reach the terminal, too.
    std::fs::create_dir(story.path("mnt")).expect("a directory");
    let mut nowhere = undercroft(&story.path("nowhere"));
    let said = fail_with(nowhere.arg("mount").arg(story.path("mnt")), 1);
    assert!(said.contains("nowhere"), "{said}");
    assert!(!is_mounted(&story.path("mnt")));
}

/// Two file systems in partitions of a disk: checked and mounted without restoring, and without offsets.
#[test]
fn partitions_are_files_that_can_be_checked_and_mounted() {
    const SECTOR: u64 = 512;
    let dir = workspace();
    let repo = dir.path().join("repo");
    let (tree, part) = (dir.path().join("tree"), dir.path().join("part.raw"));
    std::fs::create_dir(&tree).expect("a directory");
    std::fs::write(tree.join("file"), noise(4, 3 << 20)).expect("a file");
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-d"]).arg(&tree).arg(&part).arg("24M");
    succeed(&mut mkfs);
    let system = std::fs::read(&part).expect("a file system");
    succeed(undercroft(&repo).arg("init"));
    // The second one of the MBR is logical; both begin at odd places.
    let starts = [2049, 60_001];
    let tables = [
        (
            format!(
                "label: gpt\nstart={}, size=49152\nstart={}, size=49152\n",
                starts[0], starts[1]
            ),
            [1, 2],
        ),
        (
            format!(
                "label: dos\nstart={}, size=49152, type=83\nstart=59000, size=60000, type=5\nstart={}, size=49152, type=83\n",
                starts[0], starts[1]
            ),
            [1, 5],
        ),
    ];
    for (table, numbers) in tables {
        let image = dir.path().join("disk.raw");
        let file = File::create(&image).expect("an image");
        file.set_len((64 << 20) - SECTOR).expect("room");
        let mut sfdisk = Command::new("sfdisk");
        sfdisk
            .args(["--quiet", "--no-reread", "--no-tell-kernel"])
            .arg(&image);
        let mut sfdisk = sfdisk
            .stdin(Stdio::piped())
            .spawn()
            .expect("sfdisk is there");
        std::io::Write::write_all(&mut sfdisk.stdin.take().expect("a pipe"), table.as_bytes())
            .expect("it reads");
        assert!(sfdisk.wait().expect("it ends").success());
        for start in starts {
            file.write_all_at(&system, start * SECTOR).expect("room");
        }
        drop(file);
        let mut backup = undercroft(&repo);
        backup.args(["backup", "--vm", "vm", "--disk"]);
        succeed(backup.arg(format!("root={}", image.display())));
        let mounted = Mounted::start(&mut undercroft(&repo), &dir.path().join("mnt"), &[]);
        let entries = std::fs::read_dir(mounted.at.join("vm/latest")).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a name")
            })
            .collect();
        names.sort();
        let files = numbers.map(|number| format!("root.p{number}.raw"));
        assert_eq!(names, [&files[0], &files[1], "root.raw", "snapshot.json"]);
        for file in &files {
            let disk = mounted.latest("vm", file);
            assert_same(&disk, &system);
            succeed(Command::new("e2fsck").arg("-fn").arg(&disk));
            let inside = LoopMount::new(&disk, &dir.path().join("inside"));
            assert_same(&inside.0.join("file"), &noise(4, 3 << 20));
        }
        assert!(!mounted.latest("vm", "root.p9.raw").exists());
        mounted.unmount();
        mounted.wait();
    }
}

struct LoopMount(PathBuf);

impl LoopMount {
    fn new(image: &Path, at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("a directory");
        let mut mount = Command::new("mount");
        succeed(mount.args(["-o", "loop,ro,noload"]).arg(image).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn damage_costs_what_it_touches() {
    let story = Story::new(false);
    let (pack, records) = packs_of(&story.repo, PackKind::Data)
        .into_iter()
        .max_by_key(|(_, records)| records.len())
        .expect("a pack");
    let (position, len) = records[records.len() / 2];
    flip(&pack, position + (RECORD_HEADER_LEN + len) / 2, 3);
    let mut restore = story.undercroft();
    restore.args(["restore", "vm@latest-1", "--allow-damage", "--json", "--to"]);
    let restored = restore.arg(story.path("restored.raw")).output();
    let restored = restored.expect("it starts");
    assert_eq!(restored.status.code(), Some(3), "something is damaged");
    let report: serde_json::Value = serde_json::from_slice(&restored.stdout).expect("JSON");
    let damage: Vec<(u64, u64)> = report["disks"][0]["damage"]
        .as_array()
        .expect("ranges")
        .iter()
        .map(|affected| {
            let end = |end: &str| affected["range"][end].as_u64().expect("a number");
            (end("start"), end("end"))
        })
        .collect();
    let mounted = story.mount(&[]);
    let disk = &mounted.times("vm")[0].join("root.raw");
    // Through the page cache, which asks for more than one block at once, and past it.
    for flags in [0, libc::O_DIRECT] {
        use std::os::unix::fs::OpenOptionsExt;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(disk);
        let file = file.expect("it opens");
        let mut failed = 0;
        for (block, expected) in story.old.chunks(4096).enumerate() {
            let at = block as u64 * 4096;
            let end = at + expected.len() as u64;
            let is_bad = damage.iter().any(|bad| bad.0 < end && at < bad.1);
            let mut buffer = vec![0; 8192];
            let aligned = buffer.as_ptr().align_offset(4096);
            let out = &mut buffer[aligned..aligned + 4096];
            match file.read_at(out, at) {
                Ok(got) => {
                    assert!(!is_bad, "block {block} is damaged");
                    assert!(out[..got] == *expected, "block {block}");
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO));
                    assert!(is_bad, "block {block} is whole");
                    failed += 1;
                }
            }
        }
        assert!(failed > 0, "something is damaged");
    }
    let log = std::fs::read_to_string(story.path("mnt.log")).expect("a log");
    assert!(log.contains("disk root of snapshot"), "{log}");
}

#[test]
fn what_is_open_outlives_a_collection() {
    let story = Story::new(false);
    let mounted = story.mount(&["--cache-size", "8M"]);
    let disk = mounted.times("vm")[0].join("root.raw");
    let file = File::open(&disk).expect("it opens");
    let mut ids = json(story.undercroft().arg("snapshots"));
    let first = ids[0]["id"].take();
    let first = first.as_str().expect("an id");
    succeed(story.undercroft().args(["forget", first]));
    succeed(story.undercroft().args(["gc"]));
    let mut whole = vec![0; story.old.len()];
    file.read_exact_at(&mut whole, 0).expect("it is kept");
    assert!(whole == story.old);
    drop(file);
    support::guest::wait_until("it is shown no more", || mounted.times("vm").len() == 1);
    // Once nobody reads it, it goes, and the other one still reads right, with an index of then.
    support::guest::wait_until("the pin goes", || {
        std::fs::read_dir(story.repo.join("pins"))
            .expect("pins")
            .count()
            == 0
    });
    succeed(story.undercroft().args(["gc"]));
    let mut drop_caches = Command::new("sh");
    succeed(drop_caches.args(["-c", "echo 1 >/proc/sys/vm/drop_caches"]));
    assert_same(&mounted.latest("vm", "root.raw"), &story.image.bytes);
}

#[test]
fn a_lost_server_is_an_error_and_unmounts() {
    let mut served = Served::start();
    served.init();
    let image = Image::new(served.path("disk.raw"), 5, 24 << 20);
    succeed(&mut served.backup(&image));
    let mounted = Mounted::start(&mut served.undercroft(), &served.path("mnt"), &[]);
    let snapshot = mounted.times("vm").remove(0);
    let entries = std::fs::read_dir(&snapshot).expect("a directory");
    let disk = entries
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_some_and(|end| end == "raw"))
        .expect("a disk");
    assert_same(&disk, &image.bytes);
    mounted.unmount();
    mounted.wait();

    let mounted = Mounted::start(&mut served.undercroft(), &served.path("mnt"), &[]);
    let file = File::open(&disk).expect("it opens");
    let mut out = vec![0; 4096];
    file.read_exact_at(&mut out, 192 << 10)
        .expect("it is served");
    served.kill();
    let read = file.read_exact_at(&mut out, 20 << 20);
    let error = read.expect_err("nobody serves it");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);
    mounted.unmount();
    mounted.wait();
}

#[test]
fn signals_unmount() {
    let story = Story::new(false);
    for signal in ["TERM", "INT", "HUP"] {
        let at = story.path("mnt");
        std::fs::create_dir_all(&at).expect("a mountpoint");
        let mut command = story.undercroft();
        command.arg("mount").arg(&at).arg("--foreground");
        let mut process = command.stdout(Stdio::null()).spawn().expect("it starts");
        support::guest::wait_until("it is mounted", || is_mounted(&at));
        // One that is in use goes, too.
        let held = File::open(at.join("vm/latest/root.raw")).expect("it opens");
        succeed(
            Command::new("kill")
                .arg(format!("-{signal}"))
                .arg(process.id().to_string()),
        );
        let ended = process.wait().expect("it ends");
        assert!(ended.success(), "{signal}: {ended}");
        assert!(!is_mounted(&at), "{signal}");
        drop(held);
    }
    let mounted = story.mount(&[]);
    succeed(Command::new("kill").arg(mounted.process.to_string()));
    mounted.wait();
    assert!(!mounted.is_mounted());
}

#[test]
fn a_mount_whose_process_was_killed_is_unmounted_and_made_anew() {
    let story = Story::new(false);
    for _ in 0..5 {
        let mounted = story.mount(&[]);
        assert_same(&mounted.latest("vm", "root.raw"), &story.image.bytes);
        let killed = Command::new("kill")
            .args(["-9", &mounted.process.to_string()])
            .status();
        assert!(killed.expect("kill is there").success());
        mounted.wait();
        let error = std::fs::read(mounted.latest("vm", "root.raw")).expect_err("nobody serves it");
        assert!(
            matches!(
                error.raw_os_error(),
                Some(libc::ENOTCONN | libc::ECONNABORTED)
            ),
            "{error}"
        );
        let mut again = story.undercroft();
        let text = fail_with(again.arg("mount").arg(&mounted.at), 1);
        assert!(text.contains("umount"), "{text}");
        mounted.unmount();
    }
}

#[test]
fn memory_is_bounded() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    let image = dir.path().join("disk.raw");
    let content = noise(8, 192 << 20);
    std::fs::write(&image, &content).expect("an image");
    succeed(undercroft(&repo).arg("init"));
    let mut backup = undercroft(&repo);
    backup.args(["backup", "--vm", "vm", "--disk"]);
    succeed(backup.arg(format!("root={}", image.display())));
    let mut command = undercroft(&repo);
    let mounted = Mounted::start(
        &mut command,
        &dir.path().join("mnt"),
        &["--cache-size", "16M"],
    );
    let disk = mounted.latest("vm", "root.raw");
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (disk, content) = (&disk, &content);
            scope.spawn(move || {
                let file = File::open(disk).expect("it opens");
                let mut random = Random(reader);
                for round in 0..3000 {
                    let at = random.below(content.len() as u64 - 4096);
                    let mut out = vec![0; 4096];
                    file.read_exact_at(&mut out, at).expect("it can be read");
                    assert!(out == content[at as usize..at as usize + 4096], "{at}");
                    if round % 500 == 0 {
                        assert_same(disk, content);
                    }
                }
            });
        }
    });
    let peak = mounted.peak_memory();
    assert!(peak < 160 << 20, "{} MiB", peak >> 20);
}
