//! Where clients come in: sockets of this machine and of the network.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use undercroft_format::nbd::uri::Server;

use super::error::ExportError;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On the network; port 0 for any that is free.
    Tcp(SocketAddr),
    /// On this machine, for the user alone.
    Unix(PathBuf),
}

/// A socket that listens. That of this machine is removed when this is dropped.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A client.
pub(super) enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The name of a socket, removed with it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: somebody else's socket of the same name is left alone.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens. To be called within a runtime.
    pub fn bind(listen: &Listen) -> Result<Self, ExportError> {
        let (place, bound) = match listen {
            Listen::Tcp(address) => (address.to_string(), tcp(*address)),
            Listen::Unix(path) => {
                clear(path)?;
                (path.display().to_string(), unix(path))
            }
        };
        bound.map_err(|source| ExportError::Listen { place, source })
    }

    /// As URIs name it.
    pub fn server(&self) -> io::Result<Server> {
        Ok(match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr()?;
                Server::Tcp {
                    host: address.ip().to_string(),
                    port: address.port(),
                }
            }
            Self::Unix(_, file) => Server::Unix {
                socket: std::path::absolute(&file.path)?.display().to_string(),
            },
        })
    }

    /// The next client.
    pub async fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Replies are whole when they are sent, and a client that is gone is to be noticed.
                stream.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Client::Tcp(stream))
            }
            Self::Unix(listener, _) => Ok(Client::Unix(listener.accept().await?.0)),
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<Listener> {
    let listener = StdTcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Listener::Tcp)
}

/// For the user alone: whoever can connect reads the disk.
fn unix(path: &Path) -> io::Result<Listener> {
    let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = StdUnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = bound?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path).ok(),
    };
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map(|listener| Listener::Unix(listener, file))
}

/// Removes a socket that nobody listens on any more.
fn clear(path: &Path) -> Result<(), ExportError> {
    let error = |source| ExportError::Listen {
        place: path.display().to_string(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error(source)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ExportError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(error)
        }
        Err(source) => Err(error(source)),
        Ok(_) => Err(ExportError::SocketInUse(path.to_owned())),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path).ok() == self.identity {
            // The next exporter replaces what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}
