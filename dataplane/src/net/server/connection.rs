//! A connection: who is there, which repository it is for, and a thread per stream.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::runtime::Handle;
use tracing::Instrument;
use undercroft_format::wire::VERSION;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::frame::{Body, FrameType};
use undercroft_format::wire::hello::{Create, Hello, Open, Opened, Renew, Renewed, Welcome};
use undercroft_format::wire::message::{
    Attach, Begin, Collect, Done, Fetch, Forget, Hold, Lock, May, Protect, ReadSnapshot, Repair,
    StatSnapshot, Verify,
};
use undercroft_format::wire::upkeep::Report;

use super::access::{Caller, denied};
use super::listener::Shared;
use super::served::Served;
use super::{fetch, lane, roots, session, upkeep};
use crate::net::closing::Closing;
use crate::net::conversation::{Conversation, Frame, StreamError, expect};
use crate::net::manners::{Held, Manners};
use crate::net::refusal;
use crate::net::status::ConnectionStatus;
use crate::net::trust::{Authority, Object, PeerIdentity, RenewRequest, Verb};
use crate::repository::Repository;

/// A peer has this long from one step of the beginning to the next.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// Lanes that a client may use for one session.
const LANES_MAX: u16 = 32;

/// Why a conversation ended before its time.
#[derive(Debug)]
pub enum Broken {
    /// The peer is told.
    Failure(Failure),
    /// There may be nobody to be told.
    Stream(StreamError),
}

/// How a conversation ended.
pub type Ending = Result<(), Broken>;

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<StreamError> for Broken {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl Broken {
    /// What the peer is told, if it is still there.
    fn failure(self) -> Option<Failure> {
        match self {
            Self::Failure(failure) => Some(failure),
            Self::Stream(error @ (StreamError::Frame(_) | StreamError::Unexpected(_))) => {
                Some(Failure::new(FailureCode::Protocol, error.to_string()))
            }
            Self::Stream(error @ StreamError::NoRoom) => {
                Some(Failure::new(FailureCode::Busy, error.to_string()))
            }
            Self::Stream(_) => None,
        }
    }
}

/// A conversation about a repository.
pub struct Conversing {
    /// The server.
    pub shared: Arc<Shared>,
    /// The repository.
    pub served: Arc<Served>,
    /// Who asks.
    pub caller: Arc<Caller>,
    /// The stream.
    pub stream: Conversation,
}

impl Conversing {
    /// New work is not begun once the server shuts down.
    pub fn refuse_while_draining(&self) -> Result<(), Failure> {
        if self.shared.is_draining() {
            return Err(draining());
        }
        Ok(())
    }
}

/// Serves a connection whose handshake is done, until it ends.
pub async fn serve(
    shared: Arc<Shared>,
    connection: Connection,
    authority: Arc<Authority>,
    peer: PeerIdentity,
) {
    let address = connection.remote_address();
    let span = refusal::connection_span(&peer, address);
    let number = shared.connected(ConnectionStatus {
        peer: peer.name.to_string(),
        role: peer.role.to_string(),
        address: address.to_string(),
        repository: None,
    });
    let control = async {
        match control(&shared, &connection, &authority, peer, number).await {
            Ok(()) => tracing::info!("disconnected"),
            Err(Broken::Stream(error)) => {
                tracing::info!(%error, "a connection ended");
                // Whoever breaks the protocol here is told nothing but the end.
                if let Some(failure) = Broken::Stream(error).failure() {
                    shared.figures().failures.note(&failure);
                }
            }
            Err(Broken::Failure(failure)) => shared.figures().failures.note(&failure),
        }
    };
    control.instrument(span).await;
    shared.disconnected(number);
}

/// The first stream: hello, then the repository, then what an administrator asks.
async fn control(
    shared: &Arc<Shared>,
    connection: &Connection,
    authority: &Arc<Authority>,
    peer: PeerIdentity,
    number: u64,
) -> Ending {
    let (mut send, mut recv) = soon(async { Ok(connection.accept_bi().await?) }).await?;
    let manners = shared.bounds.manners(number);
    let (hello, held) = soon(next(&manners, &mut recv)).await?;
    let hello: Hello = expect(&hello)?;
    drop(held);
    let agreed = hello
        .common_version()
        .map_err(|error| Failure::new(FailureCode::Protocol, error.to_string()));
    let welcome = agreed.map(|_| Welcome {
        version: VERSION,
        capabilities: 0,
        lease_ms: shared.lease_ms(),
        lanes_max: LANES_MAX,
        program: shared.program().to_owned(),
    });
    match welcome {
        Ok(welcome) => say(&mut send, &welcome).await?,
        Err(failure) => {
            say(&mut send, &failure).await?;
            return Err(failure.into());
        }
    }
    tracing::info!(program = hello.program, "connected");
    let mut is_open = false;
    loop {
        let read = manners.read(&mut recv);
        let read = match is_open {
            true => read.await?,
            false => match tokio::time::timeout(shared.bounds.silence, read).await {
                Ok(read) => read?,
                Err(_) => {
                    let text = "nothing was asked for: connect again when there is something to do";
                    tracing::warn!(reason = text, "a connection is ended");
                    Closing::Silent.close(connection, text);
                    return Ok(());
                }
            },
        };
        let Some((frame, _held)) = read else {
            return Ok(());
        };
        if frame.0 == FrameType::Open && is_open {
            return Err(StreamError::Unexpected(FrameType::Open).into());
        }
        let (asked_of, asker) = ((shared.clone(), authority.clone()), peer.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let (shared, authority) = asked_of;
            answer(&shared, &authority, &asker, &frame)
        });
        match asked.await.expect("an answer does not panic") {
            Ok(Answer { frame, opened }) => {
                if let Some((served, caller)) = opened {
                    is_open = true;
                    shared.opened(number, caller.repository.as_str());
                    let span = tracing::Span::current();
                    span.record("repository", caller.repository.as_str());
                    let streams = Streams {
                        shared: shared.clone(),
                        served,
                        caller: Arc::new(caller),
                        manners: manners.clone(),
                    };
                    tokio::spawn(streams.serve(connection.clone()).instrument(span));
                }
                send.write_all(&frame).await.map_err(StreamError::from)?;
            }
            Err(broken) => match broken.failure() {
                Some(failure) => {
                    shared.figures().failures.note(&failure);
                    say(&mut send, &failure).await?;
                }
                None => return Ok(()),
            },
        }
    }
}

