//! NBD URIs: which server, which export, which kind of TLS.
//!
//! Source: `doc/uri.md` of NetworkBlockDevice/nbd. Own parameters begin with `x-`; a parameter that is not
//! known is an error, so that a misspelt one does not weaken what was meant.

use std::fmt;

use super::wire::{DIRTY_BITMAP_PREFIX, PORT, STRING_LEN_MAX};

/// Longest URI, in bytes.
pub const URI_LEN_MAX: usize = 16 << 10;
/// Most connections that can be asked for.
pub const CONNECTIONS_MAX: u8 = 16;
/// Longest name of a dirty bitmap, in bytes: with its prefix it is a string of the protocol.
const DIRTY_BITMAP_LEN_MAX: usize = STRING_LEN_MAX - DIRTY_BITMAP_PREFIX.len();

/// An NBD URI. Shown without secrets: an export name may hold a session (XAPI's does).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Where the server is.
    pub server: Server,
    /// Name of the export; often empty.
    pub export: String,
    /// How TLS is spoken; `None` if the scheme does not ask for it.
    pub tls: Option<TlsParameters>,
    /// Connections to make, where the user says so (`x-connections`).
    pub connections: Option<u8>,
    /// Name of the bitmap that tells what changed (`x-dirty-bitmap`).
    pub dirty_bitmap: Option<String>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// On the network.
    Tcp {
        /// Name or address; IPv6 without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// On this machine.
    Unix {
        /// Path of its socket.
        socket: String,
    },
}

/// What a URI says of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsParameters {
    /// Name that the server's certificate must have (`tls-hostname`); by default the host's.
    pub hostname: Option<String>,
    /// Directory with `ca-cert.pem`, and perhaps `client-cert.pem` and `client-key.pem`
    /// (`tls-certificates`).
    pub certificates: Option<String>,
    /// The one certificate that the server must show: a PEM file, or `sha256:` and 64 hexadecimal digits
    /// (`x-tls-pin`).
    pub pin: Option<String>,
}

/// What is wrong with a URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// Not one of the four schemes.
    #[error("should begin with nbd://, nbds://, nbd+unix:// or nbds+unix://")]
    Scheme,
    /// Too long.
    #[error("is longer than {URI_LEN_MAX} bytes")]
    TooLong,
    /// No host.
    #[error("has no host: nbd://HOST[:PORT]/EXPORT is expected")]
    NoHost,
    /// A host where none belongs.
    #[error(
        "has a host, but its scheme is for sockets of this machine: nbd+unix:///EXPORT?socket=PATH is expected"
    )]
    HostOfUnix,
    /// No socket.
    #[error("has no socket: nbd+unix:///EXPORT?socket=PATH is expected")]
    NoSocket,
    /// Not a port.
    #[error("has an invalid port {0:?}: a number from 1 to 65535 is expected")]
    Port(String),
    /// `%` without two hexadecimal digits, or bytes that are no text.
    #[error("has an invalid %-encoding in {0:?}: UTF-8 text without NUL is expected")]
    Encoding(String),
    /// A name longer than the protocol's strings.
    #[error("has an export name longer than {STRING_LEN_MAX} bytes")]
    ExportTooLong,
    /// A user name.
    #[error(
        "has a user name, which is for pre-shared keys: TLS with certificates is what there is"
    )]
    User,
    /// Something after `#`.
    #[error("has a fragment (#...): write # as %23")]
    Fragment,
    /// A parameter given twice.
    #[error("has the parameter {0:?} twice")]
    Twice(String),
    /// A parameter that is not known.
    #[error("has a parameter {0:?}, which is not known: {KNOWN} are")]
    Unknown(String),
    /// A parameter with a value it cannot have.
    #[error("has an invalid value of {parameter}: {expected} is expected")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// A parameter of TLS without TLS.
    #[error("has the parameter {0:?} of TLS, but no TLS: write nbds:// or nbds+unix://")]
    TlsOfPlain(&'static str),
}

const KNOWN: &str = "socket, tls-type, tls-hostname, tls-verify-peer, tls-certificates, x-tls-pin, x-connections, x-dirty-bitmap";
const SCHEMES: [(&str, bool, bool); 4] = [
    ("nbd://", false, false),
    ("nbds://", false, true),
    ("nbd+unix://", true, false),
    ("nbds+unix://", true, true),
];

