//! The HTTP+SSE transport of 2024-11-05: a stream for the answers, and a path to which messages are posted.
//!
//! Streams live here, bounded in number and in what waits for a slow reader. A message goes through the same driver as
//! any other, judged by the credential of its own request. A stream ends with its credential, with the transport, and on drain.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::request::{Caller, Channel, Core, Driver};
use super::sealed::{OpenId, Sealer, SessionId};
use crate::authn::Identity;
use crate::index::Snapshot;
use crate::mcp::Envelope;
use crate::metrics::Metrics;

/// Most streams of one caller, and of all, on this replica.
const PER_CALLER: usize = 256;
const OVERALL: usize = 1024;
/// Messages of one stream that are being worked on at a time.
const IN_FLIGHT: usize = 16;
/// Answers that may wait for the reader.
const QUEUE: usize = 16;
/// Time in which a reader must make room.
const PATIENCE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest time between the end of a key and the end of its streams.
const SWEEP: Duration = Duration::from_secs(1);

/// The streams of this replica.
pub(super) struct Sessions {
    own_ip: IpAddr,
    sealer: Arc<Sealer>,
    open: Mutex<HashMap<u64, Arc<Session>>>,
    metrics: Arc<Metrics>,
    /// Messages that are being worked on.
    work: TaskTracker,
    stop: CancellationToken,
}

struct Session {
    id: SessionId,
    /// Who opened it, by which credential, and from where.
    identity: Identity,
    client_ip: IpAddr,
    answers: mpsc::Sender<Bytes>,
    places: Arc<Semaphore>,
    /// What can be cancelled, by the id of its request.
    running: Mutex<HashMap<String, CancellationToken>>,
    stop: CancellationToken,
}

/// What became of a posted message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It is being worked on; the answer comes in the stream.
    Accepted,
    /// Too many messages of this stream are being worked on.
    Busy,
    /// There is no such stream.
    Gone,
}

/// Why a text is not the id of a session of the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTheirs {
    /// Nobody has such a session; somebody may have had it once.
    Unknown,
    /// It was changed, or made up, or is for another server.
    Forged,
    /// It is intact, and another caller's.
    SomebodyElses,
}

impl NotTheirs {
    /// What is wrong with it, where something is.
    pub(super) fn violation(self) -> Option<&'static str> {
        match self {
            NotTheirs::Unknown => None,
            NotTheirs::Forged => Some("the seal of the session id is broken"),
            NotTheirs::SomebodyElses => Some("the session belongs to another caller"),
        }
    }
}

