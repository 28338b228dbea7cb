//! Requests to the API server, with a bound on what is read and without a copy of any answer in a log.
//!
//! The client's own typed calls log an answer that they cannot parse, and read without limit; so requests are built by
//! its typed builder, and answers are read here.

use std::pin::pin;

use futures::AsyncReadExt;
use kube::Client;
use serde::de::DeserializeOwned;

use super::ToolError;
use super::errors::Call;

/// Most bytes of an answer. Five hundred objects with all their annotations may be large.
const MAX_ANSWER: u64 = 32 * 1024 * 1024;

/// A request as the client's builder makes it.
pub(super) type Built = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

/// Sends a request and reads its whole answer.
///
/// # Errors
/// [`ToolError`] in words of the call.
pub(super) async fn bytes(client: &Client, call: &Call, request: Built) -> Result<Vec<u8>, ToolError> {
    let request = request.map_err(|error| call.explain(&kube::Error::BuildRequest(error)))?;
    let stream = client.request_stream(request).await.map_err(|error| explain(call, &error))?;
    let mut answer = Vec::new();
    let read = pin!(stream.take(MAX_ANSWER + 1)).read_to_end(&mut answer).await;
    read.map_err(|_| interrupted(call))?;
    if answer.len() as u64 > MAX_ANSWER {
        return Err(ToolError::Invalid(format!(
            "the answer about {} is larger than {} MiB: ask for less, for example with a smaller \"limit\"",
            call.object(),
            MAX_ANSWER >> 20
        )));
    }
    Ok(answer)
}

/// Sends a request and parses its answer.
///
/// # Errors
/// [`ToolError`] in words of the call.
pub(super) async fn object<T: DeserializeOwned>(
    client: &Client,
    call: &Call,
    request: Built,
) -> Result<T, ToolError> {
    serde_json::from_slice(&bytes(client, call, request).await?).map_err(|_| call.unreadable())
}

/// Sends a request and keeps the last bytes of its answer. Says how many there were in all.
///
/// # Errors
/// [`ToolError`] in words of the call.
pub(super) async fn tail(
    client: &Client,
    call: &Call,
    request: Built,
    keep: usize,
) -> Result<(Vec<u8>, u64), ToolError> {
    let request = request.map_err(|error| call.explain(&kube::Error::BuildRequest(error)))?;
    let stream = client.request_stream(request).await.map_err(|error| explain(call, &error))?;
    let mut stream = pin!(stream);
    let mut tail = Tail::new(keep);
    let mut chunk = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut chunk).await.map_err(|_| interrupted(call))? {
            0 => return Ok(tail.finish()),
            read => tail.push(&chunk[..read]),
        }
    }
}

fn explain(call: &Call, error: &kube::Error) -> ToolError {
    let explained = call.explain(error);
    // What a refused request says is for the caller alone; a broken connection concerns whoever runs the endpoint.
    if !matches!(error, kube::Error::Api(_)) {
        tracing::warn!(call = call.verb, resource = call.resource, %error, "call the API server");
    }
    explained
}

fn interrupted(call: &Call) -> ToolError {
    ToolError::Unavailable(format!("the answer about {} broke off; try again", call.object()))
}

/// The end of a stream, in at most twice the bytes that are kept.
struct Tail {
    keep: usize,
    kept: Vec<u8>,
    seen: u64,
}

impl Tail {
    fn new(keep: usize) -> Self {
        Self { keep, kept: Vec::new(), seen: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u64;
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > 2 * self.keep {
            self.trim();
        }
    }

    fn trim(&mut self) {
        let surplus = self.kept.len().saturating_sub(self.keep);
        self.kept.drain(..surplus);
    }

    fn finish(mut self) -> (Vec<u8>, u64) {
        self.trim();
        (self.kept, self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_bytes_and_counts_all() {
        let mut tail = Tail::new(5);
        for chunk in ["ab", "cdefghijklmnop", "", "qrs"] {
            tail.push(chunk.as_bytes());
            assert!(tail.kept.len() <= 10);
        }
        assert_eq!(tail.finish(), (b"opqrs".to_vec(), 19));
        assert_eq!(Tail::new(5).finish(), (Vec::new(), 0));
    }
}