impl NbdUri {
    /// True if `text` begins like an NBD URI.
    pub fn is_like(text: &str) -> bool {
        SCHEMES.iter().any(|(scheme, ..)| has_prefix(text, scheme))
    }

    /// Reads a URI.
    ///
    /// # Errors
    /// [`UriError`], whose text completes "the source ... ".
    pub fn parse(text: &str) -> Result<Self, UriError> {
        if text.len() > URI_LEN_MAX {
            return Err(UriError::TooLong);
        }
        let (scheme, is_unix, is_tls) = *SCHEMES
            .iter()
            .find(|(scheme, ..)| has_prefix(text, scheme))
            .ok_or(UriError::Scheme)?;
        let rest = &text[scheme.len()..];
        if rest.contains('#') {
            return Err(UriError::Fragment);
        }
        let (hierarchy, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = hierarchy.split_once('/').unwrap_or((hierarchy, ""));
        let mut parameters = Parameters::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            parameters.take(pair)?;
        }
        let export = decode(path)?;
        if export.len() > STRING_LEN_MAX {
            return Err(UriError::ExportTooLong);
        }
        let server = match (is_unix, authority) {
            (true, "") => Server::Unix {
                socket: parameters
                    .socket
                    .take()
                    .filter(|socket| !socket.is_empty())
                    .ok_or(UriError::NoSocket)?,
            },
            (true, _) => return Err(UriError::HostOfUnix),
            (false, authority) => tcp(authority)?,
        };
        if parameters.socket.is_some() {
            return Err(UriError::Unknown("socket".to_owned()));
        }
        Ok(Self {
            server,
            export,
            tls: parameters.tls(is_tls)?,
            connections: parameters.connections,
            dirty_bitmap: parameters.dirty_bitmap,
        })
    }

    /// The export's name without what follows a `?`: where XAPI puts its session.
    pub fn shown_export(&self) -> String {
        match self.export.split_once('?') {
            Some((name, _)) => format!("{name}?..."),
            None => self.export.clone(),
        }
    }
}

/// A URI that names the same export, without parameters and secrets.
impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.tls.is_some() { "s" } else { "" };
        let export = encode(&self.shown_export());
        match &self.server {
            Server::Tcp { host, port } => {
                let is_ipv6 = host.contains(':');
                let host = encode(host).replace('/', "%2F");
                let host = match is_ipv6 {
                    true => format!("[{host}]"),
                    false => host,
                };
                let port = match *port {
                    PORT => String::new(),
                    port => format!(":{port}"),
                };
                write!(f, "nbd{secure}://{host}{port}/{export}")
            }
            Server::Unix { socket } => {
                write!(f, "nbd{secure}+unix:///{export}?socket={}", encode(socket))
            }
        }
    }
}

#[derive(Default)]
struct Parameters {
    seen: Vec<String>,
    socket: Option<String>,
    tls: TlsParameters,
    tls_parameter: Option<&'static str>,
    connections: Option<u8>,
    dirty_bitmap: Option<String>,
}

