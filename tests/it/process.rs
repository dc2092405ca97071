//! The binary itself: arguments, exit codes, signals, what it says at start.

use std::{
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use crate::support::{PATIENCE, ScriptedUpstream};

/// The binary.
pub const BINARY: &str = env!("CARGO_BIN_EXE_ai-service");

pub fn command() -> Command {
    through(Command::new(BINARY))
}

/// A command that becomes the binary, with as little around it as [`command`].
pub fn through(mut command: Command) -> Command {
    // Nothing of this machine's environment, and no .env of this directory.
    command.env_clear().current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command.env("DATABASE_URL", "sqlite::memory:");
    command
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    command().args(arguments).envs(variables.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A running service. It is ended when it is dropped.
pub struct Running {
    child: Child,
    /// What it said up to the line that names its address.
    first_line: String,
    /// What it says behind that, read as it comes: a full pipe would cost lines.
    rest: Receiver<String>,
    pub port: u16,
}

impl Running {
    pub fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = command();
        command.args(arguments).envs(variables.iter().copied());
        Self::begin(command)
    }

    /// The service that `command` becomes.
    pub fn begin(mut command: Command) -> Self {
        for (name, value) in [("HOST", "127.0.0.1"), ("PORT", "0")] {
            if command.get_envs().all(|(set, _)| set != name) {
                command.env(name, value);
            }
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut rest = BufReader::new(child.stdout.take().unwrap());
        let mut first_line = String::new();
        // What it warns of may come before.
        while !first_line.contains("listening=") && rest.read_line(&mut first_line).unwrap() > 0 {}
        let after = first_line.split("listening=").nth(1).unwrap_or_else(|| {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("it does not start: {first_line}{said}")
        });
        let address = after.split_whitespace().next().unwrap();
        let port = address.rsplit(':').next().unwrap().parse().unwrap();
        let (line, lines) = channel();
        // It ends with the service, or with whoever listens.
        std::thread::spawn(move || rest.lines().map_while(Result::ok).try_for_each(|said| line.send(said)));
        Self { child, first_line, rest: lines, port }
    }

    /// What it said up to the line that names its address.
    pub fn first_line(&self) -> &str {
        &self.first_line
    }

    /// The process, which is the service itself whatever command it began as.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end; the exit code and the rest of the log.
    pub fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let rest = self.rest.iter().map(|line| line + "\n").collect();
        (status.code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn without_a_key_it_does_not_start_and_says_everything_that_is_wrong() {
    let output = run(&[], &[("PORT", "x"), ("LOG_LEVEL", "loud")]);
    assert_eq!(output.status.code(), Some(64));
    let said = text(&output.stderr);
    for problem in ["OPENAI_API_KEY", "PORT", "LOG_LEVEL"] {
        assert!(said.contains(problem), "{said}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_arguments_are_explained() {
    for arguments in [&["--dmeo"][..], &["--demo", "extra"], &["healthcheck", "x"]] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(64));
        assert!(text(&output.stderr).contains("ai-service --demo"));
    }
    let said = text(&run(&["--port", "9000"], &[]).stderr);
    assert!(said.contains("--port") && said.contains("environment variables"), "{said}");
    assert_eq!(text(&run(&["--version"], &[]).stdout), concat!("ai-service ", env!("CARGO_PKG_VERSION"), "\n"));
    assert!(text(&run(&["--help"], &[]).stdout).contains("healthcheck"));
}

#[test]
fn a_broken_env_file_is_named_and_not_quoted() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), "OPENAI_API_KEY='sk-canary-unfinished\n").unwrap();
    let output = command().current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = text(&output.stderr);
    assert!(said.contains(".env") && !said.contains("canary"), "{said}");
}

/// What the service says that begins in a folder with this `.env`.
fn begin_with(env: &[u8], arguments: &[&str]) -> (tempfile::TempDir, std::process::Command) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), env).unwrap();
    let mut command = command();
    command.current_dir(dir.path()).args(arguments);
    (dir, command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_the_env_file_is_what_is_written() {
    let upstream = ScriptedUpstream::start().await;
    let key = "0123456789abcdef$foo0123";
    for quote in ["", "\"", "'"] {
        let env = format!("OPENAI_API_KEY={quote}sk-$canary${{HOME}}{quote}\nAPI_KEYS={quote}web:{key}{quote}\n");
        let (_dir, mut command) = begin_with(env.as_bytes(), &[]);
        command.env("OPENAI_BASE_URL", upstream.base_url.as_str()).env("foo0123", "").env("HOME", "/root");
        let service = Running::begin(command);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        for (key, status) in [(key, 200), ("0123456789abcdef", 401)] {
            let url = format!("http://127.0.0.1:{}/chat", service.port);
            let request = client.post(url).bearer_auth(key).header("content-type", "application/json");
            let answer = request.body(r#"{"message":"x"}"#).send().await.unwrap();
            assert_eq!(answer.status(), status, "{quote}");
        }
        assert_eq!(
            upstream.seen().last().unwrap().header("authorization"),
            Some("Bearer sk-$canary${HOME}"),
            "{quote}"
        );
    }
}

#[test]
fn an_env_file_may_begin_with_a_byte_order_mark() {
    let (_dir, command) = begin_with(b"\xef\xbb\xbfDEFAULT_MODEL=gpt-marked\n", &["--demo"]);
    assert!(Running::begin(command).first_line.contains("gpt-marked"));
}

#[test]
fn a_bad_line_of_an_env_file_is_named_by_its_number() {
    for (env, line) in [
        (&b"PORT=0\n# canary\nsk-canary\n"[..], ".env, line 3:"),
        (b"\xef\xbb\xbfA B=canary\n", ".env, line 1:"),
        (b"PORT=0\nAPI_KEYS=web:canary\xff\n", ".env, line 2:"),
        (b"A=\"canary\nB=1\n", ".env, line 1:"),
    ] {
        let (_dir, mut command) = begin_with(env, &["--demo"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        let said = text(&output.stderr);
        assert!(said.contains(line) && !said.contains("canary"), "{said}");
    }
}

#[test]
fn an_env_file_of_a_folder_above_is_not_read() {
    let above = tempfile::tempdir().unwrap();
    std::fs::write(above.path().join(".env"), "OPENAI_API_KEY=sk-canary\nLOG_LEVEL=loud\n").unwrap();
    let below = above.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let output = command().current_dir(below).output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("OPENAI_API_KEY") && !said.contains("LOG_LEVEL"), "{said}");
}

#[test]
fn a_name_of_the_env_file_that_is_not_known_is_told_with_the_nearest_one() {
    let env = b"RATE_LIMIT_REQUEST_PER_MINUTE=1\nAPIKEYS=web:canary-canary-canary\nOPENAI_API_KEY=sk-your-key\n";
    let (_dir, command) = begin_with(env, &["--demo"]);
    let service = Running::begin(command);
    service.signal("-TERM");
    let (_, rest) = service.end();
    let warnings: Vec<_> = rest.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 2, "{rest}");
    for (warning, names) in warnings.iter().zip([
        ["line 1", "RATE_LIMIT_REQUEST_PER_MINUTE", "RATE_LIMIT_REQUESTS_PER_MINUTE"],
        ["line 2", "APIKEYS", "API_KEYS"],
    ]) {
        assert!(names.iter().all(|name| warning.contains(name)), "{warning}");
    }
    assert!(!rest.contains("canary"), "{rest}");
}

#[test]
fn the_example_of_an_env_file_as_it_is_does_not_start() {
    let (_dir, mut command) = begin_with(include_bytes!("../../.env.example"), &[]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = text(&output.stderr);
    assert!(said.contains("OPENAI_API_KEY is a placeholder") && said.contains("1 problem"), "{said}");
}

#[test]
fn the_environment_wins_over_the_env_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), "OPENAI_API_KEY=sk-canary\nLOG_FORMAT=xml\nLOG_LEVEL=loud\n").unwrap();
    let output = command().current_dir(dir.path()).env("LOG_FORMAT", "json").output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("LOG_LEVEL") && !said.contains("LOG_FORMAT") && !said.contains("OPENAI_API_KEY"), "{said}");
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["--demo"], &[("HOST", "127.0.0.1"), ("PORT", &port)]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&format!("cannot listen on 127.0.0.1:{port}")) && said.contains("set PORT"), "{said}");
}

