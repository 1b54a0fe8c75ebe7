//! Files from inside disks: trees that were put into file systems come out of snapshots again, name by name.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use undercroft_dataplane::disk::{Allocation, ReadDisk};
use undercroft_dataplane::files::walk::{Descend, Step, walk};
use undercroft_dataplane::files::{self, FileKind, FilePath};
use undercroft_dataplane::partitions;
use undercroft_format::units::{DiskLength, DiskRange};

use support::packs::{flip, largest_data_pack};
use support::served::Served;
use support::{Random, fail_with, json, noise, succeed, undercroft, workspace};

const MIB: u64 = 1 << 20;

/// Debian keeps the tools of file systems where users do not look.
fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// A tree with whatever file systems treat differently.
fn plant(root: &Path, with_holes: bool) {
    fs::create_dir_all(root.join("many")).expect("a directory");
    for number in 0..2000 {
        fs::write(
            root.join(format!("many/a name of some length {number}")),
            format!("{number}\n"),
        )
        .expect("a file");
    }
    let deep = root.join("deep/".to_owned() + &"d/".repeat(60));
    fs::create_dir_all(&deep).expect("directories");
    fs::write(deep.join("bottom"), noise(1, 5000)).expect("a file");
    fs::write(root.join("big"), noise(2, 6 << 20)).expect("a file");
    fs::write(root.join("empty"), "").expect("a file");
    fs::write(root.join("x".repeat(255)), "long name").expect("a file");
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe not text")), "bytes").expect("a file");
    fs::write(root.join("line\nbreak\x1b[31m"), "control").expect("a file");
    symlink("many/../big", root.join("fast")).expect("a link");
    symlink("x/".repeat(100), root.join("slow")).expect("a link");
    symlink("/etc/shadow", root.join("absolute")).expect("a link");
    if with_holes {
        let sparse = File::create(root.join("sparse")).expect("a file");
        sparse.set_len(40 * MIB).expect("its length");
        sparse
            .write_all_at(&noise(3, 9000), 20 * MIB + 123)
            .expect("its bytes");
    }
    for (name, mode) in [("big", 0o640), ("empty", 0o4755), ("many", 0o2750)] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("a mode");
    }
    let old = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000));
    File::open(root.join("big"))
        .and_then(|file| file.set_times(old))
        .expect("a time");
}

/// What lies where: kind and mode, time, content or target.
fn tree_of(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("metadata");
            // The links' own times are not all kept by what makes the images.
            let (time, content) = if metadata.is_symlink() {
                (
                    0,
                    fs::read_link(&path)
                        .expect("a link")
                        .into_os_string()
                        .as_bytes()
                        .to_vec(),
                )
            } else if metadata.is_dir() {
                directories.push(path.clone());
                (0, Vec::new())
            } else {
                (metadata.mtime(), fs::read(&path).expect("a file"))
            };
            // Without --keep-set-id programs run as who starts them.
            let mode = if metadata.is_file() {
                metadata.mode() & !0o6000
            } else {
                metadata.mode()
            };
            found.insert(
                path.strip_prefix(root).expect("below").to_owned(),
                (mode, time, content),
            );
        }
    }
    found
}

fn assert_same_tree(found: &Path, expected: &Path) {
    let (mut found, expected) = (tree_of(found), tree_of(expected));
    found.remove(Path::new("lost+found"));
    let names = |tree: &BTreeMap<PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));
    for (path, expected) in &expected {
        let found = &found[path];
        assert_eq!((found.0, found.1), (expected.0, expected.1), "{path:?}");
        assert!(
            found.2 == expected.2,
            "{path:?}: {} bytes, not {}",
            found.2.len(),
            expected.2.len()
        );
    }
}

/// A file system of the files in `tree`, made by mke2fs without a mount.
fn ext_image(path: &Path, tree: &Path, size: &str, options: &[&str]) {
    succeed(
        tool("mke2fs")
            .args(["-q", "-F"])
            .args(options)
            .arg("-d")
            .arg(tree)
            .arg(path)
            .arg(size),
    );
}