/// There are too many streams already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Sessions {
    /// No streams yet.
    pub(super) fn new(own_ip: IpAddr, sealer: Arc<Sealer>, metrics: Arc<Metrics>) -> Arc<Self> {
        let (work, stop) = (TaskTracker::new(), CancellationToken::new());
        Arc::new(Self { own_ip, sealer, open: Mutex::default(), metrics, work, stop })
    }

    /// Opens a stream for the caller, who is told to post to this path.
    pub(super) fn open(self: &Arc<Self>, caller: &Caller, messages: &str) -> Result<Response<Body>, TooMany> {
        let (answers, waiting) = mpsc::channel(QUEUE);
        let stop = self.stop.child_token();
        let mut number = [0; 8];
        aws_lc_rs::rand::fill(&mut number).expect("the system has randomness");
        let id = SessionId {
            pod_ip: self.own_ip,
            number: u64::from_le_bytes(number),
            principal: caller.identity.principal(),
        };
        {
            let mut open = self.streams();
            if self.work.is_closed() {
                return Err(TooMany);
            }
            let same = open.values().filter(|other| other.id.principal == id.principal).count();
            if same >= PER_CALLER || open.len() >= OVERALL {
                return Err(TooMany);
            }
            let session = Session {
                id: id.clone(),
                identity: caller.identity.clone(),
                client_ip: caller.client_ip,
                answers,
                places: Arc::new(Semaphore::new(IN_FLIGHT)),
                running: Mutex::default(),
                stop: stop.clone(),
            };
            open.insert(id.number, Arc::new(session));
            self.metrics.sse_sessions.set(i64::try_from(open.len()).unwrap_or(i64::MAX));
        }
        let text = self.sealer.seal(&id, Instant::now());
        let first = format!("event: endpoint\ndata: {messages}?sessionId={text}\n\n");
        let guard = Guard { sessions: self.clone(), number: id.number, _stop: stop.clone().drop_guard() };
        let body = Body::from_stream(events(first.into(), waiting, stop, guard));
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(response)
    }

    /// Reads the id of a session of this caller's.
    ///
    /// # Errors
    /// [`NotTheirs`], for which every answer is the same: there is no such session.
    pub(super) fn read(&self, text: &str, identity: &Identity) -> Result<SessionId, NotTheirs> {
        let id = self.sealer.open(text).map_err(|error| match error {
            OpenId::Unknown => NotTheirs::Unknown,
            OpenId::Forged => NotTheirs::Forged,
        })?;
        if id.belongs_to(identity) { Ok(id) } else { Err(NotTheirs::SomebodyElses) }
    }

    /// Whether the stream lives on this replica.
    pub(super) fn is_here(&self, id: &SessionId) -> bool {
        id.pod_ip == self.own_ip
    }

    /// Works on a message; the answer goes into the stream. The caller is known to be the stream's owner.
    pub(super) fn deliver(
        self: &Arc<Self>,
        driver: &Driver,
        id: &SessionId,
        caller: Caller,
        body: Bytes,
    ) -> Delivery {
        let (session, _at_work) = {
            let open = self.streams();
            let Some(session) = open.get(&id.number).filter(|session| session.id == *id) else {
                return Delivery::Gone;
            };
            // Taken with the lock held, so that the drain waits for this message or it finds no stream.
            (session.clone(), self.work.token())
        };
        let Ok(place) = session.places.clone().try_acquire_owned() else { return Delivery::Busy };
        let running = session.begin(&body);
        let driver = driver.clone();
        let work = async move {
            let message = driver.message(caller, Channel::Sse, HeaderMap::new(), body);
            let token = running.as_ref().map_or(&session.stop, |(_, token)| token);
            let answer = token.run_until_cancelled(message).await;
            if let Some((id, _)) = &running {
                session.running().remove(id);
            }
            if let Some(answer) = answer.filter(|answer| !answer.body.is_empty()) {
                session.send(&answer.body).await;
            }
            drop(place);
        };
        self.work.spawn(work.in_current_span());
        Delivery::Accepted
    }

    /// Ends streams whose credential has ended, until told to stop; then takes no more messages, and ends each stream when its
    /// last answer is out or the time is over.
    pub(super) async fn sweep(&self, core: &Core, stop: CancellationToken, drain: Duration) {
        let mut changes = core.policy.changes();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = changes.changed() => {}
                () = tokio::time::sleep(SWEEP) => {}
            }
            let (snapshot, now) = (core.policy.load(), Timestamp::now());
            let ends = |session: &Session| {
                !session.may_live(&snapshot, now) || !core.authenticator.still_holds(&session.identity)
            };
            self.streams().values().filter(|session| ends(session)).for_each(|session| {
                tracing::info!(user = session.identity.subject, "stream ended with its credential");
                session.stop.cancel();
            });
        }
        let finishing = {
            let mut open = self.streams();
            self.work.close();
            std::mem::take(&mut *open)
        };
        // Who works on a message still holds its stream; a stream that nobody holds ends.
        drop(finishing);
        if tokio::time::timeout(drain, self.work.wait()).await.is_err() {
            self.stop.cancel();
            self.work.wait().await;
        }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Notes a request that can be cancelled, or cancels the one that a notification names.
    fn begin(&self, body: &[u8]) -> Option<(String, CancellationToken)> {
        let envelope = Envelope::parse(body).ok()?;
        if envelope.method == "notifications/cancelled" {
            let token = envelope.cancels.and_then(|id| self.running().remove(id.get()));
            token.iter().for_each(CancellationToken::cancel);
        }
        let (id, token) = (envelope.id?.get().to_owned(), self.stop.child_token());
        self.running().insert(id.clone(), token.clone());
        Some((id, token))
    }

    /// Puts an answer into the stream. A reader that does not make room in time loses the stream.
    async fn send(&self, json: &[u8]) {
        let frame = [b"event: message\ndata: ", json, b"\n\n"].concat();
        let sent = tokio::time::timeout(PATIENCE, self.answers.send(frame.into())).await;
        if sent.is_err() {
            tracing::info!(user = self.identity.subject, "stream ended: its reader is too slow");
            self.stop.cancel();
        }
    }

    fn may_live(&self, snapshot: &Snapshot, now: Timestamp) -> bool {
        let enabled = snapshot.server.as_ref().is_some_and(|server| server.spec.transports.sse.enabled);
        enabled && snapshot.admit(&self.identity, self.client_ip, now).is_ok()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the stream off the list when its reader leaves or it ends.
struct Guard {
    sessions: Arc<Sessions>,
    number: u64,
    _stop: DropGuard,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut open = self.sessions.streams();
        open.remove(&self.number);
        self.sessions.metrics.sse_sessions.set(i64::try_from(open.len()).unwrap_or(i64::MAX));
    }
}

/// The events of a stream: the endpoint, then answers, and comments where there is nothing to say.
fn events(
    first: Bytes,
    waiting: mpsc::Receiver<Bytes>,
    stop: CancellationToken,
    guard: Guard,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
    let rest = futures::stream::unfold((waiting, stop, guard), |(mut waiting, stop, guard)| async move {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            answer = waiting.recv() => answer,
            () = tokio::time::sleep(KEEP_ALIVE) => Some(Bytes::from_static(b": keep-alive\n\n")),
        };
        Some((event?, (waiting, stop, guard)))
    });
    futures::stream::iter([first]).chain(rest).map(Ok)
}

/// The answer to a posted message.
pub(super) fn response(delivery: Delivery) -> Response<Body> {
    let (status, text) = match delivery {
        Delivery::Accepted => (StatusCode::ACCEPTED, "Accepted"),
        Delivery::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too many messages at a time"),
        Delivery::Gone => (StatusCode::NOT_FOUND, "no such session"),
    };
    super::transport::text(status, text)
}
