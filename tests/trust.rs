//! An administrator says who may use a repository server: tokens, identities, revocation.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use support::{fail_with, succeed, workspace};
use undercroft_dataplane::net::trust::{
    Answer, Authority, ClientStore, DIRECTORY, EnrolOptions, EnrolRequest, Enrolment, Scope,
    SystemClock, Token,
};
use undercroft_dataplane::repository::entropy::SystemEntropy;

fn undercroft(store: &Path, args: &[&str]) -> Command {
    let mut command = support::undercroft(store);
    command.arg("repository").arg(args[0]);
    command.arg("--store").arg(store).args(&args[1..]);
    command
}

fn json(store: &Path, args: &[&str]) -> Value {
    support::json(&mut undercroft(store, args))
}

/// Enrols as a proxy would, by the files alone.
fn enrol(store: &Path, machine: &Path, token: &str, name: &str) -> Answer {
    let token: Token = token.parse().unwrap();
    let authority = Authority::open(
        &store.join(DIRECTORY),
        Arc::new(SystemClock),
        Arc::new(SystemEntropy),
    );
    let options = EnrolOptions {
        role: token.role,
        name: name.parse().unwrap(),
        scope: None::<Scope>,
    };
    let client = ClientStore::of_server(machine, &"backup".parse().unwrap());
    let enrolment = Enrolment::begin(&client, &token, options, &SystemEntropy).unwrap();
    let request = EnrolRequest::decode(enrolment.request()).unwrap();
    let answer = authority.unwrap().enrol(&request);
    if matches!(answer, Answer::Granted(_)) {
        enrolment.finish(&answer.encode()).unwrap();
    }
    answer
}

#[test]
fn a_proxy_is_enrolled_listed_and_revoked() {
    let dir = workspace();
    let (store, machine) = (dir.path(), dir.path().join("proxy"));
    let made = json(
        store,
        &[
            "tokens",
            "--role",
            "ingest",
            "--vm",
            "web*",
            "--vm",
            "db1",
            "--expires",
            "7d",
        ],
    );
    assert_eq!(made["role"], "ingest");
    assert_eq!(made["vms"], json!(["db1", "web*"]));
    assert_eq!(made["repositories"], json!(["*"]));
    let token = made["token"].as_str().unwrap();
    assert_eq!(json(store, &["tokens"])[0]["state"], "usable");

    let answer = enrol(store, &machine, token, "proxy-1");
    assert!(matches!(answer, Answer::Granted(_)));
    let answer = enrol(store, &dir.path().join("thief"), token, "proxy-2");
    assert!(matches!(answer, Answer::Refused(_)));
    let listed = &json(store, &["tokens"])[0];
    assert_eq!(
        (&listed["state"], &listed["used_by"]),
        (&json!("used"), &json!("proxy-1"))
    );

    let listed = json(store, &["identities"]);
    assert_eq!(listed["authority"], made["authority"]);
    assert_eq!(listed["identities"].as_array().unwrap().len(), 1);
    let identity = &listed["identities"][0];
    assert_eq!(
        (&identity["name"], &identity["state"]),
        (&json!("proxy-1"), &json!("live"))
    );
    let table = succeed(&mut undercroft(store, &["identities"])).stdout;
    let table = String::from_utf8(table).unwrap();
    assert!(
        table.contains("db1, web*") && table.contains("1 certificate"),
        "{table}"
    );

    let serial = identity["serial"].as_str().unwrap();
    let revoked = json(store, &["revoke", serial]);
    assert_eq!(revoked["revoked"][0]["state"], "revoked");
    assert_eq!(
        json(store, &["revoke", "proxy-1"]),
        json!({ "revoked": [] })
    );
    assert_eq!(
        json(store, &["identities"])["identities"][0]["state"],
        "revoked"
    );
}

#[test]
fn a_token_is_printed_first_and_can_be_cancelled() {
    let dir = workspace();
    let store = dir.path();
    let printed = succeed(&mut undercroft(
        store,
        &["tokens", "--role", "restore", "--name", "desk"],
    ));
    let printed = String::from_utf8(printed.stdout).unwrap();
    let first = printed.lines().next().unwrap();
    assert!(first.parse::<Token>().is_ok(), "{printed}");
    assert!(printed.contains("one restore named desk, for VMs * in repositories *"));
    assert!(printed.contains("--role restore"));

    let id = json(store, &["tokens"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        json(store, &["tokens", "--cancel", &id]),
        json!({ "cancelled": id })
    );
    assert_eq!(json(store, &["tokens"]), json!([]));
    let error = fail_with(&mut undercroft(store, &["tokens", "--cancel", &id]), 1);
    assert!(
        error.contains("no token that could still be used"),
        "{error}"
    );
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let dir = workspace();
    let store = dir.path();
    let told = |args: &[&str], code| fail_with(&mut undercroft(store, args), code);
    for (args, code, said) in [
        (&["identities"][..], 1, "holds no authority"),
        (
            &["tokens", "--role", "root"],
            2,
            "one of ingest, restore, admin",
        ),
        (
            &["tokens", "--role", "ingest", "--expires", "1y"],
            2,
            "30min, 12h, 7d or 2w",
        ),
        (
            &["tokens", "--role", "ingest", "--expires", "0s"],
            2,
            "no time at all",
        ),
        (
            &["tokens", "--role", "ingest", "--expires", "9w"],
            2,
            "30 days at most",
        ),
        (
            &["tokens", "--role", "ingest", "--name", "a/b"],
            2,
            "other characters",
        ),
        (&["tokens", "--vm", "web*"], 2, "--role"),
    ] {
        let error = told(args, code);
        assert!(error.contains(said), "{args:?}: {error}");
    }
    assert!(
        !store.join(DIRECTORY).exists(),
        "a mistake made an authority"
    );
    for args in [
        &["tokens", "--role", "admin"][..],
        &["tokens"],
        &["tokens", "--cancel", "abcd"],
        &["identities"],
        &["revoke", "somebody"],
    ] {
        let error = fail_with(&mut undercroft(&store.join("nowhere"), args), 2);
        assert!(error.contains("is no directory"), "{args:?}: {error}");
    }

    succeed(&mut undercroft(store, &["tokens", "--role", "admin"]));
    let error = told(&["revoke", "nobody"], 1);
    assert!(
        error.contains("no identity has the name") && error.contains("identities"),
        "{error}"
    );

    let registry = store.join(DIRECTORY).join("registry");
    let mut bytes = std::fs::read(&registry).unwrap();
    let place = bytes.len() / 2;
    bytes[place] ^= 1;
    std::fs::write(&registry, &bytes).unwrap();
    let error = told(&["identities"], 1);
    assert!(error.contains("trust/registry is damaged"), "{error}");
    assert!(
        error.contains("docs/trust.md") && !error.contains("undercroft verify"),
        "{error}"
    );

    std::fs::set_permissions(&registry, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = told(&["identities"], 1);
    assert!(
        error.contains("can be read by others (mode 644)"),
        "{error}"
    );
}
