//! The disk is full: saves are refused and nothing is half-written, everything else goes on, and once there is room
//! again it all goes on without a restart.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::{
    bad_days::{Caller, address, among_own_mounts, asking, connect, messages, refusal, seeded},
    process::Running,
    support::{Play, ScriptedUpstream, upstream::answer, upstream::response},
};

/// A disk of that many bytes, as the service sees it.
const DISK: &str = r#"mount -t tmpfs -o size=6m none "$1""#;

/// Takes all the room there is.
fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    let mut filler = File::create(&path).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}
    path
}

fn streamed(text: &str) -> [Vec<u8>; 2] {
    let event = |content: &str| {
        let data = json!({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": null}]});
        format!("data: {data}\n\n")
    };
    let head = "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let rest = format!("{}0\r\n\r\n", chunk(&format!("{}data: [DONE]\n\n", event(text))));
    [format!("{head}{}", chunk(&event("first "))).into_bytes(), rest.into_bytes()]
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_saves_get_507_all_else_goes_on_and_room_mends_it_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ai-service.db");
    let Some(mut command) = among_own_mounts(DISK, directory.path()) else { return };
    let upstream = ScriptedUpstream::start().await;
    command.envs(asking(&upstream, &file));
    let service = Running::begin(command);
    let caller = Caller::of(&service);
    // The same place, seen through the service's eyes.
    let disk = PathBuf::from(format!("/proc/{}/root{}", service.id(), directory.path().display()));

    let old = messages(12, 600);
    for number in 0..8 {
        caller.put(&format!("old-{number}"), &old).await.expect(201);
    }
    caller.turn("turns", "the first question").await.expect(200);
    // A stream that runs while the disk becomes full, with more text than the last corner of a disk has room for.
    let text = "쓰다 ".repeat(20_000);
    let [first, rest] = streamed(&text);
    upstream.then([Play::Send(first), Play::Hold, Play::Send(rest)]);
    let begun = caller.post("/chat/stream", &json!({"message": "x", "conversation_id": "turns"})).await.expect(200);
    upstream.arrived(2).await;

    let filler = fill(&disk);
    let mut saved = Vec::new();
    let refused = loop {
        let id = format!("new-{}", saved.len());
        let said = caller.put(&id, &old).await;
        if said.status() != Some(201) {
            said.refused(507, "storage_full");
            break id;
        }
        saved.push(id);
    };
    // Turns are smaller than that. Once one is refused it is refused before anybody pays for it.
    let mut turns = 1;
    for tried in 0.. {
        assert!(tried < 1000, "turns go on being asked");
        let asked = upstream.seen().len();
        let said = caller.turn("turns", "a question").await;
        if said.status() == Some(200) {
            turns += 1;
            continue;
        }
        said.refused(507, "storage_full");
        if upstream.seen().len() == asked {
            break;
        }
    }
    let asked = upstream.seen().len();
    for path in ["/chat", "/chat/stream"] {
        for id in ["turns", "quite-new"] {
            let body = json!({"message": "x", "conversation_id": id});
            caller.post(path, &body).await.refused(507, "storage_full");
        }
    }
    let title = caller.ask(Method::POST, "/conversations/old-0/title", None);
    title.await.refused(507, "storage_full");
    assert_eq!(upstream.seen().len(), asked, "nothing was asked that could not be stored");
    let large = messages(50, 4000);
    caller.put("old-0", &large).await.refused(507, "storage_full");
    caller.post("/conversations", &json!({"id": "quite-new", "messages": large})).await.refused(507, "storage_full");

    // The running stream cannot store its turn, and says so with all of its text.
    upstream.release();
    let stream = begun["stream_id"].as_str().unwrap();
    let events = caller.client.get(service.url(&format!("/chat/stream/{stream}"))).send().await.unwrap();
    let events = events.text().await.unwrap();
    let last = events.lines().rfind(|line| line.starts_with("data: ")).unwrap().trim_start_matches("data: ");
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!((&last["type"], &last["code"], &last["status"]), (&"ERROR".into(), &"storage_full".into(), &507.into()));
    assert_eq!(last["partial"], format!("first {text}"));

    // Reading goes on, on every connection that reads, and so does what needs no room.
    let reads = (0..64).map(|number| {
        let (caller, old) = (&caller, &old);
        async move { assert_eq!(caller.messages(&format!("old-{}", number % 8)).await.expect(200), *old) }
    });
    join_all(reads).await;
    for id in &saved {
        assert_eq!(caller.messages(id).await.expect(200), old, "{id}");
    }
    caller.messages(&refused).await.refused(404, "conversation_not_found");
    caller.messages("quite-new").await.refused(404, "conversation_not_found");
    assert_eq!(caller.messages("turns").await.expect(200).as_array().unwrap().len(), 2 * turns);
    let list = caller.get("/conversations?limit=100").await.expect(200);
    assert_eq!(list["conversations"].as_array().unwrap().len(), 9 + saved.len());
    upstream.then([Play::Send(response(200, "", &answer("still here").to_string()))]);
    assert_eq!(caller.post("/chat", &json!({"message": "x"})).await.expect(200)["response"], "still here");

    fs::remove_file(filler).unwrap();
    caller.turn("turns", "and now?").await.expect(200);
    caller.put("old-0", &large).await.expect(200);
    caller.put(&refused, &old).await.expect(201);
    assert_eq!(caller.messages("old-0").await.expect(200), large);
    assert_eq!(caller.messages("turns").await.expect(200).as_array().unwrap().len(), 2 * turns + 2);

    // What lies on the disk now, as a later start would find it.
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["ai-service.db", "ai-service.db-wal"] {
        fs::copy(disk.join(name), elsewhere.path().join(name)).unwrap();
    }
    let mut copy = connect(&elsewhere.path().join("ai-service.db")).await;
    let check: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut copy).await.unwrap();
    assert_eq!(check, "ok");
    copy.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_it_does_not_start_and_says_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let seed = seeded(directory.path()).await;
    let disk = directory.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let file = disk.join("ai-service.db");
    let full = "\ncat /dev/zero >\"$1/filler\" 2>/dev/null || true";
    for before in [format!("cp {} \"$1\"", seed.display()), "true".to_owned()] {
        let Some(mut command) = among_own_mounts(&format!("{DISK}\n{before}{full}"), &disk) else { return };
        command.arg("--demo").env("DATABASE_URL", address(&file));
        let said = refusal(command, &file);
        assert!(said.contains("the disk is full. Make room"), "{said}");
    }
}
