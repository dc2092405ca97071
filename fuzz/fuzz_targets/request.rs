//! A body as `POST /chat` reads it: refused in the service's own form, or understood as any other parser understands it.
#![no_main]

use ai_service::{chat::ChatRequest, fuzzing::chat_request, message::Role};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|body: &[u8]| {
    match chat_request(body) {
        Ok(request) => {
            in_range(&request);
            understood_alike(body, &request);
            // What was understood says the same again.
            let again = chat_request(&written(&request)).expect("what was understood once");
            same(&again, &request);
        }
        Err((status, detail)) => {
            assert!(matches!(status, 400 | 422), "{status}");
            let detail: Value = serde_json::from_str(&detail).expect("JSON");
            let mistakes = detail.as_array().map_or(1, Vec::len);
            assert!((1..=100).contains(&mistakes), "{mistakes} mistakes");
        }
    }
});

fn in_range(request: &ChatRequest) {
    let ChatRequest { history, model, temperature, max_tokens, .. } = request;
    assert!(history.len() <= 10_000);
    assert!(temperature.is_none_or(|temperature| (0.0..=2.0).contains(&temperature)));
    assert!(max_tokens.is_none_or(|tokens| (1..=2_147_483_647).contains(&tokens)));
    let is_harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
    assert!(model.as_ref().is_none_or(|name| (1..=128).contains(&name.len()) && name.bytes().all(is_harmless)));
}

/// Where another parser reads the body at all: it gives up at 128 levels, also in what nobody asked for.
fn understood_alike(body: &[u8], request: &ChatRequest) {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return };
    assert_eq!(value["message"], request.message);
    let text = |text: &Option<String>| text.as_ref().map_or(Value::Null, |text| json!(text));
    assert_eq!(value["system_prompt"], text(&request.system_prompt));
    assert_eq!(value["model"], text(&request.model));
    let history = value["conversation_history"].as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(history.len(), request.history.len());
    for (given, read) in history.iter().zip(&request.history) {
        assert_eq!((&given["content"], &given["role"]), (&json!(read.content), &json!(read.role.as_str())));
        assert_eq!(Role::parse(read.role.as_str()), Some(read.role));
    }
}

/// serde_json reads a number to the last place but one of its digits.
fn same(one: &ChatRequest, other: &ChatRequest) {
    let without_temperature = |request: &ChatRequest| written(&ChatRequest { temperature: None, ..request.clone() });
    assert_eq!(without_temperature(one), without_temperature(other));
    match (one.temperature, other.temperature) {
        (Some(one), Some(other)) => assert!((one - other).abs() <= 2.0 * f64::EPSILON * other.abs(), "{one} {other}"),
        (one, other) => assert_eq!(one, other),
    }
}

fn written(request: &ChatRequest) -> Vec<u8> {
    let ChatRequest { message, history, system_prompt, model, temperature, max_tokens } = request;
    let history = history.iter().map(|message| json!({"role": message.role.as_str(), "content": message.content}));
    let history: Vec<_> = history.collect();
    let body = json!({
        "message": message, "conversation_history": history, "system_prompt": system_prompt, "model": model,
        "temperature": temperature, "max_tokens": max_tokens,
    });
    body.to_string().into_bytes()
}
