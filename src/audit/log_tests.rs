use std::collections::HashSet;
use std::fs;

use prometheus_client::registry::Registry;
use serde_json::json;

use super::super::event::tests::event;
use super::super::event::{Kind, Outcome};
use super::super::notify::Notifier;
use super::super::query::{Filter, query};
use super::super::verify::verify;
use super::*;

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(&mut Registry::default()))
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn open(path: &Path) -> (AuditLog, Writer) {
    AuditLog::open(path, "agents/ops", metrics()).expect("it opens")
}

fn all(path: &Path) -> Vec<Event> {
    query(path, &Filter { limit: 10_000, ..Filter::default() }).expect("it can be read")
}

fn intent(request: &str) -> Event {
    Event { request_id: request.into(), ..event("ci-bot", Kind::McpRequest, Outcome::Intent) }
}

fn denial() -> Event {
    Event { reason: Some("unknown_key".into()), ..event("unknown", Kind::Authentication, Outcome::Failure) }
}

#[tokio::test]
async fn an_event_is_on_disk_when_recording_it_resolves() {
    let directory = directory();
    let path = directory.path().join(".portcullis").join("audit.db");
    let (log, writer) = open(&path);
    let given = Event {
        server: "somebody/else".into(),
        params: Some(json!({"namespace": "agents", "password": "hunter2"})),
        ..intent("request-1")
    };
    log.record(given.clone()).await.expect("it is recorded");
    let recorded = all(&path).pop().expect("one event");
    assert!(recorded.event_id.starts_with("mcp_") && recorded.event_id.len() == 4 + 26);
    let expected = Event {
        event_id: recorded.event_id.clone(),
        server: "agents/ops".into(),
        params: Some(json!({"namespace": "agents", "password": "***REDACTED***"})),
        ..given
    };
    assert_eq!(recorded, expected);
    assert_eq!(log.metrics.audit_events.get(), 1);
    writer.close().await.expect("it ends");
    assert_eq!(all(&path).len(), 1, "it can be read without a writer");
}

#[tokio::test]
async fn others_cannot_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    let path = directory.path().join("data").join("audit.db");
    let (log, _writer) = open(&path);
    log.record(intent("request-1")).await.expect("it is recorded");
    for name in ["audit.db", "audit.db-wal", "audit.db-shm"] {
        let mode = fs::metadata(path.with_file_name(name)).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_callers_at_once_lose_nothing_and_the_chain_holds() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    let (log, writer) = open(&path);
    let callers = (0..64).map(|caller| {
        let log = log.clone();
        tokio::spawn(async move {
            for call in 0..20 {
                log.record(intent(&format!("{caller}-{call}"))).await.expect("it is recorded");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("it ends");
    }
    writer.close().await.expect("it ends");
    let events = all(&path);
    assert_eq!(events.iter().map(|event| &event.request_id).collect::<HashSet<_>>().len(), 64 * 20);
    assert_eq!(events.iter().map(|event| &event.event_id).collect::<HashSet<_>>().len(), 64 * 20);
    assert_eq!(verify(&path, None).expect("it is sound").records, 64 * 20);
}

#[tokio::test]
async fn what_was_recorded_survives_a_kill() {
    let (directory, after) = (directory(), directory());
    let path = directory.path().join("audit.db");
    let (log, _writer) = open(&path);
    for request in 0..30 {
        log.record(intent(&request.to_string())).await.expect("it is recorded");
    }
    // What a killed process leaves: the file and its write-ahead log, not joined and not closed.
    let copy = after.path().join("audit.db");
    for name in ["audit.db", "audit.db-wal"] {
        fs::copy(path.with_file_name(name), copy.with_file_name(name)).expect("it is copied");
    }
    assert!(fs::metadata(copy.with_file_name("audit.db-wal")).expect("it exists").len() > 0);
    let (log, writer) = open(&copy);
    assert_eq!(all(&copy).len(), 30);
    log.record(intent("after")).await.expect("it is recorded");
    writer.close().await.expect("it ends");
    assert_eq!(verify(&copy, None).expect("it is sound").records, 31);
}

#[tokio::test]
async fn the_chain_goes_on_in_the_next_run() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    for run in 0..3 {
        let (log, writer) = open(&path);
        log.record(intent(&run.to_string())).await.expect("it is recorded");
        writer.close().await.expect("it ends");
    }
    assert_eq!(verify(&path, None).expect("it is sound").records, 3);
}

#[tokio::test]
async fn the_oldest_records_are_deleted_and_the_rest_can_be_verified() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    let settings = Settings { max_records: 5, ..Settings::default() };
    let (log, writer) = AuditLog::open_with(&path, "agents/ops", metrics(), settings).expect("it opens");
    for request in 0..12 {
        log.record(intent(&request.to_string())).await.expect("it is recorded");
    }
    writer.close().await.expect("it ends");
    let kept: Vec<String> = all(&path).into_iter().map(|event| event.request_id).collect();
    assert_eq!(kept, ["11", "10", "9", "8", "7"]);
    assert_eq!(verify(&path, None).expect("it is sound").deleted, 7);
}

#[tokio::test]
async fn a_flood_of_one_refusal_becomes_eleven_records_that_count_all_of_it() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    let (log, writer) = open(&path);
    for _ in 0..500 {
        log.record(denial()).await.expect("it is counted");
    }
    log.record(intent("between")).await.expect("it is recorded");
    writer.close().await.expect("it ends");
    let refusals: Vec<Event> = all(&path).into_iter().filter(Event::is_refusal).collect();
    assert_eq!(refusals.len(), 11);
    assert_eq!(refusals.iter().map(|event| event.count).sum::<u64>(), 500);
}

#[tokio::test]
async fn refusals_are_told_to_the_notifier_and_a_full_notifier_stops_nobody() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    let (sender, mut refusals) = Notifier::queue();
    let settings = Settings { refusals: Some(sender), ..Settings::default() };
    let (log, writer) = AuditLog::open_with(&path, "agents/ops", metrics(), settings).expect("it opens");
    log.record(intent("no refusal")).await.expect("it is recorded");
    for i in 0..300 {
        let credential_id = Some(i.to_string());
        log.record(Event { credential_id, ..denial() }).await.expect("it is recorded");
    }
    writer.close().await.expect("it ends");
    let mut told = 0;
    while refusals.try_recv().is_ok() {
        told += 1;
    }
    // 256 credentials are recorded one by one, those after them in one record; its notice finds the queue full.
    assert_eq!((told, log.metrics.audit_notifications_dropped.get()), (256, 44));
}

