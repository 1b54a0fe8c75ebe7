//! Increments: what tells changes, what speaks against believing it, and what an audit finds; each restored and
//! compared.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::proxied::Proxied;
use support::served::Served;
use support::{Image, assert_restores, fail_with, json, noise, succeed, undercroft, workspace};

const BLOCK: usize = 64 << 10;

struct Story {
    dir: tempfile::TempDir,
    repo: PathBuf,
    image: Image,
}

impl Story {
    /// A full backup of a disk of `len` bytes, in segments of 1 MiB.
    fn begin(len: usize, more: &[&str]) -> Self {
        let dir = workspace();
        let repo = dir.path().join("repo");
        succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
        let image = Image::new(dir.path().join("disk.raw"), 3, len);
        let story = Self { dir, repo, image };
        succeed(story.backup().args(more));
        story
    }

    fn backup(&self) -> Command {
        let mut command = undercroft(&self.repo);
        command.args(["backup", "--vm", "web", "--disk"]);
        command.arg(format!("root={}", self.image.path.display()));
        command
    }

    fn write(&self, name: &str, text: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// An increment by the changes in `text`.
    fn increment(&self, text: &[u8]) -> Command {
        let changes = self.write("changes", text);
        let mut command = self.backup();
        command.args(["--parent", "web@latest", "--changed-blocks"]);
        command.arg(changes);
        command
    }

    fn assert_restores(&self) {
        assert_restores(&self.repo, "web@latest", &self.image.bytes, self.dir.path());
    }

    /// Overwrites some bytes, which nobody is told of.
    fn lie(&mut self, at: usize, len: usize) {
        self.image.bytes[at..at + len].copy_from_slice(&noise(at as u64, len));
        self.image.write();
    }
}

fn reasons(report: &Value) -> Vec<&str> {
    let reasons = report["disks"][0]["reasons"].as_array().expect("a list");
    let reasons = reasons.iter().map(|reason| reason.as_str().expect("text"));
    reasons
        .filter(|reason| !reason.starts_with("slow:"))
        .collect()
}

/// The blocks as extents, the last one cut at the disk's end.
fn extents(blocks: &[usize], len: usize) -> Vec<u8> {
    let extents = blocks.iter().map(|block| {
        let start = block * BLOCK;
        format!(
            "{{\"offset\": {start}, \"length\": {}}}",
            BLOCK.min(len - start)
        )
    });
    format!("[{}]\n", extents.collect::<Vec<_>>().join(",\n ")).into_bytes()
}

#[test]
fn lists_of_extents_are_read_as_bitmaps_are() {
    let len = (20 << 20) + 512;
    let mut story = Story::begin(len, &[]);
    let blocks = [0, 7, 8, 200, 320];
    let bitmap = story.image.change(1, &blocks);
    let report = json(&mut story.increment(&extents(&blocks, len)));
    assert_eq!(report["disks"][0]["read_mode"], "changed-blocks");
    let changed = (4 * BLOCK + 512) as u64;
    assert_eq!(report["disks"][0]["read_bytes"], changed);
    story.assert_restores();
    let again = json(&mut story.increment(&bitmap));
    assert_eq!(again["disks"][0]["read_bytes"], changed);
    assert_eq!(again["disks"][0]["new_bytes"], 0);
    for (text, reason) in [
        (
            &b"[{\"offset\":20971520,\"length\":131072}]"[..],
            "full:extents-of-other-disk",
        ),
        (
            b"[{\"offset\":0,\"length\":65536,\"dirty\":false}]",
            "full:extents-of-other-disk",
        ),
        (b"[{\"offset\":0}]", "full:extents-unreadable"),
        (
            b"[{\"offset\":0,\"length\":65536,\"description\":\"data\",\"type\":0}]",
            "full:extents-unreadable",
        ),
    ] {
        let output = succeed(story.increment(text).arg("--json"));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(reasons(&report), [reason]);
        assert_eq!(report["disks"][0]["read_mode"], "full");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("disk root: its list of changed extents"),
            "{said}"
        );
        story.assert_restores();
    }
}

