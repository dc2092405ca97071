//! What of a long conversation is sent with a question: its end, as much as fits, and never half a turn.

use std::time::{Duration, Instant};

use ai_service::tokens::{TOKENS_PER_MESSAGE, TokenCounter, Vocabulary};
use serde_json::{Value, json};

use crate::{
    conversations::{ask, messages, said},
    support::{
        ScriptedUpstream,
        database::{Kind, TestDatabase, on_every_database},
        upstream::answer,
    },
};

on_every_database!(
    a_history_under_the_budget_is_sent_whole_and_in_order,
    a_history_over_the_budget_is_cut_before_a_question,
    a_title_is_made_from_what_fits,
);

fn message(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text, "timestamp": "2026-11-22T23:17:31"})
}

/// Tokens of each message as OpenAI counts them.
fn tokens(model: &str, list: &[Value]) -> Vec<usize> {
    let counter = TokenCounter::default();
    let count = |message: &Value| counter.count(Vocabulary::of(model), message["content"].as_str().unwrap());
    list.iter().map(|message| count(message) + TOKENS_PER_MESSAGE).collect()
}

/// What was sent last, without the question.
fn sent(upstream: &ScriptedUpstream) -> Vec<(String, String)> {
    let body = upstream.seen().pop().unwrap().body;
    let list = body["messages"].as_array().unwrap();
    owned(&list[..list.len() - 1])
}

fn owned(list: &[Value]) -> Vec<(String, String)> {
    said(list).into_iter().map(|(role, content)| (role.to_owned(), content.to_owned())).collect()
}

async fn a_history_under_the_budget_is_sent_whole_and_in_order(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    // Around the pages in which it is read; in an order of roles that no chat of ours makes.
    let roles = ["assistant", "system", "assistant", "user", "user", "developer"];
    for count in [0, 1, 127, 128, 129, 256, 300] {
        let list: Vec<_> = (0..count).map(|n| message(roles[n % roles.len()], &n.to_string())).collect();
        app.put("/conversations/c", &json!(list)).await;
        assert_eq!(ask(&app, "c", "now").await.status, 200);
        assert_eq!(sent(&upstream), owned(&list), "{count}");
        assert_eq!(messages(&app, "c").await.len(), count + 2);
    }
    // More bytes than the budget has tokens, and fewer tokens.
    let korean: Vec<_> = (0..300).map(|n| message("user", &format!("{n} 번째 질문입니다, 잘 부탁드립니다"))).collect();
    let bytes: usize = korean.iter().map(|message| message["content"].as_str().unwrap().len()).sum();
    let total: usize = tokens("gpt-3.5-turbo", &korean).iter().sum();
    assert!(total <= 8000 && bytes + 300 * TOKENS_PER_MESSAGE > 8000, "{total} {bytes}");
    app.put("/conversations/c", &json!(korean)).await;
    ask(&app, "c", "now").await;
    assert_eq!(sent(&upstream), owned(&korean));
}

/// The end of `list` that a budget allows: from as far back as fits, on to the first question.
fn expected(list: &[Value], tokens: &[usize], budget: usize) -> Vec<(String, String)> {
    let fits = |from: &usize| tokens[*from..].iter().sum::<usize>() <= budget;
    let from = (0..=list.len()).find(fits).unwrap();
    let is_cut = from > 0;
    let kept = list[from..].iter().skip_while(|message| is_cut && message["role"] != "user").cloned();
    owned(&kept.collect::<Vec<_>>())
}

async fn a_history_over_the_budget_is_cut_before_a_question(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    // Questions with one answer and more, short and long ones, in Korean, English and pictures.
    let mut list = vec![message("system", "친절하게 답하세요")];
    for n in 0..70 {
        list.push(message("user", &format!("{n}번 질문: {}", "무엇을 도와드릴까요? ".repeat(n % 7))));
        if n % 5 == 0 {
            list.push(message("developer", "be brief"));
        }
        list.push(message("assistant", &"답 answer 👨‍👩‍👧‍👦 ".repeat(n % 11)));
        if n % 3 == 0 {
            list.push(message("assistant", ""));
        }
    }
    assert!(list.len() > 128, "more than a page");
    for model in ["gpt-3.5-turbo", "gpt-4o"] {
        let tokens = tokens(model, &list);
        let total: usize = tokens.iter().sum();
        let last: usize = tokens[list.len() - 3..].iter().sum();
        for budget in [0, last - 1, last, 500, total / 2, total - 1, total] {
            let app = database.app_with(&upstream, |config| config.conversations.history_max_tokens = budget).await;
            app.put("/conversations/c", &json!(list)).await;
            app.chat(&json!({"message": "now", "conversation_id": "c", "model": model})).await;
            let sent = sent(&upstream);
            assert_eq!(sent, expected(&list, &tokens, budget), "{model} {budget} of {total}");
            let whole = sent.len() == list.len();
            assert_eq!(whole, budget >= total);
            assert!(whole || sent.first().is_none_or(|(role, _)| role == "user"));
            let stored = messages(&app, "c").await;
            assert_eq!(owned(&stored[..list.len()]), owned(&list), "what is stored stays whole");
            assert_eq!(stored.len(), list.len() + 2);
        }
    }
}

async fn a_title_is_made_from_what_fits(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app_with(&upstream, |config| config.conversations.history_max_tokens = 50).await;
    let long = "아주 긴 이야기 ".repeat(100);
    let list =
        [message("user", &long), message("assistant", &long), message("user", "짧게"), message("assistant", "네")];
    app.put("/conversations/c", &json!(list)).await;
    upstream.then_json(&answer("제목"));
    app.post("/conversations/c/title", &json!({})).await;
    assert_eq!(sent(&upstream), owned(&list[2..]));
}

#[tokio::test]
async fn counting_holds_nobody_up() {
    let upstream = ScriptedUpstream::start().await;
    let text = "가나다라 마바사 ".repeat(10_000);
    let count = Instant::now();
    let tokens = TokenCounter::default().count(Vocabulary::Cl100k, &text);
    let count = count.elapsed();
    assert!(tokens < text.len() && count > Duration::from_millis(20), "long enough to be noticed: {count:?}");

    let database = TestDatabase::new(Kind::Memory).await;
    // Too few for its bytes, so that it is counted; enough for its tokens.
    let app = database.app_with(&upstream, |config| config.conversations.history_max_tokens = text.len()).await;
    let texts: Vec<_> = (0..3).map(|n| message("user", &format!("{n}{text}"))).collect();
    app.put("/conversations/c", &json!(texts)).await;
    // The service, this test and its clock share one thread.
    let asking = ask(&app, "c", "now");
    tokio::pin!(asking);
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    let mut clock = tokio::time::interval(Duration::from_millis(1));
    let answer = loop {
        tokio::select! {
            answer = &mut asking => break answer,
            _ = clock.tick() => {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
    };
    assert_eq!(answer.status, 200);
    assert!(longest < count * 2, "it took {count:?} for a third of it, and the clock stood still for {longest:?}");
}
