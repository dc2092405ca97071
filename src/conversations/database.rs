//! The connections to the database, and all that differs between the two kinds of it.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use secrecy::ExposeSecret;
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, SqliteConnection,
    migrate::{MigrateError, Migrator},
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use crate::{
    config::Database,
    conversations::{
        error::{OpenError, StoreError, code, is_disk_full},
        postgres::{self, Unfit},
    },
};

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("src/conversations/migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("src/conversations/migrations/postgres");

/// How long another process may hold SQLite's lock before a write gives up.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The same when the service starts, which should say soon what is wrong.
const BUSY_AT_START: Duration = Duration::from_secs(2);

/// How soon a file that is held for a moment is tried again.
const BUSY_RETRY: Duration = Duration::from_millis(10);

/// How long PostgreSQL has for one request. Callers are told within two seconds that it is away.
const POSTGRES_TIMEOUT: Duration = Duration::from_millis(1800);

/// How long a connection to PostgreSQL has to show that it is alive, before another takes its place.
const POSTGRES_PING: Duration = Duration::from_millis(500);

/// What PostgreSQL gives up by itself, should nobody be left to tell it: a statement that nobody waits for any more, and
/// a transaction of a service that is gone, which would lock its conversation for as long as TCP hopes.
const POSTGRES_SETTINGS: &str = "SET statement_timeout = '1800ms'; SET idle_in_transaction_session_timeout = '5s'";

/// How long PostgreSQL has to be there when the service starts, before the service goes on without it.
const POSTGRES_AT_START: Duration = Duration::from_secs(5);

/// How long reading may take in SQLite: far longer than it does.
const SQLITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections that read SQLite. Writing has one of its own.
const SQLITE_READERS: u32 = 4;

/// After so many pages of 4 KiB, what was written moves from the write-ahead log into the file; the commit that does it
/// takes longer, and so do all that wait behind it. With SQLite's own 1,000, the slowest turn of a hundred takes twice as
/// long (`cargo bench --bench conversations`: 10 ms instead of 4 to 5 at 8 connections, for 5 % less CPU). Another
/// connection that does it meanwhile mends nothing: the disk is the same.
const CHECKPOINT_PAGES: &str = "100";

/// Connections to PostgreSQL.
const POSTGRES_CONNECTIONS: u32 = 16;

/// A file up to this size is checked from end to end when it is opened, which takes some milliseconds.
const CHECKED_BYTES: u64 = 64 * 1024 * 1024;

/// Where queries go.
#[derive(Clone, Debug)]
pub(super) enum Pool {
    /// What is in memory has one connection for everything: each would have a database of its own.
    Sqlite {
        read: Arc<SqliteConnections>,
        write: Arc<SqliteConnections>,
    },
    Postgres(PgPool),
}

/// Connections to SQLite, each for one user at a time.
///
/// Not sqlx's pool: what comes back there is given to a task of its own and asked whether it is alive, which costs more
/// than the query. A file cannot be away.
#[derive(Debug)]
pub(super) struct SqliteConnections {
    options: SqliteConnectOptions,
    /// As many as there may be connections. Whoever waits is served in order.
    places: Arc<Semaphore>,
    count: u32,
    idle: Mutex<Vec<SqliteConnection>>,
}

impl SqliteConnections {
    async fn open(options: SqliteConnectOptions, count: u32) -> Result<Arc<Self>, sqlx::Error> {
        let mut idle = Vec::new();
        for _ in 0..count {
            idle.push(patiently(async || options.connect().await).await?);
        }
        let places = Arc::new(Semaphore::new(idle.len()));
        Ok(Arc::new(Self { options, places, count, idle: Mutex::new(idle) }))
    }

    /// Waits for a connection.
    pub(super) async fn take(self: &Arc<Self>) -> Result<SqliteTaken, sqlx::Error> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            // In the place of one that broke.
            None => self.options.connect().await?,
        };
        Ok(SqliteTaken { connection: Some(connection), connections: Arc::clone(self), _place: place })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SqliteConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes them as they come back. Whoever wants one from now on is refused.
    async fn close(&self) {
        let all = self.places.acquire_many(self.count).await;
        self.places.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            // It wrote what it had to with its last commit.
            drop(connection.close().await);
        }
    }
}

