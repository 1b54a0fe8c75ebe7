//! The proxy's daemon: lets peers in and answers them.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::runtime::{Handle, Runtime};
use tracing::Instrument;
use undercroft_format::wire::VERSION;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::frame::{Body, FrameType};
use undercroft_format::wire::hello::{Hello, Renew, Renewed, Welcome};
use undercroft_format::wire::proxy::{CancelTask, Follow, ShowTask, Submit, Suspend};
use undercroft_format::wire::upkeep::{Done, Report};

use super::agent::Agent;
use super::follow::Step;
use super::permission::denied;
use super::watched::Watched;
use crate::net::conversation::{Conversation, Frame, StreamError, expect, read_frame};
use crate::net::door::{Door, DoorError, DoorOptions, Handler, Limits};
use crate::net::refusal::connection_span;
use crate::net::trust::tls::PROXY;
use crate::net::trust::{Authority, Object, PeerIdentity, RenewRequest, Verb};
use crate::observe::Observed;

/// Threads that drive sockets and connections.
const NET_THREADS: usize = 2;
/// Conversations at once: each has a thread.
const CONVERSATIONS_MAX: usize = 512;
/// A peer has this long from one step of the beginning to the next.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often rates are looked at.
const TICK: Duration = Duration::from_secs(1);
/// The authority is looked after once in so many ticks.
const UPKEEP_TICKS: u64 = 60;
/// Owners of tasks are looked after once in so many ticks, as often as connections are.
const REVOCATION_TICKS: u64 = 2;
/// How long tasks have to stop when the proxy shuts down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long clients have to hear that it does.
const GOODBYE: Duration = Duration::from_millis(500);

/// How a proxy listens.
pub struct ProxyOptions {
    /// Where; port 0 takes any.
    pub listen: SocketAddr,
    /// The file of the secret for resets.
    pub reset_key: PathBuf,
}

