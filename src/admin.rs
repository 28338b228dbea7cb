//! Health and metrics on a port of their own: `/livez`, `/readyz` and `/metrics`.
//!
//! Nothing here needs a credential, so nothing here says more than names, states and numbers. Ready means that every
//! gate is open; a process that is alive and not ready names the gates it waits for. A gate may be open and degraded:
//! the process is ready, and says what is wrong.

use std::fmt::{self, Write as _};
use std::future::IntoFuture;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long open requests may take at shutdown. A client that holds its connection does not hold up the process.
const PATIENCE: Duration = Duration::from_secs(2);

/// State of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Nothing is in the way.
    Open,
    /// Nothing is in the way, and all is not well: this is why.
    Degraded(String),
    /// The process must not be used; why, unless the name says it.
    Closed(Option<String>),
}

/// Says how a gate is, each time that it is asked.
type Asked = Arc<dyn Fn() -> Gate + Send + Sync>;

/// What must be open before the process is ready, by name and in order. Without gates it is ready.
#[derive(Clone, Default)]
pub(crate) struct Gates(Vec<(&'static str, Asked)>);

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.states()).finish()
    }
}

impl Gates {
    /// Adds a gate. It is closed while the value is false.
    pub(crate) fn with(self, name: &'static str, open: Arc<AtomicBool>) -> Self {
        self.asking(name, move || if open.load(Ordering::Acquire) { Gate::Open } else { Gate::Closed(None) })
    }

    /// Adds a gate that is asked each time.
    pub(crate) fn asking(
        mut self,
        name: &'static str,
        state: impl Fn() -> Gate + Send + Sync + 'static,
    ) -> Self {
        self.0.push((name, Arc::new(state)));
        self
    }

    /// Each gate and how it is.
    fn states(&self) -> Vec<(&'static str, Gate)> {
        self.0.iter().map(|(name, asked)| (*name, asked())).collect()
    }
}

#[derive(Clone)]
struct Shared {
    gates: Gates,
    registry: Arc<Registry>,
}

/// Serves until it is cancelled.
///
/// # Errors
/// When the listener breaks.
pub(crate) async fn serve(
    listener: TcpListener,
    gates: Gates,
    registry: Arc<Registry>,
    stop: CancellationToken,
) -> io::Result<()> {
    let server = axum::serve(listener, router(gates, registry))
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => served,
        () = stop.cancelled() => timeout(PATIENCE, server).await.unwrap_or(Ok(())),
    }
}

fn router(gates: Gates, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shared { gates, registry })
        .layer(map_response(async |mut response: Response| {
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        }))
}