/// A connection in use; it goes back when it is dropped. A query that nobody waits for any more ends by itself before
/// the next one begins, but a transaction would stay open: it must be ended.
#[derive(Debug)]
pub(super) struct SqliteTaken {
    /// `None` when it is broken.
    connection: Option<SqliteConnection>,
    connections: Arc<SqliteConnections>,
    _place: OwnedSemaphorePermit,
}

impl SqliteTaken {
    pub(super) fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.connection.as_mut().ok_or(sqlx::Error::WorkerCrashed)
    }
}

impl Drop for SqliteTaken {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.connections.idle().push(connection);
        }
    }
}

/// Everything between its beginning and its end happens, or nothing.
#[derive(Debug)]
pub(super) enum Transaction {
    /// Not sqlx's own: SQLite ends a transaction by itself when the disk is full, and sqlx, which counts how many are
    /// open, then takes that one for open for ever and begins no other on the same connection.
    Sqlite(SqliteTaken),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Transaction {
    pub(super) async fn begin(pool: &Pool) -> Result<Self, sqlx::Error> {
        match pool {
            Pool::Sqlite { write, .. } => {
                let mut taken = write.take().await?;
                // Takes the lock at once: a transaction that takes it later cannot wait for it.
                sqlx::query("BEGIN IMMEDIATE").execute(taken.connection()?).await?;
                Ok(Self::Sqlite(taken))
            }
            Pool::Postgres(pool) => Ok(Self::Postgres(pool.begin().await?)),
        }
    }

    /// Commits when all went well, else takes everything back. It must be waited for.
    pub(super) async fn end<T>(self, outcome: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(mut taken) => {
                let committed = match outcome {
                    Ok(done) => sqlx::query("COMMIT").execute(taken.connection()?).await.map(|_| done),
                    Err(error) => Err(error),
                };
                if committed.is_err() {
                    roll_back(taken).await;
                }
                committed
            }
            Self::Postgres(transaction) => {
                let done = outcome?;
                transaction.commit().await?;
                Ok(done)
            }
        }
    }
}

/// Takes back what has been done since the beginning of a transaction.
pub(super) async fn roll_back(mut taken: SqliteTaken) {
    let Ok(connection) = taken.connection() else { return };
    let rolled_back = sqlx::query("ROLLBACK").execute(connection).await;
    // SQLITE_ERROR: there is nothing to take back, because SQLite has done so already.
    if rolled_back.is_err_and(|error| code(&error).as_deref() != Some("1")) {
        // Nobody knows what state it is in.
        drop(taken.connection.take());
    }
}

/// The pool, and whether its tables are there.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    pool: Pool,
    /// Set once the migrations have run: a PostgreSQL that was away at the start gets them when it is back.
    ready: OnceCell<()>,
    timeout: Duration,
}

impl Connections {
    pub(super) async fn open(database: &Database) -> Result<Self, OpenError> {
        match database {
            Database::SqliteInMemory => open_in_memory().await,
            Database::Sqlite(path) => open_file(path).await,
            Database::Postgres(url) => open_postgres(url.expose_secret()).await,
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs a query that only reads.
    pub(super) async fn reading<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let read = async {
            self.ready().await?;
            query.await.map_err(|error| StoreError::from_database(&error))
        };
        timeout(self.timeout, read).await.unwrap_or_else(|_| {
            tracing::error!("the conversations' database did not answer in time");
            Err(StoreError::Unavailable)
        })
    }

    /// That the tables are there.
    pub(super) async fn ready(&self) -> Result<(), StoreError> {
        let Pool::Postgres(pool) = &self.pool else { return Ok(()) };
        let migrated = self.ready.get_or_try_init(|| migrate(pool));
        migrated.await.copied().map_err(|error| {
            tracing::error!(reason = error.problem(), "the conversations' database is not ready");
            StoreError::Unavailable
        })
    }

    /// How long one request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) async fn close(&self) {
        match &self.pool {
            Pool::Sqlite { read, write } => {
                read.close().await;
                write.close().await;
            }
            // What does not answer now would not answer a farewell.
            Pool::Postgres(pool) => drop(timeout(POSTGRES_TIMEOUT, pool.close()).await),
        }
    }
}