fn fat_image(path: &Path, tree: &Path, kib: &str) {
    succeed(tool("mkfs.vfat").arg("-C").arg(path).arg(kib));
    for entry in fs::read_dir(tree).expect("a directory") {
        let entry = entry.expect("an entry").path();
        succeed(
            tool("mcopy")
                .args(["-s", "-m", "-i"])
                .arg(path)
                .arg(entry)
                .arg("::"),
        );
    }
}

/// A disk of `size` with the table that sfdisk makes of `script`, and these images where its partitions begin.
fn partitioned(path: &Path, size: u64, script: &str, parts: &[(u64, &Path)]) {
    let disk = File::create(path).expect("a disk");
    disk.set_len(size).expect("its size");
    let script_path = path.with_extension("sfdisk");
    fs::write(&script_path, script).expect("a script");
    let script = File::open(&script_path).expect("the script");
    succeed(tool("sfdisk").arg("-q").arg(path).stdin(script));
    for (at, part) in parts {
        let bytes = fs::read(part).expect("a part");
        let disk = File::options().write(true).open(path).expect("the disk");
        for (place, block) in (*at..).step_by(1 << 16).zip(bytes.chunks(1 << 16)) {
            if block.iter().any(|byte| *byte != 0) {
                disk.write_all_at(block, place).expect("its bytes");
            }
        }
    }
}

fn init(repo: &Path) {
    succeed(undercroft(repo).args(["init", "--segment-size", "1M", "--pack-size", "1M"]));
}

fn backup(repo: &Path, disk: &Path) {
    let disk = format!("root={}", disk.display());
    succeed(undercroft(repo).args(["backup", "--vm", "vm", "--disk", &disk]));
}

#[test]
fn trees_come_out_of_ext_file_systems_as_they_went_in() {
    for (options, with_holes) in [
        (&["-t", "ext4"][..], true),
        (
            &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"],
            true,
        ),
        (&["-t", "ext3", "-b", "4096"], false),
        (&["-t", "ext2", "-b", "1024"], false),
    ] {
        let dir = workspace();
        let (tree, repo, image) = (
            dir.path().join("tree"),
            dir.path().join("repo"),
            dir.path().join("disk.raw"),
        );
        fs::create_dir(&tree).expect("a directory");
        plant(&tree, with_holes);
        ext_image(&image, &tree, "48M", options);
        init(&repo);
        backup(&repo, &image);
        let to = dir.path().join("out");
        succeed(
            undercroft(&repo)
                .args(["cp", "-r", "vm@latest:root/"])
                .arg(&to),
        );
        assert_same_tree(&to, &tree);
        if with_holes {
            let sparse = fs::metadata(to.join("sparse")).expect("the sparse file");
            assert!(
                sparse.blocks() * 512 < MIB,
                "holes were written: {} bytes",
                sparse.blocks() * 512
            );
        }
    }
}

#[test]
fn names_of_a_directory_of_ten_thousand_are_all_listed() {
    let dir = workspace();
    let (tree, repo, image) = (
        dir.path().join("tree"),
        dir.path().join("repo"),
        dir.path().join("disk.raw"),
    );
    fs::create_dir_all(tree.join("many")).expect("a directory");
    for number in 0..10_000 {
        fs::write(tree.join(format!("many/{number}")), "").expect("a file");
    }
    ext_image(&image, &tree, "32M", &["-t", "ext4", "-N", "12000"]);
    // With an index of hashes, as a kernel makes it.
    let checked = tool("e2fsck")
        .args(["-fyD"])
        .arg(&image)
        .output()
        .expect("e2fsck runs");
    assert!(
        checked.status.code().is_some_and(|code| code < 4),
        "{checked:?}"
    );
    init(&repo);
    backup(&repo, &image);
    let listed = succeed(undercroft(&repo).args(["ls", "vm@latest:root/many"])).stdout;
    let mut names: Vec<u32> = String::from_utf8(listed)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    names.sort_unstable();
    assert!(names.into_iter().eq(0..10_000));
    succeed(undercroft(&repo).args(["cp", "vm@latest:root/many/9999", "-"]));
}

