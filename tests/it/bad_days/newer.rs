//! The tables are not those that this version makes.

use std::fs;

use sqlx::{Connection, Executor};

use crate::bad_days::{connect, on, refusal, seeded};

#[tokio::test]
async fn tables_of_another_version_are_refused_and_stay_as_they_are() {
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
        VALUES (99, 'of next year', 1, x'00', 1)";
    let other = "UPDATE _sqlx_migrations SET checksum = x'00'";
    let half = "UPDATE _sqlx_migrations SET success = 0";
    for (change, problem) in [
        (newer, "a newer version of this service has changed its tables (to 99). Start the newer version again"),
        (other, "its tables are not those of this service. Let DATABASE_URL name another database"),
        (half, "its tables are half made. Restore a backup"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = seeded(directory.path()).await;
        let mut connection = connect(&file).await;
        connection.execute(change).await.unwrap();
        connection.close().await.unwrap();
        let before = fs::read(&file).unwrap();
        let said = refusal(on(&file), &file);
        assert!(said.contains(problem), "{said}");
        assert!(fs::read(&file).unwrap() == before, "it was changed");
    }
}

#[tokio::test]
async fn the_database_of_another_program_is_refused_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("other.db");
    fs::write(&file, "").unwrap();
    let mut connection = connect(&file).await;
    connection.execute("CREATE TABLE conversations (other)").await.unwrap();
    connection.close().await.unwrap();
    let before = fs::read(&file).unwrap();
    let said = refusal(on(&file), &file);
    assert!(said.contains("it belongs to another program. Let DATABASE_URL name another database"), "{said}");
    assert!(fs::read(&file).unwrap() == before, "it was changed");
}