fn sqlite_options() -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .journal_mode(SqliteJournalMode::Wal)
        // A commit is on the disk when it is acknowledged.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // Which looks at a clock twice for each, and would show the text of the slow ones.
        .disable_statement_logging()
        .create_if_missing(true)
        // Rows come from a thread; a page of them should not have to wait for every single one to be taken.
        .row_buffer_size(256)
}

async fn open_in_memory() -> Result<Connections, OpenError> {
    let place = "in memory";
    let problem = |error: &sqlx::Error| sqlite_problem(place, error);
    let one = SqliteConnections::open(sqlite_options().in_memory(true), 1).await.map_err(|error| problem(&error))?;
    let mut first = one.take().await.map_err(|error| problem(&error))?;
    let connection = first.connection().map_err(|error| problem(&error))?;
    SQLITE_MIGRATIONS.run(connection).await.map_err(|error| sqlite_migration_problem(place, &error))?;
    drop(first);
    let pool = Pool::Sqlite { read: Arc::clone(&one), write: one };
    Ok(Connections { pool, ready: OnceCell::new_with(Some(())), timeout: SQLITE_TIMEOUT })
}

async fn open_file(path: &Path) -> Result<Connections, OpenError> {
    let place = path.display().to_string();
    if path.is_dir() {
        return Err(OpenError { place, problem: "it is a directory".to_owned(), remedy: REMEDY_PLACE });
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(|error| OpenError {
            place: place.clone(),
            problem: format!("its directory cannot be made: {error}"),
            remedy: REMEDY_PLACE,
        })?;
    }
    prepare_file(path, &place).await?;
    let problem = |error: &sqlx::Error| sqlite_problem(&place, error);
    let options = sqlite_options().filename(path);
    let for_writing = options.clone().pragma("wal_autocheckpoint", CHECKPOINT_PAGES);
    let write = SqliteConnections::open(for_writing, 1).await.map_err(|error| problem(&error))?;
    let read = SqliteConnections::open(options, SQLITE_READERS).await.map_err(|error| problem(&error))?;
    let pool = Pool::Sqlite { read, write };
    Ok(Connections { pool, ready: OnceCell::new_with(Some(())), timeout: SQLITE_TIMEOUT })
}

/// Whoever makes a file, or leaves it last, holds it alone for a moment, and there SQLite does not wait.
async fn patiently<T>(open: impl AsyncFn() -> Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
    // Where it does wait, that was long enough.
    let until = Instant::now() + BUSY_AT_START / 2;
    loop {
        match open().await {
            Err(error) if is_held(&error) && Instant::now() < until => sleep(BUSY_RETRY).await,
            outcome => return outcome,
        }
    }
}

