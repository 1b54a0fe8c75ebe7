//! One flipped bit anywhere is found; what it affects is said; the rest restores; repair heals.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use undercroft_format::pack::{PackKind, RECORD_HEADER_LEN};

use support::packs::{flip, largest_data_pack, packs_of};
use support::{
    Image, assert_restores, copy_tree, fail_with, files_below, json, succeed, undercroft, workspace,
};

fn repository(dir: &Path, encrypted: bool) -> (PathBuf, Image) {
    let repo = dir.join("repo");
    let mut init = undercroft(&repo);
    init.args(["init", "--segment-size", "1M", "--pack-size", "1M"]);
    if encrypted {
        init.arg("--encrypt").env("UNDERCROFT_PASSPHRASE", "horse");
    }
    succeed(&mut init);
    let image = Image::new(dir.join("disk.raw"), 3, (5 << 20) + 777);
    let mut backup = undercroft(&repo);
    backup
        .args(["backup", "--vm", "vm", "--metadata"])
        .arg(dir.join("disk.raw").with_file_name("ova.xml"));
    std::fs::write(dir.join("ova.xml"), "<vm/>").expect("metadata");
    succeed(
        backup
            .env("UNDERCROFT_PASSPHRASE", "horse")
            .arg(&image.path),
    );
    succeed(
        undercroft(&repo)
            .args(["protect", "vm@latest"])
            .env("UNDERCROFT_PASSPHRASE", "horse"),
    );
    (repo, image)
}

/// Every file, several places in each.
#[test]
fn a_flipped_bit_in_any_file_is_found_by_verify() {
    for encrypted in [false, true] {
        let dir = workspace();
        let (repo, _) = repository(dir.path(), encrypted);
        succeed(undercroft(&repo).arg("verify"));
        let victim = dir.path().join("victim");
        let mut tried = 0;
        for file in files_below(&repo) {
            let name = file.strip_prefix(&repo).expect("below").to_owned();
            let len = std::fs::metadata(&file).expect("its length").len() as usize;
            let places = [
                0,
                len / 3,
                len / 2,
                len.saturating_sub(70),
                len.saturating_sub(1),
            ];
            for (n, place) in places
                .into_iter()
                .enumerate()
                .filter(|(_, place)| *place < len)
            {
                let _ = std::fs::remove_dir_all(&victim);
                copy_tree(&repo, &victim);
                flip(&victim.join(&name), place, (n as u8 * 3) % 8);
                let output = undercroft(&victim)
                    .arg("verify")
                    .output()
                    .expect("it starts");
                let text = String::from_utf8_lossy(&output.stderr).into_owned()
                    + &String::from_utf8_lossy(&output.stdout);
                // A damaged config cannot even be opened; everything else is found by the scrub.
                let expected: &[i32] = if name == Path::new("config") {
                    &[1, 3]
                } else {
                    &[3]
                };
                let code = output.status.code().expect("an exit code");
                assert!(
                    expected.contains(&code),
                    "{}, byte {place}: {code}\n{text}",
                    name.display()
                );
                tried += 1;
            }
        }
        assert!(tried > 40, "{tried}");
    }
}