#[test]
fn qemus_map_of_an_overlay_is_what_changed() {
    let mut story = Story::begin(8 << 20, &[]);
    let overlay = story.dir.path().join("overlay.qcow2");
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        succeed(command.args(args)).stdout
    };
    let base = format!("{}", story.image.path.display());
    let text = overlay.display().to_string();
    run(
        "qemu-img",
        &[
            "create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &text,
        ],
    );
    run(
        "qemu-io",
        &[
            "-f",
            "qcow2",
            "-c",
            "write -P 7 1M 100k",
            "-c",
            "write -z 3M 64k",
            &text,
        ],
    );
    let map = run("qemu-img", &["map", "--output=json", &text]);
    let new = story.dir.path().join("new.raw");
    run(
        "qemu-img",
        &["convert", "-O", "raw", &text, &new.display().to_string()],
    );
    story.image = Image {
        bytes: std::fs::read(&new).expect("the new state"),
        path: new,
    };
    let report = json(story.increment(&map).args(["--audit", "100%"]));
    assert_eq!(reasons(&report), ["note:lineage-unchecked"]);
    // What was zeroed is a hole of the new image.
    assert_eq!(report["disks"][0]["read_bytes"], 2 * BLOCK as u64);
    story.assert_restores();
}

/// In a VHD a disk's blocks lie anywhere, and some nowhere.
#[test]
fn disks_in_vhds_are_audited_where_their_blocks_lie() {
    let mut story = Story::begin(8 << 20, &[]);
    let vhd = story.dir.path().join("disk.vhd");
    let convert = |story: &Story| {
        let mut convert = Command::new("qemu-img");
        convert.args([
            "convert",
            "-O",
            "vpc",
            "-o",
            "subformat=dynamic,force_size=on",
        ]);
        succeed(convert.arg(&story.image.path).arg(&vhd));
    };
    story.image.bytes[2 << 20..6 << 20].fill(0);
    story.image.write();
    convert(&story);
    let repo = story.repo.clone();
    let backup = || {
        let mut command = undercroft(&repo);
        command.args(["backup", "--vm", "web", "--audit", "100%", "--disk"]);
        command.arg(format!("root=vhd:{}", vhd.display()));
        command
    };
    let mut full = backup();
    succeed(&mut full);
    let bitmap = story.image.change(1, &[5, 40, 120]);
    convert(&story);
    let changes = story.write("changes", &bitmap);
    let increment = || {
        let mut command = backup();
        command.args(["--parent", "web@latest", "--changed-blocks"]);
        command.arg(&changes);
        command
    };
    let report = json(&mut increment());
    assert_eq!(reasons(&report), ["note:lineage-unchecked"]);
    assert_eq!(report["audits"][0]["blocks"], 125);
    story.assert_restores();
    story.lie(50 * BLOCK, 512);
    convert(&story);
    assert!(fail_with(&mut increment(), 4).contains("differ from the parent"));
    story.assert_restores();
}

