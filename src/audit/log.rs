//! The way into the record: a bounded queue, and the one thread that writes.
//!
//! The thread takes what has queued up, writes it in one transaction and answers everybody who waits for it, so that
//! many callers share one sync of the disk. It keeps working after a failed write: whoever waited is told, and the
//! next write is tried as usual.

use std::future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::event::Event;
use super::gather::Gatherer;
use super::notify::Refusal;
use super::redact::redact;
use super::store::{Link, OpenLog, Store};
use crate::metrics::Metrics;

/// Events that may wait for the writer: two full transactions.
const QUEUE: usize = 1024;
/// Most events in one transaction.
const BATCH: usize = 512;
/// How long a caller waits for a place in the queue.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a caller waits for the disk. A cloud disk syncs in milliseconds; this is for one that has stalled.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);

/// What can be chosen about the log.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Records that are kept; the oldest beyond are deleted.
    pub(crate) max_records: u32,
    /// Where refusals are told, once they are on record. When it is full they are counted as dropped.
    pub(crate) refusals: Option<mpsc::Sender<Refusal>>,
    /// Names of every tool. Callers write others too; refusals are not told apart by those.
    pub(crate) tools: Vec<&'static str>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_records: 100_000, refusals: None, tools: Vec::new() }
    }
}

/// Why an event is not on record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordEvent {
    /// The queue stayed full: the disk is slower than the requests.
    #[error("failed to queue the audit event within {} s", QUEUE_PATIENCE.as_secs())]
    Queue,
    /// The disk has stalled. The event may be recorded later.
    #[error("failed to write the audit event within {} s", COMMIT_PATIENCE.as_secs())]
    AwaitDisk,
    /// The process is ending, and the log is closed already.
    #[error("failed to record the audit event: the log is closed")]
    ReachWriter,
    /// The system gives no randomness.
    #[error("failed to make an id for the audit event")]
    MakeId,
    /// The disk is full or broken.
    #[error("failed to write the audit event")]
    Write(#[source] Arc<rusqlite::Error>),
}

/// The record, for everybody who has something to record.
#[derive(Clone, Debug)]
pub(crate) struct AuditLog {
    queue: mpsc::Sender<Entry>,
    server: Arc<str>,
    metrics: Arc<Metrics>,
}

/// The thread that writes. Close it last: what is recorded after is refused.
#[derive(Debug)]
#[must_use = "close it at shutdown, or the last gathered refusals are lost"]
pub(crate) struct Writer {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Entry {
    event: Event,
    answer: oneshot::Sender<Result<(), RecordEvent>>,
}

impl AuditLog {
    /// Opens the log of a server, `<namespace>/<name>`, with the default [`Settings`].
    ///
    /// # Errors
    /// [`OpenLog`] says why the file cannot be used; nothing may then be served.
    #[cfg(test)]
    pub(crate) fn open(
        path: &Path,
        server: &str,
        metrics: Arc<Metrics>,
    ) -> Result<(AuditLog, Writer), OpenLog> {
        Self::open_with(path, server, metrics, Settings::default())
    }

    /// Opens the log of a server, `<namespace>/<name>`.
    ///
    /// # Errors
    /// [`OpenLog`] says why the file cannot be used; nothing may then be served.
    pub(crate) fn open_with(
        path: &Path,
        server: &str,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> Result<(AuditLog, Writer), OpenLog> {
        let store = Store::open(path, settings.max_records)?;
        let (queue, entries) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        // A runtime of its own, on the writer's thread: it waits for entries and for the end of a window at once.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(OpenLog::StartWriter)?;
        let mut work = Work {
            entries,
            stop: stop.clone(),
            gatherer: Gatherer::new(settings.tools.clone()),
            store,
            metrics: Arc::clone(&metrics),
            refusals: settings.refusals,
            tools: settings.tools,
            failing: false,
        };
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || runtime.block_on(work.run()))
            .map_err(OpenLog::StartWriter)?;
        Ok((AuditLog { queue, server: server.into(), metrics }, Writer { stop, thread }))
    }

    /// Records an event and resolves when it is on disk. A refusal that belongs to a flood resolves when it is
    /// counted; it is written, with the others, within ten seconds.
    ///
    /// Dropping the future while it waits for the disk does not take the event back.
    ///
    /// # Errors
    /// [`RecordEvent`]: the event is not on record, and what it announces must not happen.
    pub(crate) async fn record(&self, event: Event) -> Result<(), RecordEvent> {
        let outcome = self.write(event).await;
        if outcome.is_err() {
            self.metrics.audit_failures.inc();
        }
        outcome
    }

    /// Queues an event without waiting, to fill the queue.
    #[cfg(test)]
    pub(crate) fn record_without_waiting(&self, event: Event) {
        let (answer, _) = oneshot::channel();
        let queued =
            self.complete(event).is_ok_and(|event| self.queue.try_send(Entry { event, answer }).is_ok());
        if !queued {
            self.metrics.audit_failures.inc();
        }
    }

