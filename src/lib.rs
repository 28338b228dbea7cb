//! Portcullis: safe access of AI agents to Kubernetes.
//!
//! An object: `watch -> observe -> validate -> desired -> apply -> status` ([`controller`]).
//! A request: `TLS -> Host, Origin -> credential -> authenticate -> authorize -> intent -> tool -> outcome` ([`server`]).
//!
//! ```text
//! 5 wiring   main -> cli -> controller | server, admin, telemetry, terminal, review, *_command
//! 4 engines  controller              server          (they never import each other)
//! 3 edges    k8s    index -> k8s     authenticator -> index    tools    audit  (I/O)
//! 2 rules    authn  authz  pki  mcp                  (no I/O, no clock: time and randomness are arguments)
//! 1 ground   api    metrics
//! ```
//!
//! A module imports from lower layers only; `architecture.rs` holds the rule.

mod access_review_command;
mod admin;
#[cfg(test)]
mod alone;
pub mod api;
#[cfg(test)]
mod architecture;
mod audit;
mod audit_command;
mod authenticator;
mod authn;
mod authz;
#[cfg(feature = "bench")]
pub mod bench;
mod can_i_command;
#[cfg(test)]
mod chart;
pub mod cli;
mod controller;
mod generate;
mod import_policy;
mod import_policy_command;
mod index;
mod k8s;
mod key_command;
mod mcp;
mod metrics;
mod pki;
#[cfg(test)]
mod requirements;
mod review;
mod server;
mod start;
mod telemetry;
mod terminal;
mod token_command;
mod tools;
mod whoami_command;