/// As `sfdisk` lists them, whose numbers are those of Linux.
#[test]
fn partitions_are_those_that_sfdisk_lists() {
    let gpt = "label: gpt\n,4M,L\n,2M,S\n,,U\n";
    let mbr = "label: dos\n,4M,L\n,3M,82\n,,Ex\n,2M,L\n,3M,7\n,,L\n";
    let gaps =
        "label: gpt\nfirst-lba: 34\n3: start=40,size=100,name=\"drei\"\n7: start=2048,size=4096\n";
    for script in [
        gpt,
        mbr,
        gaps,
        "label: gpt\nsector-size: 4096\n,4M,L\n,,U\n",
    ] {
        let dir = workspace();
        let (repo, image) = (dir.path().join("repo"), dir.path().join("disk.raw"));
        partitioned(&image, 24 * MIB, script, &[]);
        init(&repo);
        backup(&repo, &image);
        let found = json(undercroft(&repo).args(["ls", "vm@latest:root"]));
        let listed = succeed(tool("sfdisk").arg("-J").arg(&image));
        let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        let listed = listed["partitiontable"]["partitions"]
            .as_array()
            .expect("partitions");
        let expected: Vec<_> = listed
            .iter()
            .filter(|partition| partition["type"] != "5")
            .map(|partition| {
                let node = partition["node"].as_str().expect("a node");
                let number = node
                    .rsplit(|c: char| !c.is_ascii_digit())
                    .next()
                    .expect("a number");
                let [start, size] = ["start", "size"]
                    .map(|field| partition[field].as_u64().expect("a number") * 512);
                (number.parse().expect("a number"), start, size)
            })
            .collect();
        let found: Vec<_> = found["volumes"]
            .as_array()
            .expect("volumes")
            .iter()
            .map(|volume| {
                ["number", "start", "size"].map(|field| volume[field].as_u64().expect("a number"))
            })
            .map(|[number, start, size]| (number, start, size))
            .collect();
        assert_eq!(found, expected, "{script}");
    }
}

