//! A request in, a response out, in good or in bad order.

use std::{future::pending, io, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER},
    http::HeaderValue,
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use super::{
    MISBEHAVIOURS, Pace,
    misbehaviour::{Act, act_of},
    replies::{self, MODELS, Prebuilt, Replies, Reply},
};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What is read of a request.
#[derive(Deserialize)]
struct Asked {
    model: String,
    #[serde(default)]
    messages: Vec<AskedMessage>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<serde_json::Number>,
}

#[derive(Deserialize)]
struct AskedMessage {
    #[serde(default)]
    content: String,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

const MAX_REQUEST_BYTES: usize = 64 * 1024 * 1024;

pub(super) async fn respond(request: Request<Incoming>, pace: Pace, replies: &Replies) -> Response<Body> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/models") => models(),
        (&Method::POST, "/v1/chat/completions") => {
            let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect().await;
            let asked = body.ok().and_then(|body| serde_json::from_slice::<Asked>(&body.to_bytes()).ok());
            match asked {
                Some(asked) => complete(asked, pace, replies).await,
                None => {
                    error(400, "invalid_request_error", "", "", "We could not parse the JSON body of your request.")
                }
            }
        }
        _ => error(404, "invalid_request_error", "unknown_url", "", "Unknown request URL."),
    }
}

fn models() -> Response<Body> {
    let behaving = MODELS.iter().copied().chain(["text-embedding-3-small"]);
    let listed = behaving.chain(MISBEHAVIOURS.iter().map(|known| known.model));
    let model =
        |id| json!({"id": id, "object": "model", "created": replies::CREATED, "owned_by": "ai-service-simulator"});
    let list = json!({"object": "list", "data": listed.map(model).collect::<Vec<_>>()});
    whole(StatusCode::OK, "application/json", list.to_string().into())
}

async fn complete(asked: Asked, pace: Pace, replies: &Replies) -> Response<Body> {
    let act = act_of(&asked.model);
    let known = MODELS.iter().copied().chain(MISBEHAVIOURS.iter().map(|m| m.model)).find(|m| *m == asked.model);
    let Some(model) = known else {
        let message = format!("The model `{}` does not exist or you do not have access to it.", asked.model);
        return error(404, "invalid_request_error", "model_not_found", "", &message);
    };
    if let Some(refused) = act.and_then(|act| refuse(act, &asked)) {
        return refused;
    }
    let question = asked.messages.last().map_or("", |message| message.content.as_str());
    let limit = if act == Some(Act::Length) { Some(3) } else { asked.max_tokens.or(asked.max_completion_tokens) };
    // Longer than its limit, whatever is asked.
    let reply =
        if matches!(act, Some(Act::Long | Act::Length)) { Reply::to(question).long() } else { Reply::to(question) };
    let said = replies.get(model, reply, limit.unwrap_or(usize::MAX));
    let prompt_tokens: usize = asked.messages.iter().map(|m| 4 + m.content.chars().count().div_ceil(4)).sum();
    let slower = if act == Some(Act::Slow) { 10 } else { 1 };
    let thinking = pace.of(Duration::from_millis(300) * slower);
    if asked.stream {
        pause(thinking).await;
        let with_usage = asked.stream_options.is_some_and(|options| options.include_usage);
        let usage = with_usage.then(|| replies::usage(prompt_tokens, said.pieces()));
        streamed(model, said, usage, act, pace.of(Duration::from_millis(40) * slower))
    } else {
        pause(thinking * 2).await;
        answered(model, &said, &replies::usage(prompt_tokens, said.pieces()), act)
    }
}

