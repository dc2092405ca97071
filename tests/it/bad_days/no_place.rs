//! There is nothing there that could be a file.

use std::fs;

use crate::bad_days::{on, refusal};

#[test]
fn a_directory_or_a_place_that_cannot_be_made_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let long = directory.path().join("x".repeat(300));
    for (place, problem) in [
        (directory.path(), "it is a directory"),
        (file.join("below/ai-service.db").as_path(), "its directory cannot be made"),
        (long.as_path(), "it cannot be opened"),
        (long.join("ai-service.db").as_path(), "its directory cannot be made"),
    ] {
        let said = refusal(on(place), place);
        assert!(said.contains(problem), "{said}");
        assert!(said.contains("Let DATABASE_URL name a place"), "{said}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"not a directory");
}