impl Parameters {
    fn take(&mut self, pair: &str) -> Result<(), UriError> {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key)?, decode(value)?);
        if self.seen.contains(&key) {
            return Err(UriError::Twice(key));
        }
        let text = |parameter, value: String| match value.is_empty() {
            false => Ok(Some(value)),
            true => Err(invalid(parameter, "some text")),
        };
        match key.as_str() {
            "socket" => self.socket = Some(value),
            "tls-hostname" => {
                self.tls_parameter = Some("tls-hostname");
                self.tls.hostname = text("tls-hostname", value)?;
            }
            "tls-certificates" => {
                self.tls_parameter = Some("tls-certificates");
                self.tls.certificates = text("tls-certificates", value)?;
            }
            "x-tls-pin" => {
                self.tls_parameter = Some("x-tls-pin");
                self.tls.pin = text("x-tls-pin", value)?;
            }
            "tls-type" => {
                self.tls_parameter = Some("tls-type");
                if value != "x509" {
                    return Err(invalid(
                        "tls-type",
                        "x509, since servers are always verified by their certificates,",
                    ));
                }
            }
            "tls-verify-peer" => {
                self.tls_parameter = Some("tls-verify-peer");
                if value != "1" {
                    return Err(invalid(
                        "tls-verify-peer",
                        "1, since servers are always verified,",
                    ));
                }
            }
            "x-connections" => {
                let count = value.parse().ok();
                let count = count.filter(|count| (1..=CONNECTIONS_MAX).contains(count));
                let error = invalid("x-connections", "a number from 1 to 16");
                self.connections = Some(count.ok_or(error)?);
            }
            "x-dirty-bitmap" => {
                let expected = "the name of a bitmap, as in qemu:dirty-bitmap:NAME,";
                // QEMU's own parameter of this name takes the prefix along.
                let name = value.strip_prefix(DIRTY_BITMAP_PREFIX).unwrap_or(&value);
                let is_name = (1..=DIRTY_BITMAP_LEN_MAX).contains(&name.len());
                let name = is_name.then(|| name.to_owned());
                self.dirty_bitmap = Some(name.ok_or(invalid("x-dirty-bitmap", expected))?);
            }
            _ => return Err(UriError::Unknown(key)),
        }
        self.seen.push(key);
        Ok(())
    }

    fn tls(&mut self, is_tls: bool) -> Result<Option<TlsParameters>, UriError> {
        match (is_tls, self.tls_parameter) {
            (true, _) => Ok(Some(std::mem::take(&mut self.tls))),
            (false, None) => Ok(None),
            (false, Some(parameter)) => Err(UriError::TlsOfPlain(parameter)),
        }
    }
}

fn invalid(parameter: &'static str, expected: &'static str) -> UriError {
    UriError::Value {
        parameter,
        expected,
    }
}

