//! Requests that could be read in more than one way, or in none: refused before anything is decided by them.

use axum::http::{Method, Request, Version, header};
use futures_util::FutureExt;
use http_body_util::BodyExt;

use crate::api::{Api, error::ApiError};

/// Most bytes of a request's head.
pub(crate) const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Most headers of a request.
pub(crate) const MAX_HEADERS: usize = 64;

/// Longest address, in bytes. RFC 9110 asks for 8,000 at least.
const MAX_URI_BYTES: usize = 8192;

/// That the request has exactly one valid `Host`, the same as in an absolute address (with HTTP/1.0 it may have none), and one length; that its address is not
/// beyond measure, and that it is no `CONNECT`, which has no path.
///
/// hyper takes the length away from a request that also says `Transfer-Encoding`, and closes the connection behind its
/// answer; so of two lengths nothing is seen here, and nothing can hide behind them. Should a version of it show both, they
/// are refused.
///
/// # Errors
/// Something in front may read the request otherwise than this service does.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), ApiError> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let host = host.to_str().ok().filter(|host| is_host(host)).ok_or(ApiError::BadHost)?;
            if request.uri().authority().is_some_and(|authority| !authority.as_str().eq_ignore_ascii_case(host)) {
                return Err(ApiError::BadHost);
            }
        }
        // RFC 9112, 3.2, asks for one of HTTP/1.1; the health checks of some proxies are older.
        (None, _) if request.version() == Version::HTTP_10 => {}
        _ => return Err(ApiError::BadHost),
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        // hyper also takes what ends with chunked; others differ over what comes before it.
        let is_chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked") && encodings.next().is_none();
        if !is_chunked || headers.contains_key(header::CONTENT_LENGTH) {
            return Err(ApiError::BadFraming);
        }
    }
    if request.uri().path_and_query().is_some_and(|address| address.as_str().len() > MAX_URI_BYTES) {
        return Err(ApiError::UriTooLong { limit: MAX_URI_BYTES });
    }
    if request.method() == Method::CONNECT { Err(ApiError::MethodNotAllowed) } else { Ok(()) }
}

/// The answer to a head that hyper cannot read, as it is written, with its line in the log. `said` is the head of hyper's own
/// answer, which has no body: its status says what is wrong.
pub(crate) fn answer_to_unreadable(api: &Api, said: &[u8]) -> Vec<u8> {
    let said = String::from_utf8_lossy(said);
    let error = match said.split(' ').nth(1) {
        Some("414") => ApiError::UriTooLong { limit: MAX_URI_BYTES },
        Some("431") => ApiError::HeadTooLarge { bytes: MAX_HEAD_BYTES, headers: MAX_HEADERS },
        _ => ApiError::BadHead,
    };
    let (head, body) = api.refuse(error).into_parts();
    // It is in memory already.
    let body = body.collect().now_or_never().and_then(Result::ok).unwrap_or_default().to_bytes();
    let mut answer = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    let date = said.lines().find(|line| line.starts_with("date:"));
    answer.extend(date.into_iter().flat_map(|date| [date, "\r\n"]).flat_map(str::bytes));
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            answer.extend_from_slice(part);
        }
    }
    answer.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    answer.extend_from_slice(&body);
    answer
}

/// A name or an address, with or without a port. Source: RFC 9110, 7.2.
fn is_host(host: &str) -> bool {
    // Digits alone: Rust's numbers may have a sign.
    let port_is_good =
        |port: &str| port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port = if port.is_empty() { Some("") } else { port.strip_prefix(':') };
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port.is_some_and(port_is_good);
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=253).contains(&name.len()) && name.bytes().all(is_name) && port_is_good(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for good in
            ["example.com", "localhost:8000", "127.0.0.1", "[::1]", "[2001:db8::1]:443", "a_b-c.d", "x:", "host:65535"]
        {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "",
            ":80",
            "a,b",
            "evil/?",
            "user@host",
            "host:99999",
            "host:-1",
            "host:+1",
            "host:8a",
            "[::1",
            "[::1]+80",
            "::1",
            "a b",
            "ho%73t",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn of_hosts_and_of_lengths_there_is_one() {
        let code = |uri: &str, headers: &[(&str, &str)]| {
            let mut request = Request::get(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            check(&request.body(()).unwrap()).err().map(|error| error.code())
        };
        assert_eq!(code("/", &[("host", "a")]), None);
        assert_eq!(code("http://A/", &[("host", "a")]), None);
        assert_eq!(code("http://b/", &[("host", "a")]), Some("bad_host"));
        assert_eq!(code("/", &[]), Some("bad_host"));
        let old = |headers: &[&str]| {
            let request = Request::get("/health").version(Version::HTTP_10);
            let request = headers.iter().fold(request, |request, host| request.header("host", *host));
            check(&request.body(()).unwrap()).err().map(|error| error.code())
        };
        assert_eq!((old(&[]), old(&["a"])), (None, None));
        assert_eq!(
            (old(&["a", "a"]), old(&["a b"]), old(&[""])),
            (Some("bad_host"), Some("bad_host"), Some("bad_host"))
        );
        assert_eq!(code("/", &[("host", "a"), ("host", "a")]), Some("bad_host"));
        let both = [("host", "a"), ("content-length", "1"), ("transfer-encoding", "chunked")];
        assert_eq!(code("/", &both), Some("bad_framing"));
        for (value, expected) in
            [("Chunked", None), ("gzip, chunked", Some("bad_framing")), ("chunked, chunked", Some("bad_framing"))]
        {
            assert_eq!(code("/", &[("host", "a"), ("transfer-encoding", value)]), expected, "{value}");
        }
        let twice = [("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(code("/", &twice), Some("bad_framing"));
        assert_eq!(code(&format!("/{}", "x".repeat(MAX_URI_BYTES - 1)), &[("host", "a")]), None);
        assert_eq!(code(&format!("/?{}", "x".repeat(MAX_URI_BYTES - 1)), &[("host", "a")]), Some("uri_too_long"));
    }
}
