//! VHDs: backed up as disks and as what changed, restored as both; every disk compared with what it should be.
//!
//! Needs qemu-img: `scripts/setup.sh test`.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::vhd::{BLOCK, Vhd};
use support::{
    Image, Random, assert_restores, fail_with, json, noise, succeed, undercroft, workspace,
};

struct Story {
    dir: tempfile::TempDir,
    repo: PathBuf,
}

impl Story {
    fn new() -> Self {
        let dir = workspace();
        let repo = dir.path().join("repo");
        succeed(undercroft(&repo).arg("init"));
        Self { dir, repo }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn backup(&self) -> Command {
        let mut command = undercroft(&self.repo);
        command
            .args(["backup", "--vm", "web"])
            .current_dir(self.dir.path());
        command
    }

    /// Backs up the disk `root`; its part of the report.
    fn back_up(&self, source: &str) -> serde_json::Value {
        let report = json(self.backup().arg("--disk").arg(format!("root={source}")));
        report["disks"][0].clone()
    }

    fn restore(&self, snapshot: &str, args: &[&str], name: &str) -> Vec<u8> {
        let target = self.path(name);
        let mut command = undercroft(&self.repo);
        command.args(["restore", snapshot, "--force"]).args(args);
        succeed(command.arg("--to").arg(&target));
        std::fs::read(target).expect("the restored file")
    }

    fn assert_holds(&self, snapshot: &str, expected: &[u8]) {
        assert_restores(&self.repo, snapshot, expected, self.dir.path());
    }

    fn snapshots(&self) -> usize {
        let list = json(undercroft(&self.repo).arg("snapshots"));
        list.as_array()
            .or(list["snapshots"].as_array())
            .expect("a list")
            .len()
    }

    fn write(&self, name: &str, vhd: &Vhd) {
        std::fs::write(self.path(name), vhd.encode()).expect("it can be written");
    }
}

fn qemu_img(args: &[&str], paths: &[&Path]) {
    succeed(Command::new("qemu-img").args(args).args(paths));
}

fn image(story: &Story, len: usize) -> Image {
    let mut image = Image::new(story.path("disk.raw"), 3, len);
    let hole = 6 << 20..len.min(20 << 20);
    image.bytes[hole].fill(0);
    image.write();
    image
}

/// Overwrites sectors here and there, of the disk and of the VHD alike; some with zeros.
fn change(random: &mut Random, vhd: &mut Vhd, disk: &mut [u8], times: usize) {
    let sectors = (disk.len() / 512) as u64;
    for _ in 0..times {
        let first = random.below(sectors);
        let count = (1 + random.below(40)).min(sectors - first) as usize;
        let bytes = match random.below(5) {
            0 => vec![0; count * 512],
            _ => noise(random.next(), count * 512),
        };
        let at = first as usize * 512;
        disk[at..at + bytes.len()].copy_from_slice(&bytes);
        vhd.write(at, &bytes);
    }
}

#[test]
fn vhds_of_qemu_are_backed_up_as_the_disks_in_them() {
    let story = Story::new();
    // The last block is short, and so is the last cylinder.
    let image = image(&story, (25 << 20) + 1536);
    let read_raw = story.back_up("disk.raw")["read_bytes"]
        .as_u64()
        .expect("a number");
    for (subformat, most) in [("dynamic", 14 << 20), ("fixed", read_raw + (1 << 20))] {
        let options = format!("subformat={subformat},force_size=on");
        let args = ["convert", "-f", "raw", "-O", "vpc", "-o", &options];
        qemu_img(&args, &[&image.path, &story.path("disk.vhd")]);
        let disk = story.back_up("vhd:disk.vhd");
        story.assert_holds("web@latest", &image.bytes);
        assert_eq!(
            disk["new_bytes"], 0,
            "{subformat}: what the raw disk had already"
        );
        let read = disk["read_bytes"].as_u64().expect("a number");
        assert!(read <= most, "{subformat}: {read} bytes read");
    }
    // Without force_size QEMU rounds up to cylinders.
    qemu_img(
        &["convert", "-f", "raw", "-O", "vpc"],
        &[&image.path, &story.path("chs.vhd")],
    );
    let args = ["convert", "-f", "vpc", "-O", "raw"];
    qemu_img(&args, &[&story.path("chs.vhd"), &story.path("chs.raw")]);
    story.back_up("vhd:chs.vhd");
    let bytes = std::fs::read(story.path("chs.raw")).expect("QEMU's answer");
    assert!(bytes.len() > image.bytes.len());
    story.assert_holds("web@latest", &bytes);
}

#[test]
fn restored_vhds_are_the_disks_to_qemu() {
    let story = Story::new();
    let image = image(&story, (25 << 20) + 1536);
    story.back_up("disk.raw");
    let file = story.restore("web@latest", &["--format", "vhd"], "out.vhd");
    let args = ["compare", "-f", "raw", "-F", "vpc", "--strict"];
    // Strict: the sizes are alike, too.
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "vpc"]);
    let output = succeed(compare.args([&image.path, &story.path("out.vhd")]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("identical") && !text.contains("Warning"),
        "{text} {args:?}"
    );
    qemu_img(
        &["convert", "-f", "vpc", "-O", "raw"],
        &[&story.path("out.vhd"), &story.path("out.raw")],
    );
    assert!(std::fs::read(story.path("out.raw")).expect("QEMU's answer") == image.bytes);
    // Blocks 3 to 9 are a hole.
    assert_eq!(file.len(), 2048 + 512 + 6 * (512 + BLOCK) + 512);
    assert!(story.restore("web@latest", &["--format", "vhd"], "again.vhd") == file);
    let mut to_stdout = undercroft(&story.repo);
    to_stdout.args(["restore", "web@latest", "--format", "vhd", "--to", "-"]);
    assert!(succeed(&mut to_stdout).stdout == file);
    let directory = story.path("all/");
    let mut command = undercroft(&story.repo);
    command.args(["restore", "web@latest", "--format", "vhd", "--to"]);
    succeed(command.arg(&directory));
    assert!(std::fs::read(directory.join("root.vhd")).expect("named by its label") == file);
    let disk = story.back_up("vhd:out.vhd");
    assert_eq!(disk["new_bytes"], 0);
    story.assert_holds("web@latest", &image.bytes);
}

