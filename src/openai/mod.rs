//! The upstream: the only code that talks to OpenAI, or to a server that speaks its chat API.
//!
//! A [`Client`] holds one pool of connections. Every call has time limits, follows no redirect (one would carry
//! the messages and the key elsewhere) and ends in an answer or an [`UpstreamError`], which names neither URL nor key.
//! What fails before the head of an answer may be asked again; `retry` says what, and after which wait. `pool` says with
//! which key.

mod answer;
mod breaker;
mod classify;
mod client;
mod cost;
mod deadline;
mod dialect;
mod error;
mod keys;
mod lenient;
mod pool;
mod reading;
mod redact;
mod request;
mod retry;
pub mod sse;
mod stream;
mod tls;
mod told;
mod transport;
mod wire;

pub use answer::{Answer, MAX_ANSWER_BYTES, Model};
pub use client::{Client, ClientError, ModelList};
pub use cost::Cost;
pub use error::{ConnectFailure, Said, Stage, UpstreamError};
pub use reading::Ending;
pub use request::{Completion, Wish};
pub use stream::AnswerStream;
