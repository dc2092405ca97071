//! A database of a test's own, of each kind that the service knows.

use std::{
    env, process,
    sync::atomic::{AtomicUsize, Ordering},
};

use ai_service::{
    config::{Config, Database},
    conversations::Conversations,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, SqliteConnection, postgres::PgConnectOptions,
    sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;
use tokio::time::timeout;
use url::Url;

use super::{PATIENCE, ScriptedUpstream, TestApp};

/// Makes each of these tests one for every database: `a_claim::in_memory`, `a_claim::in_a_file`, `a_claim::in_postgres`.
/// With `shared:`, for every database that two services can have at once.
macro_rules! on_every_database {
    (shared: $($test:ident),+ $(,)?) => {
        $(mod $test {
            $crate::support::database::on!(File, in_a_file, $test);
            $crate::support::database::on!(Postgres, in_postgres, $test, #[ignore = "needs PostgreSQL; run by make test"]);
        })+
    };
    ($($test:ident),+ $(,)?) => {
        $(mod $test {
            $crate::support::database::on!(Memory, in_memory, $test);
            $crate::support::database::on!(File, in_a_file, $test);
            $crate::support::database::on!(Postgres, in_postgres, $test, #[ignore = "needs PostgreSQL; run by make test"]);
        })+
    };
}

macro_rules! on {
    ($kind:ident, $name:ident, $test:ident $(, #[$attribute:meta])?) => {
        #[tokio::test]
        $(#[$attribute])?
        async fn $name() {
            let kind = $crate::support::database::Kind::$kind;
            let database = $crate::support::database::TestDatabase::new(kind).await;
            Box::pin(super::$test(&database)).await;
            database.remove().await;
        }
    };
}

pub(crate) use {on, on_every_database};

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Memory,
    File,
    Postgres,
}

/// An empty database.
pub struct TestDatabase(Place);

enum Place {
    Memory,
    File(TempDir),
    /// On the server that `TEST_POSTGRES_URL` names.
    Postgres(Url),
}

impl TestDatabase {
    pub async fn new(kind: Kind) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Self(match kind {
            Kind::Memory => Place::Memory,
            Kind::File => Place::File(tempfile::tempdir().expect("a directory")),
            Kind::Postgres => {
                let name = format!("test_{}_{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
                // Some times faster than the usual way, for a small one that need not be logged. Unknown before 15.
                if execute(format!("CREATE DATABASE {name} STRATEGY file_copy")).await.is_err() {
                    execute(format!("CREATE DATABASE {name}")).await.expect("a database");
                }
                let mut url = server();
                url.set_path(&name);
                Place::Postgres(url)
            }
        })
    }

    /// As `DATABASE_URL` names it.
    pub fn config(&self) -> Database {
        match &self.0 {
            Place::Memory => Database::SqliteInMemory,
            Place::File(directory) => Database::Sqlite(directory.path().join("conversations.db")),
            Place::Postgres(url) => Database::Postgres(url.as_str().into()),
        }
    }

    /// Where it is, if it is PostgreSQL's.
    pub fn postgres_url(&self) -> Option<&Url> {
        let Place::Postgres(url) = &self.0 else { return None };
        Some(url)
    }

    /// Does something to it behind the service's back.
    pub async fn execute(&self, sql: &'static str) {
        match &self.0 {
            Place::Memory => panic!("nobody else can reach it"),
            Place::File(_) => drop(self.sqlite().await.execute(sql).await.expect("done")),
            Place::Postgres(url) => drop(connect(url).await.execute(sql).await.expect("done")),
        }
    }

    /// Waits until so many of PostgreSQL's connections wait for a lock.
    pub async fn waiting(&self, count: u64) {
        const WAITING: &str =
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let mut connection = connect(self.postgres_url().expect("PostgreSQL")).await;
        let wait = async { while connection.execute(WAITING).await.expect("an answer").rows_affected() < count {} };
        timeout(PATIENCE, wait).await.expect("they wait");
    }

    /// A connection of the test's own to the file.
    pub async fn sqlite(&self) -> SqliteConnection {
        let Database::Sqlite(path) = self.config() else { panic!("not a file") };
        SqliteConnectOptions::new().filename(path).connect().await.expect("SQLite")
    }

    /// Opens it as the service does.
    pub async fn open(&self) -> Conversations {
        Conversations::open(&self.config()).await.expect("a database")
    }

    /// A service that keeps its conversations here, and makes no titles by itself.
    pub async fn app(&self, upstream: &ScriptedUpstream) -> TestApp {
        self.app_with(upstream, |_| {}).await
    }

    /// The same with a configuration of its own.
    pub async fn app_with(&self, upstream: &ScriptedUpstream, change: impl FnOnce(&mut Config)) -> TestApp {
        let start = TestApp::start_with(&upstream.base_url, |config| {
            config.conversations.database = self.config();
            // A request upstream that no test counts on.
            config.conversations.auto_title = false;
            change(config);
        });
        start.await
    }

    /// Removes it. One of a failed test stays until its server goes.
    pub async fn remove(self) {
        if let Place::Postgres(url) = &self.0 {
            let removed = execute(format!("DROP DATABASE {} WITH (FORCE)", url.path().trim_start_matches('/'))).await;
            removed.expect("removed");
        }
    }
}

fn server() -> Url {
    let url = env::var("TEST_POSTGRES_URL").expect("TEST_POSTGRES_URL; scripts/with-postgres COMMAND sets it");
    Url::parse(&url).expect("a URL")
}

/// A connection of the test's own to a database.
pub async fn connect(url: &Url) -> PgConnection {
    let options: PgConnectOptions = url.as_str().parse().expect("PostgreSQL's address");
    options.connect().await.expect("PostgreSQL")
}

async fn execute(sql: String) -> Result<(), sqlx::Error> {
    let mut connection = connect(&server()).await;
    connection.execute(AssertSqlSafe(sql)).await?;
    connection.close().await
}