/// Brings a file up to date. One connection of its own finds out what is wrong, without waiting long, and writes nothing
/// before it knows that nothing is. It keeps out whoever starts on the same file at the same moment.
async fn prepare_file(path: &Path, place: &str) -> Result<(), OpenError> {
    // The first table that is made, so that one whose making was interrupted is ours as well.
    const IS_OURS: &str = "SELECT count(*) = 0 OR sum(name = '_sqlx_migrations') > 0 FROM sqlite_schema";
    let problem = |error: sqlx::Error| sqlite_problem(place, &error);
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true).busy_timeout(BUSY_AT_START);
    let mut first = patiently(async || options.connect().await).await.map_err(problem)?;
    let mut alone = first.begin_with("BEGIN IMMEDIATE").await.map_err(problem)?;
    let is_ours: bool = sqlx::query_scalar(IS_OURS).fetch_one(&mut *alone).await.map_err(problem)?;
    let is_small = std::fs::metadata(path).is_ok_and(|file| file.len() <= CHECKED_BYTES);
    if is_small {
        let check = sqlx::query_scalar::<_, String>("PRAGMA quick_check(1)").fetch_one(&mut *alone).await;
        if check.map_err(problem)? != "ok" {
            return Err(corrupt(place));
        }
    }
    if !is_ours {
        let problem = "it belongs to another program".to_owned();
        return Err(OpenError { place: place.to_owned(), problem, remedy: REMEDY_OTHER });
    }
    // Something that must be written, for of what it can only read SQLite begins to write without a word.
    sqlx::query("PRAGMA user_version = 0").execute(&mut *alone).await.map_err(problem)?;
    SQLITE_MIGRATIONS.run(&mut *alone).await.map_err(|error| sqlite_migration_problem(place, &error))?;
    alone.commit().await.map_err(problem)?;
    first.close().await.map_err(problem)
}

const REMEDY_PLACE: &str = "Let DATABASE_URL name a place that this user may write to, such as \
    sqlite:///var/lib/ai-service/ai-service.db, or sqlite::memory: to keep nothing";
const REMEDY_LOCKED: &str = "Stop the program that holds it (a backup, a shell), then start again";
const REMEDY_CORRUPT: &str = "Restore a backup, or move the file away to begin with an empty one; nothing was changed";
const REMEDY_NEWER: &str =
    "Start the newer version again, or let DATABASE_URL name another database; nothing was changed";
const REMEDY_OTHER: &str = "Let DATABASE_URL name another database; nothing was changed";
const REMEDY_HALF: &str = "Restore a backup, or let DATABASE_URL name another database; nothing was changed";
const REMEDY_POSTGRES: &str = "Check user, password and database name in DATABASE_URL";

fn corrupt(place: &str) -> OpenError {
    OpenError { place: place.to_owned(), problem: "it is damaged".to_owned(), remedy: REMEDY_CORRUPT }
}

/// What SQLite says when it opens a file. Source of the numbers: <https://www.sqlite.org/rescode.html>
fn sqlite_problem(place: &str, error: &sqlx::Error) -> OpenError {
    if code(error).as_deref().is_some_and(is_disk_full) {
        let remedy = "Make room on the disk, then start again";
        return OpenError { place: place.to_owned(), problem: "the disk is full".to_owned(), remedy };
    }
    let (problem, remedy) = match sqlite_code(error) {
        Some(5 | 6) => ("another program has locked it".to_owned(), REMEDY_LOCKED),
        Some(8) => ("it is read-only".to_owned(), REMEDY_PLACE),
        Some(11) => return corrupt(place),
        Some(26) => ("it is not a database of SQLite's".to_owned(), REMEDY_CORRUPT),
        Some(14) => ("it cannot be opened".to_owned(), REMEDY_PLACE),
        _ => (error.to_string(), REMEDY_PLACE),
    };
    OpenError { place: place.to_owned(), problem, remedy }
}

/// Whether SQLite says that somebody else has locked the file.
pub(super) fn is_held(error: &sqlx::Error) -> bool {
    matches!(sqlite_code(error), Some(5 | 6))
}

/// The primary one.
fn sqlite_code(error: &sqlx::Error) -> Option<u32> {
    code(error).and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff)
}

fn sqlite_migration_problem(place: &str, error: &MigrateError) -> OpenError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => sqlite_problem(place, error),
        other => {
            let (problem, remedy) = migration_problem(other);
            OpenError { place: place.to_owned(), problem, remedy }
        }
    }
}

/// What is wrong with the tables.
fn migration_problem(error: &MigrateError) -> (String, &'static str) {
    match error {
        MigrateError::VersionMissing(version) => {
            (format!("a newer version of this service has changed its tables (to {version})"), REMEDY_NEWER)
        }
        MigrateError::VersionMismatch(_) => ("its tables are not those of this service".to_owned(), REMEDY_OTHER),
        MigrateError::Dirty(_) => ("its tables are half made".to_owned(), REMEDY_HALF),
        // What a database says of a migration quotes the migration, which holds no secret.
        other => (other.to_string(), REMEDY_OTHER),
    }
}