fn tcp(authority: &str) -> Result<Server, UriError> {
    if authority.contains('@') {
        return Err(UriError::User);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(UriError::NoHost)?;
            match port {
                "" => (host, None),
                port => {
                    let number = port.strip_prefix(':');
                    (host, Some(number.ok_or(UriError::Port(port.to_owned()))?))
                }
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let host = decode(host)?;
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    let port = match port {
        None | Some("") => PORT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| UriError::Port(text.to_owned()))?,
    };
    Ok(Server::Tcp { host, port })
}

fn has_prefix(text: &str, scheme: &str) -> bool {
    text.get(..scheme.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

fn decode(text: &str) -> Result<String, UriError> {
    let error = || UriError::Encoding(text.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = rest.next().map(char::from)?.to_digit(16)?;
            Some(digit as u8)
        };
        let (high, low) = digit().zip(digit()).ok_or_else(error)?;
        bytes.push(high << 4 | low);
    }
    let text = String::from_utf8(bytes).map_err(|_| error())?;
    if text.contains('\0') {
        return Err(error());
    }
    Ok(text)
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                out.push(byte.into());
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_specifications_examples_mean_what_it_says() {
        for (text, export) in [
            ("nbd://example.com/disk", "disk"),
            ("nbd+unix:///disk?socket=sock", "disk"),
            ("nbd://example.com/", ""),
            ("nbd://example.com", ""),
            ("nbd://example.com//disk", "/disk"),
            ("nbd://example.com/hello%20world", "hello world"),
            ("NBD://example.com/disk", "disk"),
        ] {
            assert_eq!(NbdUri::parse(text).unwrap().export, export, "{text}");
        }
    }

    #[test]
    fn servers_are_told_apart() {
        let server = |text| NbdUri::parse(text).map(|uri| uri.server);
        let tcp = |host: &str, port| {
            Ok(Server::Tcp {
                host: host.to_owned(),
                port,
            })
        };
        assert_eq!(server("nbd://host"), tcp("host", 10809));
        assert_eq!(server("nbd://host:10810/x"), tcp("host", 10810));
        assert_eq!(server("nbds://[::1]:7/x"), tcp("::1", 7));
        assert_eq!(server("nbd://[fe80::1]"), tcp("fe80::1", 10809));
        assert_eq!(
            server("nbd+unix:///?socket=/run/a%20b"),
            Ok(Server::Unix {
                socket: "/run/a b".to_owned()
            })
        );
        assert_eq!(server("nbd:///x"), Err(UriError::NoHost));
        assert_eq!(
            server("nbd+unix://host/x?socket=s"),
            Err(UriError::HostOfUnix)
        );
        assert_eq!(server("nbd+unix:///x"), Err(UriError::NoSocket));
        assert_eq!(server("http://host/x"), Err(UriError::Scheme));
        assert!(matches!(server("nbd://h:0/x"), Err(UriError::Port(_))));
        assert!(matches!(server("nbd://h:65536/"), Err(UriError::Port(_))));
        assert!(matches!(server("nbd://h/%zz"), Err(UriError::Encoding(_))));
        assert!(matches!(server("nbd://h/%00"), Err(UriError::Encoding(_))));
    }

    #[test]
    fn verification_cannot_be_switched_off() {
        for text in [
            "nbds://h/?tls-verify-peer=0",
            "nbds://h/?tls-type=anon",
            "nbds://h/?tls-type=psk",
            "nbd://h/?tls-hostname=x",
            "nbds://h/?tls-verfy-peer=1",
            "nbds://h/?x-tls-pin=",
            "nbds://user@h/",
            "nbds://h/?x-tls-pin=a&x-tls-pin=b",
        ] {
            assert!(NbdUri::parse(text).is_err(), "{text}");
        }
        let uri = NbdUri::parse("nbds://h/e?tls-certificates=/etc/pki&tls-hostname=n").unwrap();
        let tls = uri.tls.unwrap();
        assert_eq!(tls.certificates.as_deref(), Some("/etc/pki"));
        assert_eq!(tls.hostname.as_deref(), Some("n"));
    }

    #[test]
    fn a_dirty_bitmap_has_a_name() {
        let of = |text: &str| NbdUri::parse(text).map(|uri| uri.dirty_bitmap);
        let b0 = Ok(Some("b 0".to_owned()));
        assert_eq!(of("nbd://h/e?x-dirty-bitmap=b%200"), b0);
        assert_eq!(of("nbd://h/e?x-dirty-bitmap=qemu:dirty-bitmap:b%200"), b0);
        assert_eq!(of("nbd://h/e"), Ok(None));
        let long = format!("nbd://h/e?x-dirty-bitmap={}", "x".repeat(4079));
        for text in [
            "nbd://h/e?x-dirty-bitmap",
            "nbd+unix:///?socket=s&x-dirty-bitmap=",
            "nbd://h/e?x-dirty-bitmap=qemu:dirty-bitmap:",
            &long,
        ] {
            let found = of(text);
            assert!(
                matches!(found, Err(UriError::Value { .. })),
                "{text}: {found:?}"
            );
        }
    }

    #[test]
    fn a_session_in_the_export_name_is_not_shown() {
        let uri = NbdUri::parse("nbds://h//3f9c?x-connections=2").unwrap();
        assert_eq!((uri.export.as_str(), uri.connections), ("/3f9c", Some(2)));
        let uri = NbdUri::parse("nbds://h//3f9c%3Fsession_id=OpaqueRef:secret").unwrap();
        assert_eq!(uri.export, "/3f9c?session_id=OpaqueRef:secret");
        assert!(!uri.to_string().contains("secret"), "{uri}");
    }

    #[test]
    fn odd_hosts_are_shown_so_that_they_can_be_read() {
        for text in ["nbd://a%3Fb%2Fc/e", "nbd://%3A@x/e", "nbd://a%3Ab%23/e"] {
            if let Ok(uri) = NbdUri::parse(text) {
                assert_eq!(NbdUri::parse(&uri.to_string()), Ok(uri), "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_names_the_same_export(host in "[a-z]{1,8}", port in 1_u16.., export in "[^?\\x00]{0,20}") {
            let uri = NbdUri {
                server: Server::Tcp { host, port },
                export,
                tls: None,
                connections: None,
                dirty_bitmap: None,
            };
            prop_assert_eq!(NbdUri::parse(&uri.to_string()), Ok(uri));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(nbd|nbds|nbd\\+unix)://.{0,40}") {
            let _ = NbdUri::parse(&text);
        }
    }
}
