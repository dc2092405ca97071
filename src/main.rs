//! `ai-service`: arguments → configuration → log → server. Exit codes, and no logic.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | it was asked to stop, and stopped |
//! | 1 | it cannot listen or start, or a health check or a backup failed |
//! | 64 | wrong arguments or configuration |
//! | 78 | the database cannot be used |
//! | 130, 131, 143 | it was told twice to stop and left running answers behind |

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use ai_service::{
    config::{self, Config, Docs, Listen},
    conversations::back_up,
    health_check,
    server::{self, App, StartError},
    simulator::{Pace, Simulator},
    telemetry,
};
use tokio::{
    net::{TcpListener, TcpSocket, lookup_host},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Chosen by measurement; see ARCHITECTURE.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: &str = "\
ai-service: chat with OpenAI's models over HTTP

  ai-service                serve; needs OPENAI_API_KEY (see .env.example for every variable)
  ai-service --demo         serve with the built-in simulated OpenAI; needs no key and costs nothing
  ai-service healthcheck    ask the service on this machine for /health; exit 0 if it answers
  ai-service backup FILE    copy the conversations' SQLite database, in use or not, into a new file
  ai-service --version
  ai-service --help
";

/// Wrong usage, from BSD's sysexits.
const EX_USAGE: u8 = 64;

/// Something is not set up as it must be, from the same list.
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => serve(false),
        ["--demo"] => serve(true),
        ["healthcheck"] => health(),
        ["backup", file] => backup(Path::new(file)),
        ["--version" | "-V"] => say(&format!("ai-service {}\n", env!("CARGO_PKG_VERSION"))),
        ["--help" | "-h"] => say(USAGE),
        [first, ..] => {
            let settings = "settings are environment variables, such as PORT=9000 ai-service";
            fail(EX_USAGE, &format!("cannot understand {first:?} here; {settings}\n\n{USAGE}"))
        }
    }
}

fn say(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(code: u8, text: &str) -> ExitCode {
    // Nothing is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "ai-service: {text}");
    ExitCode::from(code)
}

fn health() -> ExitCode {
    match config::variables().and_then(|(variables, _)| Config::listen_from(&variables)) {
        Err(error) => fail(EX_USAGE, &error.to_string()),
        Ok(listen) => match health_check::ask(&listen) {
            Ok(answer) => say(&format!("{answer}\n")),
            Err(error) => fail(1, &error.to_string()),
        },
    }
}

fn backup(to: &Path) -> ExitCode {
    let database = match config::variables().and_then(|(variables, _)| Config::database_from(&variables)) {
        Ok(database) => database,
        Err(error) => return fail(EX_USAGE, &error.to_string()),
    };
    let runtime = match server::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start: {error}")),
    };
    match runtime.block_on(back_up(&database, to)) {
        Ok(bytes) => say(&format!("{bytes} bytes in {}\n", to.display())),
        Err(error) => fail(1, &error.to_string()),
    }
}

fn serve(demo: bool) -> ExitCode {
    // Each connection is a file, and usual shells and units give 1,024. As many as may be had; what comes of it the
    // configuration looks up and says.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let read = config::variables()
        .and_then(|(variables, warnings)| Config::from_variables(&variables, demo).map(|config| (config, warnings)));
    let (config, warnings) = match read {
        Ok(read) => read,
        Err(error) => return fail(EX_USAGE, &error.to_string()),
    };
    let log = match telemetry::init(config.log) {
        Ok(guard) => guard,
        Err(error) => return fail(1, &format!("cannot log: {error}")),
    };
    let runtime = match server::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start: {error}")),
    };
    let outcome = runtime.block_on(run(config, demo, &warnings));
    // What was said last is what matters most.
    drop(log);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => fail(code, &error),
    }
}

async fn run(config: Config, demo: bool, warnings: &[String]) -> Result<(), (u8, String)> {
    let general = |error| (1, error);
    let listener = bind(&config.listen).await.map_err(general)?;
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone()).map_err(|error| (1, format!("cannot listen for signals: {error}")))?;
    let simulator = if demo { Some(simulate().await.map_err(general)?) } else { None };
    let config = match &simulator {
        Some(simulator) => config.with_upstream(simulator.base_url().clone()),
        None => config,
    };
    let app = App::open(&config).await.map_err(|error| match error {
        StartError::Database(error) => (EX_CONFIG, error.to_string()),
        other => (1, other.to_string()),
    })?;
    announce(&listener, &config, demo).map_err(general)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let everything_finished = app.serve(listener, shutdown).await;
    if let Some(simulator) = simulator {
        simulator.stop().await;
    }
    tracing::info!(everything_finished, "stopped");
    Ok(())
}

async fn simulate() -> Result<Simulator, String> {
    Simulator::start(Pace::Natural).await.map_err(|error| format!("the simulated OpenAI cannot start: {error}"))
}

/// How many connections the system keeps until they are accepted; its own limit is usually the same. Past it a caller's
/// next attempt comes a second later, so that of a crowd that comes at once some would wait for that long.
const BACKLOG: u32 = 4096;

async fn bind(listen: &Listen) -> Result<TcpListener, String> {
    let listening = async {
        let mut addresses = lookup_host((listen.host.as_str(), listen.port)).await?;
        let address = addresses.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // As tokio does for a listener that it binds itself.
        #[cfg(not(windows))]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listening.await.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "; set PORT to another one, or stop the program that has it",
            io::ErrorKind::PermissionDenied => "; set PORT to one from 1024 on",
            io::ErrorKind::AddrNotAvailable => "; set HOST to an address of this machine",
            _ => "",
        };
        format!("cannot listen on {}:{}: {error}{hint}", listen.host, listen.port)
    })
}

fn announce(listener: &TcpListener, config: &Config, demo: bool) -> Result<(), String> {
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let reachable =
        if address.ip().is_unspecified() { format!("localhost:{}", address.port()) } else { address.to_string() };
    let kind = if demo { " (simulated)" } else { "" };
    tracing::info!(
        listening = %address,
        docs = (config.access.docs == Docs::On).then(|| format!("http://{reachable}/docs")),
        upstream = format!("{}{kind}", config.upstream.base_url),
        model = config.defaults.model,
        connections = config.limits.connections,
        bounded_by = %config.limits.bound,
        "ai-service {} started",
        env!("CARGO_PKG_VERSION"),
    );
    for warning in config.warnings(demo) {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// The first SIGTERM, SIGQUIT or Ctrl-C asks for an orderly end, the second ends the process at once. A terminal that closes,
/// or a tool that means "reload" or "reopen the log", ends nothing.
fn stop_on_signals(shutdown: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (mut user1, mut user2) = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
    let listen = async move {
        loop {
            let (name, code) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", Some(143)),
                _ = interrupt.recv() => ("SIGINT", Some(130)),
                _ = quit.recv() => ("SIGQUIT", Some(131)),
                _ = hangup.recv() => ("SIGHUP", None),
                _ = user1.recv() => ("SIGUSR1", None),
                _ = user2.recv() => ("SIGUSR2", None),
            };
            let Some(code) = code else {
                tracing::info!(signal = name, "ignored: a changed configuration needs a restart");
                continue;
            };
            if shutdown.is_cancelled() {
                std::process::exit(code);
            }
            tracing::info!(signal = name, "stopping: running answers may finish");
            shutdown.cancel();
        }
    };
    #[expect(clippy::disallowed_methods, reason = "it must outlive the app's own tasks")]
    tokio::spawn(listen);
    Ok(())
}
