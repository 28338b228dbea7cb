//! `portcullis audit`: shows the record to people and scripts, and checks that nobody changed it.
//!
//! It opens the file for reading only. In a cluster: `kubectl exec deploy/ops-mcp -- /portcullis audit query`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

use crate::audit::{Event, Filter, Kind, Link, MAX_LIMIT, Outcome, query, verify};
use crate::terminal::{self, visible};

/// Where a server's pod keeps its record.
const DATABASE: &str = "/var/lib/portcullis/audit.db";

/// Shows the audit record, or checks it.
#[derive(Args, Debug)]
pub(crate) struct Audit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Shows who did what, the latest first.
    Query(Box<Query>),
    /// Checks that no record was changed or removed since it was written.
    Verify(Verify),
}

#[derive(Args, Debug)]
struct Query {
    #[command(flatten)]
    database: Database,
    /// Only this caller.
    #[arg(long)]
    user: Option<String>,
    /// Only this tool.
    #[arg(long)]
    tool: Option<String>,
    /// Only this MCP method, or `authenticate`.
    #[arg(long)]
    action: Option<String>,
    /// Only events that went like this.
    #[arg(long)]
    status: Option<Status>,
    /// Only events of this type.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<EventType>,
    /// Only the events of one request.
    #[arg(long)]
    request_id: Option<String>,
    /// Not before this: a time (2026-11-23T10:00:00Z) or how long ago (30m, 1h, 7d).
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<Moment>,
    /// Before this: a time or how long ago.
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    until: Option<Moment>,
    /// Continue before the event of this id, the last one of the page before.
    #[arg(long, value_name = "EVENT-ID")]
    before: Option<String>,
    /// Most events to show.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LIMIT)))]
    limit: u32,
    /// A table for people, or one JSON object per line.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Args, Debug)]
struct Verify {
    #[command(flatten)]
    database: Database,
    /// A row that must be in the record: `<sequence>:<digest>`, as audit lines of the process log and earlier checks
    /// show them.
    #[arg(long, value_name = "SEQUENCE:DIGEST")]
    known: Option<Link>,
}

#[derive(Args, Debug)]
struct Database {
    /// File of the audit log.
    #[arg(long, value_name = "PATH", default_value = DATABASE)]
    db: PathBuf,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Status {
    Intent,
    Success,
    #[value(alias = "failed", alias = "error")]
    Failure,
    Denied,
    Observed,
    Cancelled,
}

/// What it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum EventType {
    Authentication,
    Authorization,
    McpRequest,
    SecurityViolation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// A time, or a distance from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    At(Timestamp),
    Ago(SignedDuration),
}

impl Audit {
    /// Runs the command. The time makes `--since 1h` a time.
    ///
    /// # Errors
    /// When the record cannot be read, or is not what was written.
    pub(crate) fn run(self, now: Timestamp, output: &mut dyn Write) -> anyhow::Result<()> {
        let written = match self.command {
            Command::Query(arguments) => arguments.run(now, output)?,
            Command::Verify(arguments) => arguments.run(output)?,
        };
        terminal::written(written)
    }
}

impl Query {
    fn run(self, now: Timestamp, output: &mut dyn Write) -> anyhow::Result<io::Result<()>> {
        let time = |moment: Option<Moment>| moment.map(|moment| moment.before(now)).transpose();
        let filter = Filter {
            limit: self.limit,
            user: self.user,
            tool: self.tool,
            action: self.action,
            result: self.status.map(Outcome::from),
            event_type: self.event_type.map(Kind::from),
            since: time(self.since)?,
            until: time(self.until)?,
            request_id: self.request_id,
            cursor: self.before,
        };
        let path = self.database.db;
        let events = query(&path, &filter).with_context(|| format!("cannot query {}", path.display()))?;
        Ok(match self.output {
            Format::Table => write_table(&events, output),
            Format::Json => write_json(&events, output),
        })
    }
}

impl Verify {
    fn run(self, output: &mut dyn Write) -> anyhow::Result<io::Result<()>> {
        let path = self.database.db;
        let verified =
            verify(&path, self.known).with_context(|| format!("cannot trust {}", path.display()))?;
        let deleted = match verified.deleted {
            0 => String::new(),
            deleted => format!(" ({deleted} older ones were deleted by retention)"),
        };
        let text = format!("ok: {} records{deleted}\nhead: {}\n", verified.records, verified.head);
        Ok(output.write_all(text.as_bytes()).and_then(|()| output.flush()))
    }
}

impl Moment {
    fn before(self, now: Timestamp) -> anyhow::Result<Timestamp> {
        match self {
            Moment::At(time) => Ok(time),
            Moment::Ago(distance) => now.checked_sub(distance).context("the time is out of range"),
        }
    }
}

fn parse_moment(text: &str) -> Result<Moment, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(Moment::At(time));
    }
    let distance =
        text.parse::<Span>().and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    let wrong =
        || "expected a time such as 2026-11-23T10:00:00Z or a distance such as 30m, 1h or 7d".to_owned();
    distance.ok().filter(|distance| distance.is_positive()).map(Moment::Ago).ok_or_else(wrong)
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Self {
        match status {
            Status::Intent => Outcome::Intent,
            Status::Success => Outcome::Success,
            Status::Failure => Outcome::Failure,
            Status::Denied => Outcome::Denied,
            Status::Observed => Outcome::Observed,
            Status::Cancelled => Outcome::Cancelled,
        }
    }
}