/// Those that go wrong before there is any answer.
fn refuse(act: Act, asked: &Asked) -> Option<Response<Body>> {
    match act {
        Act::Error(status, kind, code, message) => {
            let mut response = error(status, kind, code, "", message);
            if matches!(status, 429 | 503) {
                // Short, because whoever tries this waits for it twice.
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Some(response)
        }
        Act::Html => {
            let page = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>";
            Some(whole(StatusCode::BAD_GATEWAY, "text/html", Bytes::from_static(page.as_bytes())))
        }
        Act::Garbage => Some(whole(StatusCode::OK, "text/plain", Bytes::from_static(b"it works!"))),
        Act::Redirect => {
            let mut response = whole(StatusCode::TEMPORARY_REDIRECT, "text/plain", Bytes::new());
            response.headers_mut().insert(LOCATION, HeaderValue::from_static("http://127.0.0.1:9/elsewhere"));
            Some(response)
        }
        Act::Reasoning if asked.max_tokens.is_some() => {
            let message = "Unsupported parameter: 'max_tokens' is not supported with this model. \
                           Use 'max_completion_tokens' instead.";
            Some(error(400, "invalid_request_error", "unsupported_parameter", "max_tokens", message))
        }
        Act::Reasoning if asked.temperature.as_ref().is_some_and(|t| t.as_f64() != Some(1.0)) => {
            let message = "Unsupported value: 'temperature' does not support this value with this model. \
                           Only the default (1) value is supported.";
            Some(error(400, "invalid_request_error", "unsupported_value", "temperature", message))
        }
        _ => None,
    }
}

/// A whole answer.
fn answered(model: &str, said: &Prebuilt, usage: &str, act: Option<Act>) -> Response<Body> {
    let close = |start: Bytes| Bytes::from([&start[..], b"\"usage\":", usage.as_bytes(), b"}\n"].concat());
    let body = close(said.whole.clone());
    let half = body.slice(..body.len() / 2);
    let ok = |body| whole(StatusCode::OK, "application/json", body);
    match act {
        Some(Act::Empty) => ok(close(replies::whole(model, &json!(""), &json!(null), "length"))),
        Some(Act::Refusal) => {
            ok(close(replies::whole(model, &json!(null), &json!("I'm sorry, I can't help with that."), "stop")))
        }
        Some(Act::ErrorInside) => ok(Bytes::from_static(
            br#"{"error":{"message":"The server had an error.","type":"server_error","param":null,"code":null}}"#,
        )),
        Some(Act::Truncated | Act::Malformed) => ok(half),
        Some(Act::Cut) => response("application/json", stream::iter([Ok(half)]).chain(stream::once(broken()))),
        Some(Act::Stall) => response("application/json", stream::iter([Ok(half)]).chain(silence())),
        _ => ok(body),
    }
}

/// A stream, an event a piece.
fn streamed(
    model: &'static str,
    said: Prebuilt,
    usage: Option<String>,
    act: Option<Act>,
    interval: Duration,
) -> Response<Body> {
    let middle = said.events.len() / 2;
    let is_cut_short = matches!(act, Some(Act::Cut | Act::Truncated | Act::Stall | Act::ErrorInside | Act::Malformed));
    let mut events = match act {
        Some(Act::Empty) => vec![replies::event(model, &json!({"role": "assistant", "content": ""}), None)],
        Some(Act::Refusal) => {
            vec![replies::event(model, &json!({"refusal": "I'm sorry, I can't help with that."}), None)]
        }
        _ => said.events,
    };
    if is_cut_short {
        events.truncate(middle.max(1));
    }
    let mut tail = Vec::new();
    match act {
        Some(Act::ErrorInside) => tail.push(Bytes::from_static(
            b"data: {\"error\":{\"message\":\"The server had an error.\",\"type\":\"server_error\",\"param\":null,\
              \"code\":null}}\n\n",
        )),
        Some(Act::Malformed) => tail.push(Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"cont\n\n")),
        Some(Act::Cut | Act::Truncated | Act::Stall) => {}
        Some(Act::Empty) => tail.push(replies::event(model, &json!({}), Some("length"))),
        _ => tail.push(said.finish),
    }
    if !is_cut_short {
        tail.extend(usage.map(|usage| replies::usage_event(model, &usage)));
        tail.push(Bytes::from_static(b"data: [DONE]\n\n"));
    }
    response(
        "text/event-stream; charset=utf-8",
        async_stream::stream! {
            for (index, event) in events.into_iter().enumerate() {
                if index > 1 && !interval.is_zero() {
                    sleep(interval).await;
                }
                yield Ok(event);
            }
            for event in tail {
                yield Ok(event);
            }
            match act {
                Some(Act::Cut) => yield broken().await,
                Some(Act::Stall) => pending().await,
                _ => {}
            }
        },
    )
}

/// A pause of no length is none: a timer would wait a millisecond.
async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// The break of a connection, a moment after what came before it: what is not yet sent would be lost with it.
async fn broken() -> io::Result<Bytes> {
    sleep(Duration::from_millis(10)).await;
    Err(io::ErrorKind::ConnectionReset.into())
}

fn silence() -> impl Stream<Item = io::Result<Bytes>> {
    stream::pending()
}

fn error(status: u16, kind: &str, code: &str, param: &str, message: &str) -> Response<Body> {
    let or_null = |text: &str| if text.is_empty() { json!(null) } else { json!(text) };
    let body = json!({"error": {
        "message": message, "type": kind, "param": or_null(param), "code": or_null(code),
    }});
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    whole(status, "application/json", body.to_string().into())
}

const UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn whole(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    finish(status, content_type, Full::new(body).map_err(|never| match never {}).boxed_unsync())
}

fn response(
    content_type: &'static str,
    parts: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Response<Body> {
    finish(StatusCode::OK, content_type, StreamBody::new(parts.map(|part| part.map(Frame::data))).boxed_unsync())
}

fn finish(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(UPSTREAM_REQUEST_ID, HeaderValue::from_static("req_sim"));
    response
}