#[test]
fn lineages_that_do_not_fit_lead_to_full_reads() {
    let lineage = |pairs: &[&str]| {
        let pairs = pairs.iter().map(|pair| format!("--lineage=root:{pair}"));
        pairs.collect::<Vec<_>>()
    };
    let begin = lineage(&["vdi-uuid=v", "snapshot-uuid=s1", "cbt-id=c"]);
    let begin: Vec<&str> = begin.iter().map(String::as_str).collect();
    let mut story = Story::begin(4 << 20, &begin);
    for (pairs, found) in [
        (&["vdi-uuid=w", "base=s1"][..], "full:lineage-vdi"),
        (&["vdi-uuid=v", "base=s0"], "full:lineage-base"),
        (&["base=s1", "cbt-id=d"], "full:lineage-cbt"),
    ] {
        let bitmap = story.image.change(9, &[1]);
        let output = succeed(
            story
                .increment(&bitmap)
                .args(lineage(pairs))
                .args(lineage(&["snapshot-uuid=s1"]))
                .arg("--json"),
        );
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(reasons(&report), [found]);
        assert_eq!(report["disks"][0]["read_mode"], "full");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("but the parent's"), "{said}");
        story.assert_restores();
        succeed(story.backup().args(&begin));
    }
    let bitmap = story.image.change(9, &[2]);
    let fitting = lineage(&["vdi-uuid=v", "base=s1", "snapshot-uuid=s2", "cbt-id=c"]);
    let report = json(story.increment(&bitmap).args(fitting));
    assert_eq!(reasons(&report), [] as [&str; 0]);
    assert_eq!(report["disks"][0]["lineage"]["base"], "s1");
    // The next one begins at what this one read.
    let bitmap = story.image.change(9, &[3]);
    let report = json(story.increment(&bitmap).args(lineage(&["base=s2"])));
    assert_eq!(reasons(&report), [] as [&str; 0]);
    // Nothing is said: nothing is checked, and that can be seen.
    let bitmap = story.image.change(9, &[4]);
    let report = json(&mut story.increment(&bitmap));
    assert_eq!(reasons(&report), ["note:lineage-unchecked"]);
    assert_eq!(report["disks"][0]["read_mode"], "changed-blocks");
    story.assert_restores();
}

#[test]
fn a_bitmap_that_lies_is_found_out() {
    let mut story = Story::begin(10 << 20, &[]);
    let bitmap = story.image.change(1, &[3, 70]);
    // In the middle of data, and in what was a hole.
    story.lie((5 << 20) + 777, 100);
    story.lie(48 * BLOCK, 4096);
    let mut trusting = story.increment(&bitmap);
    let report = json(trusting.args(["--audit", "0"]));
    assert_eq!(report["audits"], Value::Array(Vec::new()));
    let wrong = story.dir.path().join("wrong");
    succeed(
        undercroft(&story.repo)
            .args(["restore", "web@latest", "--to"])
            .arg(&wrong),
    );
    assert!(
        std::fs::read(&wrong).expect("a file") != story.image.bytes,
        "the lie is seen by nobody"
    );

    let parent = "web@latest-1";
    let changes = story.write("changes", &bitmap);
    let mut audited = story.backup();
    audited.args(["--parent", parent, "--audit", "100%", "--changed-blocks"]);
    let output = audited
        .arg(changes)
        .arg("--json")
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("differ from the parent, though they were said not to have changed"),
        "{said}"
    );
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(reasons(&report), ["full:audit-mismatch"]);
    assert_eq!(report["disks"][0]["read_mode"], "full");
    assert!(
        report["audits"][0]["mismatch"]["start"].is_u64(),
        "{report}"
    );
    story.assert_restores();
    // The snapshot says so to whoever comes later, and the next increment is one again.
    let shown = json(undercroft(&story.repo).args(["show", "web@latest"]));
    assert_eq!(shown["disks"][0]["reasons"][0], "full:audit-mismatch");
    let bitmap = story.image.change(2, &[5]);
    let report = json(story.increment(&bitmap).args(["--audit", "100%"]));
    assert_eq!(report["disks"][0]["read_mode"], "changed-blocks");
    assert_eq!(report["audits"][0]["mismatch"], Value::Null);
    story.assert_restores();
}

#[test]
fn each_lie_alone_is_found_out() {
    // Of the first, last and only bytes of blocks, cut chunks and holes.
    let len = (6 << 20) + 4096 + 512;
    for (at, size) in [
        (0, 1),
        (BLOCK - 1, 1),
        (33 * BLOCK, 1),
        (4 * BLOCK + 9, 1),
        (96 * BLOCK + 4096, 512),
    ] {
        let mut story = Story::begin(len, &[]);
        let bitmap = story.image.change(1, &[2, 32, 34]);
        succeed(&mut story.increment(&bitmap));
        let before = story.image.bytes[at..at + size].to_vec();
        story.lie(at, size);
        assert!(
            before != story.image.bytes[at..at + size],
            "noise differs at {at}"
        );
        let text = fail_with(story.increment(b"[]").args(["--audit", "100%"]), 4);
        assert!(text.contains("differ from the parent"), "{text}");
        story.assert_restores();
    }
}

