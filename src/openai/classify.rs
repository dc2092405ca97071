//! From a status and a body, or from a failed connection, to the cause.

use std::{error::Error, io, time::Duration};

use reqwest::{StatusCode, header::HeaderMap};

use crate::openai::{
    error::{ConnectFailure, Said, Stage, UpstreamError},
    redact::Secrets,
    retry::retry_after,
    told::{ErrorBody, Form},
};

/// Words in a code or a type that mean "no money", whatever the status: waiting does not help.
const QUOTA_WORDS: [&str; 7] =
    ["quota", "billing", "balance", "credit", "arrear", "spend_limit", "organization_usage_limit_exceeded"];

/// Codes that mean the same and do not say so.
const QUOTA_CODES: [&str; 1] = ["1113"];

/// Phrases of messages that mean the same, where no code does.
const QUOTA_PHRASES: [&str; 5] = ["insufficient balance", "insufficient credit", "out of credits", "余额不足", "欠费"];

/// What is answered where nothing is: the address of the upstream is wrong.
pub(super) const NOTHING_HERE: UpstreamError = UpstreamError::Unusable("nothing at this address");

/// An answer that nobody asked for in this form.
pub(super) const COMPRESSED: UpstreamError = UpstreamError::Unusable("a compressed body, though none was asked for");

/// What an answer with that status means. OpenAI's `error.code` decides before the status does.
pub(super) fn classify(status: StatusCode, headers: &HeaderMap, body: &[u8], secrets: &Secrets) -> UpstreamError {
    classify_told(status, headers, &ErrorBody::read(body), secrets)
}

fn classify_told(status: StatusCode, headers: &HeaderMap, error: &ErrorBody, secrets: &Secrets) -> UpstreamError {
    let said = || {
        let text = if error.message.is_empty() { "OpenAI API gave no reason" } else { &error.message };
        Said::new(text, secrets)
    };
    let has_words = error.form == Form::Json || error.form == Form::Text;
    match status.as_u16() {
        400.. if is_quota(error) => UpstreamError::QuotaExceeded,
        300..=399 => UpstreamError::Protocol("a redirect"),
        401 | 403 => UpstreamError::Unauthorized,
        400 if is_about_our_key(error) => UpstreamError::Unauthorized,
        // More tokens than the account may use in a minute: no later minute will have more.
        429 if error.message.starts_with("Request too large") => UpstreamError::InvalidRequest(said()),
        429 => UpstreamError::RateLimited { message: said(), retry_after: retry_after(headers) },
        402 => UpstreamError::QuotaExceeded,
        404 if has_words && is_about_the_model(error) => UpstreamError::ModelNotFound(said()),
        404 => NOTHING_HERE,
        400 | 413 | 422 if is_context(error) => UpstreamError::ContextTooLong(said()),
        413 if error.message.is_empty() => UpstreamError::InvalidRequest(Said::too_large()),
        408 | 500..=599 if status != StatusCode::SERVICE_UNAVAILABLE && status.as_u16() != 529 => {
            UpstreamError::Server { status: status.as_u16(), retry_after: retry_after(headers) }
        }
        503 | 529 => UpstreamError::Overloaded { retry_after: retry_after(headers) },
        400 | 409 | 422 if error.form == Form::Nothing => UpstreamError::InvalidRequest(said()),
        400..=499 if has_words => UpstreamError::InvalidRequest(said()),
        400..=499 => UpstreamError::Unusable("a status that makes no sense here"),
        _ => UpstreamError::Protocol("a status that makes no sense here"),
    }
}

/// What an error in the body of a success means. A status would have named its kind; here only the body can.
pub(super) fn classify_inside(body: &[u8], secrets: &Secrets) -> UpstreamError {
    let error = ErrorBody::read(body);
    let named = error.code.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
    let failed = named.filter(|status| status.is_client_error() || status.is_server_error());
    let by_name = || {
        let speaks_of = |words: &[&str]| words.iter().any(|word| error.code == *word || error.kind == *word);
        match () {
            () if is_context(&error) => StatusCode::BAD_REQUEST,
            () if speaks_of(&["rate_limit_exceeded", "rate_limit_error"]) => StatusCode::TOO_MANY_REQUESTS,
            () if speaks_of(&["server_is_overloaded", "overloaded_error"]) => StatusCode::SERVICE_UNAVAILABLE,
            () => StatusCode::BAD_GATEWAY,
        }
    };
    match classify_told(failed.unwrap_or_else(by_name), &HeaderMap::new(), &error, secrets) {
        UpstreamError::Server { status: 500..=503, .. } if !error.message.is_empty() => {
            UpstreamError::Failed(Said::new(&error.message, secrets))
        }
        other => other,
    }
}

