//! From a new connection to an open export.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use undercroft_format::nbd::server::negotiation::{Opened, ServerNegotiation, ServerStep};
use undercroft_format::nbd::server::offer::Offers;

use super::tls::ServerTls;

/// Bytes taken from a connection at once.
const READ_LEN: usize = 4 << 10;

/// A connection in clear or under TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A client with an open export.
pub(super) struct Settled {
    pub stream: Box<dyn Stream>,
    pub opened: Opened,
    /// Bytes that came behind.
    pub rest: Vec<u8>,
}

/// Negotiates; `None` if the client does not want an export after all.
///
/// # Errors
/// What is wrong with the client, or with the connection.
pub(super) async fn negotiate(
    stream: impl Stream + 'static,
    offers: Arc<Offers>,
    tls: Option<&ServerTls>,
) -> io::Result<Option<Settled>> {
    let mut machine = ServerNegotiation::new(offers);
    let mut stream: Box<dyn Stream> = Box::new(stream);
    loop {
        match talk(&mut stream, &mut machine).await? {
            ServerStep::StartTls => {
                let config = tls.ok_or(io::ErrorKind::Unsupported)?.0.clone();
                stream = Box::new(TlsAcceptor::from(config).accept(stream).await?);
                machine.tls_established();
            }
            ServerStep::Open(opened) => {
                let rest = machine.into_rest();
                return Ok(Some(Settled {
                    stream,
                    opened,
                    rest,
                }));
            }
            ServerStep::Continue | ServerStep::Close => {
                let _ = stream.shutdown().await;
                return Ok(None);
            }
        }
    }
}

/// Until there is something else to do than to talk; [`ServerStep::Continue`] if the client went away.
async fn talk(
    stream: &mut Box<dyn Stream>,
    machine: &mut ServerNegotiation,
) -> io::Result<ServerStep> {
    let mut buffer = vec![0; READ_LEN];
    loop {
        stream.write_all(&machine.take_output()).await?;
        stream.flush().await?;
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return Ok(ServerStep::Continue);
        }
        let step = machine
            .feed(&buffer[..len])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        if !matches!(step, Ok(ServerStep::Continue)) {
            stream.write_all(&machine.take_output()).await?;
            stream.flush().await?;
            return step;
        }
    }
}
