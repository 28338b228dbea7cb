//! The endpoint in process: real listener, real TLS, real audit database, real HTTP client.

mod authority;
mod certificates;
mod fixture;
mod limits;
mod messages;
mod oauth;
mod plain;
mod refusals;
mod replicas;
mod state;
mod streams;
mod tokens;
mod zero_trust;
