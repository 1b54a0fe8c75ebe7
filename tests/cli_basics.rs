//! The program from the outside: what each command prints, its exit codes, its errors.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use insta::assert_snapshot;
use serde_json::Value;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A directory with a repository and what a test puts beside it.
struct Bench {
    dir: TempDir,
}

/// How a run ended.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { dir }
    }

    /// With a repository and two snapshots of `web01` in it.
    fn with_snapshots() -> Self {
        let bench = Self::new();
        bench.ok(&["init"]);
        bench.write("root.raw", &noise(1, 2 * MIB));
        bench.write("data.raw", &noise(2, MIB));
        bench.write("ova.xml", b"<ova/>");
        bench.ok(&[
            "backup",
            "--vm",
            "web01",
            "--tag",
            "first",
            "--metadata",
            "ova.xml",
            "root.raw",
            "data.raw",
        ]);
        let mut changed = noise(1, 2 * MIB);
        changed[MIB..MIB + 4096].fill(7);
        bench.write("root.raw", &changed);
        bench.ok(&[
            "backup",
            "--vm",
            "web01",
            "--parent",
            "web01@latest",
            "root.raw",
            "data.raw",
        ]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undercroft"));
        command
            .current_dir(self.dir.path())
            .env("UNDERCROFT_REPO", "repo")
            .env_remove("UNDERCROFT_PASSPHRASE")
            .env("TZ", "UTC")
            .env("COLUMNS", "100")
            .stdin(Stdio::null())
            .args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        self.command(args).output().unwrap().into()
    }

    fn ok(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_eq!(run.code, 0, "{args:?}: {}{}", run.stdout, run.stderr);
        run.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// The exit code and the error, with what differs from run to run replaced.
    fn error(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert_ne!(run.code, 0, "{args:?}: {}", run.stdout);
        assert_eq!(run.stdout, "", "{args:?}");
        let text = run
            .stderr
            .replace(&*self.dir.path().to_string_lossy(), "[DIR]");
        format!("{}: {}", run.code, without_ids(&text))
    }

    fn ids(&self) -> Vec<String> {
        let listed = self.json(&["snapshots"]);
        let id = |snapshot: &Value| snapshot["id"].as_str().unwrap().to_owned();
        listed.as_array().unwrap().iter().map(id).collect()
    }

    /// A backup that reads its standard input, and so lasts as long as the test likes.
    fn endless_backup(&self) -> Child {
        let mut child = self
            .command(&["backup", "--vm", "slow", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.as_mut().unwrap();
        stdin.write_all(&noise(9, MIB)).unwrap();
        self.wait_for("an owner", || {
            fs::read_to_string(self.path("repo/lock"))
                .is_ok_and(|text| text.contains("undercroft backup"))
        });
        child
    }

    fn wait_for(&self, what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..500 {
            if holds() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        panic!("waited in vain for {what}");
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Bytes that do not compress and repeat nowhere.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Hexadecimal words of 8 and 32 digits become `[ID]`.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_hexdigit() {
            word.push(c);
            continue;
        }
        let is_id = [8, 32].contains(&word.len()) && word.chars().any(|c| c.is_ascii_digit());
        out += if is_id { "[ID]" } else { &word };
        word.clear();
        out.push(c);
    }
    out.pop();
    out
}

fn interrupt(child: &Child) {
    // The shell's own: a bare system has no program of that name.
    let kill = format!("kill -INT {}", child.id());
    let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn help_lists_the_commands() {
    let help = Bench::new().ok(&["-h"]);
    let commands = help.split("\n\n").nth(2).unwrap();
    assert_snapshot!(commands, @r#"
Commands:
  init           Create a repository
  backup         Back up the disks of a virtual machine as one snapshot
  snapshots      List snapshots, oldest first
  show           Show a snapshot: its disks, what they cost, and why
  diff           List the ranges in which the disks of two snapshots differ
  restore        Restore disks of a snapshot
  export         Export disks of a snapshot over NBD
  mount          Show snapshots as files
  ls             List files inside a disk, its partitions, or the disks of a snapshot
  cp             Copy files out of a disk
  test-restore   Restore the newest snapshot of a VM for a test, and check what is in it
  verify         Check that what is stored is what was written
  repair         Set damaged data aside, so that the next backup sends it again
  rebuild-index  Make the index anew from the packs alone
  forget         Remove snapshots
  protect        Protect a snapshot from forget and prune
  lock           Lock a snapshot: nobody can forget it before the lock ends
  prune          Remove snapshots that a retention policy does not keep
  gc             Give back the space of data that no snapshot refers to
  stats          Show figures of the repository
  enroll         Get a certificate from a repository server or a proxy
  repository     Run a repository server, look at it, and say who may use it
  proxy          Run a proxy, look at it and its tasks, and say who may use it
  bench          Measure each stage of the pipeline, and the whole, on this machine
  completions    Print completions for a shell
  man            Write manual pages, one per command
  help           Print this message or the help of the given subcommand(s)
"#);
}

#[test]
fn every_command_has_help() {
    let bench = Bench::new();
    for command in [
        "init",
        "backup",
        "snapshots",
        "show",
        "diff",
        "restore",
        "export",
        "mount",
        "ls",
        "cp",
        "test-restore",
        "verify",
        "repair",
        "rebuild-index",
        "forget",
        "protect",
        "lock",
        "prune",
        "gc",
        "stats",
        "repository",
        "proxy",
        "bench",
        "completions",
        "man",
    ] {
        let help = bench.ok(&[command, "--help"]);
        assert!(
            help.contains(&format!("Usage: undercroft {command}")),
            "{help}"
        );
        assert!(help.contains("--repo <REPO>"), "{help}");
        let json = ["completions"].contains(&command) || help.contains("JSON:");
        assert!(json, "{command} does not say what its JSON holds");
    }
}

#[test]
fn usage_errors_end_with_code_2() {
    let bench = Bench::with_snapshots();
    for args in [
        &["frobnicate"][..],
        &["backup", "root.raw"],
        &["backup", "--vm", "", "root.raw"],
        &["backup", "--vm", "x"],
        &["backup", "--vm", "x", "-", "-"],
        &["backup", "--vm", "x", "--disk", "root.raw"],
        &["backup", "--vm", "x", "--disk", "../a=root.raw"],
        &["backup", "--vm", "x", "--lineage", "root", "root.raw"],
        &[
            "backup",
            "--vm",
            "x",
            "--lineage",
            "other:uuid=1",
            "root.raw",
        ],
        &["backup", "--vm", "x", "--changed-blocks", "ova.xml", "-"],
        &["show", "web01@noon"],
        &["restore", "web01@latest"],
        &["restore", "web01@latest", "--to", "one.raw"],
        &["prune"],
        &["prune", "--keep-within", "3x"],
        &["gc", "--rewrite-below", "101"],
        &["init", "--segment-size", "3M"],
        &["init", "--pack-size", "65M"],
        &["init", "--chunker", "rabin"],
        &["init", "--passphrase-file", "ova.xml"],
        &["snapshots", "--progress", "loud"],
        &["--repo", "quic://proxy:7000", "snapshots"],
        &["--repo", "", "snapshots"],
    ] {
        let run = bench.run(args);
        assert_eq!(run.code, 2, "{args:?}: {}{}", run.stdout, run.stderr);
        assert_ne!(run.stderr, "", "{args:?}");
    }
    assert!(!bench.path("one.raw").exists());
}

#[test]
fn repositories_that_cannot_be_used_say_why() {
    let bench = Bench::new();
    bench.write("file.txt", b"x");
    let no_repo = bench
        .command(&["snapshots"])
        .env_remove("UNDERCROFT_REPO")
        .output();
    let no_repo = Run::from(no_repo.unwrap());
    assert_eq!(no_repo.code, 2);
    assert_snapshot!(no_repo.stderr, @r#"
Error: no repository was given
Hint: name it by --repo DIR, or once for all: export UNDERCROFT_REPO=DIR
"#);
    assert_snapshot!(bench.error(&["snapshots"]), @r#"
1: Error: repo is not an Undercroft repository: it has no config
Hint: create one: `undercroft init`
Hint: or name another one by --repo DIR or UNDERCROFT_REPO
"#);
    assert_snapshot!(bench.error(&["--repo", "s3://bucket/x", "snapshots"]), @r#"
2: Error: repositories at s3:// are not supported by this version: give a directory
Hint: a directory is named like this: --repo /backup/repository
"#);
    assert_snapshot!(bench.error(&["--repo", ".", "init"]), @r#"
1: Error: . is not empty and is not an Undercroft repository
Hint: name an empty or a new directory by --repo DIR
"#);
    bench.ok(&["init"]);
    assert_snapshot!(bench.error(&["init"]), @r#"
1: Error: repo is already an Undercroft repository
Hint: use it as it is: `undercroft snapshots`; or name another directory by --repo DIR
"#);
}

#[test]
fn a_newer_repository_is_told_from_a_damaged_one() {
    let bench = Bench::new();
    bench.ok(&["init"]);
    let mut config = bench.read("repo/config");
    config[8..12].copy_from_slice(&2_u32.to_le_bytes());
    bench.write("repo/config", &config);
    assert_snapshot!(bench.error(&["snapshots"]), @r#"
1: Error: opening the repository repo
Caused by: config is damaged
Caused by: repository config, byte 130: checksum mismatch: the bytes are damaged or belong somewhere else
Hint: nothing can be read without the config: put back a copy of this file, which never changes
"#);
    let covered = config.len() - 32;
    let hash = *blake3::hash(&config[..covered]).as_bytes();
    config[covered..].copy_from_slice(&hash);
    bench.write("repo/config", &config);
    assert_snapshot!(bench.error(&["snapshots"]), @r#"
1: Error: the repository repo was made by a newer version of undercroft
Caused by: repository config, byte 130: format version 2 (this program reads up to 1): upgrade undercroft
Hint: use the version of undercroft that wrote it, or a newer one
"#);
}

#[test]
fn snapshots_that_do_not_exist_say_what_to_do() {
    let bench = Bench::with_snapshots();
    assert_snapshot!(bench.error(&["show", "0123"]), @r#"
1: Error: snapshot '0123' not found: no id begins like that and no VM of that name has snapshots; list the snapshots to see what there is
Hint: see what there is: `undercroft snapshots`
"#);
    assert_snapshot!(bench.error(&["show", "web02@latest"]), @r#"
1: Error: snapshot 'web02@latest' not found: no id begins like that and no VM of that name has snapshots; VMs with similar names: 'web01'
Hint: see what there is: `undercroft snapshots`
"#);
    assert_snapshot!(bench.error(&["show", "web01"]), @r#"1: Error: snapshot 'web01' not found: it is the name of a VM, write 'web01@latest' for its newest snapshot or 'web01@TIME'"#);
    assert_snapshot!(bench.error(&["show", "web01@latest-7"]).split(", the oldest").next().unwrap(), @r#"1: Error: VM 'web01' has no snapshot 'latest-7': it has 2"#);
    assert_snapshot!(
        bench.error(&["backup", "--vm", "web01", "--parent", "mail@latest", "root.raw"]),
        @r#"
1: Error: the parent cannot be had
Caused by: snapshot 'mail@latest' not found: no id begins like that and no VM of that name has snapshots; list the snapshots to see what there is
Hint: without --parent the disks are read in full, and only what is new is stored
Hint: see what there is: `undercroft snapshots`
"#
    );
    assert_snapshot!(bench.error(&["snapshots", "--vm", "mail"]), @r#"
1: Error: no snapshot of VM mail was found
Hint: see what there is: `undercroft snapshots`
"#);
}

#[test]
fn sources_that_cannot_be_backed_up_say_why() {
    let bench = Bench::with_snapshots();
    let backup = |args: &[&str]| bench.error(&[&["backup", "--vm", "x"], args].concat());
    assert_snapshot!(backup(&["missing.raw"]), @r#"
1: Error: opening the source missing.raw
Caused by: No such file or directory (os error 2)
Hint: check the path; a relative one begins at the current directory
"#);
    assert_snapshot!(backup(&["."]), @r#"
1: Error: the source . is a directory: a disk is a file or a block device
Hint: name the disk's file, or pipe an archive in: tar c DIR | undercroft backup --vm NAME -
"#);
    assert_snapshot!(backup(&["repo/config"]), @r#"
1: Error: the source repo/config lies inside the repository
Hint: a repository cannot back up itself: copy its directory elsewhere instead
"#);
    assert_snapshot!(backup(&["--disk", "a=root.raw", "--disk", "a=data.raw"]), @r#"
2: Error: two disks are labelled a
Hint: give each disk a label of its own
"#);
    assert_snapshot!(backup(&["root.raw", "--changed-blocks", "swap=ova.xml"]), @r#"
2: Error: --changed-blocks: no disk is labelled "swap"
Hint: the disks are labelled: root
"#);
    assert_snapshot!(backup(&["root.raw", "data.raw", "--changed-blocks", "ova.xml"]), @r#"
2: Error: --changed-blocks ova.xml: there are several disks, say which one: LABEL=ova.xml
Hint: the disks are labelled: root, data
"#);
    assert_snapshot!(backup(&["root.raw", "--changed-blocks", "missing.cbt"]), @r#"
1: Error: reading the changed blocks missing.cbt
Caused by: No such file or directory (os error 2)
Hint: check the path; a relative one begins at the current directory
"#);
    assert_eq!(bench.ids().len(), 2, "none of them made a snapshot");
}

#[test]
fn targets_that_cannot_be_written_say_why() {
    let bench = Bench::with_snapshots();
    let restore = |args: &[&str]| bench.error(&[&["restore", "web01@latest"], args].concat());
    bench.write("there.raw", b"old");
    assert_snapshot!(restore(&["--disk", "swap", "--to", "x.raw"]), @r#"
1: Error: snapshot [ID] has no disk "swap"
Hint: its disks are: root, data
"#);
    assert_snapshot!(restore(&["--to", "x.raw"]), @r#"
2: Error: snapshot [ID] has 2 disks (root, data), and the target takes one
Hint: choose one: --disk LABEL; or restore all into a directory: --to DIR/
"#);
    assert_snapshot!(restore(&["--disk", "root", "--to", "there.raw"]), @r#"
1: Error: the target there.raw exists
Hint: overwrite it: --force; or write only what differs: --in-place
"#);
    assert_snapshot!(restore(&["--disk", "root", "--to", "repo/packs/x"]), @r#"
1: Error: the target repo/packs lies inside the repository
Hint: restore to another directory
"#);
    fs::create_dir_all(bench.path("out/root.raw")).unwrap();
    assert_snapshot!(restore(&["--to", "out", "--force"]), @r#"
1: Error: the target out/root.raw is a directory
Hint: move it away, or choose another target
"#);
    assert_eq!(bench.read("there.raw"), b"old");
    assert!(!bench.path("x.raw").exists());
}

#[test]
fn unsuitable_targets_are_refused_before_anything_is_written() {
    let bench = Bench::with_snapshots();
    let disk = ["restore", "web01@latest", "--disk", "data"];
    let restore = |args: &[&str]| bench.error(&[&disk, args].concat());
    assert_eq!(bench.run(&[&disk[..], &["--to", ""]].concat()).code, 2);
    assert_snapshot!(restore(&["--to", "-", "--in-place"]), @r#"
2: Error: standard output is a stream: it cannot be written in place
Hint: leave out --in-place
"#);
    std::os::unix::fs::symlink("nowhere.raw", bench.path("link.raw")).unwrap();
    assert_snapshot!(restore(&["--to", "link.raw", "--force"]), @r#"
1: Error: the target link.raw is a link that leads nowhere
Hint: remove the link, or make what it leads to
"#);
    assert_snapshot!(restore(&["--to", "no/such/x.raw"]), @r#"
1: Error: the target no/such/x.raw cannot be made: there is no directory no/such
Hint: make it: mkdir -p no/such
"#);
    bench.write("long.raw", &noise(3, 3 * MIB));
    assert_snapshot!(restore(&["--to", "long.raw", "--in-place"]), @r#"
1: Error: the target long.raw is longer than disk data: 3.00 MiB against 1.00 MiB
Hint: is it the right file? To cut what is too much: --in-place --force
"#);
    assert!(bench.read("long.raw") == noise(3, 3 * MIB));
}

#[test]
fn metadata_never_takes_the_place_of_a_disk() {
    let bench = Bench::with_snapshots();
    fs::create_dir(bench.path("md")).unwrap();
    bench.write("md/root.raw", b"<ova/>");
    let clash = [
        "backup",
        "--vm",
        "x",
        "--metadata",
        "md/root.raw",
        "root.raw",
    ];
    assert_snapshot!(bench.error(&clash), @r#"
2: Error: the metadata md/root.raw would be restored under the name of disk root
Hint: rename the metadata's file, or give the disk another label: --disk LABEL=SOURCE
"#);
    // A label of the same name without the suffix is another file.
    bench.write("md/root", b"<ova/>");
    let apart = ["backup", "--vm", "x", "--metadata", "md/root", "root.raw"];
    bench.ok(&apart);
    bench.ok(&["restore", "x@latest", "--to", "out/"]);
    assert!(bench.read("out/root.raw") == bench.read("root.raw"));
    assert_eq!(bench.read("out/root"), b"<ova/>");
}

#[test]
fn metadata_is_its_owners_and_follows_no_planted_link() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::with_snapshots();
    fs::create_dir(bench.path("out")).unwrap();
    bench.write("victim", b"precious");
    let planted = bench.path("out/ova.xml.undercroft-partial");
    std::os::unix::fs::symlink("../victim", planted).unwrap();
    bench.ok(&["restore", "web01@latest-1", "--to", "out/"]);
    assert_eq!(bench.read("victim"), b"precious");
    assert_eq!(bench.read("out/ova.xml"), b"<ova/>");
    let mode = fs::metadata(bench.path("out/ova.xml"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn disks_with_the_longest_labels_can_be_restored() {
    let bench = Bench::with_snapshots();
    let label = "x".repeat(251);
    let disk = format!("{label}=data.raw");
    bench.ok(&["backup", "--vm", "long", "--disk", &disk]);
    bench.ok(&["restore", "long@latest", "--to", "out/"]);
    assert!(bench.read(&format!("out/{label}.raw")) == bench.read("data.raw"));
    let longer = format!("x{disk}");
    assert_eq!(
        bench
            .run(&["backup", "--vm", "long", "--disk", &longer])
            .code,
        2
    );
}

#[test]
fn a_repository_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::with_snapshots();
    bench.ok(&["rebuild-index"]);
    bench.ok(&["protect", "web01@latest"]);
    let mut dirs = vec![bench.path("repo")];
    while let Some(dir) = dirs.pop() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700, "{}", dir.display());
        // RocksDB makes its own files; nobody else enters their directory.
        if dir.ends_with("index") {
            continue;
        }
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
            }
        }
    }
}

#[test]
fn disks_come_back_as_they_were() {
    let bench = Bench::with_snapshots();
    let (root, data) = (bench.read("root.raw"), bench.read("data.raw"));
    bench.ok(&["restore", "web01@latest", "--to", "new/"]);
    assert!(bench.read("new/root.raw") == root, "root");
    assert!(bench.read("new/data.raw") == data, "data");
    let names = |dir: &str| {
        let entries = fs::read_dir(bench.path(dir)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("new"), ["data.raw", "root.raw"]);
    bench.ok(&["restore", "web01@latest-1", "--to", "old/"]);
    assert_eq!(names("old"), ["data.raw", "ova.xml", "root.raw"]);
    assert_eq!(bench.read("old/ova.xml"), b"<ova/>");
    assert!(bench.read("old/root.raw") == noise(1, 2 * MIB), "old root");
    // Over what is there, shorter and longer, whole and in place.
    let over = [
        "restore",
        "web01@latest",
        "--disk",
        "root",
        "--to",
        "there.raw",
    ];
    for (options, len) in [
        (&["--force"][..], 10),
        (&["--force"], 3 * MIB),
        (&["--in-place"], 10),
        (&["--in-place", "--force"], 3 * MIB),
    ] {
        bench.write("there.raw", &noise(3, len));
        bench.ok(&[&over, options].concat());
        assert!(
            bench.read("there.raw") == root,
            "{options:?} over {len} bytes"
        );
    }
    bench.ok(&[
        "restore",
        "web01@latest-1",
        "--disk",
        "root",
        "--to",
        "there.raw",
        "--in-place",
    ]);
    assert!(bench.read("there.raw") == noise(1, 2 * MIB), "in place");
    let output = bench
        .command(&["restore", "web01@latest", "--disk", "data", "--to", "-"])
        .output()
        .unwrap();
    assert!(output.stdout == data, "stdout");
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("Restored")
    );
}

#[test]
fn restored_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::with_snapshots();
    let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().permissions().mode() & 0o777;
    bench.ok(&[
        "restore",
        "web01@latest",
        "--disk",
        "root",
        "--to",
        "new.raw",
    ]);
    assert_eq!(mode("new.raw"), 0o600);
    let shared = fs::Permissions::from_mode(0o640);
    fs::set_permissions(bench.path("new.raw"), shared).unwrap();
    bench.ok(&[
        "restore",
        "web01@latest",
        "--disk",
        "root",
        "--to",
        "new.raw",
        "--force",
    ]);
    assert_eq!(mode("new.raw"), 0o640);
}

#[test]
fn snapshots_are_listed_oldest_first() {
    let bench = Bench::with_snapshots();
    bench.ok(&["protect", "web01@latest-1"]);
    let listed = bench.json(&["snapshots"]);
    let [first, second] = &listed.as_array().unwrap()[..] else {
        panic!("{listed}");
    };
    assert_eq!(first["id"].as_str().unwrap().len(), 32);
    assert_eq!(second["parent"], first["id"]);
    // Without the Z: a whole second has no fraction, which sorts before it.
    let time = |listed: &Value| {
        let text = listed["time"].as_str().unwrap();
        text.strip_suffix('Z').unwrap().to_owned()
    };
    assert!(time(first) <= time(second));
    assert_eq!(
        (&first["vm"], &first["tags"][0]),
        (&"web01".into(), &"first".into())
    );
    assert_eq!(
        (&first["protected"], &second["protected"]),
        (&true.into(), &false.into())
    );
    assert_eq!(first["incomplete"], false);
    assert_eq!(first["metadata"]["name"], "ova.xml");
    assert_eq!(first["size"], 3 * MIB);
    let disk = &second["disks"][0];
    assert_eq!(
        (&disk["label"], &disk["size"]),
        (&"root".into(), &(2 * MIB).into())
    );
    assert_eq!(disk["reasons"][0], "full:no-changed-blocks");
    assert_eq!(disk["read_mode"], "full");
    for field in [
        "data_bytes",
        "read_bytes",
        "new_bytes",
        "stored_bytes",
        "metadata_bytes",
    ] {
        assert!(disk[field].is_u64(), "{field}");
    }
    let text = bench.ok(&["snapshots"]);
    assert!(text.starts_with("ID        TIME "), "{text}");
    assert!(text.contains("protected #first full:requested"), "{text}");
    assert!(text.ends_with("2 snapshots\n"), "{text}");
    assert_eq!(
        bench
            .json(&["snapshots", "--tag", "first"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(bench.json(&["show", "web01@latest"]), *second);
}

#[test]
fn the_time_that_is_shown_selects_the_snapshot() {
    let bench = Bench::with_snapshots();
    let listed = bench.ok(&["snapshots"]);
    let shown = listed
        .lines()
        .nth(2)
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap();
    let second = shown.strip_suffix("+00:00").unwrap();
    for time in [shown, second, &second[..16]] {
        let found = bench.json(&["show", &format!("web01@{time}")]);
        assert_eq!(found["id"], *bench.ids()[1], "{time}");
    }
}

#[test]
fn backup_reports_what_it_did() {
    let bench = Bench::with_snapshots();
    let report = bench.json(&[
        "backup",
        "--vm",
        "web01",
        "--parent",
        "web01@latest",
        "root.raw",
    ]);
    assert_eq!(report["new_bytes"], 0, "{report}");
    assert_eq!(
        report["id"].as_str(),
        bench.ids().last().map(String::as_str)
    );
    for field in ["source_percent", "cpu_percent", "repository_percent"] {
        assert!(report["waits"][field].is_f64(), "{report}");
    }
    assert!(["io_uring", "posix"].contains(&report["engine"].as_str().unwrap()));
    let text = bench.ok(&[
        "backup",
        "--vm",
        "web01",
        "--io",
        "posix",
        "--lineage",
        "root:vdi=1",
        "root.raw",
    ]);
    assert!(text.contains("slow:no-io-uring"), "{text}");
    assert!(text.contains("with posix; waited for: source "), "{text}");
    let shown = bench.json(&["show", "web01@latest"]);
    assert_eq!(shown["disks"][0]["lineage"]["vdi"], "1");
}

#[test]
fn changed_blocks_read_only_what_changed() {
    use base64::Engine;
    let bench = Bench::with_snapshots();
    // 32 bits for 2 MiB: block 3 changed.
    let bitmap = base64::engine::general_purpose::STANDARD.encode([0b0001_0000, 0, 0, 0]);
    let mut root = bench.read("root.raw");
    root[3 << 16..4 << 16].copy_from_slice(&noise(5, 1 << 16));
    bench.write("root.raw", &root);
    bench.write("root.cbt", bitmap.as_bytes());
    let report = bench.json(&[
        "backup",
        "--vm",
        "web01",
        "--parent",
        "web01@latest",
        "root.raw",
        "--changed-blocks",
        "root.cbt",
    ]);
    assert_eq!(
        report["disks"][0]["read_mode"], "changed-blocks",
        "{report}"
    );
    assert!(
        report["disks"][0]["read_bytes"].as_u64().unwrap() < MIB as u64,
        "{report}"
    );
    let differ = bench.json(&["diff", "web01@latest-1", "web01@latest", "--disk", "root"]);
    assert_eq!(differ[0]["disk"], "root");
    let covered = differ[0]["ranges"].as_array().unwrap().iter().any(|range| {
        range["start"].as_u64().unwrap() <= 3 << 16 && range["end"].as_u64().unwrap() >= 4 << 16
    });
    assert!(covered, "{differ}");
    // A bitmap that is too short is no error.
    bench.write("short.cbt", b"AA==");
    let run = bench.run(&[
        "backup",
        "--vm",
        "web01",
        "--parent",
        "web01@latest",
        "root.raw",
        "--changed-blocks",
        "root=short.cbt",
    ]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stderr
            .starts_with("Warning: disk root: its changed-block bitmap"),
        "{}",
        run.stderr
    );
    assert!(
        run.stdout.contains("full:bitmap-too-short"),
        "{}",
        run.stdout
    );
}

#[test]
fn diff_tells_machines_what_it_tells_people() {
    let bench = Bench::with_snapshots();
    bench.write("empty.raw", b"");
    bench.write("data.raw", &noise(2, 2 * MIB));
    bench.ok(&["backup", "--vm", "web01", "data.raw", "empty.raw"]);
    let differ = bench.json(&["diff", "web01@latest-1", "web01@latest"]);
    let (before, after) = (&bench.ids()[1], &bench.ids()[2]);
    let of = |label: &str| {
        let disks = differ.as_array().unwrap();
        disks.iter().find(|disk| disk["disk"] == label).unwrap()
    };
    assert_eq!(of("root")["only_in"], **before);
    assert_eq!(of("root")["size_b"], Value::Null);
    assert_eq!(of("empty")["only_in"], **after);
    assert_eq!(of("empty")["size_b"], 0);
    assert_eq!(of("data")["only_in"], Value::Null);
    assert_eq!(
        (&of("data")["size_a"], &of("data")["size_b"]),
        (&MIB.into(), &(2 * MIB).into())
    );
    assert_eq!(of("data")["ranges"][0]["end"], 2 * MIB);
    let text = bench.ok(&["diff", "web01@latest-1", "web01@latest"]);
    assert!(text.contains("(size 1.00 MiB -> 2.00 MiB)"), "{text}");
}

#[test]
fn failures_come_as_json_too() {
    let bench = Bench::with_snapshots();
    for (args, code) in [
        (&["show", "web02@latest", "--json"][..], 1),
        (&["backup", "--vm", "x", "--json"], 2),
        // What the command line does not understand.
        (&["stats", "--json", "--limit-upload", "fast"], 2),
        (&["gc", "--json", "--no-such-option"], 2),
        (&["--json", "backup"], 2),
    ] {
        let run = bench.run(args);
        assert_eq!((run.code, &*run.stdout), (code, ""), "{args:?}");
        let last: Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
        assert_eq!(last["exit_code"], code, "{last}");
        assert!(!last["error"].as_str().unwrap().is_empty(), "{last}");
        assert!(!last["hints"].as_array().unwrap().is_empty(), "{last}");
        assert!(last["causes"].is_array(), "{last}");
    }
}

#[test]
fn a_repository_that_lost_its_config_is_not_made_anew() {
    let bench = Bench::with_snapshots();
    fs::remove_file(bench.path("repo/config")).unwrap();
    for args in [&["snapshots"][..], &["init"]] {
        let text = bench.error(args);
        assert!(text.contains("its config is lost"), "{text}");
        assert!(text.contains("Hint: put back a copy"), "{text}");
        assert!(!text.contains("undercroft init"), "{text}");
    }
    assert!(!bench.path("repo/config").exists());
}

#[test]
fn verify_advises_what_mends_the_damage() {
    let bench = Bench::with_snapshots();
    bench.write("repo/lock", b"epoch x");
    let run = bench.run(&["verify"]);
    assert_eq!(run.code, 3, "{}", run.stdout);
    assert!(!run.stderr.contains("repair"), "{}", run.stderr);
    let index = fs::read_dir(bench.path("repo/index")).unwrap();
    let tables = index.map(|entry| entry.unwrap().path());
    let current = tables.into_iter().find(|path| path.ends_with("CURRENT"));
    fs::write(current.unwrap(), b"MANIFEST-9\n").unwrap();
    let run = bench.run(&["verify"]);
    assert_eq!(run.code, 3, "{}", run.stdout);
    assert!(
        run.stderr.contains("run: undercroft rebuild-index\n"),
        "{}",
        run.stderr
    );
}

#[test]
fn prune_shows_its_plan_before_it_removes() {
    let bench = Bench::with_snapshots();
    bench.ok(&["backup", "--vm", "mail", "data.raw"]);
    let plan = bench.json(&["prune", "--keep-last", "1", "--dry-run"]);
    let decisions = plan["decisions"].as_array().unwrap();
    let kept: Vec<_> = decisions
        .iter()
        .map(|decision| {
            (
                decision["vm"].as_str().unwrap(),
                decision["keep"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(kept, [("mail", true), ("web01", true), ("web01", false)]);
    assert_eq!(decisions[0]["reasons"][0], "last 1");
    assert_eq!(bench.ids().len(), 3, "a dry run removes nothing");
    let text = bench.ok(&["prune", "--keep-last", "1", "--vm", "web01", "--gc"]);
    assert!(text.contains("Pruned 1 snapshot, kept 1"), "{text}");
    assert!(text.contains("Freed "), "{text}");
    assert_eq!(bench.ids().len(), 2);
    assert_eq!(
        bench.json(&["verify"])["damage"].as_array().unwrap().len(),
        0
    );
}

#[test]
fn protected_snapshots_are_not_forgotten() {
    let bench = Bench::with_snapshots();
    let ids = bench.ids();
    bench.ok(&["protect", &ids[0]]);
    assert_snapshot!(bench.error(&["forget", &ids[1], &ids[0]]), @r#"
1: Error: snapshot [ID] is protected
Hint: lift the protection first: `undercroft protect --off [ID]`
"#);
    assert_eq!(bench.ids(), ids, "all or none");
    bench.ok(&["protect", &ids[0], "--off"]);
    bench.ok(&["forget", &ids[1], &ids[0][..8]]);
    assert!(bench.ids().is_empty());
    let report = bench.json(&["gc"]);
    assert_eq!(report["live_bytes"], 0);
    assert_eq!(report["packs"], report["packs_removed"]);
    assert_eq!(bench.json(&["stats"])["packs"], 0);
}

#[test]
fn an_encrypted_repository_needs_its_key_for_data_alone() {
    let bench = Bench::new();
    bench.write("right", b"correct horse\n");
    bench.write("wrong", b"correct house\n");
    bench.write("root.raw", &noise(1, MIB));
    assert_snapshot!(bench.error(&["init", "--encrypt"]), @r#"
1: Error: a passphrase is needed, and there is no terminal to ask on
Hint: give --passphrase-file FILE or set UNDERCROFT_PASSPHRASE
"#);
    let made = bench.json(&["init", "--encrypt", "--passphrase-file", "right"]);
    assert_eq!(made["encrypted"], true);
    bench.write(
        "recovery",
        made["recovery_key"].as_str().unwrap().as_bytes(),
    );
    let backup = ["backup", "--vm", "web01", "root.raw"];
    assert_snapshot!(bench.error(&backup), @r#"
1: Error: the repository is encrypted: a passphrase or recovery key is needed
Hint: give --passphrase-file FILE or --recovery-key-file FILE, or set UNDERCROFT_PASSPHRASE
"#);
    assert_snapshot!(bench.error(&[&backup[..], &["--passphrase-file", "wrong"]].concat()), @r#"
1: Error: the passphrase or recovery key is wrong
Hint: check for a trailing space and the keyboard layout; the recovery key that init printed opens it too: --recovery-key-file FILE
"#);
    bench.ok(&[&backup[..], &["--passphrase-file", "right"]].concat());
    bench.ok(&[&backup[..], &["--recovery-key-file", "recovery"]].concat());
    let by_variable = bench
        .command(&backup)
        .env("UNDERCROFT_PASSPHRASE", "correct horse")
        .status();
    assert!(by_variable.unwrap().success());
    for args in [
        &["snapshots"][..],
        &["show", "web01@latest"],
        &["diff", "web01@latest-1", "web01@latest"],
        &["verify"],
        &["stats"],
        &["prune", "--keep-last", "2"],
        &["forget", "web01@latest-1"],
        &["gc"],
        &["rebuild-index"],
    ] {
        bench.ok(args);
    }
    for args in [
        &["verify", "--deep"][..],
        &["restore", "web01@latest", "--to", "x.raw"],
    ] {
        assert!(
            bench
                .error(args)
                .contains("a passphrase or recovery key is needed")
        );
    }
    let args = [
        "restore",
        "web01@latest",
        "--to",
        "x.raw",
        "--passphrase-file",
        "right",
    ];
    bench.ok(&args);
    assert!(bench.read("x.raw") == noise(1, MIB));
}

#[test]
fn a_second_owner_is_told_who_the_first_is() {
    let bench = Bench::with_snapshots();
    let mut backup = bench.endless_backup();
    let error = bench.error(&["gc"]);
    let first = error.lines().next().unwrap();
    let expected = format!(
        "1: Error: the repository is in use by undercroft backup, process {} on ",
        backup.id()
    );
    assert!(first.starts_with(&expected), "{error}");
    assert!(first.contains(", since 20"), "{error}");
    assert!(error.contains("Hint: wait for it to end"), "{error}");
    assert_eq!(bench.ids().len(), 2);
    bench.ok(&["verify"]);
    bench.ok(&["restore", "web01@latest", "--disk", "root", "--to", "x.raw"]);
    drop(backup.stdin.take());
    assert!(backup.wait().unwrap().success());
    assert_eq!(bench.ids().len(), 3);
}

#[test]
fn an_interrupted_backup_says_how_to_go_on() {
    let bench = Bench::with_snapshots();
    let mut backup = bench.endless_backup();
    // The handler is there once the repository is open; its lock shows that.
    sleep(Duration::from_millis(200));
    interrupt(&backup);
    sleep(Duration::from_millis(200));
    let stdin = backup.stdin.as_mut().unwrap();
    let _ = stdin.write_all(&noise(10, MIB));
    drop(backup.stdin.take());
    let run = Run::from(backup.wait_with_output().unwrap());
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("no snapshot was published"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr
            .contains("Hint: to go on, run again: undercroft backup --vm slow -\n"),
        "{}",
        run.stderr
    );
    assert_eq!(bench.ids().len(), 2);
    bench.ok(&["gc"]);
    assert_eq!(
        bench.json(&["verify"])["damage"].as_array().unwrap().len(),
        0
    );
}

#[test]
fn an_idle_stream_does_not_keep_ctrl_c_waiting() {
    let bench = Bench::with_snapshots();
    let mut backup = bench.endless_backup();
    sleep(Duration::from_millis(200));
    interrupt(&backup);
    // Its standard input stays open, and nothing comes.
    bench.wait_for("its end", || backup.try_wait().unwrap().is_some());
    let run = Run::from(backup.wait_with_output().unwrap());
    assert_eq!(run.code, 1, "{}", run.stderr);
    let advice = "Hint: to go on, run again: undercroft backup --vm slow -\n";
    assert!(run.stderr.contains(advice), "{}", run.stderr);
}

#[test]
fn an_interrupted_measurement_leaves_nothing_behind() {
    let bench = Bench::new();
    let mut child = bench
        .command(&["bench", "--size", "64G"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let image = bench.path("undercroft-bench-image.raw");
    bench.wait_for("the image", || image.exists());
    interrupt(&child);
    bench.wait_for("its end", || child.try_wait().unwrap().is_some());
    let run = Run::from(child.wait_with_output().unwrap());
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("nothing was left behind"),
        "{}",
        run.stderr
    );
    assert!(!image.exists());
}

#[test]
fn ctrl_c_at_a_question_leaves_the_terminal_as_it_was() {
    let bench = Bench::new();
    // A shell that survives the Ctrl-C tells how the program ended and whether the terminal echoes.
    let story = format!(
        "trap : INT; {} --repo repo init --encrypt; echo code=$?; stty -a",
        env!("CARGO_BIN_EXE_undercroft")
    );
    let Ok(mut terminal) = Command::new("script")
        .args(["-qec", &story, "/dev/null"])
        .current_dir(bench.dir.path())
        .env_remove("UNDERCROFT_PASSPHRASE")
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    else {
        eprintln!("no script(1) here, which makes terminals");
        return;
    };
    let mut screen = terminal.stdout.take().unwrap();
    let mut shown = Vec::new();
    while !shown.ends_with(b"repository: ") {
        let mut byte = [0];
        assert_eq!(screen.read(&mut byte).unwrap(), 1, "{shown:?}");
        shown.extend(byte);
    }
    sleep(Duration::from_millis(100));
    let keys = terminal.stdin.as_mut().unwrap();
    keys.write_all(b"\x03").unwrap();
    let mut rest = String::new();
    screen.read_to_string(&mut rest).unwrap();
    terminal.wait().unwrap();
    assert!(rest.contains("code=130"), "{rest}");
    assert!(rest.contains(" echo "), "{rest}");
}

#[test]
fn damage_is_found_and_named() {
    let bench = Bench::with_snapshots();
    let pack = largest_pack(&bench.path("repo/packs"));
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    for args in [&["verify", "--json"][..], &["verify", "--deep", "--json"]] {
        let run = bench.run(args);
        assert_eq!(run.code, 3, "{args:?}: {}{}", run.stdout, run.stderr);
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        assert!(!report["damage"].as_array().unwrap().is_empty(), "{report}");
        let affected = &report["affected"][0];
        assert!(affected["range"]["end"].as_u64() > affected["range"]["start"].as_u64());
        assert_eq!(affected["vm"], "web01");
    }
    let failed = bench.run(&["restore", "web01@latest-1", "--to", "out/"]);
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    assert!(
        failed.stderr.contains("--allow-damage"),
        "{}",
        failed.stderr
    );
    let allowed = bench.run(&[
        "restore",
        "web01@latest-1",
        "--to",
        "out/",
        "--allow-damage",
        "--force",
    ]);
    assert_eq!(allowed.code, 3, "{}", allowed.stderr);
    assert!(
        allowed.stdout.contains("DAMAGED, not restored:"),
        "{}",
        allowed.stdout
    );
    assert_eq!(bench.run(&["repair"]).code, 3);
    bench.write("root.raw", &noise(1, 2 * MIB));
    bench.ok(&["backup", "--vm", "web01", "root.raw", "data.raw"]);
    bench.ok(&["repair"]);
    bench.ok(&["verify", "--deep"]);
}

#[test]
fn a_snapshot_that_cannot_be_read_is_warned_of() {
    let bench = Bench::with_snapshots();
    let id = bench.ids().remove(1);
    let name = format!("repo/snapshots/{id}");
    let mut bytes = bench.read(&name);
    bytes[40] ^= 1;
    bench.write(&name, &bytes);
    let run = bench.run(&["snapshots"]);
    assert_eq!(run.code, 3);
    assert!(run.stdout.ends_with("1 snapshot\n"), "{}", run.stdout);
    assert!(
        run.stderr
            .contains(&format!("snapshot {} cannot be read", &id[..8]))
    );
    let run = bench.run(&["show", &id[..10]]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("Error: snapshot"), "{}", run.stderr);
    assert!(!run.stderr.contains("Warning"), "{}", run.stderr);
    // It may have been the newest: the one before may not pass for that.
    for args in [
        &["show", "web01@latest"][..],
        &["restore", "web01@latest", "--to", "out/"],
        &["restore", "web01@2099-01-01", "--to", "out/"],
        &[
            "backup",
            "--vm",
            "web01",
            "--parent",
            "web01@latest",
            "root.raw",
        ],
        &["forget", "web01@latest"],
    ] {
        let run = bench.run(args);
        assert_eq!(run.code, 1, "{args:?}: {}", run.stderr);
        assert_eq!(
            run.stderr.matches("cannot be read").count(),
            1,
            "{}",
            run.stderr
        );
        assert!(
            run.stderr.contains("Hint: name a snapshot by its id"),
            "{}",
            run.stderr
        );
    }
    let readable = &bench.run(&["snapshots", "--json"]).stdout;
    let readable: Value = serde_json::from_str(readable).unwrap();
    let readable = readable[0]["id"].as_str().unwrap();
    bench.ok(&["restore", &readable[..8], "--to", "out/"]);
    let run = bench.run(&["verify"]);
    assert_eq!(run.code, 3);
    assert!(!run.stderr.contains("cannot be read"), "{}", run.stderr);
    let run = bench.run(&["gc"]);
    assert_eq!(run.code, 1, "what cannot be read may not pass for dead");
    assert!(run.stderr.contains("`undercroft repair`"), "{}", run.stderr);
}

#[test]
fn progress_comes_as_json_lines() {
    let bench = Bench::with_snapshots();
    let run = bench.run(&["backup", "--vm", "x", "root.raw", "--progress", "json"]);
    let lines: Vec<Value> = run
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(last["activity"], "backup");
    assert_eq!(last["finished"], true);
    assert_eq!(last["done_bytes"], 2 * MIB);
    assert_eq!(last["total_bytes"], 2 * MIB);
    for field in ["read_bytes", "sent_bytes", "stored_bytes"] {
        assert!(last[field].is_u64(), "{last}");
    }
    assert!(last["rate_bytes_per_s"].is_f64() && last.get("eta_s").is_some());
}

#[test]
fn a_full_output_is_not_taken_for_a_full_repository() {
    let bench = Bench::with_snapshots();
    for args in [
        &["snapshots"][..],
        &["restore", "web01@latest", "--disk", "root", "--to", "-"],
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let run = Run::from(bench.command(args).stdout(full).output().unwrap());
        assert_eq!(run.code, 1, "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains("No space left"), "{}", run.stderr);
        assert!(
            run.stderr.contains("Hint: make room there"),
            "{}",
            run.stderr
        );
        assert!(!run.stderr.contains("prune"), "{}", run.stderr);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let bench = Bench::with_snapshots();
    for args in [&["snapshots"][..], &["completions", "bash"], &["--help"]] {
        let mut child = bench
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(
            (child.wait().unwrap().code(), &*stderr),
            (Some(0), ""),
            "{args:?}"
        );
    }
}

#[test]
fn the_index_can_be_made_anew() {
    let bench = Bench::with_snapshots();
    fs::remove_dir_all(bench.path("repo/index")).unwrap();
    assert!(bench.json(&["rebuild-index"])["packs"].as_u64().unwrap() > 0);
    let again = bench.json(&["backup", "--vm", "web01", "root.raw", "data.raw"]);
    assert_eq!(again["new_bytes"], 0);
}

#[test]
fn completions_and_manual_pages_are_made() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            bench.ok(&["completions", shell]).contains("rebuild-index"),
            "{shell}"
        );
    }
    let made = bench.json(&["man", "--out", "man"]);
    assert!(made["pages"].as_array().unwrap().len() > 15);
    let page = String::from_utf8(bench.read("man/undercroft-backup.1")).unwrap();
    assert!(page.contains("changed\\-blocks"), "{page}");
}

fn largest_pack(dir: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            match entry.metadata().unwrap() {
                metadata if metadata.is_dir() => dirs.push(entry.path()),
                metadata => found.push((metadata.len(), entry.path())),
            }
        }
    }
    found.into_iter().max().unwrap().1
}
