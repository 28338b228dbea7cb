//! The endpoint in process: real listener, real TLS, real audit database, real HTTP client.

mod api_server;
mod authority;
mod certificates;
mod fixture;
mod limits;
mod messages;
mod oauth;
mod paths;
mod plain;
mod reasons;
mod refusals;
mod replicas;
mod state;
mod streams;
mod tenants;
mod tokens;
mod zero_trust;
