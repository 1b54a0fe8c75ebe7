//! The endpoint: a few answers over HTTP 1, on a thread of its own, so that nobody who asks slows the daemon.
//!
//! Everything is bounded: connections (a new one ends the oldest, so that those that hang keep nobody
//! out), the time that one may take, its header, and the answers that are being made.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::health::Report;
use super::log_limit::LogLimit;
use super::{Complaint, Observed, PREFIX, process};

/// Connections at once.
const CONNECTIONS_MAX: usize = 32;
/// How long a request may take to arrive, in all.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take, the answer included.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an answer may take to be made: a disk that hangs makes none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// Answers that are being made at once.
const ANSWERS_MAX: usize = 4;
/// Bytes of a request's header.
const HEADER_LEN_MAX: usize = 16 << 10;
/// Lines of a request's header.
const HEADERS_MAX: usize = 64;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The socket cannot be had.
    #[error("listening on {address} for those who watch")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("starting the thread of the endpoint for those who watch")]
    Thread(#[source] io::Error),
}

/// Serves figures and health until it is dropped.
pub struct Endpoint {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Serves `observed` at `address`; port 0 takes any. `log` counts the lines that its log leaves out.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn open(
        address: SocketAddr,
        observed: Arc<dyn Observed>,
        log: &LogLimit,
    ) -> Result<Self, EndpointError> {
        let listen = |source| EndpointError::Listen { address, source };
        let socket = std::net::TcpListener::bind(address).map_err(listen)?;
        socket.set_nonblocking(true).map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        let mut registry = Registry::default();
        process::register(&mut registry);
        let ours = registry.sub_registry_with_prefix(PREFIX);
        log.register(ours);
        observed.clone().register(ours);
        let answers = Arc::new(Answers {
            observed,
            registry,
            making: Arc::new(Semaphore::new(ANSWERS_MAX)),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(ANSWERS_MAX)
            .thread_name("undercroft-look")
            .build()
            .map_err(EndpointError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("undercroft-http".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(socket, answers) => {}
                        _ = stopped => {}
                    }
                });
                runtime.shutdown_background();
            })
            .map_err(EndpointError::Thread)?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // What it panicked with is on standard error.
            let _ = thread.join();
        }
    }
}

async fn accept(socket: std::net::TcpListener, answers: Arc<Answers>) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "figures and health are not served"),
    };
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for figures or health could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let serving = timeout(CONNECTION_TIMEOUT, serve(stream, answers.clone()));
        open.push_back(tokio::spawn(serving).abort_handle());
    }
}

async fn serve(stream: TcpStream, answers: Arc<Answers>) {
    let service = service_fn(move |request| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answers.to(&request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_LEN_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a request for figures or health broke off");
    }
}

type Answer = Response<Full<Bytes>>;

/// What is answered.
struct Answers {
    observed: Arc<dyn Observed>,
    registry: Registry,
    making: Arc<Semaphore>,
}

impl Answers {
    async fn to(self: &Arc<Self>, request: &Request<Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n");
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/metrics" => {
                let is_open = accepts_open_metrics(request);
                self.slowly(move |answers| answers.figures(is_open)).await
            }
            "/health/live" => health(&self.observed.liveness()),
            "/health/ready" => {
                self.slowly(|answers| health(&answers.observed.readiness()))
                    .await
            }
            "/" => answer(
                StatusCode::OK,
                TEXT,
                "/metrics\n/health/live\n/health/ready\n",
            ),
            _ => answer(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /metrics, /health/live and /health/ready\n",
            ),
        }
    }

    /// An answer that may have to wait for a disk.
    async fn slowly(
        self: &Arc<Self>,
        make: impl FnOnce(&Self) -> Answer + Send + 'static,
    ) -> Answer {
        let made = timeout(ANSWER_TIMEOUT, async {
            let turn = self.making.clone().acquire_owned().await;
            let answers = self.clone();
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                make(&answers)
            })
            .await
        });
        match made.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "it failed\n"),
            Err(_) => health(&[Complaint::new(
                "answer",
                format!(
                    "no answer within {} s: does a disk hang?",
                    ANSWER_TIMEOUT.as_secs()
                ),
            )]),
        }
    }

    fn figures(&self, is_open: bool) -> Answer {
        let mut text = String::new();
        let (encoded, kind) = match is_open {
            true => (
                encoding::text::encode(&mut text, &self.registry),
                OPEN_METRICS,
            ),
            false => (
                encoding::prometheus_text::encode(&mut text, &self.registry),
                PROMETHEUS,
            ),
        };
        match encoded {
            Ok(()) => answer(StatusCode::OK, kind, text),
            Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "it failed\n"),
        }
    }
}

/// Prometheus asks for this format; people and older programs get the one that needs no end mark.
fn accepts_open_metrics(request: &Request<Incoming>) -> bool {
    let asked = request.headers().get_all(ACCEPT).into_iter();
    asked
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"))
}

fn health(complaints: &[Complaint]) -> Answer {
    let ok = complaints.is_empty();
    let status = match ok {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer(status, JSON, Report { ok, complaints }.to_json())
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
