//! What is measured, and how each is asked.

use ai_service::{
    config::{Config, Log, LogFormat, LogLevel, Variables},
    server::App,
    simulator::{Pace, Simulator},
    telemetry,
};
use tokio::{net::TcpListener, runtime::Builder};
use tokio_util::sync::CancellationToken;

use crate::{bare, process};

/// The argument that makes this binary a target.
pub(crate) const ROLE: &str = "--role";

/// A target, and the request that all of them answer with the same words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) role: &'static str,
    pub(crate) path: &'static str,
    pub(crate) body: &'static str,
}

/// The simulated OpenAI without anything in front: the most there is to reach.
pub(crate) const DIRECT: Target = Target {
    name: "direct",
    role: "simulator",
    path: "/v1/chat/completions",
    body: r#"{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"Tell me about the quick brown fox, and say \"hello\"."}],"temperature":0.7,"max_tokens":2000}"#,
};

/// A pass-through that does nothing else.
pub(crate) const BARE: Target = Target { name: "bare axum + reqwest", role: "bare", ..SERVICE };

/// The service.
pub(crate) const SERVICE: Target = Target {
    name: "service",
    role: "service",
    path: "/chat",
    body: r#"{"message":"Tell me about the quick brown fox, and say \"hello\".","system_prompt":"You are a helpful assistant.","model":"gpt-4o-mini","temperature":0.7,"max_tokens":2000}"#,
};

pub(crate) const ALL: [Target; 3] = [DIRECT, BARE, SERVICE];

/// A piece of the answer, by which it is known to be one.
pub(crate) const ANSWER: &[u8] = b"This is the simulated OpenAI";

/// Listens, tells the parent where on standard error, and answers until the parent ends.
pub(crate) fn play(role: &str, upstream: Option<&str>) {
    process::end_with_parent();
    let upstream = || format!("http://{}/v1", upstream.expect("an upstream"));
    match role {
        "simulator" => Builder::new_current_thread().enable_all().build().unwrap().block_on(simulator()),
        "bare" => Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            bare::serve(listener().await, &upstream()).await;
        }),
        "service" => service(&upstream()),
        _ => panic!("no such role: {role}"),
    }
}

async fn listener() -> TcpListener {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    eprintln!("{}", listener.local_addr().unwrap());
    listener
}

async fn simulator() {
    let simulator = Simulator::start(Pace::Zero).await.unwrap();
    let url = simulator.base_url();
    eprintln!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    std::future::pending::<()>().await;
}

/// As `main.rs` starts it, with a log at INFO that nobody reads.
fn service(upstream: &str) {
    let variables = [
        ("OPENAI_API_KEY", "sk-bench"),
        ("OPENAI_BASE_URL", upstream),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", "sqlite::memory:"),
    ];
    let variables: Variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let config = Config::from_variables(&variables, false).unwrap();
    assert_eq!(config.log, Log { level: LogLevel::Info, format: LogFormat::Text });
    let _log = telemetry::init(config.log).unwrap();
    ai_service::server::runtime().unwrap().block_on(async {
        let app = App::open(&config).await.unwrap();
        app.serve(listener().await, CancellationToken::new()).await;
    });
}
