//! Exports of NBD servers that tasks may read.
//!
//! How a server proves who it is, and which certificates it is shown, is for the proxy to say: a task that could
//! name files of this machine, or another certificate, would be let in where it should not.

use std::fmt;
use std::str::FromStr;

use undercroft_format::nbd::uri::{NbdUri, Server, TlsParameters, UriError};

use crate::failure::Problem;

/// A server, or one export of it.
#[derive(Clone, Debug)]
pub struct AllowedExport {
    uri: NbdUri,
    /// The parameters of TLS, as they stand in the URI.
    tls: String,
}

impl FromStr for AllowedExport {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let uri = NbdUri::parse(text)?;
        let query = text.split_once('?').map_or("", |(_, query)| query);
        let is_tls = |pair: &&str| pair.starts_with("tls-") || pair.starts_with("x-tls-");
        let tls: Vec<&str> = query.split('&').filter(is_tls).collect();
        Ok(Self {
            uri,
            tls: tls.join("&"),
        })
    }
}

impl fmt::Display for AllowedExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl AllowedExport {
    /// Whether it is the server of `uri`, asked in the same way, and its export if it names one.
    fn has(&self, uri: &NbdUri) -> bool {
        let is_export = self.uri.export.is_empty() || self.uri.export == uri.export;
        self.uri.server == uri.server && self.uri.tls.is_some() == uri.tls.is_some() && is_export
    }

    /// The URI of a task, with what the one of `allowed` that has it says of TLS.
    pub fn find(allowed: &[Self], text: &str) -> anyhow::Result<String> {
        let uri = NbdUri::parse(text)
            .map_err(|error| Problem::usage(format!("the NBD URI of a source {error}")))?;
        let Some(found) = allowed.iter().find(|allowed| allowed.has(&uri)) else {
            return Err(not_allowed(&uri).into());
        };
        if uri.tls.is_some_and(|tls| tls != TlsParameters::default()) {
            return Err(Problem::usage(format!(
                "the source {found} has parameters of TLS, which are for the proxy to say"
            ))
            .hint("leave them out: the proxy's --read-nbd has them")
            .into());
        }
        Ok(match (found.tls.as_str(), text.contains('?')) {
            ("", _) => text.to_owned(),
            (tls, true) => format!("{text}&{tls}"),
            (tls, false) => format!("{text}?{tls}"),
        })
    }
}

fn not_allowed(uri: &NbdUri) -> Problem {
    let server = match &uri.server {
        Server::Tcp { host, port } => format!("{host} at port {port}"),
        Server::Unix { socket } => format!("the socket {socket}"),
    };
    let how = match uri.tls {
        Some(_) => "under TLS",
        None => "in clear",
    };
    Problem::new(format!("this proxy reads no exports of {server} {how}")).hint(
        "`undercroft proxy status` lists what it reads; an administrator starts it with --read-nbd URI for each \
         server, or for each export",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(allowed: &str, text: &str) -> Option<String> {
        let allowed: AllowedExport = allowed.parse().expect("a URI");
        AllowedExport::find(&[allowed], text).ok()
    }

    #[test]
    fn only_exports_that_the_proxy_was_given_are_read() {
        for (allowed, task, is_in) in [
            ("nbd://host/", "nbd://host/disk", true),
            ("nbd://host", "nbd://host:10809/disk", true),
            ("nbd://host/disk", "nbd://host/disk?x-connections=2", true),
            ("nbd://host/disk", "nbd://host/other", false),
            ("nbd://host/disk", "nbd://host/", false),
            ("nbd://host/", "nbd://host:10810/disk", false),
            ("nbd://host/", "nbd://other/disk", false),
            ("nbds://host/", "nbd://host/disk", false),
            ("nbd://host/", "nbds://host/disk", false),
            (
                "nbd+unix:///?socket=/run/a",
                "nbd+unix:///x?socket=/run/a",
                true,
            ),
            (
                "nbd+unix:///?socket=/run/a",
                "nbd+unix:///x?socket=/run/b",
                false,
            ),
            (
                "nbd+unix:///?socket=/run/a",
                "nbd+unix:///x?socket=/run/../run/a",
                false,
            ),
        ] {
            assert_eq!(found(allowed, task).is_some(), is_in, "{allowed} {task}");
        }
    }

    #[test]
    fn tls_is_the_proxys_affair() {
        let allowed = "nbds://host/?tls-certificates=/etc/pki&tls-hostname=a";
        let tls = "tls-certificates=/etc/pki&tls-hostname=a";
        assert_eq!(
            found(allowed, "nbds://host/x"),
            Some(format!("nbds://host/x?{tls}"))
        );
        let two = found(allowed, "nbds://host/x?x-connections=2");
        assert_eq!(two, Some(format!("nbds://host/x?x-connections=2&{tls}")));
        for parameter in [
            "tls-certificates=/root",
            "tls-hostname=b",
            "x-tls-pin=/etc/shadow",
        ] {
            assert_eq!(found(allowed, &format!("nbds://host/x?{parameter}")), None);
            assert_eq!(
                found("nbds://host", &format!("nbds://host/x?{parameter}")),
                None
            );
        }
    }

    #[test]
    fn a_refusal_does_not_show_the_session_in_a_name() {
        let task = "nbds://host//3f9c%3Fsession_id=secret";
        let refused = AllowedExport::find(&[], task).unwrap_err().to_string();
        assert!(
            refused.contains("host") && !refused.contains("secret"),
            "{refused}"
        );
    }
}
