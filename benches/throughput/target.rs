//! What is measured, and the processes that play it.

use ai_service::{
    config::{Config, Log, LogFormat, LogLevel, Variables},
    server::App,
    simulator::{Pace, Simulator},
    telemetry,
};
use tokio::{net::TcpListener, runtime::Builder};
use tokio_util::sync::CancellationToken;

use crate::{access, bare, process, streams::upstream};

/// The argument that makes this binary a target, or an upstream.
pub(crate) const ROLE: &str = "--role";

/// A process to measure, and where it is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) role: &'static str,
    pub(crate) path: &'static str,
}

/// A pass-through that does nothing else.
pub(crate) const BARE: Target = Target { name: "bare axum + reqwest", role: "bare", path: "/chat" };

/// The service.
pub(crate) const SERVICE: Target = Target { name: "service", role: "service", path: "/chat" };

/// What they are asked.
pub(crate) const QUESTION: &str = r#"{"message":"Tell me about the quick brown fox, and say \"hello\".","system_prompt":"You are a helpful assistant.","model":"gpt-4o-mini","temperature":0.7,"max_tokens":2000}"#;

/// Listens, tells the parent where on standard error, and answers until the parent ends.
pub(crate) fn play(role: &str, upstream: Option<&str>) {
    process::end_with_parent();
    let url = || format!("http://{}/v1", upstream.expect("an upstream"));
    match role {
        "simulator" => alone(simulator()),
        "bare" => alone(async { bare::serve(listener().await, &url(), false).await }),
        "bare-merging" => alone(async { bare::serve(listener().await, &url(), true).await }),
        "bare-refusing" => alone(async { bare::refuse(listener().await).await }),
        "service" => service(&url(), &[]),
        "service-guarded" => service(&url(), &access::GUARDED),
        "service-exhausted" => service(&url(), &access::EXHAUSTED),
        "service-blocking" => service(&url(), &access::BLOCKING),
        _ => match upstream::Script::of(role) {
            Some(script) => alone(async { upstream::serve(listener().await, script).await }),
            None => panic!("no such role: {role}"),
        },
    }
}

/// On one thread, which is all that a target has a CPU for.
fn alone(work: impl Future<Output = ()>) {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
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
fn service(upstream: &str, settings: &[(&str, &str)]) {
    let variables = [
        ("OPENAI_API_KEY", "sk-bench"),
        ("OPENAI_BASE_URL", upstream),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", "sqlite::memory:"),
    ];
    let variables = variables.iter().chain(settings);
    let variables: Variables = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let config = Config::from_variables(&variables, false).unwrap();
    assert_eq!(config.log, Log { level: LogLevel::Info, format: LogFormat::Text });
    let _log = telemetry::init(config.log).unwrap();
    ai_service::server::runtime().unwrap().block_on(async {
        let app = App::open(&config).await.unwrap();
        app.serve(listener().await, CancellationToken::new()).await;
    });
}