#[test]
fn chains_are_read_through_their_parents() {
    let story = Story::new();
    let mut random = Random(11);
    let mut disk = vec![0; 13 << 20];
    let mut base = Vhd::dynamic(disk.len(), 1);
    change(&mut random, &mut base, &mut disk, 60);
    // The disk grew with its second state.
    disk.resize((17 << 20) + 512, 0);
    let mut middle = Vhd::child(disk.len(), 2, 1, "base.vhd");
    change(&mut random, &mut middle, &mut disk, 40);
    let mut top = Vhd::child(disk.len(), 3, 2, "gone.vhd");
    change(&mut random, &mut top, &mut disk, 40);
    story.write("base.vhd", &base);
    story.write("middle.vhd", &middle);
    story.write("top.vhd", &top);
    // The base is found beside its child.
    let report = story.back_up("vhd:top.vhd,middle.vhd");
    story.assert_holds("web@latest", &disk);
    let uuid = report["lineage"]["vhd-uuid"]
        .as_str()
        .or(report["lineage"][0][1].as_str());
    assert_eq!(
        uuid,
        Some("03030303-0303-0303-0303-030303030303"),
        "{report}"
    );
    let published = story.snapshots();
    for (source, expected) in [
        ("vhd:top.vhd", "whose parent"),
        ("vhd:top.vhd,base.vhd", "is 02020202-"),
        ("vhd:base.vhd,middle.vhd", "is a whole disk"),
        ("vhd:missing.vhd", "missing.vhd"),
        ("vhd:top.vhd,-", "a stream brings no"),
    ] {
        let text = fail_any(story.backup().arg("--disk").arg(format!("root={source}")));
        let expected = if source == "vhd:top.vhd" {
            "called gone.vhd"
        } else {
            expected
        };
        assert!(text.contains(expected), "{source}: {text}");
    }
    // Its own parent.
    story.write("circle.vhd", &Vhd::child(4096, 9, 9, "circle.vhd"));
    let text = fail_any(story.backup().args(["--disk", "root=vhd:circle.vhd"]));
    assert!(text.contains("or is its own"), "{text}");
    assert_eq!(story.snapshots(), published);
}

