//! `undercroft export`.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use undercroft_dataplane::nbd::export::Listen;
use undercroft_format::nbd::wire::PORT;

use crate::disk_spec::DiskSpec;
use crate::export_run::{self, Request, TlsFiles};
use crate::failure::Outcome;
use crate::settings::Settings;
use crate::units::parse_size;

/// Export disks of a snapshot over NBD
///
/// SNAPSHOT:DISK exports one disk, SNAPSHOT all of them by their labels. Runs until SIGTERM or Ctrl-C, which finish the
/// requests in flight. Clients can only read, unless there is an --overlay: what they write goes to that file, and is
/// there again when the same disk is exported with it. `undercroft backup --overlay` makes a snapshot of it. Protect or lock
/// the snapshot below for as long as the overlay is of use.
///
/// ADDR is HOST, HOST:PORT or [IPv6]:PORT, with port 0 for any that is free; unix:PATH is a socket of this machine, for its
/// user alone. Whoever can connect can read: without TLS only loopback addresses are taken, unless --insecure.
///
/// JSON, a line each: event listening, with snapshot and exports (disk, name, uri, size, read_only); event stopping.
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "the brackets in the help are those of a syntax"
)]
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which snapshot, and which of its disks
    #[arg(value_name = "SNAPSHOT[:DISK]")]
    spec: DiskSpec,
    /// Where to listen
    #[arg(long, value_name = "ADDR|unix:PATH", value_parser = parse_listen)]
    nbd: Listen,
    /// Name of the export, in place of the disk's label; only for one disk
    #[arg(long)]
    name: Option<String>,
    /// Certificate to show, with those above it, in PEM: clients have to speak TLS then
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of these authorities, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Listen on the network without TLS: whoever reaches the port reads the disks
    #[arg(long)]
    insecure: bool,
    /// Let clients write, to this file; it is made if it is missing. Only for one disk
    #[arg(long, value_name = "FILE")]
    overlay: Option<PathBuf>,
    /// Remove the overlay at the end
    #[arg(long, requires = "overlay")]
    discard: bool,
    /// Decoded data kept in memory
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = parse_size)]
    cache_size: u64,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let tls = match (args.tls_cert, args.tls_key) {
        (Some(certificate), Some(key)) => Some(TlsFiles {
            certificate,
            key,
            client_ca: args.tls_client_ca,
        }),
        _ => None,
    };
    export_run::run(
        settings,
        Request {
            spec: args.spec,
            listen: args.nbd,
            name: args.name,
            tls,
            insecure: args.insecure,
            overlay: args.overlay,
            discard: args.discard,
            live: None,
            cache_len: args.cache_size,
        },
    )
}

/// What `--nbd` says.
pub fn parse_listen(text: &str) -> Result<Listen, String> {
    let like = "write one like unix:/run/disk.sock, localhost, 127.0.0.1:10809 or [::1]:0";
    if let Some(path) = text.strip_prefix("unix:") {
        return match path {
            "" => Err(format!("there is no path in it: {like}")),
            path => Ok(Listen::Unix(path.into())),
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Listen::Tcp(address));
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(Listen::Tcp((ip, PORT).into()));
    }
    let found = match text.rsplit_once(':') {
        Some(_) => text.to_socket_addrs(),
        None => (text, PORT).to_socket_addrs(),
    };
    match found.map(|mut found| found.next()) {
        Ok(Some(address)) => Ok(Listen::Tcp(address)),
        Ok(None) => Err(format!("the name has no address: {like}")),
        Err(error) => Err(format!("the name cannot be looked up ({error}): {like}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_protocols_port_unless_they_say_otherwise() {
        for (text, expected) in [
            ("127.0.0.1", "127.0.0.1:10809"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("::1", "[::1]:10809"),
            ("[::1]", "[::1]:10809"),
            ("[::1]:7", "[::1]:7"),
        ] {
            let address = expected.parse().expect("an address");
            assert_eq!(parse_listen(text), Ok(Listen::Tcp(address)), "{text}");
        }
        assert_eq!(parse_listen("unix:a b"), Ok(Listen::Unix("a b".into())));
        parse_listen("unix:").expect_err("no path");
        parse_listen("127.0.0.1:port").expect_err("no port");
    }
}
