//! Who may import whom: each module only those of a rank below its own, siblings never each other.

use std::{collections::BTreeMap, fs, path::Path};

const RANKS: [(&str, u8); 18] = [
    ("main", 7),
    ("server", 6),
    ("api", 5),
    ("state", 4),
    ("chat", 3),
    ("openai", 2),
    ("streams", 2),
    ("conversations", 2),
    ("tokens", 2),
    ("access", 2),
    ("limits", 2),
    ("simulator", 2),
    ("telemetry", 2),
    ("health_check", 2),
    ("config", 1),
    ("message", 0),
    ("ids", 0),
    ("timestamp", 0),
];

/// Every source file with the module it belongs to and its text without its tests.
fn sources() -> Vec<(String, String, String)> {
    fn walk(dir: &Path, found: &mut Vec<(String, String, String)>, root: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found, root);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let module = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                let code =
                    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
                found.push((name, module, code));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found, &root);
    found
}

/// The modules of this crate that `code` names: `crate::a::…`, `crate::{a::…, b}` and, in main, `ai_service::…`.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "ai_service::"] {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let (mut depth, mut word) = (0, String::new());
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 && (c.is_alphanumeric() || c == '_') {
                        word.push(c);
                    } else if depth == 0 && c == ',' {
                        found.push(std::mem::take(&mut word));
                    } else if depth == 0 && c == ':' && !word.ends_with(':') {
                        word.push(':');
                    }
                }
                found.push(word);
            } else {
                found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    found.iter().map(|word| word.split(':').next().unwrap().to_owned()).filter(|word| !word.is_empty()).collect()
}

#[test]
fn each_module_imports_only_lower_ranks() {
    let ranks: BTreeMap<_, _> = RANKS.into_iter().collect();
    let mut looked_at = 0;
    for (file, module, code) in sources() {
        if module == "lib" {
            continue;
        }
        let own = *ranks.get(module.as_str()).unwrap_or_else(|| panic!("{file}: {module} has no rank"));
        for import in imports(&code).into_iter().filter(|import| *import != module) {
            looked_at += 1;
            let other = *ranks.get(import.as_str()).unwrap_or_else(|| panic!("{file}: {import} has no rank"));
            assert!(other < own, "{file} ({own}) must not import {import} ({other})");
        }
    }
    assert!(looked_at > 20, "the imports were found");
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::{\n config::{A, B},\n message::Role,\n ids,\n};\nfn f() { crate::chat::g() }\nuse ai_service::server::App;";
    assert_eq!(imports(code), ["config", "message", "ids", "chat", "server"]);
}

#[test]
fn only_the_right_places_name_what_is_theirs_alone() {
    for (file, module, code) in sources() {
        let only = |word: &str, allowed: &[&str]| {
            let found = code.contains(word);
            assert!(!found || allowed.contains(&module.as_str()), "{file} must not name {word}");
        };
        only("std::env::var", &["config"]);
        only("reqwest::", &["openai"]);
        only("sqlx::", &["conversations"]);
        only("StatusCode", &["api", "openai", "simulator"]);
        only("axum::extract", &["api", "state"]);
        only("static mut", &[]);
    }
}