    async fn write(&self, event: Event) -> Result<(), RecordEvent> {
        let event = self.complete(event)?;
        let (answer, answered) = oneshot::channel();
        let send = self.queue.send_timeout(Entry { event, answer }, QUEUE_PATIENCE);
        send.await.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => RecordEvent::Queue,
            mpsc::error::SendTimeoutError::Closed(_) => RecordEvent::ReachWriter,
        })?;
        match timeout(COMMIT_PATIENCE, answered).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Err(RecordEvent::ReachWriter),
            Err(_) => Err(RecordEvent::AwaitDisk),
        }
    }

    /// Makes an event what is recorded: redacted, with its id and its server.
    fn complete(&self, event: Event) -> Result<Event, RecordEvent> {
        let mut event = redact(event);
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| RecordEvent::MakeId)?;
        let milliseconds = u64::try_from(event.timestamp.as_millisecond()).unwrap_or(0);
        let id = Ulid::from_parts(milliseconds, u128::from_ne_bytes(random));
        event.event_id = format!("{}_{id}", event.event_type.id_prefix());
        event.server.replace_range(.., &self.server);
        Ok(event)
    }
}

impl Writer {
    /// Writes what is queued and what is gathered, and ends the thread.
    ///
    /// # Errors
    /// When the thread panicked.
    pub(crate) async fn close(self) -> io::Result<()> {
        self.stop.cancel();
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        joined.map_err(|_| io::Error::other("the writer of the audit log panicked"))
    }
}

/// What the writer's thread owns.
struct Work {
    entries: mpsc::Receiver<Entry>,
    stop: CancellationToken,
    gatherer: Gatherer,
    store: Store,
    metrics: Arc<Metrics>,
    refusals: Option<mpsc::Sender<Refusal>>,
    tools: Vec<&'static str>,
    /// Whether the last write failed, to say it once and not per request.
    failing: bool,
}

impl Work {
    async fn run(&mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.wait(&mut batch).await {
            let now = Instant::now();
            let gathered = self.gatherer.due(now);
            self.write(gathered, &mut batch, now);
        }
        let gathered = self.gatherer.drain();
        self.write(gathered, &mut batch, Instant::now());
        let lost: u64 = self.gatherer.drain().iter().map(|event| event.count).sum();
        if lost > 0 {
            self.metrics.audit_failures.inc_by(lost);
            tracing::error!(lost, "Gathered refusals are lost");
        }
    }

    /// Waits until there is something to write; false when the log is closed and its queue is empty.
    async fn wait(&mut self, batch: &mut Vec<Entry>) -> bool {
        let due = self.gatherer.next_due();
        loop {
            let window_end = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if !self.entries.is_closed() => self.entries.close(),
                received = self.entries.recv_many(batch, BATCH) => return received > 0,
                () = window_end => return true,
            }
        }
    }

    /// Writes gathered records and a batch in one transaction, answers the callers, then tells others.
    fn write(&mut self, gathered: Vec<Event>, batch: &mut Vec<Entry>, now: Instant) {
        let mut rows = gathered;
        let gathered = rows.len();
        let mut answers = Vec::with_capacity(batch.len());
        for Entry { event, answer } in batch.drain(..) {
            match self.gatherer.offer(event, now) {
                Some(event) => {
                    rows.push(event);
                    answers.push(answer);
                }
                // The caller may have gone; the refusal is counted all the same.
                None => drop(answer.send(Ok(()))),
            }
        }
        if rows.is_empty() {
            return;
        }
        match self.store.append(&rows) {
            Ok(links) => {
                // Counted first: whoever has the answer may look.
                self.metrics.audit_events.inc_by(rows.len() as u64);
                answers.into_iter().for_each(|answer| drop(answer.send(Ok(()))));
                if std::mem::take(&mut self.failing) {
                    tracing::info!("Audit log is written again");
                }
                rows.iter().zip(links).for_each(|(event, link)| self.tell(event, link));
            }
            Err(error) => {
                let error = Arc::new(error);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "Audit log cannot be written");
                }
                rows.drain(..gathered).for_each(|event| self.gatherer.put_back(event, now));
                let refuse = |answer: oneshot::Sender<_>| {
                    drop(answer.send(Err(RecordEvent::Write(Arc::clone(&error)))));
                };
                answers.into_iter().for_each(refuse);
            }
        }
    }

    /// Tells of an event that is on record: one line of the process log, and the notifier where it is a refusal.
    fn tell(&self, event: &Event, link: Link) {
        log_line(event, link);
        if let Some(refusals) = self.refusals.as_ref().filter(|_| event.is_refusal())
            && refusals.try_send(Refusal::of(event, &self.tools)).is_err()
        {
            self.metrics.audit_notifications_dropped.inc_by(event.count);
        }
    }
}

/// The copy of the record that leaves the pod at once. Its digest proves, later, what the database held here.
fn log_line(event: &Event, link: Link) {
    tracing::info!(
        target: "audit",
        event_id = event.event_id,
        time = %super::event::time_text(event.timestamp),
        event_type = event.event_type.as_str(),
        request_id = event.request_id,
        server = event.server,
        user = event.user,
        auth_type = event.auth_type,
        credential_id = event.credential_id,
        client_ip = event.client_ip,
        action = event.action,
        tool = event.tool,
        resource = event.resource,
        namespace = event.namespace,
        params = event.params.as_ref().map(tracing::field::display),
        result = event.result.as_str(),
        reason = event.reason,
        error_message = event.error_message,
        duration_ms = event.duration_ms,
        count = event.count,
        metadata = (!event.metadata.is_empty()).then(|| tracing::field::debug(&event.metadata)),
        sequence = link.sequence,
        digest = %link.digest_text(),
    );
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
