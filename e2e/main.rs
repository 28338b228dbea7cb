//! End-to-end tests on a real cluster: the chart, the operator, running pods and real MCP clients.
//!
//! One file per behaviour; every test has a namespace of its own. `just e2e` brings up what they need: a cluster in
//! `KUBECONFIG` with the chart installed, and the Python and npm clients in `PORTCULLIS_E2E_PYTHON` and
//! `PORTCULLIS_E2E_NODE`.

mod access;
mod admission;
mod audit;
mod cluster;
mod conformance;
mod from_directory;
mod lifecycle;
mod many;
mod mcp_client;
mod refusals;
mod rights;
mod server;
mod sse;
mod wire;
