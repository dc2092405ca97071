//! Who may call, and how much: over HTTP, as callers and those who are none see it.

mod addresses;
mod endings;
mod ownership;
mod requests;
mod running;
mod sockets;
mod sweep;
mod tickets;
mod tokens;
mod tokens_per_minute;
mod usage;

use serde_json::Value;

use crate::support::{ScriptedUpstream, TestApp};

/// The keys of two callers. They must never be seen again.
const ALICE: &str = "canary-key-of-alice-1f6c";
const BOB: &str = "canary-key-of-bob-93ab77";
const KEYS: &str = "alice:canary-key-of-alice-1f6c,bob:canary-key-of-bob-93ab77";

/// A stream that nobody has.
const UNKNOWN: &str = "3e458467-c21f-4429-a90d-e0d2f496e3b2";

/// A service with two callers, and what else it is told.
struct Service {
    upstream: ScriptedUpstream,
    /// Asked without any credentials.
    app: TestApp,
    alice: TestApp,
    bob: TestApp,
}

impl Service {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(pairs: &[(&str, &str)]) -> Self {
        let upstream = ScriptedUpstream::start().await;
        let pairs: Vec<_> = [("API_KEYS", KEYS)].iter().chain(pairs).copied().collect();
        let app = TestApp::start_from(&upstream.base_url, &pairs).await;
        let (alice, bob) = (app.asked_by(ALICE), app.asked_by(BOB));
        Self { upstream, app, alice, bob }
    }
}

/// What `GET /usage` says of today: requests, tokens of prompts, of answers, and those of both that were estimated.
async fn used_today(caller: &TestApp) -> [u64; 4] {
    let report = caller.get("/usage").await;
    assert_eq!(report.status, 200, "{}", report.text());
    numbers(&report.json()["today"])
}

fn numbers(used: &Value) -> [u64; 4] {
    let number = |name: &str| used[name].as_u64().expect("a number");
    assert_eq!(number("total_tokens"), number("prompt_tokens") + number("completion_tokens"));
    ["requests", "prompt_tokens", "completion_tokens", "estimated_tokens"].map(number)
}
