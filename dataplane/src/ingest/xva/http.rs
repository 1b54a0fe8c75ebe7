//! An XVA from a web server, or from a host's `/export`.
//!
//! That the answer ends proves nothing: xapi gives no length, and hosts that fail simply close the connection. The
//! archive's own end mark is what counts.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use rustls::crypto::ring;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::pump::{Patience, Pump};

/// How long to wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// Longest silence, before the answer and within it: hosts that scan zeros send something every 5 seconds.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Redirections that are followed.
const REDIRECTS_MAX: u32 = 4;

/// A URL could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The server does not want to.
    #[error("fetching {url}: the server answered {status}, where 200 is expected")]
    Status {
        /// What was fetched, as it may be shown.
        url: String,
        /// Its answer.
        status: u16,
    },
    /// Someone would read along.
    #[error("fetching {url}: the server redirects to a URL without TLS")]
    Downgrade {
        /// What was fetched, as it may be shown.
        url: String,
    },
    /// No URL, or an answer that is not HTTP. What exactly is not shown: there may be secrets in it.
    #[error("fetching {url}: the URL, one that it redirects to, or the answer is malformed")]
    Malformed {
        /// What was fetched, as it may be shown.
        url: String,
    },
    /// It could not be asked.
    #[error("fetching {url}")]
    Request {
        /// What was fetched, as it may be shown.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The system.
    #[error("fetching {url}")]
    System {
        /// What was fetched, as it may be shown.
        url: String,
        /// Why.
        source: io::Error,
    },
}

/// True if `text` is a URL that [`get`] takes.
pub fn is_url(text: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        let head = text.get(..scheme.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(scheme))
    })
}

/// `url` as it may be shown and stored: without user and password, and without what stands behind the path,
/// which holds the session of an export.
pub fn shown_url(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (scheme, rest) = url[..end]
        .split_once("://")
        .unwrap_or(("http", &url[..end]));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// Asks for `url` and gives the body of the answer.
///
/// # Errors
/// No answer, or another one than 200.
pub fn get(url: &str, is_stopping: fn() -> bool) -> Result<Box<dyn Read + Send>, HttpError> {
    let system = |source| HttpError::System {
        url: shown_url(url),
        source,
    };
    let is_secure = url
        .get(..6)
        .is_some_and(|head| head.eq_ignore_ascii_case("https:"));
    let mut config = Agent::config_builder()
        .https_only(is_secure)
        .max_redirects(REDIRECTS_MAX)
        .timeout_connect(Some(CONNECT_MAX))
        .timeout_recv_response(Some(SILENCE_MAX))
        .timeout_per_read(Some(SILENCE_MAX))
        .user_agent(concat!("undercroft/", env!("CARGO_PKG_VERSION")));
    if is_secure {
        config = config.tls_config(tls());
    }
    let (url, authorization) = credentials(url);
    let mut request = Agent::new_with_config(config.build()).get(&*url);
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    let answer = request.call();
    let answer = answer.map_err(|error| failed(shown_url(&url), error))?;
    let status = answer.status().as_u16();
    if status != 200 {
        return Err(HttpError::Status {
            url: shown_url(&url),
            status,
        });
    }
    let patience = Patience {
        is_stopping,
        silence_max: Some(SILENCE_MAX),
    };
    let body = Box::new(answer.into_body().into_reader());
    let pump = Pump::start("xva-fetch", body, patience).map_err(system)?;
    Ok(Box::new(pump))
}

/// The URL without user and password, and what they say in HTTP (RFC 7617), which is how XAPI takes them.
fn credentials(url: &str) -> (String, Option<String>) {
    let Some((scheme, rest)) = url.split_once("://") else {
        return (url.to_owned(), None);
    };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let Some((user, host)) = host.rsplit_once('@') else {
        return (url.to_owned(), None);
    };
    let user: Vec<u8> = percent_encoding::percent_decode_str(user).collect();
    let encoded = base64::engine::general_purpose::STANDARD.encode(user);
    (
        format!("{scheme}://{host}{path}"),
        Some(format!("Basic {encoded}")),
    )
}

fn failed(url: String, error: ureq::Error) -> HttpError {
    match error {
        ureq::Error::StatusCode(status) => HttpError::Status { url, status },
        ureq::Error::RequireHttpsOnly(_) => HttpError::Downgrade { url },
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Protocol(_) => {
            HttpError::Malformed { url }
        }
        error => HttpError::Request {
            url,
            source: Box::new(error),
        },
    }
}

/// The system's authorities vouch for servers.
fn tls() -> TlsConfig {
    let roots = rustls_native_certs::load_native_certs().certs;
    let roots: Vec<_> = roots
        .iter()
        .map(|root| Certificate::from_der(root).to_owned())
        .collect();
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_go_into_a_header() {
        for (url, plain, header) in [
            ("http://h/a@b", "http://h/a@b", None),
            ("https://h", "https://h", None),
            // "root:a@b"
            (
                "https://root:a%40b@h:8/x?y",
                "https://h:8/x?y",
                Some("Basic cm9vdDphQGI="),
            ),
        ] {
            let header = header.map(str::to_owned);
            assert_eq!(credentials(url), (plain.to_owned(), header));
        }
    }

    #[test]
    fn urls_are_shown_without_secrets() {
        for (url, shown) in [
            (
                "https://h/export?session_id=OpaqueRef:1&uuid=2",
                "https://h/export",
            ),
            ("http://root:pass@h:80/a/b.xva#x", "http://h:80/a/b.xva"),
            ("HTTP://h", "HTTP://h"),
            ("http://h?p@q/r", "http://h"),
        ] {
            assert!(is_url(url));
            assert_eq!(shown_url(url), shown);
        }
        assert!(!is_url("/a/http://b") && !is_url("httpx://a") && !is_url("é"));
    }
}
