//! The list of conversations, page by page, also while others come and go.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    ScriptedUpstream, TestApp,
    database::{TestDatabase, on_every_database},
};

on_every_database!(
    the_newest_come_first_in_pages_of_any_size,
    what_was_there_all_along_is_seen_once_whatever_comes_and_goes,
    what_is_said_in_a_conversation_does_not_move_it,
    a_cursor_outlives_the_conversation_that_it_names,
);

async fn page(app: &TestApp, query: &str) -> (Vec<String>, Option<String>) {
    let answer = app.get(&format!("/conversations{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let ids = body["conversations"].as_array().unwrap().iter();
    let ids = ids.map(|conversation| conversation["id"].as_str().unwrap().to_owned()).collect();
    (ids, body["next_cursor"].as_str().map(str::to_owned))
}

/// Every page; `between` is done behind each.
async fn all(app: &TestApp, limit: usize, between: impl AsyncFn(usize)) -> Vec<String> {
    let (mut found, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let (ids, next) = page(app, &format!("?limit={limit}&cursor={cursor}")).await;
        assert!(ids.len() <= limit);
        found.extend(ids);
        pages += 1;
        assert!(pages < 1000, "the pages end");
        between(pages).await;
        match next {
            Some(next) => cursor = next,
            None => return found,
        }
    }
}

async fn make(app: &TestApp, id: &str) {
    assert_eq!(app.post("/conversations", &json!({"id": id})).await.status, 201, "{id}");
}

async fn the_newest_come_first_in_pages_of_any_size(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    assert_eq!(page(&app, "").await, (vec![], None));
    // Names in no order, so that nothing is ordered by them.
    let names: Vec<_> = (0..25).map(|n| format!("{:x}", n * 7919 % 251)).collect();
    for name in &names {
        make(&app, name).await;
    }
    let newest_first: Vec<_> = names.iter().rev().cloned().collect();
    for limit in [1, 2, 7, 24, 25, 26, 100] {
        assert_eq!(all(&app, limit, async |_| {}).await, newest_first, "{limit}");
    }
    let (first, next) = page(&app, "").await;
    assert_eq!(first, newest_first[..20], "20 when nothing is said");
    let (rest, none) = page(&app, &format!("?cursor={}", next.unwrap())).await;
    assert_eq!((rest.as_slice(), none), (&newest_first[20..], None));
    assert_eq!(page(&app, "?limit=25").await.1, None, "a page that is the last says so");
    let body = app.get("/conversations?limit=1").await.json();
    let fields: Vec<_> = body["conversations"][0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["created_at", "id", "title", "total_messages", "updated_at"], "no messages in a list");
}

async fn what_was_there_all_along_is_seen_once_whatever_comes_and_goes(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let staying: BTreeSet<_> = (0..20).map(|n| format!("stays-{n}")).collect();
    for n in 0..20 {
        make(&app, &format!("stays-{n}")).await;
        make(&app, &format!("goes-{n}")).await;
    }
    for limit in [1, 3, 10] {
        let found = all(&app, limit, async |pages: usize| {
            make(&app, &format!("comes-{limit}-{pages}")).await;
            // From the old end, which is still to be read, and from the new one, which was.
            for n in [pages % 20, 20 - (pages % 20)] {
                app.delete(&format!("/conversations/goes-{n}")).await;
            }
            change(&app, &format!("stays-{}", pages % 20)).await;
        });
        let found = found.await;
        let stayed: Vec<_> = found.iter().filter(|id| id.starts_with("stays-")).cloned().collect();
        assert_eq!(stayed.len(), 20, "{limit}: {found:?}");
        assert_eq!(BTreeSet::from_iter(stayed), staying);
        assert_eq!(BTreeSet::from_iter(&found).len(), found.len(), "nothing twice: {found:?}");
        assert!(
            !found.iter().any(|id| id.starts_with(&format!("comes-{limit}-"))),
            "what came later is on earlier pages"
        );
    }
}

/// Changes a conversation.
async fn change(app: &TestApp, id: &str) {
    let list = json!([{"role": "user", "content": "?"}]);
    assert_eq!(app.put(&format!("/conversations/{id}"), &list).await.status, 200, "{id}");
}

async fn what_is_said_in_a_conversation_does_not_move_it(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for id in ["a", "b", "c"] {
        make(&app, id).await;
    }
    app.chat(&json!({"message": "x", "conversation_id": "a"})).await;
    app.delete("/conversations/b/messages").await;
    assert_eq!(page(&app, "").await.0, ["c", "b", "a"]);
    let body: Value = app.get("/conversations").await.json();
    let a = &body["conversations"][2];
    assert_eq!(a["total_messages"], 2);
    assert!(a["updated_at"].as_str() > a["created_at"].as_str());
}

async fn a_cursor_outlives_the_conversation_that_it_names(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for id in ["a", "b", "c", "d"] {
        make(&app, id).await;
    }
    let (first, next) = page(&app, "?limit=2").await;
    let next = next.unwrap();
    assert_eq!(first, ["d", "c"]);
    app.delete("/conversations/c").await;
    assert_eq!(page(&app, &format!("?limit=2&cursor={next}")).await.0, ["b", "a"]);
    // Made again, it is new: behind the cursor there is nothing of it.
    make(&app, "c").await;
    assert_eq!(page(&app, &format!("?limit=2&cursor={next}")).await, (vec!["b".to_owned(), "a".to_owned()], None));
}