#[test]
fn an_audit_says_what_it_may_have_missed() {
    let len = 64 << 20;
    let mut story = Story::begin(len, &[]);
    let blocks: Vec<usize> = (0..10).map(|number| number * 100 + 3).collect();
    let bitmap = story.image.change(1, &blocks);
    let report = json(&mut story.increment(&bitmap));
    let audit = &report["audits"][0];
    assert_eq!(audit["disk"], "root");
    assert_eq!(audit["unchanged_blocks"], 1024 - 10);
    let compared = audit["blocks"].as_u64().expect("a number");
    let unknown = audit["unknown_blocks"].as_u64().expect("a number");
    assert_eq!((compared, unknown), (16, 0), "{audit}");
    let read = audit["read_bytes"].as_u64().expect("a number");
    assert!(
        (16 * BLOCK as u64..16 * (320 << 10)).contains(&read),
        "{audit}"
    );
    for (place, mib, expected) in [(0, 1_u64, 16_f64), (1, 16, 256.0)] {
        let missed = &audit["missed"][place];
        assert_eq!(missed["fault_bytes"], mib << 20);
        let simple = (1.0 - expected / 1014.0).powi(16);
        let found = missed["probability"].as_f64().expect("a number");
        assert!(
            (found - simple).abs() < 0.01,
            "{mib} MiB: {found}, not {simple}"
        );
    }
    assert_eq!(
        audit["missed"][2]["probability"], 0.0,
        "so much is not there"
    );
    let text = succeed(&mut story.increment(&bitmap)).stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains("Audit of root: 16 of 1014 unchanged blocks compared ("),
        "{text}"
    );
    assert!(
        text.contains("at most: of 1.00 MiB with 77.7 %, of 16.0 MiB with 1.0 %"),
        "{text}"
    );
    let wrong = fail_with(story.increment(&bitmap).args(["--audit", "101%"]), 2);
    assert!(wrong.contains("a percentage from 0% to 100%"), "{wrong}");
}

/// Behind a server, as one who may only add: by the maps alone.
#[test]
fn an_ingest_audits_without_reading_data_back() {
    let served = Served::start();
    served.init();
    served.enroll_as("adder", "ingest", "*");
    let path = served.path("disk.raw");
    let mut image = Image::new(path.clone(), 5, (9 << 20) + 512);
    let changes = served.path("changes");
    let backup = |bitmap: &[u8], audit: &str| {
        std::fs::write(&changes, bitmap).expect("a file");
        let mut command = served.undercroft_as("adder");
        command.args(["backup", "--vm", "web", "--audit", audit]);
        command.arg(&path);
        command
    };
    succeed(&mut backup(b"", "0"));
    let bitmap = image.change(1, &[20, 100]);
    let increment = |bitmap: &[u8]| {
        let mut command = backup(bitmap, "100%");
        command.args(["--parent", "web@latest", "--changed-blocks"]);
        command.arg(&changes);
        command
    };
    let report = json(&mut increment(&bitmap));
    let audit = &report["audits"][0];
    assert_eq!(audit["mismatch"], Value::Null, "{audit}");
    let known = audit["blocks"].as_u64().expect("a number");
    assert!(known > 130, "{audit}");
    // What is next to changed blocks is in chunks that reach into them.
    let report = json(&mut increment(b"[]"));
    assert!(
        report["audits"][0]["unknown_blocks"].as_u64() < Some(10),
        "{report}"
    );
    image.bytes[60 * BLOCK + 5] ^= 1;
    image.write();
    let text = fail_with(&mut increment(b"[]"), 4);
    assert!(text.contains("differ from the parent"), "{text}");
    let target = served.path("restored");
    let mut restore = served.undercroft();
    succeed(restore.args(["restore", "web@latest", "--to"]).arg(&target));
    assert!(std::fs::read(&target).expect("a file") == image.bytes);
}