async fn open_postgres(url: &str) -> Result<Connections, OpenError> {
    let unreadable = || OpenError {
        place: "of DATABASE_URL".to_owned(),
        problem: "the address cannot be read".to_owned(),
        remedy: "It has the form postgres://user:password@host:5432/database",
    };
    let options = postgres::options(url).map_err(|_| unreadable())?;
    let place = format!(
        "{} on {}:{}",
        options.get_database().unwrap_or_else(|| options.get_username()),
        options.get_host(),
        options.get_port()
    );
    let pool = PgPoolOptions::new()
        .max_connections(POSTGRES_CONNECTIONS)
        .acquire_timeout(POSTGRES_TIMEOUT)
        .after_connect(|connection, _| Box::pin(async { connection.execute(POSTGRES_SETTINGS).await.map(drop) }))
        // The library's own tests wait for as long as TCP hopes, and keep a connection's place meanwhile.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(is_alive(connection)))
        .after_release(|connection, _| Box::pin(is_alive(connection)))
        .connect_lazy_with(options);
    let ready = OnceCell::new();
    match timeout(POSTGRES_AT_START, migrate(&pool)).await {
        Ok(Ok(())) => drop(ready.set(())),
        Ok(Err(error)) => match error.refusal() {
            Some((problem, remedy)) => return Err(OpenError { place, problem, remedy }),
            None => {
                tracing::warn!(database = place, "the database is away; conversations are refused until it is back");
            }
        },
        Err(_) => {
            tracing::warn!(database = place, "the database does not answer; conversations are refused until it does");
        }
    }
    Ok(Connections { pool: Pool::Postgres(pool), ready, timeout: POSTGRES_TIMEOUT })
}

/// Whether a connection answers. An error closes it at once.
async fn is_alive(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match timeout(POSTGRES_PING, connection.ping()).await {
        Ok(answer) => answer.map(|()| true),
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}

/// Why a PostgreSQL is not ready.
#[derive(Debug)]
enum NotReady {
    Unfit(Unfit),
    Migrations(MigrateError),
}

impl<E: Into<MigrateError>> From<E> for NotReady {
    fn from(error: E) -> Self {
        Self::Migrations(error.into())
    }
}

impl NotReady {
    fn problem(&self) -> String {
        match self {
            Self::Unfit(unfit) => unfit.problem(),
            Self::Migrations(error) => migration_problem(error).0,
        }
    }

    /// What waiting will not mend.
    fn refusal(&self) -> Option<(String, &'static str)> {
        let error = match self {
            Self::Unfit(unfit) => return Some((unfit.problem(), unfit.remedy())),
            Self::Migrations(error) => error,
        };
        let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = error else {
            return Some(migration_problem(error));
        };
        // SQLSTATE: 28 is a refused user, 3D000 an unknown database, 42501 a missing right.
        let code = code(cause)?;
        let problem = match code.as_str() {
            code if code.starts_with("28") => "the user or the password is refused",
            "3D000" => "there is no such database",
            "42501" => "the user may not make tables",
            _ => return None,
        };
        Some((problem.to_owned(), REMEDY_POSTGRES))
    }
}

/// Finds out whether this server will do, before anything is prepared or set on it, and brings the tables up to date.
async fn migrate(pool: &PgPool) -> Result<(), NotReady> {
    if let Some(unfit) = postgres::probe(&pool.connect_options()).await? {
        return Err(NotReady::Unfit(unfit));
    }
    let mut connection = pool.acquire().await?;
    // It keeps all others from doing the same for as long as it lives, also when this is given up half-way.
    connection.close_on_drop();
    // What `run` does, which is not `Send` with a connection.
    POSTGRES_MIGRATIONS.run_direct(None, &mut *connection, false).await?;
    Ok(())
}
