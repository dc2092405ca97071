//! From a status and a body, or from a failed connection, to the cause.

use std::{error::Error, io, time::Duration};

use reqwest::{StatusCode, header::HeaderMap};

use crate::openai::{
    error::{ConnectFailure, Said, Stage, UpstreamError},
    redact::Secrets,
    retry::retry_after,
    wire::ErrorBody,
};

/// Codes that mean "no money", whatever the status: waiting does not help.
const QUOTA_CODES: [&str; 7] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
];

/// What an answer with that status means. OpenAI's `error.code` decides before the status does.
pub(super) fn classify(status: StatusCode, headers: &HeaderMap, body: &[u8], secrets: &Secrets) -> UpstreamError {
    let parsed = ErrorBody::parse(body);
    let is_json = parsed.is_some();
    let error = parsed.unwrap_or_default();
    let said = || {
        let text = if error.message.is_empty() { "OpenAI API gave no reason" } else { &error.message };
        Said::new(text, secrets)
    };
    let code = error.code.as_str();
    match status.as_u16() {
        400.. if QUOTA_CODES.contains(&code) || error.kind == "insufficient_quota" => UpstreamError::QuotaExceeded,
        300..=399 => UpstreamError::Protocol("a redirect"),
        401 | 403 => UpstreamError::Unauthorized,
        // More tokens than the account may use in a minute: no later minute will have more.
        429 if error.message.starts_with("Request too large") => UpstreamError::InvalidRequest(said()),
        429 => UpstreamError::RateLimited { message: said(), retry_after: retry_after(headers) },
        402 => UpstreamError::QuotaExceeded,
        404 if is_json => UpstreamError::ModelNotFound(said()),
        400 | 413 | 422 if is_context(code, &error.message) => UpstreamError::ContextTooLong(said()),
        400 | 409 | 413 | 422 if is_json => UpstreamError::InvalidRequest(said()),
        503 | 529 => UpstreamError::Overloaded { retry_after: retry_after(headers) },
        408 | 500..=599 => UpstreamError::Server { status: status.as_u16(), retry_after: retry_after(headers) },
        _ => UpstreamError::Protocol("a status that makes no sense here"),
    }
}

/// What an error in the body of a success means. A status would have named its kind; here only the body can.
pub(super) fn classify_inside(body: &[u8], secrets: &Secrets) -> UpstreamError {
    let code = ErrorBody::parse(body).and_then(|error| error.code.parse().ok());
    let status = code.and_then(|code| StatusCode::from_u16(code).ok()).filter(|status| !status.is_success());
    classify(status.unwrap_or(StatusCode::BAD_GATEWAY), &HeaderMap::new(), body, secrets)
}

fn is_context(code: &str, message: &str) -> bool {
    // Compatible servers send the sentence without the code.
    matches!(code, "context_length_exceeded" | "string_above_max_length") || message.contains("maximum context length")
}

/// Why no response came. The error's own text names the URL and is not used.
pub(super) fn transport_failure(error: &reqwest::Error, connect_limit: Duration) -> UpstreamError {
    if error.is_connect() {
        if error.is_timeout() {
            return UpstreamError::Timeout { stage: Stage::Connect, limit: connect_limit };
        }
        return UpstreamError::Unreachable(connect_failure(error));
    }
    if error.is_timeout() {
        return UpstreamError::Timeout { stage: Stage::Connect, limit: connect_limit };
    }
    UpstreamError::Interrupted
}

/// Looks for the cause at the bottom of the chain.
pub(super) fn connect_failure(error: &(dyn Error + 'static)) -> ConnectFailure {
    let mut source = Some(error);
    let mut kind = io::ErrorKind::Other;
    while let Some(cause) = source {
        // hyper-util says this of its resolver; it has no type of its own that could be asked.
        if cause.to_string().starts_with("dns error") {
            return ConnectFailure::UnknownHost;
        }
        if let Some(found) = cause.downcast_ref::<io::Error>() {
            kind = innermost(found).kind();
        }
        source = cause.source();
    }
    match kind {
        // Rustls reports its own errors as invalid data, and a peer that hangs up in the handshake as an early end.
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ConnectFailure::Tls,
        _ => ConnectFailure::Refused,
    }
}

/// An `io::Error` may wrap another one, which its `source` skips.
fn innermost(error: &io::Error) -> &io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>());
    inner.map_or(error, innermost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, body: &str) -> UpstreamError {
        let secrets = Secrets::new(&["sk-secret-key".into()]);
        classify(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes(), &secrets)
    }

    #[test]
    fn the_code_decides_before_the_status() {
        for code in QUOTA_CODES {
            let body = format!(r#"{{"error":{{"message":"m","type":"x","code":"{code}"}}}}"#);
            for status in [400, 403, 429] {
                assert_eq!(said(status, &body), UpstreamError::QuotaExceeded);
            }
        }
        let large = r#"{"error":{"message":"Request too large for gpt-4o","code":"rate_limit_exceeded"}}"#;
        assert!(matches!(said(429, large), UpstreamError::InvalidRequest(_)));
        let slow = said(429, r#"{"error":{"message":"Slow down","code":"slow_down"}}"#);
        assert!(matches!(slow, UpstreamError::RateLimited { .. }));
        let long = r#"{"error":{"message":"m","code":"context_length_exceeded"}}"#;
        assert!(matches!(said(400, long), UpstreamError::ContextTooLong(_)));
        let sentence = r#"{"message":"This model's maximum context length is 4096 tokens"}"#;
        assert!(matches!(said(400, sentence), UpstreamError::ContextTooLong(_)));
    }

    #[test]
    fn a_page_of_html_is_never_quoted() {
        let page = "<html>502 Bad Gateway cloudflare</html>";
        for (status, expected) in [
            (502, UpstreamError::Server { status: 502, retry_after: None }),
            (520, UpstreamError::Server { status: 520, retry_after: None }),
            (400, UpstreamError::Protocol("a status that makes no sense here")),
            (404, UpstreamError::Protocol("a status that makes no sense here")),
            (401, UpstreamError::Unauthorized),
            (307, UpstreamError::Protocol("a redirect")),
        ] {
            assert_eq!(said(status, page), expected);
        }
    }

    #[test]
    fn words_of_the_upstream_lose_their_keys_and_their_length() {
        let body = format!(r#"{{"error":{{"message":"bad sk-secret-key {}"}}}}"#, "x".repeat(2000));
        let text = said(400, &body).to_string();
        assert!(text.starts_with("bad [redacted] xxx"), "{text}");
        assert_eq!(text.chars().count(), Said::MAX_CHARS);
    }
}