/// What a proxy finds is what its client is told.
#[test]
fn proxies_audit_what_they_read() {
    let served = Served::start();
    served.init();
    let proxied = Proxied::start(&served, "reader", "ingest", &["--read", "disks"]);
    let path = served.path("disks").join("disk.raw");
    let mut image = Image::new(path.clone(), 5, 8 << 20);
    succeed(&mut proxied.backup(&served, "admin", "web", &path));
    image.change(1, &[9, 40]);
    let changes = served.path("disks").join("changes");
    let increment = |blocks: &[usize]| {
        std::fs::write(&changes, extents(blocks, 8 << 20)).expect("a file");
        let mut command = proxied.backup(&served, "admin", "web", &path);
        command.args(["--parent", "web@latest", "--audit", "100%"]);
        command.arg("--changed-blocks").arg(&changes);
        command
    };
    let report = json(&mut increment(&[9, 40]));
    assert_eq!(report["disks"][0]["read_bytes"], 2 * BLOCK as u64);
    assert_eq!(report["audits"][0]["mismatch"], Value::Null);
    image.change(2, &[24]);
    let text = fail_with(&mut increment(&[9]), 4);
    assert!(text.contains("differ from the parent"), "{text}");
    let tasks = json(&mut proxied.proxy(&served, &["tasks"]));
    let tasks = tasks.as_array().expect("a list");
    assert!(
        tasks.iter().any(|task| task["state"] == "warned"),
        "{tasks:?}"
    );
    let target = served.path("restored");
    let mut restore = served.undercroft();
    succeed(restore.args(["restore", "web@latest", "--to"]).arg(&target));
    assert!(std::fs::read(&target).expect("a file") == image.bytes);
}

/// Grow and shrink, by bitmaps of either size, lists and whole maps; no size a multiple of anything.
#[test]
fn disks_change_their_size() {
    let sizes = [
        (5 << 20) + 512,
        (9 << 20) + 70_000,
        (9 << 20) + 3 * 512,
        3 << 20,
        (3 << 20) + 1024,
        100 * 512,
        (2 << 20) + 512,
    ];
    for how in ["bitmap", "old-bitmap", "list", "map"] {
        let mut story = Story::begin(sizes[0], &[]);
        for pair in sizes.windows(2) {
            let (old, new) = (pair[0], pair[1]);
            let common = old.min(new);
            let grown = noise(new as u64, new.saturating_sub(old));
            story.image.bytes.truncate(new);
            story.image.bytes.extend_from_slice(&grown);
            let last = (common - 1) / BLOCK;
            // A block in the middle, and the one where the common part ends.
            let blocks = if last > 2 {
                vec![last / 2, last]
            } else {
                vec![last]
            };
            let bitmap = story.image.change(new as u64, &blocks);
            let text = match how {
                "bitmap" => bitmap,
                "old-bitmap" => bitmap_of(&blocks, old),
                "list" => extents(&blocks, new),
                _ => map_of(&blocks, new),
            };
            let report = json(story.increment(&text).args(["--audit", "100%"]));
            let disk = &report["disks"][0];
            assert_eq!(
                disk["read_mode"], "changed-blocks",
                "{how} {old} {new}: {report}"
            );
            let note = if new > old {
                "note:disk-grown"
            } else {
                "note:disk-shrunk"
            };
            assert_eq!(reasons(&report), [note, "note:lineage-unchecked"]);
            let changed = blocks.len() * BLOCK + (new - common);
            assert!(
                disk["read_bytes"].as_u64().expect("a number") <= changed as u64,
                "{report}"
            );
            let audit = &report["audits"][0];
            assert_eq!(
                audit["blocks"], audit["unchanged_blocks"],
                "{how} {old} {new}: {report}"
            );
            story.assert_restores();
        }
    }
}

fn bitmap_of(blocks: &[usize], len: usize) -> Vec<u8> {
    use base64::Engine;
    let mut bitmap = vec![0_u8; len.div_ceil(BLOCK).div_ceil(8)];
    for block in blocks {
        bitmap[block / 8] |= 0x80 >> (block % 8);
    }
    let text = base64::engine::general_purpose::STANDARD.encode(bitmap);
    text.into_bytes()
}

