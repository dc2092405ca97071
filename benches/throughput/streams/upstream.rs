//! An OpenAI that streams to a script: bytes made beforehand, so that what is measured is not its cost.

use std::{io, rc::Rc, time::Duration};

use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinSet, LocalSet},
    time::{Instant, sleep_until},
};

use crate::http::Connection;

/// What every stream is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    /// The role that plays it.
    pub(crate) role: &'static str,
    pub(crate) words: usize,
    /// From one word to the next.
    pub(crate) interval: Duration,
    /// Whether it ends after its last word, or says nothing more.
    pub(crate) ends: bool,
}

/// All at once.
pub(crate) const BURST: Script = Script { role: "upstream-burst", words: 100, interval: Duration::ZERO, ends: true };

/// As models speak.
pub(crate) const PACED: Script =
    Script { role: "upstream-paced", words: 100, interval: Duration::from_millis(20), ends: true };

/// One word, and then silence.
pub(crate) const SILENT: Script = Script { role: "upstream-silent", words: 1, interval: Duration::ZERO, ends: false };

/// A long answer, word by word.
pub(crate) const LONG: Script =
    Script { role: "upstream-long", words: 1000, interval: Duration::from_millis(1), ends: true };

impl Script {
    pub(crate) fn of(role: &str) -> Option<Self> {
        [BURST, PACED, SILENT, LONG].into_iter().find(|script| script.role == role)
    }

    /// What is written together, an HTTP chunk an event. The first word comes with the head and the role, as OpenAI's
    /// does.
    fn parts(self) -> Vec<Vec<u8>> {
        let mut parts = vec![[HEAD.as_bytes(), &event(&json!({"role": "assistant", "content": ""}), None)].concat()];
        for number in 0..self.words {
            let event = event(&json!({"content": WORDS[number % WORDS.len()]}), None);
            if number == 0 { parts[0].extend(event) } else { parts.push(event) }
        }
        if self.ends {
            parts.push([event(&json!({}), Some("stop")), usage(self.words), chunk("data: [DONE]\n\n")].concat());
            parts.last_mut().unwrap().extend(b"0\r\n\r\n");
        }
        if self.interval.is_zero() { vec![parts.concat()] } else { parts }
    }
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-request-id: req_bench\r\n\
    openai-version: 2020-10-01\r\nopenai-processing-ms: 12\r\ntransfer-encoding: chunked\r\n\r\n";

/// Plain ones, some to escape, some of more than a byte a letter.
const WORDS: [&str; 12] = [
    "Streams ",
    "are ",
    "read ",
    "word ",
    "by ",
    "word: ",
    "\"quoted\", ",
    "안녕 ",
    "하세요, ",
    "a ",
    "line\n",
    "more. ",
];

/// An event as OpenAI writes it, as an HTTP chunk.
fn event(delta: &serde_json::Value, finish_reason: Option<&str>) -> Vec<u8> {
    let choices = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}]);
    data(&choices, &json!(null))
}

fn usage(words: usize) -> Vec<u8> {
    data(&json!([]), &json!({"prompt_tokens": 24, "completion_tokens": words, "total_tokens": 24 + words}))
}

fn data(choices: &serde_json::Value, usage: &serde_json::Value) -> Vec<u8> {
    let data = json!({
        "id": "chatcmpl-00000000000000000000000000000", "object": "chat.completion.chunk", "created": 1_767_225_600,
        "model": "gpt-4o-mini-2024-07-18", "service_tier": "default", "system_fingerprint": "fp_0000000000",
        "choices": choices, "usage": usage,
    });
    chunk(&format!("data: {data}\n\n"))
}

fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

pub(crate) async fn serve(listener: TcpListener, script: Script) {
    let parts = Rc::new(script.parts());
    let work = async {
        let mut clients = JoinSet::new();
        let start = Instant::now();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            clients.spawn_local(answer(stream, script, Rc::clone(&parts), start + phase(script, number)));
            // Whose client has left is over.
            while clients.try_join_next().is_some() {}
        }
    };
    LocalSet::new().run_until(work).await;
}

/// When within an interval a connection speaks. Evenly spread, and the same for every target: how many streams speak at
/// the same moment decides how often a target wakes up, which costs as much as the words.
fn phase(script: Script, connection: u32) -> Duration {
    const SPREAD: u32 = 200;
    script.interval * (connection % SPREAD) / SPREAD
}

async fn answer(stream: TcpStream, script: Script, parts: Rc<Vec<Vec<u8>>>, mut due: Instant) -> io::Result<()> {
    let mut connection = Connection::on(stream)?;
    loop {
        connection.request().await?;
        for (number, part) in parts.iter().enumerate() {
            if number > 0 && !script.interval.is_zero() {
                // The next of its moments, be it soon.
                while due <= Instant::now() {
                    due += script.interval;
                }
                sleep_until(due).await;
            }
            connection.send(part).await?;
        }
        if !script.ends {
            return connection.left().await;
        }
    }
}
