//! Certificates of a TLS server at `localhost`, by GnuTLS.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::path::Path;
use std::process::{Command, Stdio};

use super::succeed;

/// Makes `server-cert.pem` and `server-key.pem` in `dir`, vouched for by `ca-cert.pem`.
pub fn make_certificates(dir: &Path) {
    let run = |args: &[&str]| certtool(dir, args);
    let template = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).expect("a template");
    };
    template("ca", "cn=CA\nca\ncert_signing_key\nexpiration_days=3\n");
    template(
        "server",
        "cn=localhost\ndns_name=localhost\ntls_www_server\nsigning_key\nexpiration_days=3\n",
    );
    run(&["--generate-privkey", "--outfile", "ca-key.pem"]);
    run(&[
        "--generate-self-signed",
        "--load-privkey",
        "ca-key.pem",
        "--template",
        "ca",
        "--outfile",
        "ca-cert.pem",
    ]);
    run(&["--generate-privkey", "--outfile", "server-key.pem"]);
    run(&[
        "--generate-certificate",
        "--load-ca-certificate",
        "ca-cert.pem",
        "--load-ca-privkey",
        "ca-key.pem",
        "--load-privkey",
        "server-key.pem",
        "--template",
        "server",
        "--outfile",
        "server-cert.pem",
    ]);
}

/// Makes `client-cert.pem` and `client-key.pem` beside them.
pub fn make_client_certificate(dir: &Path) {
    let template = "cn=client\ntls_www_client\nsigning_key\nexpiration_days=3\n";
    std::fs::write(dir.join("client"), template).expect("a template");
    certtool(dir, &["--generate-privkey", "--outfile", "client-key.pem"]);
    let request = ["--generate-certificate", "--load-privkey", "client-key.pem"];
    let authority = [
        "--load-ca-certificate",
        "ca-cert.pem",
        "--load-ca-privkey",
        "ca-key.pem",
    ];
    let made = ["--template", "client", "--outfile", "client-cert.pem"];
    certtool(dir, &[&request[..], &authority, &made].concat());
}

fn certtool(dir: &Path, args: &[&str]) {
    let mut command = Command::new("certtool");
    succeed(command.current_dir(dir).args(args).stderr(Stdio::null()));
}