fn is_quota(error: &ErrorBody) -> bool {
    let (code, kind, message) = (error.code.as_str(), error.kind.to_lowercase(), error.message.to_lowercase());
    let lower = code.to_lowercase();
    let names = |text: &str| !text.contains("rate") && QUOTA_WORDS.iter().any(|word| text.contains(word));
    QUOTA_CODES.contains(&code)
        || names(&lower)
        || names(&kind)
        || QUOTA_PHRASES.iter().any(|phrase| message.contains(phrase))
}

/// Some servers say with a 400 what others say with a 401.
fn is_about_our_key(error: &ErrorBody) -> bool {
    let message = error.message.to_lowercase();
    matches!(error.code.to_lowercase().as_str(), "invalid_api_key" | "api_key_invalid")
        || ["api key not valid", "invalid api key", "incorrect api key"].iter().any(|words| message.contains(words))
}

/// A 404 may be about the address instead.
fn is_about_the_model(error: &ErrorBody) -> bool {
    let words = format!("{} {} {} {}", error.code, error.kind, error.param, error.message).to_lowercase();
    ["model", "deployment", "모델", "模型"].iter().any(|word| words.contains(word))
}

/// Whether the messages are longer than the model takes. Compatible servers send a sentence without OpenAI's code.
pub(super) fn is_context(error: &ErrorBody) -> bool {
    let names =
        |text: &str| text.contains("context") && ["length", "size", "window"].iter().any(|word| text.contains(word));
    let message = error.message.to_lowercase();
    error.code == "string_above_max_length"
        || names(&error.code)
        || names(&error.kind)
        || ["context length", "context size", "context window", "prompt is too long", "input is too long"]
            .iter()
            .any(|words| message.contains(words))
}

/// Why no response came. The error's own text names the URL and is not used.
pub(super) fn transport_failure(error: &reqwest::Error, connect_limit: Duration) -> UpstreamError {
    if error.is_connect() {
        if error.is_timeout() {
            return UpstreamError::Timeout { stage: Stage::Connect, limit: connect_limit };
        }
        let failure = connect_failure(error);
        if let ConnectFailure::Proxy(why) = failure {
            tracing::warn!(why, "the proxy that the environment names refuses to connect to the upstream");
        }
        return UpstreamError::Unreachable(failure);
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
        // The same of a proxy that was asked for a tunnel. Its status is not told where it is not 407.
        match cause.to_string().as_str() {
            "tunnel error: proxy authorization required" => return ConnectFailure::Proxy("407: it wants credentials"),
            "tunnel error: unsuccessful" => return ConnectFailure::Proxy("a status that is no success"),
            _ => {}
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
        let codes = [
            "insufficient_quota",
            "billing_hard_limit_reached",
            "billing_not_active",
            "credit_balance_exhausted",
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "exceeded_current_quota_error",
            "insufficient_user_quota",
            "insufficient_balance",
            "Arrearage",
            "1113",
        ];
        for code in codes {
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
        let llama = r#"{"error":{"code":400,"message":"the request exceeds","type":"exceed_context_size_error"}}"#;
        assert!(matches!(said(400, llama), UpstreamError::ContextTooLong(_)));
    }

    #[test]
    fn a_page_of_html_is_never_quoted() {
        let page = "<html>502 Bad Gateway cloudflare</html>";
        for (status, expected) in [
            (502, UpstreamError::Server { status: 502, retry_after: None }),
            (520, UpstreamError::Server { status: 520, retry_after: None }),
            (400, UpstreamError::Unusable("a status that makes no sense here")),
            (404, NOTHING_HERE),
            (413, UpstreamError::InvalidRequest(Said::too_large())),
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