/// A proxy could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// Threads cannot be started.
    #[error("starting threads")]
    Threads(#[source] io::Error),
    /// It cannot listen.
    #[error(transparent)]
    Door(#[from] DoorError),
}

/// A running proxy.
pub struct ProxyServer {
    agent: Agent,
    authority: Arc<Authority>,
    door: Door,
    runtime: Runtime,
}

impl ProxyServer {
    /// Starts to listen.
    pub fn start(
        options: ProxyOptions,
        agent: Agent,
        authority: Arc<Authority>,
    ) -> Result<Self, ProxyError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NET_THREADS)
            .max_blocking_threads(CONVERSATIONS_MAX)
            .thread_name("undercroft-net")
            .enable_all()
            .build()
            .map_err(ProxyError::Threads)?;
        let door = DoorOptions {
            listen: options.listen,
            protocols: PROXY,
            limits: Limits::default(),
            reset_key: options.reset_key,
        };
        let peers = Arc::new(Peers {
            agent: agent.clone(),
            authority: authority.clone(),
        });
        end_tasks_of_revoked(&agent, &authority);
        let door = Door::open(door, authority.clone(), peers, runtime.handle())?;
        agent.begin();
        runtime.spawn(tick(agent.clone(), authority.clone()));
        Ok(Self {
            agent,
            authority,
            door,
            runtime,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.door.address()
    }

    /// The proxy as those see it who watch it.
    pub fn watched(&self) -> Arc<dyn Observed> {
        let (agent, authority) = (self.agent.clone(), self.authority.clone());
        Arc::new(Watched::new(agent, authority, self.door.figures().clone()))
    }

    /// Takes no tasks any more, stops what runs so that the next start goes on with it, and lets go of
    /// everybody. Returns the number of tasks that did not stop in time.
    pub fn drain(self) -> usize {
        let left = self.agent.drain(DRAIN_TIMEOUT);
        std::thread::sleep(GOODBYE);
        self.door.close();
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        left
    }
}

async fn tick(agent: Agent, authority: Arc<Authority>) {
    let mut interval = tokio::time::interval(TICK);
    for number in 0_u64.. {
        interval.tick().await;
        let (agent, authority) = (agent.clone(), authority.clone());
        let ticked = tokio::task::spawn_blocking(move || {
            agent.tick();
            if number.is_multiple_of(REVOCATION_TICKS) {
                end_tasks_of_revoked(&agent, &authority);
            }
            if number.is_multiple_of(UPKEEP_TICKS)
                && let Err(error) = authority.upkeep()
            {
                tracing::warn!(%error, "looking after the authority failed");
            }
        });
        // What it panics with is on standard error; the proxy goes on.
        let _ = ticked.await;
    }
}

/// A registry that cannot be read ends nothing, as with connections.
fn end_tasks_of_revoked(agent: &Agent, authority: &Authority) {
    match authority.revoked_names() {
        Ok(names) => agent.end_tasks_of(|name| names.contains(name)),
        Err(error) => tracing::warn!(%error, "who was revoked could not be looked up"),
    }
}

/// What the door does with peers that it lets in.
struct Peers {
    agent: Agent,
    authority: Arc<Authority>,
}

impl Handler for Peers {
    async fn serve(self: Arc<Self>, connection: Connection, peer: PeerIdentity) {
        let span = connection_span(&peer, connection.remote_address());
        let conversing = async {
            match self.converse(&connection, peer).await {
                Ok(()) => tracing::info!("disconnected"),
                Err(error @ (StreamError::Frame(_) | StreamError::Unexpected(_))) => {
                    // Whoever breaks the protocol here is told nothing but the end.
                    self.note(&broken(&error));
                }
                Err(error) => tracing::info!(%error, "a connection ended"),
            }
        };
        conversing.instrument(span).await;
    }
}

impl Peers {
    /// The first stream: hello, then questions. The others are taken once that is said.
    async fn converse(
        self: &Arc<Self>,
        connection: &Connection,
        peer: PeerIdentity,
    ) -> Result<(), StreamError> {
        let (mut send, mut recv) = soon(async { Ok(connection.accept_bi().await?) }).await?;
        let hello: Hello = expect(&soon(next(&mut recv)).await?)?;
        if let Err(error) = hello.common_version() {
            let failure = Failure::new(FailureCode::Protocol, error.to_string());
            self.note(&failure);
            return say(&mut send, &failure).await;
        }
        let welcome = Welcome {
            version: VERSION,
            capabilities: 0,
            lease_ms: 0,
            lanes_max: 0,
            program: self.agent.program().to_owned(),
        };
        say(&mut send, &welcome).await?;
        tracing::info!(program = hello.program, "connected");
        let streams = self.clone().streams(connection.clone(), peer.clone());
        tokio::spawn(streams.in_current_span());
        while let Some(frame) = read_frame(&mut recv).await? {
            let (peers, peer) = (self.clone(), peer.clone());
            let asked = tokio::task::spawn_blocking(move || peers.answer(&peer, &frame));
            let answer = asked.await.unwrap_or_else(|_| Err(panicked()));
            let frame = answer.unwrap_or_else(|failure| self.refuse(&failure));
            send.write_all(&frame).await?;
        }
        Ok(())
    }

    async fn streams(self: Arc<Self>, connection: Connection, peer: PeerIdentity) {
        while let Ok(stream) = connection.accept_bi().await {
            let begin = self.clone().begin_stream(peer.clone(), stream);
            tokio::spawn(begin.in_current_span());
        }
    }

    /// Waits for the first frame, then gives the stream to a thread.
    async fn begin_stream(
        self: Arc<Self>,
        peer: PeerIdentity,
        (send, mut recv): (SendStream, RecvStream),
    ) {
        let first = match soon(next(&mut recv)).await {
            Ok(first) => first,
            Err(error @ (StreamError::Frame(_) | StreamError::Unexpected(_))) => {
                return self.note(&broken(&error));
            }
            Err(_) => return,
        };
        let handle = Handle::current();
        let span = tracing::error_span!("request", kind = ?first.0);
        let thread = move || {
            let _entered = span.entered();
            let mut stream = Conversation::new(handle, (send, recv));
            // The peer may be gone.
            let _ = self.stream(&peer, &mut stream, &first);
            stream.finish();
        };
        // What a conversation panics with is on standard error; the others go on.
        let _ = tokio::task::spawn_blocking(thread).await;
    }

    fn stream(
        &self,
        peer: &PeerIdentity,
        stream: &mut Conversation,
        first: &Frame,
    ) -> Result<(), StreamError> {
        if first.0 != FrameType::Follow {
            let answer = self.answer(peer, first);
            return stream.write(answer.unwrap_or_else(|failure| self.refuse(&failure)));
        }
        let follow = match expect::<Follow>(first) {
            Ok(follow) => follow,
            Err(error) => return stream.write(self.refuse(&broken(&error))),
        };
        let mut notes_seen = follow.notes_seen as usize;
        let mut wait = false;
        loop {
            match self.agent.step(peer, follow.id, notes_seen, wait) {
                Ok(Step::Notes(notes)) => {
                    notes_seen += notes.len();
                    notes.iter().try_for_each(|note| stream.say(note))?;
                }
                Ok(Step::Progress(progress)) => stream.say(&progress)?,
                Ok(Step::Over(over)) => return stream.say(&over),
                Err(failure) => return stream.write(self.refuse(&failure)),
            }
            wait = true;
        }
    }

    /// Counts and logs a failure.
    fn note(&self, failure: &Failure) {
        self.agent.figures().failures.note(failure);
    }

    /// The frame of a failure, which is noted.
    fn refuse(&self, failure: &Failure) -> Vec<u8> {
        self.note(failure);
        failure.frame()
    }

    /// Answers a question by a frame.
    fn answer(&self, peer: &PeerIdentity, frame: &Frame) -> Result<Vec<u8>, Failure> {
        let agent = &self.agent;
        match frame.0 {
            FrameType::Submit => Ok(agent.submit(peer, body::<Submit>(frame)?)?.frame()),
            FrameType::CancelTask => {
                agent.cancel(peer, body::<CancelTask>(frame)?.id)?;
                Ok(Done.frame())
            }
            FrameType::Suspend => {
                agent.suspend(peer, body::<Suspend>(frame)?.is_suspended)?;
                Ok(Done.frame())
            }
            FrameType::ListTasks => report(&agent.list(peer)?),
            FrameType::ShowTask => report(&agent.show(peer, body::<ShowTask>(frame)?.id)?),
            FrameType::Status => report(&agent.status(peer)?),
            FrameType::Renew => {
                denied(peer.check(Verb::Renew, Object::default()))?;
                let Renew { request } = body(frame)?;
                let request = RenewRequest::decode(&request)
                    .map_err(|error| broken(&StreamError::from(error)))?;
                let answer = self.authority.renew(peer, &request).encode();
                Ok(Renewed { answer }.frame())
            }
            kind => Err(broken(&StreamError::Unexpected(kind))),
        }
    }
}

fn body<B: Body>(frame: &Frame) -> Result<B, Failure> {
    expect(frame).map_err(|error| broken(&error))
}

/// What a peer that broke the protocol is told.
fn broken(error: &StreamError) -> Failure {
    Failure::new(FailureCode::Protocol, error.to_string())
}

fn panicked() -> Failure {
    Failure::new(
        FailureCode::Failed,
        "the answer ended by a bug of the proxy",
    )
}

fn report<R: serde::Serialize>(report: &R) -> Result<Vec<u8>, Failure> {
    let json = serde_json::to_string(report);
    let json = json.map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))?;
    Ok(Report { json }.frame())
}

/// Waits for a frame that must come.
async fn next(recv: &mut RecvStream) -> Result<Frame, StreamError> {
    read_frame(recv).await?.ok_or(StreamError::NoAnswer)
}

/// A peer that takes too long is given up.
async fn soon<T>(step: impl Future<Output = Result<T, StreamError>>) -> Result<T, StreamError> {
    tokio::time::timeout(STEP_TIMEOUT, step)
        .await
        .unwrap_or(Err(StreamError::NoAnswer))
}

async fn say<B: Body>(send: &mut SendStream, message: &B) -> Result<(), StreamError> {
    Ok(send.write_all(&message.frame()).await?)
}
