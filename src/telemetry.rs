//! Logs on standard output: text for people at a terminal, one JSON object per line for everything else.
//!
//! The lines of the audit (target `audit`) are always among them: a filter cannot switch them off by not naming them.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// What is logged unless somebody says otherwise. Libraries log each request at info; this program does that itself.
/// The MCP library also writes what the caller sent, at warn, so it is silent.
const DEFAULT_FILTER: &str = "info,rmcp=off,hyper=warn,hyper_util=warn,h2=warn,tower=warn,tower_http=warn,rustls=warn,kube_client=warn";
/// Target of the audit's lines.
const AUDIT: &str = "audit";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One object per line, for machines.
    Json,
}

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartLog {
    /// The filter is not one.
    #[error("failed to read the log filter {filter:?}")]
    ParseFilter {
        /// As it was given.
        filter: String,
        /// Why.
        #[source]
        source: ParseError,
    },
    /// It has begun already.
    #[error("failed to start logging")]
    Install(#[from] TryInitError),
}

/// Begins logging, once per process. The filter is a list such as `info,kube=debug`; `None` is the default.
///
/// # Errors
/// [`StartLog`] says what is wrong with the filter.
pub(crate) fn init(format: LogFormat, filter: Option<&str>) -> Result<(), StartLog> {
    let terminal = io::stdout().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    Ok(subscriber(json, terminal, parse(filter)?, io::stdout).try_init()?)
}

fn parse(filter: Option<&str>) -> Result<EnvFilter, StartLog> {
    let text = filter.unwrap_or(DEFAULT_FILTER);
    let names_audit = text.split(',').any(|directive| directive.trim().starts_with(AUDIT));
    let complete = if names_audit { text.to_owned() } else { format!("{text},{AUDIT}=info") };
    EnvFilter::try_new(complete).map_err(|source| StartLog::ParseFilter { filter: text.to_owned(), source })
}

fn subscriber<W>(json: bool, colour: bool, filter: EnvFilter, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colour && !json);
    if json {
        Box::new(builder.json().flatten_event(true).with_span_list(false).finish())
    } else {
        Box::new(builder.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, filter: Option<&str>, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let filter = parse(filter).expect("it is a filter");
        let subscriber = subscriber(json, false, filter, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().expect("nobody panicked").clone();
        String::from_utf8(bytes).expect("it is text")
    }

    #[test]
    fn a_json_line_has_the_fields_of_the_event_beside_its_level_and_time() {
        let text = logged(true, None, || {
            tracing::info!(target: "audit", event_type = "authentication", result = "failure", tool = None::<&str>, user = "a\n\"b");
        });
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(line["event_type"], "authentication");
        assert_eq!(line["user"], "a\n\"b");
        assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &"audit".into()));
        assert!(line["timestamp"].is_string() && line.get("tool").is_none());
    }

    #[test]
    fn a_text_line_cannot_be_forged_or_coloured_by_what_it_says() {
        let text =
            logged(false, None, || tracing::info!(user = "a\n2026-01-01 ERROR \u{1b}[31m", "Request denied"));
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn libraries_that_log_each_request_are_quiet_and_the_filter_can_be_chosen() {
        let noise = || {
            tracing::error!(target: "rmcp::service", "noise");
            tracing::info!(target: "portcullis::server", "news");
            tracing::debug!(target: "portcullis::server", "detail");
        };
        let usual = logged(false, None, noise);
        assert!(usual.contains("news") && !usual.contains("noise") && !usual.contains("detail"));
        assert!(logged(false, Some("debug"), noise).contains("detail"));
        assert!(parse(Some("portcullis=loud")).is_err());
    }

    #[test]
    fn the_audit_is_logged_whatever_the_filter_forgets() {
        let audit = || tracing::info!(target: "audit", event_id = "mcp_1");
        assert!(logged(true, Some("error"), audit).contains("mcp_1"));
        assert_eq!(logged(true, Some("error,audit=off"), audit), "");
    }
}
