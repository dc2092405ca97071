//! The file is damaged, or no database at all.

use std::fs;

use ai_service::{config::Database, conversations::Conversations};

use crate::bad_days::{on, refusal, seeded};

/// SQLite's usual page.
const PAGE: usize = 4096;

#[tokio::test]
async fn a_damaged_file_is_refused_and_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = seeded(directory.path()).await;
    let whole = fs::read(&file).unwrap();
    let pages = whole.len() / PAGE;
    assert!(pages > 20);
    let damage = |range: std::ops::Range<usize>, byte: u8| {
        let mut bytes = whole.clone();
        bytes[range].fill(byte);
        bytes
    };
    let middle = pages / 2 * PAGE;
    for (bytes, problem) in [
        (damage(16..100, 0xee), "it is not a database of SQLite's"),
        (damage(0..16, 0), "it is not a database of SQLite's"),
        (damage(middle..middle + 2 * PAGE, 0xee), "it is damaged"),
        (whole[..middle].to_vec(), "it is damaged"),
        (b"name,price\n".repeat(1000), "it is not a database of SQLite's"),
    ] {
        fs::write(&file, &bytes).unwrap();
        let said = refusal(on(&file), &file);
        assert!(said.contains(&format!("{problem}. Restore a backup, or move the file away")), "{said}");
        assert!(fs::read(&file).unwrap() == bytes, "it was changed");
    }
}

#[tokio::test]
async fn damage_to_any_page_is_found_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = seeded(directory.path()).await;
    let whole = fs::read(&file).unwrap();
    for page in 0..whole.len() / PAGE {
        for byte in [0, 0xee] {
            let mut bytes = whole.clone();
            bytes[page * PAGE..][..PAGE].fill(byte);
            fs::write(&file, &bytes).unwrap();
            let opened = Conversations::open(&Database::Sqlite(file.clone())).await;
            assert!(opened.is_err(), "page {page} of {byte}");
            assert!(fs::read(&file).unwrap() == bytes, "page {page} of {byte}: it was changed");
        }
    }
}
