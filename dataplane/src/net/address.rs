//! Where a repository server listens, and the names of repositories behind it.

use std::fmt;
use std::str::FromStr;

/// Port of a repository server, unless another one is given.
pub const DEFAULT_PORT: u16 = 7420;
/// Port of a proxy, unless another one is given.
pub const PROXY_PORT: u16 = 7421;
/// Longest name of a repository, in bytes.
pub const NAME_LEN_MAX: usize = 64;

/// Host and port of a repository server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// A name or an IP address, IPv6 without its brackets.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

/// Host and port of a proxy: `quic://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyAddress(pub ServerAddress);

/// A repository behind a server: `quic://HOST[:PORT]/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteAddress {
    /// The server.
    pub server: ServerAddress,
    /// The repository's name there.
    pub name: RepositoryName,
}

/// Name of a repository on its server: a directory of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(String);

/// Text that is no address of a server or repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {problem}: it should look like quic://HOST:PORT, and /NAME for a repository")]
pub struct AddressError {
    text: String,
    problem: &'static str,
}

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = AddressError;

    /// Letters, digits, `.`, `_` and `-`, not beginning with a dot: it becomes a directory's name, beside
    /// that of the server's authority.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let problem = match text {
            "" => "has no name of a repository",
            text if text.len() > NAME_LEN_MAX => "has a name of a repository over 64 bytes",
            super::trust::DIRECTORY => {
                "names the server's own directory, where no repository can be"
            }
            text if text.starts_with('.') => "has a name of a repository that begins with a dot",
            text if !text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) =>
            {
                "has a name of a repository with other characters than letters, digits, '.', '_' and '-'"
            }
            _ => return Ok(Self(text.to_owned())),
        };
        Err(AddressError {
            text: text.chars().take(80).collect(),
            problem,
        })
    }
}

impl FromStr for ServerAddress {
    type Err = AddressError;

    /// `HOST`, `HOST:PORT` or `[IPV6]:PORT`, with or without `quic://` before it.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text, DEFAULT_PORT)
    }
}

impl ServerAddress {
    fn parse(text: &str, default_port: u16) -> Result<Self, AddressError> {
        let error = |problem| AddressError {
            text: text.to_owned(),
            problem,
        };
        let rest = text.strip_prefix("quic://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains("://") {
            return Err(error("has another scheme than quic"));
        }
        if rest.contains('/') {
            return Err(error("names a repository where a server is meant"));
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest
                    .split_once(']')
                    .ok_or_else(|| error("lacks the ']' after an IPv6 address"))?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(error("has no IPv6 address between its brackets"));
                }
                (host, after.strip_prefix(':'))
            }
            None => match rest.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(error("has an IPv6 address without brackets"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@') {
            return Err(error("has no host"));
        }
        let port = match port {
            None => default_port,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| error("has no valid port"))?,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl FromStr for ProxyAddress {
    type Err = AddressError;

    /// As a server's address, with the port of proxies.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        ServerAddress::parse(text, PROXY_PORT).map(Self)
    }
}

impl FromStr for RemoteAddress {
    type Err = AddressError;

    /// `quic://HOST[:PORT]/NAME`.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let rest = text.strip_prefix("quic://").unwrap_or(text);
        let (server, name) = rest.split_once('/').ok_or_else(|| AddressError {
            text: text.to_owned(),
            problem: "has no name of a repository",
        })?;
        let whole = |error: AddressError| AddressError {
            text: text.to_owned(),
            ..error
        };
        Ok(Self {
            server: server.parse().map_err(whole)?,
            name: name.parse().map_err(whole)?,
        })
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quic://{}", self.0)
    }
}

impl fmt::Display for RemoteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quic://{}/{}", self.server, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back() {
        for (text, shown) in [
            ("quic://backup:7000/main", "quic://backup:7000/main"),
            ("quic://backup/main", "quic://backup:7420/main"),
            ("quic://[fd00::1]:9/a.b_c-1", "quic://[fd00::1]:9/a.b_c-1"),
            ("quic://10.0.0.1/x", "quic://10.0.0.1:7420/x"),
        ] {
            let address: RemoteAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address));
        }
    }

    #[test]
    fn a_proxy_has_a_port_of_its_own() {
        for (text, shown) in [
            ("quic://proxy", "quic://proxy:7421"),
            ("proxy:9", "quic://proxy:9"),
            ("quic://[fd00::1]", "quic://[fd00::1]:7421"),
        ] {
            let address: ProxyAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_says_so() {
        for (text, said) in [
            ("quic://backup:7000", "no name"),
            ("quic://backup:7000/", "no name"),
            ("quic:///main", "no host"),
            ("quic://backup:0/main", "no valid port"),
            ("quic://backup:70000/main", "no valid port"),
            ("quic://fd00::1/main", "without brackets"),
            ("quic://[fd00::1/main", "lacks"),
            ("quic://backup/a/../etc", "other characters"),
            ("quic://backup/..", "begins with a dot"),
            ("quic://backup/trust", "own directory"),
        ] {
            let error = text.parse::<RemoteAddress>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