#[test]
fn the_start_says_where_it_listens_the_docs_and_the_upstream_and_not_the_key() {
    let variables = [("OPENAI_API_KEY", "sk-canary"), ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")];
    let service = Running::start(&[], &variables);
    let line = service.first_line.clone();
    let docs = format!("http://127.0.0.1:{}/docs", service.port);
    assert!(line.contains(&docs) && line.contains("http://127.0.0.1:1/v1"), "{line}");
    service.signal("-TERM");
    let (code, rest) = service.end();
    assert_eq!(code, Some(0));
    assert!(!rest.contains("WARN"), "on loopback there is nothing to warn of: {rest}");
    assert!(!line.contains("canary") && !rest.contains("canary"));
}

#[test]
fn beyond_loopback_it_warns_that_nothing_protects_it_unless_it_costs_nothing() {
    let upstream = ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1");
    let key = ("OPENAI_API_KEY", "sk-canary");
    for (arguments, warns) in [(&[][..], true), (&["--demo"], false)] {
        let service = Running::start(arguments, &[("HOST", "0.0.0.0"), key, upstream]);
        assert_eq!(service.first_line.contains("(simulated)"), !warns, "{}", service.first_line);
        assert!(service.first_line.contains(&format!("http://localhost:{}/docs", service.port)));
        service.signal("-INT");
        let (code, rest) = service.end();
        assert_eq!(code, Some(0));
        assert_eq!(rest.contains("WARN") && rest.contains("nothing protecting it"), warns, "{rest}");
    }
}

#[test]
fn signals_that_mean_something_else_end_nothing() {
    let service = Running::start(&["--demo"], &[]);
    for signal in ["-HUP", "-USR1", "-USR2"] {
        service.signal(signal);
        let port = service.port.to_string();
        assert_eq!(run(&["healthcheck"], &[("PORT", &port)]).status.code(), Some(0), "{signal}");
    }
    service.signal("-QUIT");
    let (code, rest) = service.end();
    assert_eq!(code, Some(0), "an orderly end");
    for signal in ["SIGHUP", "SIGUSR1", "SIGUSR2"] {
        assert!(rest.contains(&format!("signal=\"{signal}\"")) && rest.contains("ignored"), "{rest}");
    }
    assert!(rest.contains("everything_finished=true"), "{rest}");
}

#[test]
fn the_health_check_tells_a_running_service_from_none() {
    let service = Running::start(&["--demo"], &[]);
    let port = service.port.to_string();
    let variables = [("HOST", "0.0.0.0"), ("PORT", port.as_str())];
    let output = run(&["healthcheck"], &variables);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with(r#"{"status":"healthy","#), "{output:?}");
    service.signal("-TERM");
    service.end();
    assert_eq!(run(&["healthcheck"], &variables).status.code(), Some(1));
    assert_eq!(run(&["healthcheck"], &[("PORT", "x")]).status.code(), Some(64));
}

#[test]
fn whoever_stops_it_hears_what_it_waits_for() {
    let service = Running::start(&["--demo"], &[("SHUTDOWN_GRACE_SECONDS", "17")]);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", service.port)).unwrap();
    let body = r#"{"message":"x","model":"sim-long"}"#;
    let head = "POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    // It runs.
    std::io::Read::read_exact(&mut stream, &mut [0; 16]).unwrap();
    service.signal("-INT");
    while !service
        .rest
        .recv_timeout(PATIENCE)
        .unwrap()
        .contains("waiting for 1 answer, at most 17 s; Ctrl-C again ends at once")
    {}
    service.signal("-INT");
    assert_eq!(service.end().0, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_running_answer_finish_and_a_second_one_does_not_wait() {
    use crate::support::{
        Play,
        upstream::{answer, response},
    };
    let upstream = ScriptedUpstream::start().await;
    let variables = [("OPENAI_API_KEY", "sk-x"), ("OPENAI_BASE_URL", upstream.base_url.as_str())];
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let call = |port: u16| {
        let request = client.post(format!("http://127.0.0.1:{port}/chat")).header("content-type", "application/json");
        tokio::spawn(request.body(r#"{"message":"x"}"#).send())
    };

    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("to the end").to_string()))]);
    let service = Running::start(&[], &variables);
    let running = call(service.port);
    upstream.arrived(1).await;
    service.signal("-TERM");
    upstream.release();
    assert!(running.await.unwrap().unwrap().text().await.unwrap().contains("to the end"));
    let (code, rest) = service.end();
    assert_eq!(code, Some(0));
    assert!(rest.contains("everything_finished=true"), "{rest}");

    upstream.then([Play::Silence]);
    let service = Running::start(&[], &variables);
    let running = call(service.port);
    upstream.arrived(2).await;
    service.signal("-TERM");
    while !service.rest.recv().unwrap().contains("stopping") {}
    service.signal("-TERM");
    assert_eq!(service.end().0, Some(143));
    assert!(running.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_keeps_the_usage_that_is_a_second_old() {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", directory.path().join("kept.db").display());
    let variables = [("DATABASE_URL", database.as_str()), ("API_KEYS", "alice:canary-key-of-alice-1f6c")];
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let send = async |request: reqwest::RequestBuilder| {
        let answer = request.header("authorization", "Bearer canary-key-of-alice-1f6c").send().await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&answer.bytes().await.unwrap()).unwrap()
    };
    let url = |service: &Running, path: &str| format!("http://127.0.0.1:{}{path}", service.port);

    let service = Running::start(&["--demo"], &variables);
    let question = client.post(url(&service, "/chat")).header("content-type", "application/json");
    send(question.body(r#"{"message":"x"}"#)).await;
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(database.trim_start_matches("sqlite://"));
    let file = sqlx::SqlitePool::connect_with(file).await.unwrap();
    crate::support::eventually(async || {
        let written = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM usage").fetch_one(&file).await;
        written.unwrap() == 1
    })
    .await;
    service.signal("-KILL");
    assert_eq!(service.end().0, None);

    let service = Running::start(&["--demo"], &variables);
    let report = send(client.get(url(&service, "/usage"))).await;
    assert_eq!(report["today"]["requests"], 1, "{report}");
}

#[test]
fn with_keys_it_warns_of_nothing_and_without_documents_it_names_none() {
    let variables = [("HOST", "0.0.0.0"), ("API_KEYS", "alice:canary-key-of-alice-1f6c"), ("DOCS", "off")];
    let service = Running::start(&["--demo"], &variables);
    assert!(!service.first_line.contains("/docs") && !service.first_line.contains("canary"), "{}", service.first_line);
    service.signal("-TERM");
    let (code, rest) = service.end();
    assert_eq!(code, Some(0));
    assert!(!rest.contains("WARN") && !rest.contains("canary"), "{rest}");
}

#[test]
fn logs_are_json_when_asked_for() {
    let mut command = command();
    command.arg("--demo").envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("LOG_FORMAT", "json")]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], line["message"].as_str().unwrap().starts_with("ai-service")), (&"INFO".into(), true));
}