#[test]
fn files_of_several_partitions_are_told_apart() {
    let dir = workspace();
    let [tree, boot, repo, image, ext, fat] =
        ["tree", "boot", "repo", "disk.raw", "ext.img", "fat.img"]
            .map(|name| dir.path().join(name));
    fs::create_dir_all(tree.join("etc")).expect("a directory");
    fs::write(tree.join("etc/os-release"), "ID=test\n").expect("a file");
    symlink("etc/os-release", tree.join("release")).expect("a link");
    fs::create_dir_all(boot.join("EFI/A long directory name")).expect("a directory");
    fs::write(
        boot.join("EFI/A long directory name/loader.efi"),
        noise(5, 100_000),
    )
    .expect("a file");
    ext_image(&ext, &tree, "8M", &["-t", "ext4"]);
    fat_image(&fat, &boot, "4096");
    let script = "label: gpt\nstart=1MiB,size=4MiB,type=U,name=\"boot\\x1b\"\nstart=8MiB,size=8MiB,type=L\nsize=2MiB,type=S\n";
    partitioned(&image, 24 * MIB, script, &[(MIB, &fat), (8 * MIB, &ext)]);
    init(&repo);
    backup(&repo, &image);

    let disks = json(undercroft(&repo).args(["ls", "vm@latest"]));
    assert_eq!(disks["disks"][0]["label"], "root");
    let volumes = json(undercroft(&repo).args(["ls", "vm@latest:root"]));
    let kinds: Vec<_> = volumes["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| &volume["file_system"])
        .collect();
    assert_eq!(
        kinds,
        [&Value::from("FAT"), &Value::from("ext4"), &Value::Null]
    );

    let error = fail_with(undercroft(&repo).args(["ls", "vm@latest:root/"]), 2);
    assert!(
        error.contains("which partition?") && error.contains("EFI system"),
        "{error}"
    );
    assert!(!error.contains('\x1b'), "{error}");
    fail_with(undercroft(&repo).args(["ls", "vm@latest:root:9/"]), 2);
    fail_with(undercroft(&repo).args(["ls", "vm@latest:data/"]), 2);
    fail_with(undercroft(&repo).args(["ls", "vm@latest:root:2/none"]), 1);

    let listed = succeed(undercroft(&repo).args(["ls", "vm@latest:root:p2"])).stdout;
    assert_eq!(
        String::from_utf8(listed).unwrap(),
        "etc\nlost+found\nrelease\n"
    );
    let long = succeed(undercroft(&repo).args(["ls", "-lR", "vm@latest:root:2/"])).stdout;
    let long = String::from_utf8(long).unwrap();
    assert!(
        long.contains("/release -> etc/os-release") && long.contains("/etc/os-release\n"),
        "{long}"
    );
    let text = succeed(undercroft(&repo).args(["cp", "vm@latest:root:2/release", "-"])).stdout;
    assert_eq!(text, b"ID=test\n");
    let loader = "vm@latest:root:1/efi/A long directory name/LOADER.EFI";
    assert!(succeed(undercroft(&repo).args(["cp", loader, "-"])).stdout == noise(5, 100_000));
    let to = dir.path().join("boot-out");
    succeed(
        undercroft(&repo)
            .args(["cp", "-r", "vm@latest:root:1/"])
            .arg(&to),
    );
    let copied = fs::read(to.join("EFI/A long directory name/loader.efi")).expect("the copy");
    assert!(copied == noise(5, 100_000));
}

#[test]
fn nothing_is_overwritten_or_written_elsewhere() {
    let dir = workspace();
    let [tree, repo, image, out] =
        ["tree", "repo", "disk.raw", "out"].map(|name| dir.path().join(name));
    fs::create_dir_all(tree.join("etc/sub")).expect("a directory");
    fs::write(tree.join("etc/passwd"), "guest").expect("a file");
    fs::write(tree.join("etc/sub/file"), "below").expect("a file");
    symlink("/", tree.join("etc/outside")).expect("a link");
    ext_image(&image, &tree, "8M", &["-t", "ext4"]);
    init(&repo);
    backup(&repo, &image);
    fs::create_dir(&out).expect("a directory");
    let host = dir.path().join("host");
    fs::write(&host, "host").expect("a file");
    symlink(&host, out.join("passwd")).expect("a link");
    let copy = |force: bool, what: &str| {
        let mut command = undercroft(&repo);
        command.args(["cp", what]).arg(&out);
        if force {
            command.arg("--force");
        }
        command
    };
    let file = "vm@latest:root/etc/passwd";
    let error = fail_with(&mut copy(false, file), 1);
    assert!(
        error.contains("there already") && error.contains("--force"),
        "{error}"
    );
    succeed(&mut copy(true, file));
    assert_eq!(fs::read(&host).expect("the host's file"), b"host");
    assert_eq!(fs::read(out.join("passwd")).expect("the copy"), b"guest");
    assert!(
        !fs::symlink_metadata(out.join("passwd"))
            .expect("the copy")
            .is_symlink()
    );

    let directory = "vm@latest:root/etc";
    fail_with(&mut copy(false, directory), 2);
    succeed(copy(false, directory).arg("-r"));
    assert_eq!(
        fs::read_link(out.join("etc/outside")).expect("a link"),
        Path::new("/")
    );
    fail_with(copy(false, directory).arg("-r"), 1);
    // A directory of the host that a link stands for is not written into.
    fs::remove_dir_all(out.join("etc/sub")).expect("removed");
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    symlink(&elsewhere, out.join("etc/sub")).expect("a link");
    fail_with(copy(true, directory).arg("-r"), 1);
    assert!(
        fs::read_dir(&elsewhere)
            .expect("a directory")
            .next()
            .is_none()
    );
    let left = |name: &str| name.contains("partial");
    let names = fs::read_dir(&out)
        .expect("a directory")
        .map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !left(name.to_str().unwrap())));
}