/// Runs, expects failure and gives what was printed.
fn fail_any(command: &mut Command) -> String {
    let output = command.output().expect("the binary starts");
    assert!(!output.status.success(), "{command:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn deltas_are_laid_over_their_parent() {
    let story = Story::new();
    let mut random = Random(5);
    let mut disk = vec![0; 40 << 20];
    let mut full = Vhd::dynamic(disk.len(), 1);
    change(&mut random, &mut full, &mut disk, 200);
    story.write("full.vhd", &full);
    story.back_up("vhd:full.vhd");
    let first = disk.clone();
    let full_id = latest(&story);
    // Chained: each changes the one before.
    let mut chained = Vhd::child(disk.len(), 2, 1, "full.vhd");
    change(&mut random, &mut chained, &mut disk, 12);
    story.write("d1.vhd", &chained);
    let delta = |story: &Story, file: &str, parent: &str| {
        json(
            story
                .backup()
                .args(["--vhd-delta", file, "--parent", parent]),
        )["disks"][0]
            .clone()
    };
    let report = delta(&story, "d1.vhd", &full_id);
    assert_eq!(
        (&report["label"], &report["read_mode"]),
        (&"root".into(), &"changed-blocks".into())
    );
    let read = report["read_bytes"].as_u64().expect("a number");
    assert!(read < 13 * (20 << 10) + 24 * 65_536, "{read} bytes read");
    story.assert_holds("web@latest", &disk);
    let middle = disk.clone();
    let middle_id = latest(&story);
    let mut last = Vhd::child(disk.len() + 1024, 3, 2, "d1.vhd");
    disk.resize(disk.len() + 1024, 0);
    change(&mut random, &mut last, &mut disk, 12);
    story.write("d2.vhd", &last);
    delta(&story, "root=d2.vhd", &middle_id);
    story.assert_holds("web@latest", &disk);
    // Both at once, and cumulative: all since the full one.
    delta(&story, "root=d2.vhd,d1.vhd", &full_id);
    story.assert_holds("web@latest", &disk);
    let mut cumulative = Vhd::child(first.len(), 4, 1, "full.vhd");
    for (sector, bytes) in middle.chunks(512).enumerate() {
        if first[sector * 512..][..512] != *bytes {
            cumulative.write(sector * 512, bytes);
        }
    }
    story.write("c.vhd", &cumulative);
    delta(&story, "root=c.vhd", &full_id);
    story.assert_holds("web@latest", &middle);
    story.assert_holds(&full_id, &first);
    // Over anything else it is nothing.
    let published = story.snapshots();
    let refuse = |args: &[&str], code, expected: &str| {
        let text = fail_with(story.backup().args(args), code);
        assert!(text.contains(expected), "{args:?}: {text}");
    };
    let hint = format!("--parent {}", &middle_id[..8]);
    refuse(&["--vhd-delta", "d2.vhd", "--parent", &full_id], 1, &hint);
    refuse(&["--vhd-delta", "d2.vhd"], 2, "--parent");
    refuse(
        &["--vhd-delta", "data=d2.vhd", "--parent", &middle_id],
        2,
        "its disks are: root",
    );
    refuse(
        &["--vhd-delta", "full.vhd", "--parent", &full_id],
        1,
        "is a whole disk",
    );
    std::fs::write(story.path("cut.vhd"), &last.encode()[..3 << 20]).expect("written");
    refuse(
        &["--vhd-delta", "cut.vhd", "--parent", &middle_id],
        1,
        "the footer at byte",
    );
    assert_eq!(story.snapshots(), published);
}

/// Exports of XAPI have identities of their own: the user's word is all there is.
#[test]
fn deltas_of_xapi_are_believed_to_fit() {
    let story = Story::new();
    let mut disk = vec![0; 9 << 20];
    let mut random = Random(8);
    let mut full = Vhd::dynamic(disk.len(), 1);
    full.creator = *b"caml";
    change(&mut random, &mut full, &mut disk, 20);
    story.write("full.vhd", &full);
    let report = story.back_up("vhd:full.vhd");
    assert!(!report.to_string().contains("vhd-uuid"), "{report}");
    let mut delta = Vhd::child(disk.len(), 7, 77, "");
    delta.creator = *b"caml";
    change(&mut random, &mut delta, &mut disk, 5);
    story.write("delta.vhd", &delta);
    let output =
        succeed(
            story
                .backup()
                .args(["--vhd-delta", "delta.vhd", "--parent", "web@latest"]),
        );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("is believed"), "{text}");
    story.assert_holds("web@latest", &disk);
}

