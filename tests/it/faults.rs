//! Every fault and every bad input that was thought of, with the tests that show what comes of it, or the reason why there
//! is none. `docs/faults.md` is made from these tables: `UPDATE_FAULTS=1 cargo test --test it faults` writes it.

mod bodies;
mod callers;
mod input;
mod outside;
mod process;
mod requests;
mod upstream;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

/// A fault.
pub struct Row {
    id: &'static str,
    fault: &'static str,
    /// Names of tests.
    tests: &'static [&'static str],
    /// Where the service decides otherwise than one might expect, or why there is no test.
    note: &'static str,
}

/// Shown by these tests.
const fn shown(id: &'static str, fault: &'static str, tests: &'static [&'static str]) -> Row {
    Row { id, fault, tests, note: "" }
}

/// Shown by these tests, if there are any, and in need of a word.
const fn noted(id: &'static str, fault: &'static str, tests: &'static [&'static str], note: &'static str) -> Row {
    Row { id, fault, tests, note }
}

/// A table of the page.
struct List {
    title: &'static str,
    rows: &'static [Row],
}

const LISTS: [List; 10] = [
    List { title: "Callers", rows: callers::ROWS },
    List { title: "The upstream", rows: upstream::ROWS },
    List { title: "The process and its host", rows: process::ROWS },
    List { title: "Input: bodies", rows: input::BODIES },
    List { title: "Input: messages", rows: input::MESSAGES },
    List { title: "Input: parameters", rows: input::PARAMETERS },
    List { title: "Input: ids and paths", rows: input::PATHS },
    List { title: "Input: HTTP", rows: input::HTTP },
    List { title: "Input: callers, pages and limits", rows: input::ACCESS },
    List { title: "Clients, proxies, databases and newcomers", rows: outside::ROWS },
];

const HEAD: &str = "\
# Faults

What can go wrong, and the test that shows what happens then. Made from `tests/it/faults.rs` and the tables beside it by
`UPDATE_FAULTS=1 cargo test --test it faults`; `cargo test` fails when this page is old, a test is gone or a row is missing.
";

fn rows() -> impl Iterator<Item = &'static Row> {
    LISTS.iter().flat_map(|list| list.rows)
}

/// Every test of the crate, with the files it stands in.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    fn walk(dir: &Path, root: &Path, found: &mut BTreeMap<String, BTreeSet<String>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                for name in tests_of(&fs::read_to_string(&path).unwrap()) {
                    found.entry(name).or_default().insert(file.clone());
                }
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    walk(&root.join("src"), root, &mut found);
    walk(&root.join("tests"), root, &mut found);
    found
}

/// The names of the functions behind `#[test]` and `#[tokio::test…]`, other attributes between them or not. What a macro of
/// proptest's makes has the same form.
fn tests_of(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in code.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if is_test && !line.starts_with("#[") && !line.starts_with("//") {
            let signature = line.trim_start_matches("pub ").trim_start_matches("async ");
            let name = signature.strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next());
            names.extend(name.map(str::to_owned));
            is_test = false;
        }
    }
    names
}

fn page(tests: &BTreeMap<String, BTreeSet<String>>) -> String {
    let mut page = HEAD.to_owned();
    for List { title, rows } in &LISTS {
        write!(page, "\n## {title}\n\n| | fault | shown by, or why not |\n|---|---|---|\n").unwrap();
        for Row { id, fault, tests: names, note } in *rows {
            let mut parts: Vec<String> = Vec::new();
            let mut links = Vec::new();
            for name in *names {
                let files = tests.get(*name).into_iter().flatten();
                links.extend(files.map(|file| format!("[`{name}`](../{file})")));
            }
            if !links.is_empty() {
                parts.push(links.join(", "));
            }
            if !note.is_empty() {
                parts.push((*note).to_owned());
            }
            writeln!(page, "| {id} | {fault} | {} |", parts.join(". ")).unwrap();
        }
    }
    page
}

#[test]
fn every_fault_has_its_row() {
    let expected = (1..=23).map(|n| format!("C{n}"));
    let expected = expected.chain((1..=37).map(|n| format!("U{n}"))).chain((1..=25).map(|n| format!("P{n}")));
    let expected = expected.chain((1..=94).map(|n| n.to_string()));
    let expected: Vec<_> = expected.chain((1..=23).map(|n| format!("E{n}"))).collect();
    let ids: Vec<_> = rows().map(|row| row.id.to_owned()).collect();
    assert_eq!(ids, expected);
    for Row { id, fault, tests, note } in rows() {
        let is_told = !tests.is_empty() || !note.is_empty();
        assert!(is_told && !fault.is_empty(), "{id} says nothing");
        assert!(!format!("{fault}{note}").contains(['\n', '|']), "{id} would break its table");
    }
}

#[test]
fn every_test_that_a_fault_names_exists() {
    let tests = tests();
    assert!(tests.len() > 200, "the tests were found: {}", tests.len());
    for row in rows() {
        for name in row.tests {
            assert!(tests.contains_key(*name), "{}: there is no test {name}", row.id);
        }
    }
}

#[test]
fn the_page_of_faults_is_made_from_these_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md");
    let page = page(&tests());
    if std::env::var_os("UPDATE_FAULTS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    let stands = fs::read_to_string(&path).unwrap_or_default();
    assert!(stands == page, "docs/faults.md is old: UPDATE_FAULTS=1 cargo test --test it faults");
}

#[test]
fn tests_are_found_whatever_stands_around_them() {
    let code =
        "#[test]\nfn a() {}\n#[tokio::test(flavor = \"x\")]\n// why\n#[ignore = \"y\"]\nasync fn b() {}\nfn c() {}";
    assert_eq!(tests_of(code), ["a", "b"]);
}