impl From<EventType> for Kind {
    fn from(event_type: EventType) -> Self {
        match event_type {
            EventType::Authentication => Kind::Authentication,
            EventType::Authorization => Kind::Authorization,
            EventType::McpRequest => Kind::McpRequest,
            EventType::SecurityViolation => Kind::SecurityViolation,
        }
    }
}

fn write_json(events: &[Event], output: &mut dyn Write) -> io::Result<()> {
    for event in events {
        serde_json::to_writer(&mut *output, event)?;
        writeln!(output)?;
    }
    output.flush()
}

fn write_table(events: &[Event], output: &mut dyn Write) -> io::Result<()> {
    let titles = ["TIME", "USER", "ACTION", "RESOURCE", "RESULT", "REASON", "COUNT", "REQUEST"];
    terminal::write_table(titles, events.iter().map(row), output)
}

/// A cell of the table: what callers chose must not steer the terminal, nor push the other cells away.
fn shown(text: &str) -> String {
    visible(text, 60)
}

fn row(event: &Event) -> [String; 8] {
    let resource = match (&event.namespace, &event.resource) {
        (Some(namespace), Some(resource)) => format!("{namespace}/{resource}"),
        (Some(only), None) | (None, Some(only)) => only.clone(),
        (None, None) => "-".to_owned(),
    };
    let or_dash = |text: Option<&String>| text.map_or("-".to_owned(), |text| shown(text));
    [
        format!("{:.0}", event.timestamp),
        shown(&event.user),
        shown(event.tool.as_ref().unwrap_or(&event.action)),
        shown(&resource),
        event.result.as_str().to_owned(),
        or_dash(event.reason.as_ref().or(event.error_message.as_ref())),
        event.count.to_string(),
        shown(&event.request_id),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use clap::Parser;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::audit::AuditLog;
    use crate::metrics::Metrics;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        audit: Audit,
    }

    fn event(time: &str, user: &str, event_type: &str, result: &str) -> Event {
        serde_json::from_value(serde_json::json!({
            "timestamp": time, "event_type": event_type, "request_id": "r1", "server": "agents/ops", "user": user,
            "auth_type": "apikey", "action": "tools/call", "tool": "pods_list", "resource": "pods",
            "namespace": "agents", "result": result
        }))
        .expect("an event")
    }

    async fn recorded(directory: &Path) -> String {
        let path = directory.join("audit.db");
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let (log, writer) = AuditLog::open(&path, "agents/ops", metrics).expect("it opens");
        for event in [
            event("2026-11-23T08:00:00Z", "early", "mcp_request", "success"),
            event("2026-11-23T10:00:00Z", "ci-bot", "mcp_request", "failure"),
            event("2026-11-23T10:30:00.25Z", "\u{1b}[31mred\n", "authorization", "denied"),
        ] {
            log.record(event).await.expect("it is recorded");
        }
        writer.close().await.expect("it ends");
        path.to_string_lossy().into_owned()
    }

    fn run(line: &[&str]) -> anyhow::Result<String> {
        let line = Line::try_parse_from([&["audit"], line].concat())?;
        let mut output = Vec::new();
        let now = "2026-11-23T10:41:50Z".parse().expect("a time");
        line.audit.run(now, &mut output)?;
        Ok(String::from_utf8(output).expect("text"))
    }

    #[tokio::test]
    async fn a_person_sees_a_table_that_cannot_steer_the_terminal() {
        let directory = tempfile::tempdir().expect("a directory");
        let db = recorded(directory.path()).await;
        let table = run(&["query", "--db", &db, "--since", "1h"]).expect("it answers");
        let expected = "\
TIME                   USER        ACTION      RESOURCE      RESULT    REASON   COUNT   REQUEST
2026-11-23T10:30:00Z   \u{fffd}[31mred\u{fffd}   pods_list   agents/pods   denied    -        1       r1
2026-11-23T10:00:00Z   ci-bot      pods_list   agents/pods   failure   -        1       r1
";
        assert_eq!(table, expected);
    }

    #[tokio::test]
    async fn a_script_reads_one_json_object_per_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let db = recorded(directory.path()).await;
        let users = |arguments: &[&str]| {
            let text = run(&[&["query", "--db", &db, "-o", "json"], arguments].concat()).expect("it answers");
            let parse = |line| serde_json::from_str::<Event>(line).expect("an event").user;
            text.lines().map(parse).collect::<Vec<_>>()
        };
        assert_eq!(users(&["--status", "failed"]), ["ci-bot"]);
        assert_eq!(users(&["--status", "failure", "--tool", "pods_list"]), ["ci-bot"]);
        assert_eq!(users(&["--since", "7d", "--until", "1h"]), ["early"]);
        assert_eq!(users(&["--until", "2026-11-23T09:00:00Z"]), ["early"]);
        assert_eq!(users(&["--limit", "1", "--type", "mcp_request"]), ["ci-bot"]);
        assert_eq!(users(&["--user", "nobody"]), [""; 0]);
    }

    #[tokio::test]
    async fn verifying_names_the_head_and_holds_it_against_a_noted_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let db = recorded(directory.path()).await;
        let answer = run(&["verify", "--db", &db]).expect("it is sound");
        let head = answer.strip_prefix("ok: 3 records\nhead: ").expect("it names the head").trim_end();
        assert!(run(&["verify", "--db", &db, "--known", head]).is_ok());
        let other = format!("3:{}", "ab".repeat(32));
        let error = run(&["verify", "--db", &db, "--known", &other]).expect_err("it is another chain");
        assert!(format!("{error:#}").ends_with("row 3 is not the one whose digest was noted"), "{error:#}");
    }

    #[test]
    fn what_cannot_be_understood_is_said_and_no_file_is_made() {
        assert!(run(&["query", "--since", "yesterday"]).is_err());
        assert!(run(&["query", "--since=-1h"]).is_err());
        assert!(run(&["query", "--limit", "0"]).is_err());
        assert!(run(&["query", "--status", "well"]).is_err());
        assert!(run(&["verify", "--known", "3:xyz"]).is_err());
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("audit.db");
        let error = run(&["query", "--db", &missing.to_string_lossy()]).expect_err("there is none");
        assert!(format!("{error:#}").starts_with(&format!("cannot query {}", missing.display())));
        assert!(!missing.exists());
    }
}
