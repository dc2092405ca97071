//! What goes wrong around a database: the binary itself, on a file that something has happened to.

mod backup;
mod damaged;
mod disk_full;
mod killed;
mod locked;
mod newer;
mod no_place;
mod read_only;

use std::{
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    process::{BINARY, Running, command, through},
    support::{CANARY_KEY, PATIENCE, ScriptedUpstream},
};

fn address(file: &Path) -> String {
    format!("sqlite://{}", file.display())
}

/// The binary on that file, with a simulated upstream.
fn on(file: &Path) -> Command {
    let mut command = command();
    command.arg("--demo").env("DATABASE_URL", address(file));
    command
}

/// A start on `file` that must be refused: exit code 78 and one line, which names the place and which is returned.
fn refusal(mut command: Command, file: &Path) -> String {
    command.env("HOST", "127.0.0.1").env("PORT", "0").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it was not refused");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (mut log, mut said) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut log).unwrap();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(78), "{said}{log}");
    assert!(said.starts_with("ai-service: cannot use the database ") && said.ends_with('\n'), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(file.to_str().unwrap()), "{said}");
    assert!(log.is_empty(), "it has nothing to log before it has started: {log}");
    said
}

/// A file that the service has made and that holds some conversations.
async fn seeded(directory: &Path) -> std::path::PathBuf {
    let file = directory.join("ai-service.db");
    let service = Running::begin(on(&file));
    let caller = Caller::of(&service);
    for number in 0..20 {
        caller.put(&format!("seed-{number}"), &messages(12, 600)).await.expect(201);
    }
    service.signal("-TERM");
    let (code, log) = service.end();
    assert_eq!(code, Some(0), "{log}");
    let beside = ["-wal", "-shm"].map(|end| directory.join(format!("ai-service.db{end}")));
    assert!(beside.iter().all(|path| !path.exists()), "after an orderly end everything is in one file");
    file
}

/// A connection of this test's own to the file of a service.
async fn connect(file: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(file).connect().await.unwrap()
}

/// `count` messages of about `bytes` bytes each.
fn messages(count: usize, bytes: usize) -> Value {
    (0..count)
        .map(|number| {
            let role = if number % 2 == 0 { "user" } else { "assistant" };
            let content = format!("{number} {}", "부산 Busan ".repeat(bytes / 13));
            json!({"role": role, "content": content, "timestamp": "2026-11-22T23:17:31.899397"})
        })
        .collect()
}

/// Asks a service.
#[derive(Clone)]
struct Caller {
    client: reqwest::Client,
    base: String,
}

/// An answer; `None` when the service was gone before it was whole.
#[derive(Debug)]
struct Said(Option<(u16, Value)>);

impl Said {
    /// The body of an answer with that status.
    #[track_caller]
    fn expect(self, status: u16) -> Value {
        let (got, body) = self.0.expect("an answer");
        assert_eq!(got, status, "{body}");
        body
    }

    /// That it was refused so.
    #[track_caller]
    fn refused(self, status: u16, code: &str) {
        let body = self.expect(status);
        assert_eq!(body["code"], code, "{body}");
    }

    fn status(&self) -> Option<u16> {
        self.0.as_ref().map(|(status, _)| *status)
    }
}

impl Caller {
    fn of(service: &Running) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { client, base: service.url("") }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Said {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = async {
            let response = request.send().await?;
            Ok::<_, reqwest::Error>((response.status().as_u16(), response.bytes().await?))
        };
        Said(answer.await.ok().map(|(status, body)| (status, serde_json::from_slice(&body).unwrap())))
    }

    async fn get(&self, path: &str) -> Said {
        self.ask(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> Said {
        self.ask(Method::POST, path, Some(body)).await
    }

    async fn put(&self, id: &str, messages: &Value) -> Said {
        self.ask(Method::PUT, &format!("/conversations/{id}"), Some(messages)).await
    }

    async fn messages(&self, id: &str) -> Said {
        self.get(&format!("/conversations/{id}/messages")).await
    }

    async fn turn(&self, id: &str, message: &str) -> Said {
        self.post("/chat", &json!({"message": message, "conversation_id": id})).await
    }
}

/// The variables of a service on that file that asks that upstream.
fn asking(upstream: &ScriptedUpstream, file: &Path) -> [(&'static str, String); 4] {
    [
        ("OPENAI_API_KEY", CANARY_KEY.to_owned()),
        ("OPENAI_BASE_URL", upstream.base_url.to_string()),
        ("DATABASE_URL", address(file)),
        ("AUTO_TITLE", "off".to_owned()),
    ]
}

/// The binary in a world of its own mounts, which `script` makes at `place` (its `$1`): no root is needed for it.
/// `None`, said aloud, on a machine that does not allow it.
pub fn among_own_mounts(script: &str, place: &Path) -> Option<Command> {
    const UNSHARE: [&str; 6] = ["--user", "--map-root-user", "--mount", "sh", "-ec", ""];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unshare = |script: &str| {
        let mut command = through(Command::new("unshare"));
        command.env("PATH", &path).args(&UNSHARE[..5]).arg(script).arg("sh").arg(place);
        command
    };
    let tried = unshare(r#"mount -t tmpfs none "$1""#).stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        not_tested("what needs a disk of its own: this machine lets no ordinary user mount one");
        return None;
    }
    let mut command = unshare(&format!("{script}\nshift\nexec \"$@\""));
    command.arg(BINARY);
    Some(command)
}

/// Says aloud that something was not tested here. Past the test harness, which shows nothing of a test that passes.
fn not_tested(what: &str) {
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {what}");
}