/// The name of a file, changed within the image to one that leads out of its directory.
#[test]
fn names_that_lead_elsewhere_are_damage() {
    let dir = workspace();
    let [tree, repo, image, out] =
        ["tree", "repo", "disk.raw", "a/b/out"].map(|name| dir.path().join(name));
    fs::create_dir_all(&tree).expect("a directory");
    fs::create_dir_all(out.parent().expect("above")).expect("directories");
    fs::write(tree.join("aa_aa_leaving"), "left").expect("a file");
    ext_image(&image, &tree, "8M", &["-t", "ext4", "-O", "^metadata_csum"]);
    let mut bytes = fs::read(&image).expect("the image");
    let name = b"aa_aa_leaving";
    let places: Vec<_> = bytes
        .windows(name.len())
        .enumerate()
        .filter(|(_, at)| at == name)
        .collect();
    let places: Vec<usize> = places.into_iter().map(|(place, _)| place).collect();
    assert!(!places.is_empty());
    for place in places {
        bytes[place..place + name.len()].copy_from_slice(b"../../leaving");
    }
    fs::write(&image, bytes).expect("the image");
    init(&repo);
    backup(&repo, &image);
    let error = fail_with(
        undercroft(&repo)
            .args(["cp", "-r", "vm@latest:root/"])
            .arg(&out),
        3,
    );
    assert!(error.contains("invalid name"), "{error}");
    assert!(!dir.path().join("a/leaving").exists() && !dir.path().join("leaving").exists());
}