#[test]
fn damage_is_located_worked_around_and_healed() {
    let dir = workspace();
    let (repo, mut image) = repository(dir.path(), false);
    flip(&largest_data_pack(&repo), 300_000, 2);

    let output = undercroft(&repo)
        .args(["--json", "verify"])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let affected = report["affected"].as_array().expect("an array").clone();
    assert!(!affected.is_empty(), "{report}");

    let target = dir.path().join("restored.raw");
    let text = fail_with(
        undercroft(&repo)
            .args(["restore", "vm@latest", "--to"])
            .arg(&target),
        1,
    );
    assert!(text.contains("allow-damage"), "{text}");
    assert!(!target.exists(), "a failed restore leaves nothing");

    let mut restore = undercroft(&repo);
    restore
        .args(["restore", "vm@latest", "--allow-damage", "--to"])
        .arg(&target);
    fail_with(&mut restore, 3);
    let restored = std::fs::read(&target).expect("the restored file");
    let mut damaged_bytes = 0;
    for (place, (found, expected)) in restored.iter().zip(&image.bytes).enumerate() {
        let is_affected = affected.iter().any(|range| {
            let bound = |name: &str| range["range"][name].as_u64().expect("a number") as usize;
            (bound("start")..bound("end")).contains(&place)
        });
        if is_affected {
            damaged_bytes += 1;
            assert_eq!(*found, 0, "byte {place}: a damaged range reads as zero");
        } else {
            assert_eq!(found, expected, "byte {place} is not affected");
        }
    }
    assert!(damaged_bytes <= 256 << 10, "{damaged_bytes}");

    fail_with(undercroft(&repo).arg("repair"), 3);
    succeed(undercroft(&repo).arg("rebuild-index"));
    // An increment on the incomplete snapshot becomes a full read, which sends the lost chunk again.
    let bitmap = dir.path().join("changed");
    std::fs::write(&bitmap, image.change(9, &[1])).expect("a bitmap");
    let mut backup = undercroft(&repo);
    backup
        .args([
            "backup",
            "--vm",
            "vm",
            "--parent",
            "vm@latest",
            "--changed-blocks",
        ])
        .arg(&bitmap);
    let report = json(backup.arg(&image.path));
    assert!(
        report.to_string().contains("full:parent-damaged"),
        "{report}"
    );
    assert_restores(&repo, "vm@latest", &image.bytes, dir.path());
    let text = String::from_utf8(succeed(undercroft(&repo).arg("repair")).stdout).expect("text");
    assert!(!text.is_empty());
    succeed(undercroft(&repo).args(["verify", "--deep"]));
}

#[test]
fn a_lost_index_is_remade_and_a_lost_pack_is_named() {
    let dir = workspace();
    let (repo, image) = repository(dir.path(), false);
    std::fs::remove_dir_all(repo.join("index")).expect("it goes");
    assert_restores(&repo, "vm@latest", &image.bytes, dir.path());
    succeed(undercroft(&repo).arg("rebuild-index"));
    assert_restores(&repo, "vm@latest", &image.bytes, dir.path());
    std::fs::remove_file(largest_data_pack(&repo)).expect("it goes");
    fail_with(undercroft(&repo).args(["verify", "--deep"]), 3);
    let target = dir.path().join("restored.raw");
    fail_with(
        undercroft(&repo)
            .args(["restore", "vm@latest", "--to"])
            .arg(&target),
        1,
    );
}

/// An increment of `image` on the newest snapshot of `vm`, in `repo`.
fn increment(repo: &Path, image: &Image, bitmap: &Path) -> Command {
    let mut backup = undercroft(repo);
    backup
        .args(["backup", "--vm", "vm", "--parent", "vm@latest"])
        .arg("--changed-blocks")
        .arg(bitmap)
        .arg(&image.path);
    backup
}

