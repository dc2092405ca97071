//! The processes that are measured and asked.

use ai_service::{
    config::{Config, Variables},
    server::App,
    simulator::{Pace, Simulator},
    telemetry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::process;

/// The argument that makes this binary a target.
pub(crate) const ROLE: &str = "--role";

/// The role of the upstream. Every other is a `DATABASE_URL`, and makes a service.
pub(crate) const SIMULATOR: &str = "simulator";

/// Listens, tells the parent where on standard error, and answers until the parent ends.
pub(crate) fn play(role: &str, upstream: Option<&str>) {
    process::end_with_parent();
    if role == SIMULATOR {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(simulator());
    } else {
        service(role, &format!("http://{}/v1", upstream.expect("an upstream")));
    }
}

async fn simulator() {
    let simulator = Simulator::start(Pace::Zero).await.unwrap();
    let url = simulator.base_url();
    eprintln!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    std::future::pending::<()>().await;
}

/// As `main.rs` starts it, with a log that nobody reads. Titles are off: each would be another call of the upstream.
fn service(database: &str, upstream: &str) {
    let variables = [
        ("OPENAI_API_KEY", "sk-bench"),
        ("OPENAI_BASE_URL", upstream),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database),
        ("AUTO_TITLE", "off"),
    ];
    let variables: Variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let config = Config::from_variables(&variables, false).unwrap();
    let _log = telemetry::init(config.log).unwrap();
    ai_service::server::runtime().unwrap().block_on(async {
        let app = App::open(&config).await.unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        eprintln!("{}", listener.local_addr().unwrap());
        app.serve(listener, CancellationToken::new()).await;
    });
}