/// What is said on the first stream.
struct Answer {
    frame: Vec<u8>,
    opened: Option<(Arc<Served>, Caller)>,
}

impl Answer {
    fn of<B: Body>(message: &B) -> Self {
        Self {
            frame: message.frame(),
            opened: None,
        }
    }
}

fn answer(
    shared: &Arc<Shared>,
    authority: &Authority,
    peer: &PeerIdentity,
    frame: &Frame,
) -> Result<Answer, Broken> {
    match frame.0 {
        FrameType::Open => {
            let Open { name } = expect(frame)?;
            let repository = shared.repository_name(&name)?;
            let caller = Caller {
                peer: peer.clone(),
                repository,
            };
            caller.check_role(Verb::List)?;
            let served = shared.open(&caller.repository)?;
            let config = served.repository().config().encode();
            Ok(Answer {
                frame: Opened { config }.frame(),
                opened: Some((served, caller)),
            })
        }
        FrameType::Create => {
            let Create { name, config } = expect(frame)?;
            let caller = Caller {
                peer: peer.clone(),
                repository: shared.repository_name(&name)?,
            };
            caller.check_repository(Verb::Create)?;
            shared.create(&caller.repository, &config)?;
            Ok(Answer::of(&Done))
        }
        FrameType::Status => {
            denied(peer.check(Verb::Status, Object::default()))?;
            report(&shared.status())
        }
        FrameType::Sessions => {
            denied(peer.check(Verb::Sessions, Object::default()))?;
            report(&shared.sessions())
        }
        FrameType::Renew => {
            denied(peer.check(Verb::Renew, Object::default()))?;
            let Renew { request } = expect(frame)?;
            let request = RenewRequest::decode(&request).map_err(StreamError::from)?;
            let answer = authority.renew(peer, &request).encode();
            Ok(Answer::of(&Renewed { answer }))
        }
        kind => Err(StreamError::Unexpected(kind).into()),
    }
}

fn report<R: serde::Serialize>(report: &R) -> Result<Answer, Broken> {
    let json = serde_json::to_string(report);
    let json = json.map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))?;
    Ok(Answer::of(&Report { json }))
}

/// The streams of a connection after the first one.
struct Streams {
    shared: Arc<Shared>,
    served: Arc<Served>,
    caller: Arc<Caller>,
    manners: Manners,
}

impl Streams {
    async fn serve(self, connection: Connection) {
        while let Ok(stream) = connection.accept_bi().await {
            let (shared, served) = (self.shared.clone(), self.served.clone());
            let (caller, manners) = (self.caller.clone(), self.manners.clone());
            let begin = begin_stream(shared, served, caller, manners, stream);
            tokio::spawn(begin.in_current_span());
        }
    }
}