/// It answers, so it lives. A process that waits for the API server must not be restarted for that.
async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let states = shared.gates.states();
    let ready = !states.iter().any(|(_, state)| matches!(state, Gate::Closed(_)));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let parameters = query.unwrap_or_default();
    let verbose =
        parameters.split('&').any(|parameter| parameter == "verbose" || parameter.starts_with("verbose="));
    let text = if verbose {
        let lines = states.iter().map(|(name, state)| match state {
            Gate::Open => format!("[+]{name} ok\n"),
            Gate::Degraded(why) => format!("[~]{name} degraded: {why}\n"),
            Gate::Closed(None) => format!("[-]{name} not ready\n"),
            Gate::Closed(Some(why)) => format!("[-]{name} not ready: {why}\n"),
        });
        let sum = if ready { "readyz check passed\n" } else { "readyz check failed\n" };
        lines.chain([sum.to_owned()]).collect()
    } else {
        let named = states.iter().filter_map(|(name, state)| match state {
            Gate::Closed(None) => Some((*name).to_owned()),
            Gate::Closed(Some(why)) => Some(format!("{name} ({why})")),
            Gate::Degraded(why) if ready => Some(format!("{name} ({why})")),
            Gate::Open | Gate::Degraded(_) => None,
        });
        let named = named.collect::<Vec<_>>().join(", ");
        match (ready, named.is_empty()) {
            (false, _) => format!("not ready: {named}\n"),
            (true, false) => format!("ok, degraded: {named}\n"),
            (true, true) => "ok\n".to_owned(),
        }
    };
    (status, text).into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &shared.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => {
            text.clear();
            // Writing to a string cannot fail; were a metric to refuse, the scrape must.
            let _ = writeln!(text, "metrics cannot be encoded: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Method, Request};
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::ServiceExt;

    use super::*;
    use crate::metrics::Metrics;

    fn gates(open: &[(&'static str, bool)]) -> (Gates, Vec<Arc<AtomicBool>>) {
        open.iter().fold((Gates::default(), vec![]), |(gates, mut all), (name, open)| {
            let gate = Arc::new(AtomicBool::new(*open));
            all.push(gate.clone());
            (gates.with(name, gate), all)
        })
    }

    async fn answer(gates: &Gates, method: Method, path: &str) -> (StatusCode, String, header::HeaderMap) {
        let mut registry = Registry::default();
        Metrics::new(&mut registry).panics.inc();
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
        let response = router(gates.clone(), Arc::new(registry)).oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        (parts.status, String::from_utf8(bytes.to_vec()).expect("text"), parts.headers)
    }

    #[tokio::test]
    async fn readiness_names_the_gates_that_are_closed() {
        let (gates, all) = gates(&[("policy", true), ("certificate", false), ("audit", false)]);
        let (status, text, _) = answer(&gates, Method::GET, "/readyz").await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: certificate, audit\n")
        );
        let (status, text, _) = answer(&gates, Method::GET, "/readyz?verbose").await;
        let verbose = "[+]policy ok\n[-]certificate not ready\n[-]audit not ready\nreadyz check failed\n";
        assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, verbose));
        for gate in &all {
            gate.store(true, Ordering::Release);
        }
        let (status, text, _) = answer(&gates, Method::GET, "/readyz").await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "ok\n"));
        let (status, text, _) = answer(&gates, Method::GET, "/readyz?verbose").await;
        assert!(status == StatusCode::OK && text.ends_with("readyz check passed\n"), "{text}");
    }

    #[tokio::test]
    async fn a_gate_that_is_degraded_says_why_and_keeps_nobody_out() {
        let state = Arc::new(std::sync::Mutex::new(Gate::Degraded("gone for 40 s".into())));
        let asked = state.clone();
        let gates = Gates::default().asking("policy", move || asked.lock().expect("whole").clone());
        let (status, text, _) = answer(&gates, Method::GET, "/readyz").await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "ok, degraded: policy (gone for 40 s)\n"));
        let (_, text, _) = answer(&gates, Method::GET, "/readyz?verbose").await;
        assert_eq!(text, "[~]policy degraded: gone for 40 s\nreadyz check passed\n");
        *state.lock().expect("whole") = Gate::Closed(Some("not followed for 31 s".into()));
        let (status, text, _) = answer(&gates, Method::GET, "/readyz").await;
        let expected = "not ready: policy (not followed for 31 s)\n";
        assert_eq!((status, text.as_str()), (StatusCode::SERVICE_UNAVAILABLE, expected));
    }

    #[tokio::test]
    async fn a_process_that_is_not_ready_is_alive() {
        let (gates, _senders) = gates(&[("policy", false)]);
        assert_eq!(answer(&gates, Method::GET, "/livez").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let (status, text, headers) = answer(&Gates::default(), Method::GET, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_TYPE], OPENMETRICS);
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(text.contains("mcp_panics_total 1\n") && text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains("mcp_audit_notifications_dropped_total 0\n"));
    }

    #[tokio::test]
    async fn there_is_nothing_else() {
        for path in ["/", "/mcp", "/readyz/", "/debug/pprof"] {
            assert_eq!(answer(&Gates::default(), Method::GET, path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        for path in ["/livez", "/readyz", "/metrics"] {
            let (status, ..) = answer(&Gates::default(), Method::POST, path).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }

    #[tokio::test]
    async fn it_serves_until_it_is_cancelled_even_with_an_idle_client() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Gates::default(), Arc::default(), stop.clone()));
        let mut client = tokio::net::TcpStream::connect(address).await.expect("it is open");
        client.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /li").await.expect("it is sent");
        let mut answer = [0; 15];
        client.read_exact(&mut answer).await.expect("it answers");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        stop.cancel();
        let ended = timeout(PATIENCE + Duration::from_secs(3), server).await.expect("it ends");
        ended.expect("it does not panic").expect("it serves");
    }
}
