//! The endpoint in process: real listener, real TLS, real audit database, real HTTP client.

mod fixture;
mod messages;
mod refusals;
mod replicas;
mod streams;
