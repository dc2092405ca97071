//! What `fuzz/` calls: the parsers of what callers send, without a connection around them.

use axum::http::{HeaderMap, HeaderValue};

use crate::{
    api::{chat::StreamRequest, error::ApiError, extract, stream},
    chat::ChatRequest,
};

/// A body as `POST /chat` reads it: the request, or the status and the `detail` of the refusal.
///
/// # Errors
/// It is refused.
pub fn chat_request(body: &[u8]) -> Result<ChatRequest, (u16, String)> {
    let refusal =
        |error: ApiError| (error.status().as_u16(), serde_json::to_string(&error.detail()).unwrap_or_default());
    extract::parse::<StreamRequest>(body).map(|request| request.chat).map_err(refusal)
}

/// How far a reader has read, by its `Last-Event-ID` and its query. `None` is the beginning. A header that HTTP would not
/// have let in is none.
#[must_use]
pub fn cursor(header: &[u8], query: Option<&str>) -> Option<u64> {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(header) {
        headers.insert(stream::LAST_EVENT_ID, value);
    }
    stream::cursor(&headers, query)
}
