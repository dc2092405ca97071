//! A copy of the database as it is at this moment, made while the service goes on using it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

use crate::{config::Database, conversations::database::BUSY_TIMEOUT};

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("DATABASE_URL names no SQLite file: copy PostgreSQL with pg_dump; what is in memory cannot be copied")]
    NoFile,
    #[error("there is no database {0}")]
    Missing(PathBuf),
    #[error("{0} exists: a copy takes the place of nothing")]
    Exists(PathBuf),
    #[error("{place} cannot be written: {source}")]
    Write { place: PathBuf, source: io::Error },
    #[error("{place} cannot be copied: {source}")]
    Copy { place: PathBuf, source: sqlx::Error },
}

/// Copies the database into a new file, which is there wholly or not at all. Everything that was acknowledged before is in
/// it, and of a write that happens meanwhile all or nothing. How many bytes it has.
///
/// # Errors
/// See [`BackupError`].
pub async fn back_up(database: &Database, to: &Path) -> Result<u64, BackupError> {
    let Database::Sqlite(from) = database else { return Err(BackupError::NoFile) };
    if !from.is_file() {
        return Err(BackupError::Missing(from.clone()));
    }
    if to.exists() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let mut name = to.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(name);
    let copied = copy(from, &part).await.and_then(|()| settle(&part, to));
    if copied.is_err() {
        // Half a copy is none.
        let _ = fs::remove_file(&part);
    }
    copied
}

/// SQLite's own copy, from one transaction that reads; it writes into the same file meanwhile as it likes.
async fn copy(from: &Path, part: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Copy { place: from.to_owned(), source };
    let options = SqliteConnectOptions::new().filename(from).create_if_missing(false).busy_timeout(BUSY_TIMEOUT);
    let mut connection = options.disable_statement_logging().connect().await.map_err(failed)?;
    let target = part.to_string_lossy();
    let copied = sqlx::query("VACUUM INTO $1").bind(&*target).execute(&mut connection).await;
    // It has written nothing that closing could lose.
    let _ = connection.close().await;
    copied.map(|_| ()).map_err(failed)
}

/// Brings the copy to the disk and gives it its name.
fn settle(part: &Path, to: &Path) -> Result<u64, BackupError> {
    let settled = || {
        let file = fs::File::open(part)?;
        file.sync_all()?;
        // Unlike renaming, this takes the place of nothing.
        fs::hard_link(part, to)?;
        fs::remove_file(part)?;
        Ok(file.metadata()?.len())
    };
    settled().map_err(|source| BackupError::Write { place: to.to_owned(), source })
}