#[test]
fn a_lost_pack_is_found_by_verify_and_not_built_upon() {
    let dir = workspace();
    let (repo, mut image) = repository(dir.path(), false);
    let bitmap = dir.path().join("changed");
    // In another segment than the first data pack's chunks, mostly.
    std::fs::write(&bitmap, image.change(9, &[70])).expect("a bitmap");
    for kind in [PackKind::Data, PackKind::Meta] {
        for (pack, _) in packs_of(&repo, kind) {
            let name = pack.strip_prefix(&repo).expect("below");
            let victim = dir.path().join("victim");
            let lose = || {
                let _ = std::fs::remove_dir_all(&victim);
                copy_tree(&repo, &victim);
                std::fs::remove_file(victim.join(name)).expect("it goes");
            };
            lose();
            let output = undercroft(&victim).arg("verify").output().expect("it runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(3), "{text}");
            assert!(text.contains("the pack is gone"), "{text}");
            let repair = undercroft(&victim).arg("repair").output().expect("it runs");
            let text = String::from_utf8_lossy(&repair.stdout).into_owned();
            assert_eq!(repair.status.code(), Some(3), "{text}");
            assert!(!text.contains("No damage\n"), "{text}");

            // With the index as a witness, and without; right away, and after others opened it.
            for (witness, others) in [(true, false), (true, true), (false, false)] {
                lose();
                if !witness {
                    succeed(undercroft(&victim).arg("rebuild-index"));
                }
                if others {
                    let opened = undercroft(&victim)
                        .args(["protect", "vm@latest"])
                        .output()
                        .expect("it runs");
                    let text = String::from_utf8_lossy(&opened.stderr).into_owned();
                    assert!(text.contains("packs are gone"), "{text}");
                }
                let report = json(&mut increment(&victim, &image, &bitmap));
                assert!(
                    report.to_string().contains("full:parent-damaged"),
                    "{kind:?}, {witness}, {others}: {report}"
                );
                assert!(!victim.join("unchecked").exists());
                assert_restores(&victim, "vm@latest", &image.bytes, dir.path());
            }
        }
    }
}

#[test]
fn an_increment_on_damaged_maps_is_a_full_read() {
    let dir = workspace();
    let (repo, mut image) = repository(dir.path(), false);
    let bitmap = dir.path().join("changed");
    std::fs::write(&bitmap, image.change(9, &[1])).expect("a bitmap");
    let mut full_reads = 0;
    for (pack, records) in packs_of(&repo, PackKind::Meta) {
        let name = pack.strip_prefix(&repo).expect("below");
        for (position, len) in records {
            let victim = dir.path().join("victim");
            let _ = std::fs::remove_dir_all(&victim);
            copy_tree(&repo, &victim);
            flip(
                &victim.join(name),
                position + (RECORD_HEADER_LEN + len) / 2,
                3,
            );
            let report = json(&mut increment(&victim, &image, &bitmap));
            if report.to_string().contains("full:parent-damaged") {
                full_reads += 1;
                assert_restores(&victim, "vm@latest", &image.bytes, dir.path());
            }
        }
    }
    assert!(
        full_reads >= 2,
        "of the first map and of the root: {full_reads}"
    );
}

#[test]
fn a_damaged_mark_of_protection_protects_and_is_mended() {
    let dir = workspace();
    let (repo, _) = repository(dir.path(), false);
    let marker = || {
        let files = files_below(&repo.join("snapshots")).into_iter();
        let is_marker = |file: &PathBuf| file.extension().is_some_and(|ext| ext == "protected");
        files.clone().find(is_marker).expect("a marker")
    };
    for mend in [&["repair"][..], &["protect", "vm@latest"]] {
        flip(&marker(), 20, 1);
        fail_with(undercroft(&repo).arg("verify"), 3);
        fail_with(undercroft(&repo).args(["forget", "vm@latest"]), 1);
        succeed(undercroft(&repo).args(mend));
        succeed(undercroft(&repo).arg("verify"));
        fail_with(undercroft(&repo).args(["forget", "vm@latest"]), 1);
    }
}

#[test]
fn what_is_not_ours_is_left_alone_and_a_stale_session_is_checked() {
    let dir = workspace();
    let (repo, image) = repository(dir.path(), false);
    let stray = repo.join("packs/zz/00112233445566778899aabbccddeeff");
    std::fs::create_dir_all(stray.parent().expect("it has one")).expect("a directory");
    std::fs::write(&stray, "not a pack").expect("a file");
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "vm"])
            .arg(&image.path),
    );
    succeed(undercroft(&repo).arg("gc"));
    succeed(undercroft(&repo).arg("repair"));
    succeed(undercroft(&repo).arg("verify"));
    assert!(stray.exists());
    let id = "00112233445566778899aabbccddeeff";
    let session = repo.join("sessions").join(id);
    std::fs::write(&session, id).expect("a file");
    succeed(undercroft(&repo).arg("verify"));
    flip(&session, 5, 0);
    fail_with(undercroft(&repo).arg("verify"), 3);
}

#[test]
fn a_fresh_repository_has_nothing_to_warn_of() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).arg("init"));
    for command in ["stats", "verify", "snapshots"] {
        let output = succeed(undercroft(&repo).arg(command));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
    }
}

/// A pack that cannot be opened is not a damaged one: repair, above all, keeps its hands off.
#[test]
fn a_pack_that_cannot_be_opened_is_no_damage() {
    let dir = workspace();
    let repo = dir.path().join("repo");
    succeed(undercroft(&repo).args(["init", "--pack-size", "1M"]));
    let image = Image::new(dir.path().join("disk.raw"), 4, 12 << 20);
    succeed(
        undercroft(&repo)
            .args(["backup", "--vm", "vm"])
            .arg(&image.path),
    );
    // With few descriptors some packs can be opened, and some cannot.
    for limit in (12..=40).step_by(4) {
        let output = Command::new("bash")
            .arg("-c")
            .arg(format!("ulimit -n {limit}; exec \"$@\""))
            .args(["bash", env!("CARGO_BIN_EXE_undercroft"), "--repo"])
            .arg(&repo)
            .arg("repair")
            .output()
            .expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "with {limit} descriptors: {text}"
        );
    }
    succeed(undercroft(&repo).args(["verify", "--deep"]));
}