#[tokio::test]
async fn a_write_that_fails_is_told_and_the_next_one_works() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    let (log, writer) = open(&path);
    for _ in 0..12 {
        log.record(denial()).await.expect("it is recorded or counted");
    }
    let other = rusqlite::Connection::open(&path).expect("it opens");
    other
        .execute_batch(
            "CREATE TRIGGER broken BEFORE INSERT ON events BEGIN SELECT raise(FAIL, 'disk I/O error'); END",
        )
        .expect("it is made");
    assert!(matches!(log.record(intent("lost")).await, Err(RecordEvent::Write(_))));
    assert_eq!(log.metrics.audit_failures.get(), 1);
    other.execute_batch("DROP TRIGGER broken").expect("it is dropped");
    log.record(intent("kept")).await.expect("it is recorded");
    writer.close().await.expect("it ends");
    let recorded = all(&path);
    assert!(recorded.iter().all(|event| event.request_id != "lost"));
    assert_eq!(recorded.iter().map(|event| event.count).sum::<u64>(), 12 + 1);
    verify(&path, None).expect("it is sound");
}

#[tokio::test]
async fn a_disk_that_stalls_does_not_hold_a_caller_for_ever() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    let (log, writer) = open(&path);
    let other = rusqlite::Connection::open(&path).expect("it opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("it locks the database");
    let start = Instant::now();
    log.record(intent("lost")).await.expect_err("nobody can write");
    assert!(start.elapsed() < QUEUE_PATIENCE + COMMIT_PATIENCE + Duration::from_secs(2));
    other.execute_batch("ROLLBACK").expect("it unlocks the database");
    log.record(intent("kept")).await.expect("it is recorded");
    writer.close().await.expect("it ends");
}

#[tokio::test]
async fn a_full_queue_refuses_after_a_second_instead_of_holding_the_caller() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    let (log, writer) = open(&path);
    let other = rusqlite::Connection::open(&path).expect("it opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("it locks the database");
    // The writer takes the first and waits for the lock; the others stay in the queue.
    log.record_without_waiting(intent("first"));
    while log.queue.capacity() < QUEUE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for request in 0..QUEUE {
        log.record_without_waiting(intent(&request.to_string()));
    }
    let start = Instant::now();
    assert!(matches!(log.record(intent("late")).await, Err(RecordEvent::Queue)));
    assert!(start.elapsed() >= QUEUE_PATIENCE);
    other.execute_batch("ROLLBACK").expect("it unlocks the database");
    writer.close().await.expect("it ends");
    assert_eq!(log.metrics.audit_failures.get(), 1);
    assert_eq!(all(&path).len(), 1 + QUEUE, "what had a place in the queue is recorded");
}

#[tokio::test]
async fn closing_writes_what_is_queued_and_refuses_what_comes_after() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    let (log, writer) = open(&path);
    for request in 0..100 {
        log.record_without_waiting(intent(&request.to_string()));
    }
    writer.close().await.expect("it ends");
    assert_eq!(all(&path).len(), 100);
    assert!(matches!(log.record(intent("late")).await, Err(RecordEvent::ReachWriter)));
    log.record_without_waiting(intent("late"));
    assert_eq!(log.metrics.audit_failures.get(), 2);
}

#[test]
fn a_file_that_is_no_database_or_a_newer_one_is_refused_and_left_alone() {
    let directory = directory();
    let path = directory.path().join("audit.db");
    fs::write(&path, "this is not a database, and somebody may want it back").expect("it is written");
    assert!(matches!(AuditLog::open(&path, "a/b", metrics()), Err(OpenLog::OpenDatabase(_))));
    assert!(fs::read_to_string(&path).expect("it is there").starts_with("this is not"));
    let newer = directory.path().join("newer.db");
    let connection = rusqlite::Connection::open(&newer).expect("it opens");
    connection.pragma_update(None, "user_version", 99).expect("it is set");
    assert!(matches!(AuditLog::open(&newer, "a/b", metrics()), Err(OpenLog::KnowSchema(99))));
}
