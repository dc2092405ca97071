//! What the README shows is what happens: each of its curl lines is run and its answer compared.

use std::process::{Command, Stdio};

use crate::process::Running;

/// Each `$ command` of the README's console blocks, with the lines below it.
fn shown(readme: &str) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        match line.strip_prefix("```") {
            Some(kind) => inside = kind == "console",
            None if inside => match line.strip_prefix("$ ") {
                Some(command) => pairs.push((command.to_owned(), String::new())),
                None => {
                    let (command, answer) = pairs.last_mut().expect("a command before its answer");
                    let target = if command.ends_with('\\') { command } else { answer };
                    target.push('\n');
                    target.push_str(line);
                }
            },
            None => {}
        }
    }
    pairs
}

/// The text without what differs each time: timestamps, random ids and dates.
fn steady(text: &str) -> String {
    let mut out = String::new();
    for part in text.split_inclusive(['"', '\n', ' ']) {
        let word = part.trim_end_matches(['"', '\n', ' ']);
        let is_time = chrono::NaiveDateTime::parse_from_str(word, "%Y-%m-%dT%H:%M:%S%.6f").is_ok();
        let is_id = uuid::Uuid::parse_str(word).is_ok();
        let shown = if is_time {
            "TIME"
        } else if is_id {
            "ID"
        } else {
            word
        };
        out.push_str(shown);
        out.push_str(&part[word.len()..]);
    }
    out.trim().to_owned()
}

fn run_all(readme: &str) -> usize {
    let service = Running::start(&["--demo"], &[]);
    let curls: Vec<_> = shown(readme).into_iter().filter(|(command, _)| command.contains("localhost:8000")).collect();
    for (command, expected) in &curls {
        let command = command.replace("localhost:8000", &format!("127.0.0.1:{}", service.port));
        let output = Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).output().unwrap();
        let answer = String::from_utf8(output.stdout).unwrap().replace('\r', "");
        assert_eq!(steady(&answer), steady(expected), "{command}");
    }
    curls.len()
}

#[test]
#[ignore = "needs curl; run by make test"]
fn every_curl_line_of_the_readme_answers_what_it_shows() {
    assert!(run_all(include_str!("../../README.md")) >= 3);
}

#[test]
#[ignore = "needs curl; run by make test"]
fn every_curl_line_of_the_korean_readme_answers_what_it_shows() {
    assert!(run_all(include_str!("../../README.ko.md")) >= 3);
}

/// The variables that the service reads; another test holds that the file lists exactly those.
fn variables() -> impl Iterator<Item = &'static str> {
    let lines = include_str!("../../.env.example").lines().map(|line| line.trim_start_matches("# "));
    let names = lines.filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    names.filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
}

#[test]
fn the_readmes_name_every_variable_and_every_error() {
    let names: Vec<_> = variables().collect();
    assert!(names.len() > 10);
    // Every code stands in the status table of the API, between quotes.
    let table = include_str!("../../src/api/error.rs");
    let codes = table.lines().filter(|line| line.contains("StatusCode::")).filter_map(|line| line.split('"').nth(1));
    let codes: Vec<_> = codes.collect();
    assert!(codes.len() > 15);
    for readme in [include_str!("../../README.md"), include_str!("../../README.ko.md")] {
        for word in names.iter().chain(&codes) {
            assert!(readme.contains(&format!("`{word}`")), "{word} is missing");
        }
    }
}

#[test]
fn the_compose_file_passes_every_variable() {
    // These the image has, or the compose file from a secret.
    let others = ["HOST", "PORT", "OPENAI_API_KEY", "OPENAI_API_KEY_FILE"];
    let compose = include_str!("../../docker-compose.yml");
    for name in variables().filter(|name| !others.contains(name)) {
        assert!(compose.contains(&format!("      {name}: ${{{name}:-}}\n")), "{name} is missing");
    }
}
