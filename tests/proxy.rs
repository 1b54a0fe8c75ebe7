//! Proxies: backups and restores on another machine, with real processes.

mod support;

use std::process::{Child, Stdio};
use std::time::Duration;

use support::proxied::{Proxied, signal};
use support::served::Served;
use support::{Image, fail_with, json, succeed};

const BOTH: [&str; 4] = ["--read", "disks", "--write", "out"];
const TASK: &str = "0123456789abcdef0123456789abcdef";

fn with(more: &[&'static str]) -> Vec<&'static str> {
    [&BOTH[..], more].concat()
}

fn image(served: &Served, name: &str, seed: u64, len: usize) -> Image {
    std::fs::create_dir_all(served.path("disks")).expect("a directory");
    Image::new(served.path("disks").join(name), seed, len)
}

/// Two VMs by two proxies, increments, restores byte for byte; figures as without a proxy.
#[test]
fn vms_are_backed_up_and_restored_through_proxies() {
    let served = Served::start();
    served.init();
    let reader = Proxied::start(&served, "reader", "ingest", &["--read", "disks"]);
    let other = Proxied::start(&served, "other", "admin", &BOTH);
    let mut one = image(&served, "one.raw", 1, 24 << 20);
    let two = image(&served, "two.raw", 2, 9 << 20);
    let first = one.bytes.clone();
    let through = json(&mut reader.backup(&served, "admin", "web01", &one.path));
    let local = json(
        served
            .undercroft()
            .args(["backup", "--vm", "same"])
            .arg(&one.path),
    );
    let keys = |value: &serde_json::Value| {
        let fields = value.as_object().expect("an object");
        fields.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(keys(&through), keys(&local));
    for figure in ["data_bytes", "read_bytes", "label", "source"] {
        assert_eq!(through["disks"][0][figure], local["disks"][0][figure]);
    }
    assert_eq!(local["disks"][0]["new_bytes"], 0, "it is there already");
    succeed(&mut other.backup(&served, "admin", "db01", &two.path));

    let bitmap = one.change(7, &[3, 4, 90, 200]);
    let changes = served.path("disks").join("bitmap");
    std::fs::write(&changes, bitmap).expect("the bitmap");
    let metadata = served.path("disks").join("vm.xml");
    std::fs::write(&metadata, "<vm/>").expect("metadata");
    let mut increment = reader.backup(&served, "admin", "web01", &one.path);
    increment.args(["--parent", "web01@latest", "--tag", "daily"]);
    increment.arg("--changed-blocks").arg(&changes);
    increment.arg("--metadata").arg(&metadata);
    increment.args(["--lineage", "one:vdi=3f9c"]);
    let report = json(&mut increment);
    assert_eq!(report["disks"][0]["read_mode"], "changed-blocks");
    assert_eq!(report["disks"][0]["read_bytes"], 4 << 16);
    assert_eq!(report["disks"][0]["lineage"]["vdi"], "3f9c");
    assert_eq!(report["tags"][0], "daily");

    let out = served.path("out");
    let restored = json(&mut other.restore(&served, "admin", "web01@latest", &out));
    assert_eq!(restored["disks"][0]["size"], 24 << 20);
    let read = |name: &str| std::fs::read(out.join(name)).expect("the file");
    assert!(read("one.raw") == one.bytes);
    assert_eq!(read("vm.xml"), b"<vm/>");
    let file = out.join("first");
    succeed(&mut other.restore(&served, "admin", "web01@latest-1", &file));
    assert!(read("first") == first);
    succeed(&mut other.restore(&served, "admin", "db01@latest", &out.join("two")));
    assert!(read("two") == two.bytes);
    let text = fail_with(
        &mut other.restore(&served, "admin", "db01@latest", &file),
        1,
    );
    assert!(
        text.contains("exists") && text.contains("--force"),
        "{text}"
    );
    let mut in_place = other.restore(&served, "admin", "web01@latest", &file);
    let in_place = json(in_place.arg("--in-place"));
    assert_eq!(in_place["disks"][0]["written_bytes"], 4 << 16);
    assert!(read("first") == one.bytes);

    let status = json(&mut reader.proxy(&served, &["status"]));
    assert_eq!(status["streams_busy"], 0);
    assert!(status["cores"].as_u64() > Some(0));
    assert!(status["memory_total_bytes"].as_u64() > status["resident_bytes"].as_u64());
    let tasks = json(&mut reader.proxy(&served, &["tasks"]));
    assert_eq!(tasks.as_array().map(Vec::len), Some(2));
    // The proxy that may not read data cannot give them away.
    let text = fail_with(
        &mut reader.restore(&served, "admin", "db01@latest", &out.join("no")),
        1,
    );
    assert!(text.contains("without --write"), "{text}");
}

#[test]
fn an_encrypted_repository_takes_the_keys_of_the_proxy() {
    let served = Served::start();
    let secret = served.path("passphrase");
    std::fs::write(&secret, "correct horse\n").expect("a file");
    let mut init = served.undercroft();
    init.args(["init", "--encrypt", "--segment-size", "1M"]);
    succeed(init.arg("--passphrase-file").arg(&secret));
    served.enroll_as("p", "admin", "*");
    let proxied = Proxied::start_with(&served, "p", &BOTH, Some("correct horse"));
    let disk = image(&served, "disk.raw", 1, 8 << 20);
    succeed(&mut proxied.backup(&served, "admin", "vm", &disk.path));
    let to = served.path("out").join("disk");
    succeed(&mut proxied.restore(&served, "admin", "vm@latest", &to));
    assert!(std::fs::read(&to).expect("the file") == disk.bytes);
    let mut backup = proxied.backup(&served, "admin", "vm", &disk.path);
    let text = fail_with(backup.arg("--passphrase-file").arg(&secret), 2);
    assert!(text.contains("keys are not sent to a proxy"), "{text}");
    served.enroll_as("q", "admin", "*");
    let without = Proxied::start_with(&served, "q", &BOTH, None);
    let text = fail_with(&mut without.backup(&served, "admin", "vm", &disk.path), 1);
    assert!(
        text.contains("a passphrase or recovery key is needed"),
        "{text}"
    );
}

/// The proxy is killed in mid-backup: when it is back the task goes on where it was, and so does its client.
#[test]
fn a_killed_proxy_goes_on_with_its_tasks() {
    let served = Served::start();
    served.init();
    let mut proxied = Proxied::start(&served, "p", "ingest", &with(&["--threads", "1"]));
    let disk = image(&served, "disk.raw", 1, 96 << 20);
    let client = start(
        proxied
            .backup(&served, "admin", "vm", &disk.path)
            .arg("--json"),
    );
    wait_for("finished segments", || finished(&served) > 8);
    proxied.kill();
    let session = served.sessions()[0]["session"].clone();
    proxied.start_again();
    let report = report(client);
    let read = report["disks"][0]["read_bytes"].as_u64().expect("a number");
    assert!(
        read < 88 << 20,
        "finished segments are not read again: {read}"
    );
    let tasks = json(&mut proxied.proxy(&served, &["tasks"]));
    assert_eq!(tasks.as_array().map(Vec::len), Some(1));
    assert_eq!(tasks[0]["runs"], 2);
    assert_eq!(tasks[0]["session"], session, "it is the same session");
    served.assert_restores("vm@latest", &disk.bytes);
    assert_eq!(snapshots(&served), 1);
    assert!(served.sessions().is_empty());
}

/// SIGTERM: the proxy ends in order, the task waits, and the next start goes on with it.
#[test]
fn a_proxy_that_is_asked_to_stop_leaves_tasks_that_go_on() {
    let served = Served::start();
    served.init();
    let options = with(&["--threads", "1", "--streams", "1"]);
    let mut proxied = Proxied::start(&served, "p", "ingest", &options);
    let disk = image(&served, "disk.raw", 1, 96 << 20);
    let small = image(&served, "small.raw", 2, 2 << 20);
    let client = start(
        proxied
            .backup(&served, "admin", "vm", &disk.path)
            .arg("--json"),
    );
    wait_for("finished segments", || finished(&served) > 8);
    let mut second = proxied.backup(&served, "admin", "small", &small.path);
    succeed(second.args(["--detach", "--task", TASK]));
    proxied.stop();
    assert_eq!(
        served.sessions().len(),
        1,
        "the session can be gone on with"
    );
    assert_eq!(snapshots(&served), 0);
    proxied.start_again();
    let report = report(client);
    let read = report["disks"][0]["read_bytes"].as_u64().expect("a number");
    assert!(
        read < 88 << 20,
        "finished segments are not read again: {read}"
    );
    served.assert_restores("vm@latest", &disk.bytes);
    wait_for("the task that waited", || {
        proxied.state_of(&served, TASK) == "done"
    });
    served.assert_restores("small@latest", &small.bytes);
}

/// A restore whose proxy dies is run again, and may replace what it made itself, but nothing else.
#[test]
fn a_restore_is_run_again_after_a_crash() {
    let served = Served::start();
    served.init();
    let mut proxied = Proxied::start(&served, "p", "admin", &with(&["--threads", "1"]));
    let one = image(&served, "one.raw", 1, 2 << 20);
    let two = image(&served, "two.raw", 2, 200 << 20);
    let mut backup = served.undercroft();
    backup.args(["backup", "--vm", "vm"]).arg(&one.path);
    succeed(backup.arg(&two.path));
    let out = served.path("out").join("vm/");
    let client = start(&mut proxied.restore(&served, "admin", "vm@latest", &out));
    // A file is noted in the task's once it has its name: killed in between, the next run takes it for another's.
    let tasks = proxied.state().join("tasks");
    let is_noted = |file: &std::path::PathBuf| {
        let bytes = std::fs::read(file).unwrap_or_default();
        file.extension().is_none() && bytes.windows(7).any(|part| part == b"one.raw")
    };
    wait_for("the first disk", || {
        support::files_below(&tasks).iter().any(is_noted)
    });
    proxied.kill();
    proxied.start_again();
    let output = client.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    for image in [&one, &two] {
        let name = image.path.file_name().expect("a name");
        assert!(std::fs::read(out.join(name)).expect("the file") == image.bytes);
    }
    let left = support::files_below(&out);
    assert_eq!(left.len(), 2, "nothing half-written is left: {left:?}");
}

#[test]
fn roles_and_scopes_of_the_proxy_are_enforced() {
    let served = Served::start();
    served.init();
    let proxied = Proxied::start(&served, "p", "admin", &BOTH);
    let disk = image(&served, "disk.raw", 1, 2 << 20);
    // Neither is known to the repository server.
    proxied.enroll_as("backups", "ingest", "web*");
    proxied.enroll_as("restores", "restore", "web*");
    let backup = |who: &str, vm: &str| proxied.backup(&served, who, vm, &disk.path);
    succeed(&mut backup("backups", "web01"));
    succeed(&mut backup("admin", "db01"));
    let text = fail_with(&mut backup("backups", "db01"), 1);
    assert!(text.contains("out of its scope"), "{text}");
    let text = fail_with(&mut backup("restores", "web01"), 1);
    assert!(text.contains("may not run backups"), "{text}");
    // Increments of a VM in scope onto one that is not would read that one.
    let text = fail_with(
        backup("backups", "web02").args(["--parent", "db01@latest"]),
        1,
    );
    assert!(text.contains("out of its scope"), "{text}");

    let out = served.path("out").join("disk");
    let restore = |who: &str, snapshot: &str| {
        let mut command = proxied.restore(&served, who, snapshot, &out);
        command.arg("--force");
        command
    };
    succeed(&mut restore("restores", "web01@latest"));
    let text = fail_with(&mut restore("restores", "db01@latest"), 1);
    assert!(text.contains("out of its scope"), "{text}");
    let shown = json(served.undercroft().args(["show", "db01@latest"]));
    let id = shown["id"].as_str().expect("an id");
    let text = fail_with(&mut restore("restores", id), 1);
    assert!(text.contains("out of its scope"), "by its id: {text}");
    let text = fail_with(&mut restore("backups", "web01@latest"), 1);
    assert!(text.contains("may not run restores"), "{text}");

    for (who, words) in [
        ("backups", &["status"][..]),
        ("restores", &["status"]),
        ("backups", &["suspend"]),
        ("restores", &["resume"]),
    ] {
        let text = fail_with(&mut proxied.proxy_as(&served, who, words), 1);
        assert!(text.contains("may not"), "{who} {words:?}: {text}");
    }
    let all = json(&mut proxied.proxy(&served, &["tasks"]));
    let theirs = json(&mut proxied.proxy_as(&served, "restores", &["tasks"]));
    let of = |tasks: &serde_json::Value, owner: &str| {
        let tasks = tasks.as_array().expect("an array").iter();
        tasks.filter(|task| task["owner"] == owner).count()
    };
    assert_eq!(of(&theirs, "restores"), 2, "one was done, one failed");
    assert_eq!(of(&theirs, "admin") + of(&theirs, "backups"), 0);
    assert!(of(&all, "admin") == 1 && of(&all, "backups") == 2);
    let task = all[0]["task"].as_str().expect("an id");
    for word in ["show", "cancel"] {
        let text = fail_with(&mut proxied.proxy_as(&served, "restores", &[word, task]), 1);
        assert!(text.contains("may not look after"), "{word}: {text}");
        succeed(&mut proxied.proxy_as(&served, "backups", &[word, task]));
        succeed(&mut proxied.proxy(&served, &[word, task]));
    }
    let text = fail_with(&mut proxied.proxy(&served, &["show", TASK]), 1);
    assert!(text.contains("has no task"), "{text}");
    // Each daemon says so if the other one was meant.
    let mut wrong = served.undercroft();
    let text = fail_with(
        wrong.args(["proxy", "status", "--proxy", &served.address()]),
        1,
    );
    assert!(text.contains("protocol"), "{text}");
}

/// Exports of a server that the proxy was given are read through it, in full and as far as they changed.
#[test]
fn exports_are_backed_up_through_a_proxy_that_was_given_their_server() {
    let served = Served::start();
    served.init();
    let uri = format!("nbd+unix:///?socket={}", served.path("s").display());
    let proxied = Proxied::start(
        &served,
        "p",
        "admin",
        &["--read-nbd", &uri, "--write", "out"],
    );
    let mut disk = image(&served, "disk.raw", 1, (20 << 20) + 512);
    let mut server = std::process::Command::new("nbdkit")
        .args(["--foreground", "-U"])
        .arg(served.path("s"))
        .arg("file")
        .arg(&disk.path)
        .spawn()
        .expect("nbdkit");
    let export = format!(
        "nbd+unix:///x%3Fsession_id=secret?socket={}",
        served.path("s").display()
    );
    for task in [TASK, "fedcba9876543210fedcba9876543210"] {
        let mut backup = proxied.backup(&served, "admin", "web01", export.as_ref());
        json(backup.args(["--task", task]));
        let shown = proxied.show(&served, task).to_string();
        assert!(shown.contains("nbd+unix:///x%3F...?socket="), "{shown}");
        assert!(!shown.contains("secret"), "{shown}");
        let to = served.path("out").join("restored.raw");
        succeed(
            proxied
                .restore(&served, "admin", "web01@latest", &to)
                .arg("--force"),
        );
        assert_eq!(std::fs::read(&to).expect("restored"), disk.bytes);
        disk.bytes[5 << 20..][..4096].fill(7);
        disk.write();
    }
    let elsewhere = format!("nbd+unix:///?socket={}", served.path("t").display());
    let text = fail_with(
        &mut proxied.backup(&served, "admin", "vm", elsewhere.as_ref()),
        1,
    );
    assert!(text.contains("reads no exports of the socket"), "{text}");
    let status = json(&mut proxied.proxy(&served, &["status"])).to_string();
    assert!(status.contains("nbd+unix:///?socket="), "{status}");
    let _ = server.kill();
    let _ = server.wait();
}

#[test]
fn paths_outside_of_the_roots_are_refused() {
    let served = Served::start();
    served.init();
    let proxied = Proxied::start(&served, "p", "admin", &BOTH);
    let disk = image(&served, "disk.raw", 1, 1 << 20);
    let secret = served.path("secret.raw");
    std::fs::write(&secret, vec![1; 4096]).expect("a file");
    let link = served.path("disks").join("link.raw");
    std::os::unix::fs::symlink(&secret, &link).expect("a link");
    let out = served.path("out");
    std::os::unix::fs::symlink(served.path("."), out.join("away")).expect("a link");
    for path in [&secret, &link, &served.path("disks/../secret.raw")] {
        let text = fail_with(&mut proxied.backup(&served, "admin", "vm", path), 1);
        assert!(text.contains("below no --read"), "{text}");
    }
    for option in ["--metadata", "--changed-blocks"] {
        let mut backup = proxied.backup(&served, "admin", "vm", &disk.path);
        let text = fail_with(backup.arg(option).arg(&link), 1);
        assert!(text.contains("below no --read"), "{option}: {text}");
    }
    for path in ["-", "disk.raw"] {
        let mut backup = proxied.backup(&served, "admin", "vm", path.as_ref());
        fail_with(&mut backup, 2);
    }
    let export = "root=nbds://host//3f9c%3Fsession_id=OpaqueRef:secret";
    let mut backup = proxied.backup(&served, "admin", "vm", &disk.path);
    let text = fail_with(backup.args(["--disk", export]), 1);
    assert!(
        text.contains("reads no exports of host at port 10809 under TLS"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
    succeed(&mut proxied.backup(&served, "admin", "vm", &disk.path));
    for path in [
        served.path("other.raw"),
        out.join("away/other.raw"),
        out.join("../other.raw"),
        proxied.state().join("trust/authority"),
    ] {
        let mut restore = proxied.restore(&served, "admin", "vm@latest", &path);
        let text = fail_with(restore.arg("--force"), 1);
        assert!(
            text.contains("below no --write"),
            "{}: {text}",
            path.display()
        );
    }
    // A link that is already where a disk goes.
    std::fs::create_dir(out.join("vm")).expect("a directory");
    std::os::unix::fs::symlink(&secret, out.join("vm/disk.raw")).expect("a link");
    for how in ["--force", "--in-place"] {
        let mut restore = proxied.restore(&served, "admin", "vm@latest", &out.join("vm"));
        let text = fail_with(restore.arg(how), 1);
        assert!(text.contains("below no --write"), "{how}: {text}");
    }
    assert_eq!(std::fs::read(&secret).expect("the file"), vec![1; 4096]);
    let closed = Proxied::start(&served, "closed", "admin", &[]);
    let text = fail_with(&mut closed.backup(&served, "admin", "vm", &disk.path), 1);
    assert!(text.contains("without --read"), "{text}");
    let mut restore = closed.restore(&served, "admin", "vm@latest", &out.join("x"));
    let text = fail_with(&mut restore, 1);
    assert!(text.contains("without --write"), "{text}");
}

/// What is submitted twice is done once, also after a restart.
#[test]
fn a_task_is_one_task_however_often_it_is_submitted() {
    let served = Served::start();
    served.init();
    let mut proxied = Proxied::start(&served, "p", "ingest", &BOTH);
    let disk = image(&served, "disk.raw", 1, 2 << 20);
    let submit = |proxied: &Proxied, vm: &str| {
        let mut command = proxied.backup(&served, "admin", vm, &disk.path);
        command.args(["--task", TASK]);
        command
    };
    let first = json(submit(&proxied, "vm").arg("--detach"));
    assert_eq!(
        (&first["is_new"], &first["task"]),
        (&true.into(), &TASK.into())
    );
    let again = json(submit(&proxied, "vm").arg("--detach"));
    assert_eq!(again["is_new"], false);
    let report = json(&mut submit(&proxied, "vm"));
    proxied.stop();
    proxied.start_again();
    assert_eq!(json(&mut submit(&proxied, "vm")), report, "the same report");
    assert_eq!(proxied.show(&served, TASK)["result"], report);
    assert_eq!(snapshots(&served), 1);
    let text = fail_with(&mut submit(&proxied, "other"), 1);
    assert!(text.contains("is another one"), "{text}");
}

/// More tasks than streams; cancelling what waits and what runs; a suspended proxy.
#[test]
fn tasks_wait_for_streams_and_can_be_cancelled_and_suspended() {
    let served = Served::start();
    served.init();
    let options = with(&["--threads", "1", "--streams", "1"]);
    let mut proxied = Proxied::start(&served, "p", "ingest", &options);
    let disk = image(&served, "disk.raw", 1, 96 << 20);
    let small = image(&served, "small.raw", 2, 1 << 20);
    let follower = start(&mut proxied.backup(&served, "admin", "big", &disk.path));
    wait_for("finished segments", || finished(&served) > 2);
    // A server that stands still keeps the task where it is.
    signal(&served.process, "STOP");
    let submit = |proxied: &Proxied, vm: &str| {
        let mut command = proxied.backup(&served, "admin", vm, &small.path);
        let submitted = json(command.arg("--detach"));
        submitted["task"].as_str().expect("an id").to_owned()
    };
    let waits = submit(&proxied, "waits");
    let cancelled = submit(&proxied, "cancelled");
    let shown = proxied.show(&served, &waits);
    assert_eq!(
        (&shown["state"], &shown["waits_for"]),
        (&"queued".into(), &"a free stream".into())
    );
    succeed(&mut proxied.proxy(&served, &["cancel", &cancelled]));
    assert_eq!(proxied.state_of(&served, &cancelled), "cancelled");
    succeed(&mut proxied.proxy(&served, &["suspend"]));
    let tasks = json(&mut proxied.proxy(&served, &["tasks"]));
    let running = tasks[0]["task"].as_str().expect("an id").to_owned();
    assert_eq!(tasks[0]["state"], "running");
    assert!(tasks[0]["done_bytes"].as_u64() > Some(0));
    let status = json(&mut proxied.proxy(&served, &["status"]));
    assert_eq!(
        (
            &status["streams_busy"],
            &status["streams_free"],
            &status["queued"]
        ),
        (&1.into(), &0.into(), &1.into())
    );
    succeed(&mut proxied.proxy(&served, &["cancel", &running]));
    signal(&served.process, "CONT");
    let output = follower.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("stopped on request"), "{text}");
    assert!(text.contains("undercroft --repo"), "how to go on: {text}");
    assert_eq!(proxied.state_of(&served, &running), "cancelled");
    assert!(served.sessions().is_empty(), "it was abandoned");

    // Suspended, also over a restart: nothing begins, nothing is taken.
    proxied.stop();
    proxied.start_again();
    assert_eq!(proxied.state_of(&served, &waits), "queued");
    assert_eq!(
        proxied.show(&served, &waits)["waits_for"],
        "the proxy to be resumed"
    );
    let text = fail_with(&mut proxied.backup(&served, "admin", "vm", &small.path), 1);
    assert!(text.contains("is suspended"), "{text}");
    assert_eq!(snapshots(&served), 0);
    succeed(&mut proxied.proxy(&served, &["resume"]));
    wait_for("the task that waited", || {
        proxied.state_of(&served, &waits) == "done"
    });
    served.assert_restores("waits@latest", &small.bytes);
    assert_eq!(snapshots(&served), 1);
}

/// A task that has read everything, and waits for a slow path, is not published once it is cancelled.
#[test]
fn a_task_whose_last_data_are_on_their_way_can_be_cancelled() {
    let served = Served::start_with(&["--limit-in", "4MiB/s"]);
    served.init();
    let proxied = Proxied::start(&served, "p", "ingest", &BOTH);
    let disk = served.path("disks").join("noise.raw");
    std::fs::write(&disk, support::noise(1, 16 << 20)).expect("an image");
    let mut submit = proxied.backup(&served, "admin", "vm", &disk);
    succeed(submit.args(["--detach", "--task", TASK]));
    wait_for("data", || {
        let shown = proxied.show(&served, TASK);
        shown["stored_bytes"].as_u64() > Some(8 << 20)
    });
    succeed(&mut proxied.proxy(&served, &["cancel", TASK]));
    wait_for("its end", || {
        !["running", "cancelling"].contains(&&*proxied.state_of(&served, TASK))
    });
    assert_eq!(proxied.state_of(&served, TASK), "cancelled");
    assert_eq!(snapshots(&served), 0);
    assert!(served.sessions().is_empty(), "it was abandoned");
}

/// What somebody submitted is not done for them once they are let in no more.
#[test]
fn tasks_of_who_was_revoked_are_ended() {
    let served = Served::start();
    served.init();
    let options = with(&["--threads", "1", "--streams", "1"]);
    let mut proxied = Proxied::start(&served, "p", "ingest", &options);
    proxied.enroll_as("mallory", "ingest", "*");
    let disk = image(&served, "disk.raw", 1, 96 << 20);
    let small = image(&served, "small.raw", 2, 1 << 20);
    let submit = |who: &str, vm: &str, path: &std::path::Path| {
        let mut command = proxied.backup(&served, who, vm, path);
        let submitted = json(command.arg("--detach"));
        submitted["task"].as_str().expect("an id").to_owned()
    };
    let runs = submit("mallory", "big", &disk.path);
    wait_for("finished segments", || finished(&served) > 2);
    signal(&served.process, "STOP");
    let waits = submit("mallory", "waits", &small.path);
    let others = submit("admin", "others", &small.path);
    let mut revoke = std::process::Command::new(env!("CARGO_BIN_EXE_undercroft"));
    revoke.args(["proxy", "revoke", "mallory", "--state"]);
    succeed(revoke.arg(proxied.state()));
    wait_for("the task that waits to end", || {
        proxied.state_of(&served, &waits) == "cancelled"
    });
    signal(&served.process, "CONT");
    wait_for("the task that runs to end", || {
        proxied.state_of(&served, &runs) == "cancelled"
    });
    for task in [&runs, &waits] {
        let shown = proxied.show(&served, task)["result"].to_string();
        assert!(
            shown.contains("mallory, who submitted the task, was revoked"),
            "{shown}"
        );
    }
    wait_for("somebody else's task", || {
        proxied.state_of(&served, &others) == "done"
    });
    assert!(served.sessions().is_empty(), "it was abandoned");
    assert_eq!(snapshots(&served), 1);
    proxied.stop();
    proxied.start_again();
    assert_eq!(proxied.state_of(&served, &waits), "cancelled");
}

/// Ctrl-C at the client ends the task on the proxy.
#[test]
fn ctrl_c_cancels_the_task() {
    let served = Served::start();
    served.init();
    let proxied = Proxied::start(&served, "p", "ingest", &with(&["--threads", "1"]));
    let disk = image(&served, "disk.raw", 1, 96 << 20);
    let client = start(&mut proxied.backup(&served, "admin", "vm", &disk.path));
    wait_for("finished segments", || finished(&served) > 2);
    signal(&served.process, "STOP");
    signal(&client, "INT");
    wait_for("the task to be cancelled", || {
        let tasks = json(&mut proxied.proxy(&served, &["tasks"]));
        tasks[0]["state"] == "cancelling"
    });
    signal(&served.process, "CONT");
    let output = client.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("stopped on request"), "{text}");
    assert!(served.sessions().is_empty());
    assert_eq!(snapshots(&served), 0);
}

#[test]
fn a_failed_task_fails_as_it_would_locally() {
    let served = Served::start();
    served.init();
    let proxied = Proxied::start(&served, "p", "admin", &BOTH);
    let disk = image(&served, "disk.raw", 1, 1 << 20);
    let there = fail_with(
        proxied.backup(&served, "admin", "vm", &disk.path).args([
            "--parent",
            "vm@latest",
            "--json",
        ]),
        1,
    );
    let mut local = served.undercroft();
    local.args(["backup", "--vm", "vm", "--parent", "vm@latest", "--json"]);
    assert_eq!(there, fail_with(local.arg(&disk.path), 1));
    // Where it was looked for, and by whom.
    let missing = served.path("disks/missing.raw");
    let text = fail_with(&mut proxied.backup(&served, "admin", "vm", &missing), 1);
    let port = proxied.port.to_string();
    for part in ["missing.raw", "No such file", "proxy", &port] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    // Each daemon has tokens of its own.
    let mut tokens = std::process::Command::new(env!("CARGO_BIN_EXE_undercroft"));
    tokens.args(["repository", "tokens", "--role", "ingest", "--store"]);
    let made = json(tokens.arg(served.path("store")));
    let token = made["token"].as_str().expect("a token");
    let mut enroll = served.undercroft_as("lost");
    enroll.args(["enroll", &proxied.address(), "--role", "ingest"]);
    let text = fail_with(enroll.args(["--token", token]), 1);
    assert!(
        text.contains("was not made by") && text.contains("proxy tokens"),
        "{text}"
    );
    // A second proxy with the same state would run its tasks twice.
    let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_undercroft"));
    second.args(["proxy", "serve", "--listen", "127.0.0.1:0", "--state"]);
    let text = fail_with(second.arg(proxied.state()), 1);
    assert!(text.contains("another daemon works with"), "{text}");
}

fn start(command: &mut std::process::Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

fn report(client: Child) -> serde_json::Value {
    let output = client.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// Segments that the server has finished of its only session.
fn finished(served: &Served) -> u64 {
    let sessions = served.sessions();
    let finished = sessions
        .first()
        .map(|session| &session["finished_segments"]);
    finished.and_then(serde_json::Value::as_u64).unwrap_or(0)
}

fn snapshots(served: &Served) -> usize {
    let listed = json(served.undercroft().arg("snapshots"));
    listed.as_array().expect("an array").len()
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("waited for {what} in vain");
}