fn map_of(blocks: &[usize], len: usize) -> Vec<u8> {
    let entries = (0..len.div_ceil(BLOCK)).map(|block| {
        let (start, dirty) = (block * BLOCK, blocks.contains(&block));
        let length = BLOCK.min(len - start);
        format!("{{\"offset\":{start},\"length\":{length},\"dirty\":{dirty}}}")
    });
    format!("[{}]", entries.collect::<Vec<_>>().join(",")).into_bytes()
}

#[test]
fn disks_come_and_go_in_the_order_given() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--segment-size", "1M"]));
    let mut images: Vec<(&str, Image)> = ["zeta", "alpha", "mid", "new"]
        .into_iter()
        .zip(1..)
        .map(|(label, seed)| {
            let path = dir.path().join(format!("{label}.raw"));
            (
                label,
                Image::new(path, seed, (2 << 20) + 512 * seed as usize),
            )
        })
        .collect();
    let disk = |path: &Path, label: &str| format!("{label}={}", path.display());
    let of_disks = |report: &Value, field: &str| {
        let disks = report["disks"].as_array().expect("a list").iter();
        let texts = disks.map(|disk| disk[field].as_str().expect("text").to_owned());
        texts.collect::<Vec<_>>()
    };
    let labels = |report: &Value| of_disks(report, "label");
    let mut first = undercroft(&repo);
    first.args(["backup", "--vm", "web"]);
    for (label, image) in &images[..3] {
        first.args(["--disk", &disk(&image.path, label)]);
    }
    let report = json(first.args(["--exclude-disk", "mid"]));
    assert_eq!(labels(&report), ["zeta", "alpha"]);

    // zeta is gone, mid and new are there, and alpha comes last.
    let mut second = undercroft(&repo);
    second.args(["backup", "--vm", "web", "--parent", "web@latest"]);
    for place in [3, 2, 0, 1] {
        let (label, image) = &mut images[place];
        let changes = dir.path().join(format!("{label}.cbt"));
        std::fs::write(&changes, image.change(9, &[4])).expect("a file");
        second.args(["--disk", &disk(&image.path, label)]);
        second.args(["--changed-blocks", &disk(&changes, label)]);
    }
    let report = json(second.args(["--exclude-disk", "zeta"]));
    assert_eq!(labels(&report), ["new", "mid", "alpha"]);
    for (place, expected) in [(0, "full"), (1, "full"), (2, "changed-blocks")] {
        assert_eq!(report["disks"][place]["read_mode"], expected, "{report}");
    }
    assert_eq!(report["disks"][0]["reasons"][0], "full:disk-not-in-parent");
    assert_eq!(report["audits"].as_array().map(Vec::len), Some(1));
    let shown = json(undercroft(&repo).args(["show", "web@latest"]));
    assert_eq!(labels(&shown), ["new", "mid", "alpha"]);
    let to = dir.path().join("out/");
    let restored = json(
        undercroft(&repo)
            .args(["restore", "web@latest", "--to"])
            .arg(&to),
    );
    assert_eq!(of_disks(&restored, "disk"), ["new", "mid", "alpha"]);
    for (label, image) in &images[1..] {
        let found = std::fs::read(to.join(format!("{label}.raw"))).expect("the disk");
        assert!(found == image.bytes, "{label}");
    }
    assert!(!to.join("zeta.raw").exists());

    let root = disk(&images[0].1.path, "root");
    let mut unknown = undercroft(&repo);
    unknown.args([
        "backup",
        "--vm",
        "web",
        "--disk",
        &root,
        "--exclude-disk",
        "swap",
    ]);
    let text = fail_with(&mut unknown, 2);
    assert!(
        text.contains("no disk is labelled \"swap\"") && text.contains("root"),
        "{text}"
    );
    let mut none = undercroft(&repo);
    none.args([
        "backup",
        "--vm",
        "web",
        "--disk",
        &root,
        "--exclude-disk",
        "root",
    ]);
    assert!(fail_with(&mut none, 2).contains("leaves no disk"));
}