#[test]
fn a_lost_chunk_costs_its_own_files_only() {
    let dir = workspace();
    let [tree, repo, image, out] =
        ["tree", "repo", "disk.raw", "out"].map(|name| dir.path().join(name));
    fs::create_dir_all(&tree).expect("a directory");
    let name = |number: u64| format!("dir-{}/file-{number}", number % 20);
    for number in 0..400 {
        fs::create_dir_all(tree.join(format!("dir-{}", number % 20))).expect("a directory");
        fs::write(tree.join(name(number)), noise(number, 30_000)).expect("a file");
    }
    ext_image(&image, &tree, "20M", &["-t", "ext4"]);
    init(&repo);
    backup(&repo, &image);
    flip(&largest_data_pack(&repo), 300_000, 2);
    let output = undercroft(&repo)
        .args(["cp", "-r", "--json", "vm@latest:root/"])
        .arg(&out)
        .output()
        .expect("the binary starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["damaged"].as_u64().expect("a number") > 0);
    let mut missing = 0;
    for number in 0..400 {
        let name = name(number);
        match fs::read(out.join(&name)) {
            Ok(bytes) => assert!(bytes == noise(number, 30_000), "{name}"),
            Err(_) => {
                missing += 1;
                // Or the part of its directory that it stands in.
                let told = [
                    format!("/{name} was not"),
                    format!("/dir-{} was not", number % 20),
                ];
                assert!(
                    told.iter().any(|told| errors.contains(told)),
                    "{name}: {errors}"
                );
            }
        }
    }
    // A chunk has 256 KiB at most, with what begins and ends in it, and the names of some directories.
    assert!((1..=100).contains(&missing), "{missing}: {errors}");
}

#[test]
fn snapshots_that_are_encrypted_incremental_or_far_away_are_read_alike() {
    let dir = workspace();
    let [tree, repo, image, bits] =
        ["tree", "repo", "disk.raw", "new"].map(|name| dir.path().join(name));
    fs::create_dir_all(&tree).expect("a directory");
    fs::write(tree.join("kept"), noise(1, 200_000)).expect("a file");
    ext_image(&image, &tree, "16M", &["-t", "ext4"]);
    let secret = |command: &mut Command| -> Command {
        let mut new = Command::new(command.get_program());
        new.args(command.get_args())
            .env("UNDERCROFT_PASSPHRASE", "horse")
            .env_remove("UNDERCROFT_REPO");
        new
    };
    succeed(&mut secret(undercroft(&repo).args(["init", "--encrypt"])));
    let disk = format!("root={}", image.display());
    let run = |words: &[&str]| succeed(&mut secret(undercroft(&repo).args(words))).stdout;
    run(&["backup", "--vm", "vm", "--disk", &disk]);
    fs::write(&bits, noise(2, 300_000)).expect("a file");
    succeed(
        tool("debugfs")
            .args(["-w", "-R"])
            .arg(format!("write {} added", bits.display()))
            .arg(&image),
    );
    run(&[
        "backup",
        "--vm",
        "vm",
        "--parent",
        "vm@latest",
        "--disk",
        &disk,
    ]);
    assert!(run(&["cp", "vm@latest:root/added", "-"]) == noise(2, 300_000));
    assert!(run(&["cp", "vm@latest:root/kept", "-"]) == noise(1, 200_000));
    fail_with(
        &mut secret(undercroft(&repo).args(["cp", "vm@latest-1:root/added", "-"])),
        1,
    );
    assert!(run(&["cp", "vm@latest-1:root/kept", "-"]) == noise(1, 200_000));

    let served = Served::start();
    served.init();
    succeed(
        served
            .undercroft()
            .args(["backup", "--vm", "vm", "--disk", &disk]),
    );
    let read = succeed(
        served
            .undercroft()
            .args(["cp", "vm@latest:root/added", "-"]),
    )
    .stdout;
    assert!(read == noise(2, 300_000));
    let listed = succeed(served.undercroft().args(["ls", "vm@latest:root/"])).stdout;
    assert_eq!(
        String::from_utf8(listed).unwrap(),
        "added\nkept\nlost+found\n"
    );
}

#[test]
fn what_cannot_be_read_is_named_with_the_way_out() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    init(&repo);
    for (at, magic, name) in [
        (0, &b"XFSB"[..], "XFS"),
        (0x1_0040, b"_BHRfS_M", "Btrfs"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (3, b"NTFS    ", "NTFS"),
    ] {
        let image = dir.path().join("disk.raw");
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        fs::write(&image, bytes).expect("an image");
        backup(&repo, &image);
        let listed = json(undercroft(&repo).args(["ls", "vm@latest:root"]));
        assert_eq!(listed["volumes"][0]["file_system"], name);
        let error = fail_with(undercroft(&repo).args(["ls", "vm@latest:root/"]), 1);
        assert!(error.contains(name) && error.contains(" mount "), "{error}");
    }
}

/// Sound partitions pass; bits of a bitmap and a lost chunk do not.
#[test]
fn a_test_restore_says_what_is_sound_and_what_is_not() {
    let dir = workspace();
    let [tree, repo, image, ext, fat, scratch] =
        ["tree", "repo", "disk.raw", "ext.img", "fat.img", "scratch"]
            .map(|name| dir.path().join(name));
    fs::create_dir_all(tree.join("dir")).expect("a directory");
    fs::create_dir(&scratch).expect("a directory");
    for number in 0..50 {
        fs::write(tree.join(format!("dir/{number}")), noise(number, 20_000)).expect("a file");
    }
    ext_image(&ext, &tree, "12M", &["-t", "ext4"]);
    fat_image(&fat, &tree, "4096");
    init(&repo);
    let script = "label: gpt\nstart=1MiB,size=4MiB,type=U\nstart=8MiB,size=12MiB,type=L\n";
    let test = |code: i32| {
        let mut command = undercroft(&repo);
        let output = command
            .args(["test-restore", "vm", "--json", "--scratch"])
            .arg(&scratch)
            .output();
        let output = output.expect("the binary starts");
        assert_eq!(
            output.status.code(),
            Some(code),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            fs::read_dir(&scratch)
                .expect("a directory")
                .next()
                .is_none()
        );
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    partitioned(&image, 24 * MIB, script, &[(MIB, &fat), (8 * MIB, &ext)]);
    backup(&repo, &image);
    let report = test(0);
    let volumes = &report["disks"][0]["volumes"];
    assert_eq!(report["passed"], true);
    let checks = [0, 1].map(|place| {
        (
            volumes[place]["checked_by"].as_str(),
            volumes[place]["files"].as_u64(),
        )
    });
    assert_eq!(
        checks,
        [(Some("fsck.vfat"), Some(50)), (Some("e2fsck"), Some(50))]
    );

    let mark = |at: u64, change: fn(u8) -> u8| {
        let disk = File::options()
            .read(true)
            .write(true)
            .open(&image)
            .expect("the disk");
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).expect("a byte");
        disk.write_all_at(&[change(byte[0])], at).expect("a byte");
    };
    partitioned(&image, 24 * MIB, script, &[(8 * MIB, &ext)]);
    let bitmap = succeed(tool("dumpe2fs").arg(&ext)).stdout;
    let bitmap = String::from_utf8_lossy(&bitmap).into_owned();
    let block = bitmap.split("Block bitmap at ").nth(1).expect("a bitmap");
    let block: u64 = block
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .expect("a number");
    let size = bitmap
        .lines()
        .find_map(|line| line.strip_prefix("Block size:"))
        .expect("a size");
    let size: u64 = size.trim().parse().expect("a number");
    mark(8 * MIB + block * size + 3, |byte| !byte);
    backup(&repo, &image);
    let report = test(3);
    let problems = report["disks"][0]["volumes"][1]["problems"]
        .as_array()
        .expect("problems");
    assert!(
        problems
            .iter()
            .any(|problem| problem.as_str().unwrap().starts_with("e2fsck")),
        "{problems:?}"
    );

    flip(&largest_data_pack(&repo), 300_000, 2);
    assert_eq!(test(3)["passed"], false);
}

struct Bytes(Vec<u8>);

impl ReadDisk for Bytes {
    fn size(&self) -> DiskLength {
        DiskLength::new(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let found = self
            .0
            .get(offset as usize..)
            .and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(found.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn allocation(&self, _: DiskRange, _: usize) -> std::io::Result<Vec<Allocation>> {
        unreachable!("readers of files ask for bytes alone")
    }
}

/// Lists all, reads at most 64 MiB of files; how many files were read to their ends.
fn read_all(image: Vec<u8>) -> usize {
    let disk: Arc<dyn ReadDisk> = Arc::new(Bytes(image));
    let Ok(Some(kind)) = partitions::detect(&*disk) else {
        return 0;
    };
    let Ok(tree) = files::open(disk, kind) else {
        return 0;
    };
    let (mut whole, mut left) = (0, 64_usize << 20);
    let mut buffer = vec![0; 1 << 16];
    // That enough was read is an end, too.
    let _ = walk(&*tree, &FilePath::root(), &mut |step| {
        if let Step::Entry(directory, entry) = step
            && entry
                .info
                .as_ref()
                .is_ok_and(|info| info.kind == FileKind::File)
            && let Ok(mut file) = tree.open(&directory.join(&entry.name))
        {
            while let Ok(read) = file.read(&mut buffer) {
                if read == 0 {
                    whole += 1;
                    break;
                }
                left = left.checked_sub(read).ok_or(())?;
            }
        }
        Ok::<_, ()>(Descend::Yes)
    });
    whole
}

/// Bytes changed here and there where something is. The readers are crates of others: that of FAT may panic, and is
/// run where that does no harm; that of ext does not.
#[test]
fn damaged_file_systems_end_in_errors() {
    let dir = workspace();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("dir/sub")).expect("directories");
    for number in 0..40 {
        fs::write(
            tree.join(format!("dir/some name {number}")),
            noise(number, 3000),
        )
        .expect("a file");
    }
    for (kind, may_panic) in [
        ("ext4", false),
        ("plain", false),
        ("ext2", false),
        ("fat", true),
    ] {
        let image = dir.path().join(kind);
        match kind {
            "fat" => fat_image(&image, &tree, "2048"),
            "plain" => ext_image(&image, &tree, "2M", &["-t", "ext4", "-O", "^metadata_csum"]),
            kind => ext_image(&image, &tree, "2M", &["-t", kind]),
        }
        let clean = fs::read(&image).expect("an image");
        assert_eq!(read_all(clean.clone()), 40, "{kind}");
        let blocks = clean
            .chunks(64)
            .enumerate()
            .filter(|(_, block)| block.iter().any(|byte| *byte != 0));
        let used: Vec<usize> = blocks
            .map(|(number, _)| number * 64)
            .filter(|at| *at < 400 << 10)
            .collect();
        for seed in 0..250 {
            let mut random = Random(seed);
            let mut image = clean.clone();
            for _ in 0..1 + random.below(8) {
                let at = used[random.below(used.len() as u64) as usize] + random.below(60) as usize;
                match random.below(3) {
                    0 => image[at] ^= 1 << random.below(8),
                    1 => image[at] = random.next() as u8,
                    _ => image[at..at + 4].fill(0xff),
                }
            }
            let reader = std::thread::Builder::new()
                .stack_size(16 << 20)
                .spawn(move || read_all(image));
            let ended = reader.expect("a thread").join();
            assert!(may_panic || ended.is_ok(), "{kind}, seed {seed}");
        }
    }
}