#[test]
fn what_differs_is_restored_as_a_child() {
    let story = Story::new();
    let mut image = image(&story, (23 << 20) + 512);
    story.back_up("disk.raw");
    let old = latest(&story);
    let before = image.bytes.clone();
    image.change(77, &[0, 31, 200, 350]);
    image.bytes[21 << 20..22 << 20].fill(0);
    image.bytes.resize((27 << 20) + 1024, 0);
    image.write();
    story.back_up("disk.raw");
    let new = latest(&story);
    let full = story.restore(&old, &["--format", "vhd"], "full.vhd");
    let child = story.restore(&new, &["--vhd-since", &old], "child.vhd");
    assert!(child.len() < 8 * (BLOCK + 512), "{} bytes", child.len());
    assert!(story.restore(&new, &["--vhd-since", &old], "again.vhd") == child);
    // Under the name that the child has for it the parent is found.
    let uuid: String = full[68..84]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(full[68..84], child[512 + 40..512 + 56]);
    let name = format!(
        "{}-{}-{}-{}-{}.vhd",
        &uuid[..8],
        &uuid[8..12],
        &uuid[12..16],
        &uuid[16..20],
        &uuid[20..]
    );
    std::fs::rename(story.path("full.vhd"), story.path(&name)).expect("renamed");
    story.back_up("vhd:child.vhd");
    story.assert_holds("web@latest", &image.bytes);
    // And it is a delta of what it was made from.
    let args = ["--vhd-delta", "child.vhd", "--parent", &old];
    succeed(story.backup().args(args));
    story.assert_holds("web@latest", &image.bytes);
    // Backwards: what was added is gone.
    story.restore(&old, &["--vhd-since", &new], "back.vhd");
    story.restore(&new, &["--format", "vhd"], "new.vhd");
    story.back_up("vhd:back.vhd,new.vhd");
    story.assert_holds("web@latest", &before);
}

#[test]
fn targets_that_hold_no_vhd_are_refused() {
    let story = Story::new();
    std::fs::write(story.path("odd.raw"), noise(1, 1000)).expect("written");
    story.back_up("odd.raw");
    let mut command = undercroft(&story.repo);
    command.args(["restore", "web@latest", "--format", "vhd", "--to"]);
    let text = fail_with(command.arg(story.path("odd.vhd")), 1);
    assert!(
        text.contains("1000 bytes: a VHD holds a multiple of 512"),
        "{text}"
    );
    assert!(!story.path("odd.vhd").exists());
    let mut command = undercroft(&story.repo);
    command.args([
        "restore",
        "web@latest",
        "--format",
        "vhd",
        "--in-place",
        "--to",
    ]);
    let text = fail_with(command.arg(story.path("odd.raw")), 2);
    assert!(text.contains("cannot be written in place"), "{text}");
}