/// Waits for the first frame, then gives the stream to a thread.
async fn begin_stream(
    shared: Arc<Shared>,
    served: Arc<Served>,
    caller: Arc<Caller>,
    manners: Manners,
    (mut send, mut recv): (SendStream, RecvStream),
) {
    let (first, held) = match soon(next(&manners, &mut recv)).await {
        Ok(first) => first,
        Err(error) => return unbegun(&shared, error, send).await,
    };
    let conversation = refusal::conversation_span(first.0);
    let busy = match shared.conversing(caller.peer.name.as_str()) {
        Ok(busy) => busy,
        Err(failure) => {
            conversation.in_scope(|| shared.figures().failures.note(&failure));
            // The peer may be gone.
            let _ = soon(say(&mut send, &failure)).await;
            return;
        }
    };
    let handle = Handle::current();
    let thread = move || {
        let _entered = conversation.entered();
        let _busy = busy;
        let _running = shared.figures().conversing(first.0);
        let on = Conversing {
            shared,
            served,
            caller,
            stream: Conversation::new(handle, (send, recv)).with_manners(manners, held),
        };
        attend(on, &first);
    };
    // What a conversation panics with is on standard error; the others go on.
    let _ = tokio::task::spawn_blocking(thread).await;
}

/// Ends a stream whose first frame did not come, or was none.
async fn unbegun(shared: &Shared, error: StreamError, mut send: SendStream) {
    let is_silent = matches!(error, StreamError::NoAnswer | StreamError::Truncated);
    if let Some(failure) = Broken::Stream(error).failure() {
        shared.figures().failures.note(&failure);
        // The peer may be gone.
        let _ = say(&mut send, &failure).await;
    } else if is_silent {
        tracing::warn!(
            reason = "silent",
            "a stream was opened, and nothing was said"
        );
    }
}

/// Holds a conversation to its end.
pub fn attend(mut on: Conversing, first: &Frame) {
    if let Err(broken) = converse(&mut on, first) {
        tracing::debug!(?broken, "a conversation ended early");
        if let Broken::Stream(reason @ StreamError::Stalled) = &broken {
            tracing::warn!(%reason, "a conversation is given up");
            return on.stream.give_up();
        }
        if let Some(failure) = broken.failure() {
            on.shared.figures().failures.note(&failure);
            on.served.figures().failed(failure.code);
            // The peer may be gone.
            let _ = on.stream.say(&failure);
        }
    }
    on.stream.finish();
}

/// What kind of conversation it is, says its first frame.
fn converse(on: &mut Conversing, first: &Frame) -> Ending {
    match first.0 {
        FrameType::Begin => session::converse(on, expect::<Begin>(first)?),
        FrameType::Attach => lane::converse(on, expect::<Attach>(first)?),
        FrameType::Fetch => fetch::converse(on, expect::<Fetch>(first)?),
        FrameType::ListSnapshots => roots::list(on),
        FrameType::ReadSnapshot => {
            let ReadSnapshot { snapshot } = expect(first)?;
            roots::read(on, snapshot)
        }
        FrameType::StatSnapshot => {
            let StatSnapshot { snapshot } = expect(first)?;
            roots::state(on, snapshot)
        }
        FrameType::Forget => roots::forget(on, &expect::<Forget>(first)?),
        FrameType::Lock => roots::lock(on, expect::<Lock>(first)?),
        FrameType::Protect => roots::protect(on, expect::<Protect>(first)?),
        FrameType::Hold => roots::hold(on, expect::<Hold>(first)?),
        FrameType::Collect => upkeep::collect(on, expect::<Collect>(first)?),
        FrameType::Verify => upkeep::verify(on, expect::<Verify>(first)?),
        FrameType::Repair => upkeep::repair(on, expect::<Repair>(first)?),
        FrameType::Stats => upkeep::stats(on),
        FrameType::PackBytes => upkeep::pack_bytes(on),
        FrameType::May => upkeep::may(on, expect::<May>(first)?.first),
        kind => Err(StreamError::Unexpected(kind).into()),
    }
}

/// The failure of a server that shuts down.
fn draining() -> Failure {
    let text = "the server is shutting down: try again when it is back";
    Failure::new(FailureCode::Draining, text)
}

/// Waits for a frame that must come.
async fn next(
    manners: &Manners,
    recv: &mut RecvStream,
) -> Result<(Frame, Option<Held>), StreamError> {
    manners.read(recv).await?.ok_or(StreamError::NoAnswer)
}

/// A peer that takes too long is given up: half-open connections cost nothing for long.
async fn soon<T>(step: impl Future<Output = Result<T, StreamError>>) -> Result<T, StreamError> {
    tokio::time::timeout(STEP_TIMEOUT, step)
        .await
        .unwrap_or(Err(StreamError::NoAnswer))
}

async fn say<B: Body>(send: &mut SendStream, message: &B) -> Result<(), StreamError> {
    Ok(send.write_all(&message.frame()).await?)
}
