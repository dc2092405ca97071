//! The service from outside: over HTTP, on a real port, against an upstream that is a real server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::too_many_lines,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a test stops at what it does not expect"
)]

mod support;

mod access;
mod awkward_bytes;
mod bad_days;
mod behind_a_prefix;
mod billing;
mod browser;
mod browser_streams;
mod chat;
mod connections;
mod conversations;
mod cors;
mod demo;
mod documents;
mod early_answers;
mod fastapi_parity;
mod faults;
mod health;
mod idempotency;
mod keep_alive;
mod layers;
mod limits;
mod logs;
mod models;
mod nginx;
mod parameters;
mod process;
mod raw_http;
mod readme;
mod request_ids;
mod shutdown;
mod socket;
mod stream_failures;
mod stream_invariants;
mod streams;
mod titles;
mod two_apps;
mod upstream_breaker;
mod upstream_endings;
mod upstream_errors;
mod upstream_failures;
mod upstream_http2;
mod upstream_keys;
mod upstream_parameters;
mod upstream_retries;
mod upstream_shapes;
