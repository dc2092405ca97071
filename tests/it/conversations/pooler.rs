//! PostgreSQL behind a pooler, and PostgreSQL that cannot be reached as its address asks for.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ai_service::{config::Database, conversations::Conversations};
use futures_util::future::join_all;
use url::Url;

use crate::{
    conversations::{ask, messages},
    process,
    support::{
        PATIENCE, ScriptedUpstream, TestApp,
        database::{Kind, TestDatabase},
    },
};

/// Debian's PgBouncer before a test's database. It ends with this.
struct PgBouncer {
    child: Child,
    url: Url,
    _folder: tempfile::TempDir,
}

impl PgBouncer {
    fn before(server: &Url, mode: &str, pool: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (host, user) = (server.host_str().unwrap(), server.username());
        let (password, name) = (server.password().unwrap(), server.path().trim_start_matches('/'));
        let settings = format!(
            "[databases]\n{name} = host={host} port={} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\ndefault_pool_size = {pool}\nmax_client_conn = 200\n",
            server.port().unwrap()
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        // It refuses to be root, and as another user it must be able to read this.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), readable).unwrap();
        let mut command = Command::new("pgbouncer");
        let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        if is_root {
            command.args(["-u", "nobody"]);
        }
        let child = command.arg(file).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbouncer");
        let mut url = server.clone();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(port)).unwrap();
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "pgbouncer listens");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, url, _folder: folder }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and PgBouncer; run by make test"]
async fn a_pooler_that_gives_each_transaction_another_session_is_refused_by_name() {
    let database = TestDatabase::new(Kind::Postgres).await;
    let server = database.postgres_url().unwrap();
    for (mode, pool) in [("transaction", 1), ("transaction", 3), ("transaction", 20), ("statement", 3)] {
        let pooler = PgBouncer::before(server, mode, pool);
        let output = process::command()
            .envs([("OPENAI_API_KEY", "sk-test"), ("HOST", "127.0.0.1"), ("PORT", "0")])
            .env("DATABASE_URL", pooler.url.as_str())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{mode} {pool}: {said}");
        assert!(said.contains("a pooler in transaction mode is not supported"), "{mode} {pool}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        assert!(!said.contains(server.password().unwrap()));
    }
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and PgBouncer; run by make test"]
async fn a_pooler_in_session_mode_serves_200_turns_24_at_once() {
    let database = TestDatabase::new(Kind::Postgres).await;
    let pooler = PgBouncer::before(database.postgres_url().unwrap(), "session", 30);
    let upstream = ScriptedUpstream::start().await;
    upstream.echo();
    let app = TestApp::start_with(&upstream.base_url, |config| {
        config.conversations.database = Database::Postgres(pooler.url.as_str().into());
        config.conversations.auto_title = false;
    })
    .await;
    let turns = async |caller: usize| {
        for turn in 0..9 {
            let answer = ask(&app, &format!("c{caller}"), &format!("turn {turn}")).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    join_all((0..24).map(turns)).await;
    assert_eq!(messages(&app, "c23").await.len(), 18);
    drop((app, pooler));
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL; run by make test"]
async fn tls_that_the_server_does_not_offer_is_named() {
    let database = TestDatabase::new(Kind::Postgres).await;
    for mode in ["require", "verify-ca", "verify-full"] {
        let mut url = database.postgres_url().unwrap().clone();
        url.set_query(Some(&format!("sslmode={mode}")));
        let error = Conversations::open(&Database::Postgres(url.as_str().into())).await.unwrap_err().to_string();
        assert!(error.contains("the server offers no TLS"), "{error}");
        assert!(!error.contains(url.password().unwrap()), "{error}");
    }
    database.remove().await;
}

#[test]
fn a_parameter_that_is_not_known_is_told_of_without_its_value() {
    let url = "postgres://app:hunter0@127.0.0.1:1/db?sslpassword=hunter2hunter2&keepalives=hunter3&sslmode=disable";
    let service = process::Running::start(&["--demo"], &[("DATABASE_URL", url), ("LOG_LEVEL", "TRACE")]);
    let first = service.first_line().to_owned();
    service.signal("-TERM");
    let said = first + &service.end().1;
    assert!(said.contains("sslpassword") && said.contains("keepalives"), "{said}");
    assert!(!said.contains("hunter"), "{said}");
}