/// As XAPI sends its exports.
#[test]
fn streams_are_read_in_order_and_only_whole() {
    let story = Story::new();
    let image = image(&story, (25 << 20) + 1536);
    story.back_up("disk.raw");
    let whole = story.restore("web@latest", &["--format", "vhd"], "out.vhd");
    let pipe = |bytes: &[u8]| {
        let mut command = story.backup();
        command
            .args(["--json", "--disk", "root=vhd:-"])
            .stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        // It ends early if it does not like what it reads.
        let _ = child.stdin.take().expect("a pipe").write_all(bytes);
        child.wait_with_output().expect("it ends")
    };
    let output = pipe(&whole);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let disk = &report["disks"][0];
    assert_eq!(
        (&disk["new_bytes"], &disk["size"]),
        (&0.into(), &image.bytes.len().into())
    );
    story.assert_holds("web@latest", &image.bytes);
    let published = story.snapshots();
    let refuse = |bytes: &[u8], expected: &str| {
        let output = pipe(bytes);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(expected),
            "{expected}: {text}"
        );
    };
    let len = whole.len();
    for cut in [0, 511, 512, 2047, 2300, 2560, 5 << 20, len - 513] {
        refuse(&whole[..cut], "byte");
    }
    refuse(&whole[..len - 512], "follow the last block");
    refuse(&whole[..len - 1], "follow the last block");
    let glued = [&whole[..len - 512], b"HTTP/1.1 500 Internal Error\r\n\r\n"].concat();
    refuse(&glued, "follow the last block");
    refuse(&vec![0; 1 << 20], "expected it to begin with");
    // A file in which blocks lie as a guest wrote them, and one without its parent.
    let mut vhd = Vhd::dynamic(9 << 20, 1);
    change(&mut Random(3), &mut vhd, &mut vec![0; 9 << 20], 40);
    refuse(&vhd.encode(), "does not follow the one before");
    refuse(
        &Vhd::child(9 << 20, 2, 1, "base.vhd").encode(),
        "which a stream does not bring",
    );
    assert_eq!(story.snapshots(), published);
}

#[test]
fn vhds_are_never_guessed() {
    let story = Story::new();
    let mut disk = vec![0; 5 << 20];
    let mut vhd = Vhd::dynamic(disk.len(), 1);
    change(&mut Random(2), &mut vhd, &mut disk, 9);
    story.write("disk.vhd", &vhd);
    let output = succeed(story.backup().arg("disk.vhd"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("vhd:disk.vhd"), "{text}");
    story.assert_holds("web@latest", &vhd.encode());
    let text = fail_with(story.backup().args(["--disk", "root=vhd:cut.vhd"]), 1);
    assert!(text.contains("check the path"), "{text}");
    let whole = vhd.encode();
    for (len, at) in [(whole.len() - 512, whole.len() - 1024), (512, 0)] {
        std::fs::write(story.path("cut.vhd"), &whole[..len]).expect("written");
        let text = fail_with(story.backup().args(["--disk", "root=vhd:cut.vhd"]), 1);
        let is_named = text.contains(&format!("at byte {at}")) || len == 512;
        assert!(is_named && text.contains("cut.vhd"), "{len}: {text}");
    }
    let mut wrong = whole.clone();
    wrong[2048..2052].copy_from_slice(&0x00ff_ffff_u32.to_be_bytes());
    std::fs::write(story.path("wrong.vhd"), &wrong).expect("written");
    let text = fail_with(story.backup().args(["--disk", "root=vhd:wrong.vhd"]), 1);
    assert!(
        text.contains("block 0 of the block allocation table at byte 2048"),
        "{text}"
    );
    assert_eq!(story.snapshots(), 1);
}

fn latest(story: &Story) -> String {
    let snapshot = json(undercroft(&story.repo).args(["show", "web@latest"]));
    snapshot["id"].as_str().expect("an id").to_owned()
}
