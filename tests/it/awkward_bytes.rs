//! The same answer, cut into packets at every awkward place.

use serde_json::json;

use crate::support::{
    Play, ScriptedUpstream, TestApp,
    upstream::{answer, response},
};

const TEXT: &str = "안녕 \"👩‍👩‍👧\"\n\\";

#[tokio::test]
async fn an_answer_cut_at_every_byte_is_the_same_answer() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let bytes = response(200, "", &answer(TEXT).to_string());
    for at in 1..bytes.len() {
        let (head, tail) = bytes.split_at(at);
        upstream.then([Play::Send(head.to_vec()), Play::Send(tail.to_vec())]);
        let answer = app.chat(&json!({"message": "x"})).await;
        assert_eq!(answer.status, 200, "cut at {at}: {}", answer.text());
        assert_eq!(answer.json()["response"], TEXT, "cut at {at}");
    }
}

#[tokio::test]
async fn an_answer_in_single_bytes_is_the_same_answer_in_every_framing() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let body = answer(TEXT).to_string();
    let chunked: String = body.chars().map(|c| format!("{:x};x=y\r\n{c}\r\n", c.len_utf8())).collect();
    let framings = [
        (response(200, "", &body), false),
        (
            format!("HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}0\r\nTrailer: x\r\n\r\n")
                .into_bytes(),
            false,
        ),
        (format!("HTTP/1.0 200 X\r\nContent-Type: text/plain\r\n\r\n \r\n{body}\r\n ").into_bytes(), true),
    ];
    for (bytes, closes) in framings {
        let mut script: Vec<_> = bytes.iter().map(|byte| Play::Send(vec![*byte])).collect();
        if closes {
            script.push(Play::Close);
        }
        upstream.then(script);
        assert_eq!(app.chat(&json!({"message": "x"})).await.json()["response"], TEXT);
    }
}
