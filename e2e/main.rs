//! End-to-end tests on a real cluster: the chart, the operator, running pods and real MCP clients.
//!
//! One file per behaviour; every test has a namespace of its own. `just e2e` brings up what they need: a cluster in
//! `KUBECONFIG` with the chart installed, and the Python and npm clients in `PORTCULLIS_E2E_PYTHON` and
//! `PORTCULLIS_E2E_NODE`.

mod access;
mod admission;
mod audit;
mod basic;
mod canaries;
mod catalogue;
mod certificates;
mod cluster;
mod conformance;
mod deputy;
mod from_directory;
mod imported_keys;
mod issuer;
mod issuers;
mod key_rotation;
mod lifecycle;
mod load;
mod local;
mod many;
mod mcp_client;
mod missed_watch;
mod published;
mod questions;
mod refusals;
mod revocation;
mod rights;
mod role_edit;
mod server;
mod service_accounts;
mod signing_rotation;
mod sse;
mod tenants;
mod verbs;
mod wire;
mod zero_trust;
