//! A service between web applications and OpenAI's chat API.
//!
//! ```text
//!   caller ──HTTP──▶ api ──▶ chat ──▶ openai ──HTTP──▶ OpenAI, or `simulator`
//!          ◀─answer─     ◀──      ◀──        ◀─answer──
//! ```
//!
//! A message comes in at [`api`](crate), becomes a [`chat::ChatRequest`], is asked of the upstream by
//! [`openai::Client`], and goes out as JSON. The modules, in the order in which the data meets them; each may
//! import only those of a lower rank (`tests/it/layers.rs` holds this):

// 6 · starts and ends everything
pub mod server;
// 5 · HTTP in and out
mod api;
/// What the fuzz targets reach of private modules; for nobody else.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::api::fuzzing::{chat_request, cursor};
}
// 4 · what handlers share
mod state;
// 3 · what a chat is
pub mod chat;
// 2 · the upstream, the stream log, what is stored, the upstream's stand-in, the log, the health check,
// the counter of tokens, who is let in, how much each may ask for: strangers to each other
pub mod openai;
pub mod streams;
pub mod conversations;
pub mod simulator;
pub mod telemetry;
pub mod health_check;
pub mod tokens;
pub mod access;
pub mod limits;
// 1 · every setting
pub mod config;
// 0 · the words every layer speaks
pub mod ids;
pub mod message;
pub mod timestamp;
