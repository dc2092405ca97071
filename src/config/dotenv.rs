//! The file `.env` of the working directory.
//!
//! dotenvy reads it, but for two things that it cannot be told to leave alone. It replaces `$NAME` by another variable, so
//! that a key with a `$` in it becomes another, shorter key; and outside quotes it takes a backslash for the beginning of an
//! escape. Both characters are handed to it as others that the file does not have, and put back afterwards. It is given one
//! entry at a time, because it does not tell the line of a mistake.

use std::{fs, io, path::Path};

use super::{ConfigError, without_mark};

/// One entry.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its first line, from 1.
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) value: String,
}

/// The entries of the file, which may be missing.
///
/// # Errors
/// It cannot be read, or a line cannot. The message never quotes a line, which may hold a key.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfigError(vec![format!(".env is there but cannot be read: {error}")])),
    };
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(without_mark(text)).map_err(ConfigError),
        Err(error) => {
            let before = bytes.iter().take(error.valid_up_to());
            let line = 1 + before.filter(|byte| **byte == b'\n').count();
            Err(ConfigError(vec![format!(".env, line {line}: not UTF-8")]))
        }
    }
}

/// The entries of `text`, or everything that is wrong with it.
fn parse(text: &str) -> Result<Vec<Entry>, Vec<String>> {
    let Some(stand_ins) = StandIns::absent_from(text) else {
        return Err(vec![".env is not text".to_owned()]);
    };
    let lines: Vec<&str> = text.lines().collect();
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let number = at + 1;
        at += 1;
        if line.trim_start().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        // A value in quotes may go on over several lines.
        let most = if is_quoted(line) { lines.len() - at + 1 } else { 1 };
        let found = (1..=most).find_map(|count| {
            let entry = lines.get(number - 1..number - 1 + count)?.join("\n");
            Some((count, stand_ins.read(&entry)?))
        });
        match found {
            Some((count, (name, value))) => {
                at = number - 1 + count;
                entries.push(Entry { line: number, name, value });
            }
            None => problems.push(format!(".env, line {number}: not NAME=value; quote values with spaces")),
        }
    }
    if problems.is_empty() { Ok(entries) } else { Err(problems) }
}

/// Whether the value begins with a quote.
fn is_quoted(line: &str) -> bool {
    line.split_once('=').is_some_and(|(_, value)| value.trim_start().starts_with(['"', '\'']))
}

/// Characters that the file does not have, in place of `$` and of `\`.
struct StandIns {
    dollar: char,
    backslash: char,
}

impl StandIns {
    fn absent_from(text: &str) -> Option<Self> {
        // For private use: hardly any file has one of them, and none has all.
        let mut absent = ('\u{e000}'..='\u{f8ff}').filter(|stand_in| !text.contains(*stand_in));
        Some(Self { dollar: absent.next()?, backslash: absent.next()? })
    }

    /// What dotenvy makes of one entry; `None` if that is no entry.
    fn read(&self, entry: &str) -> Option<(String, String)> {
        let hidden = self.hide(entry);
        // Without an end of the last line, dotenvy takes a blank there for the beginning of something.
        let (name, value) = dotenvy::from_read_iter(format!("{hidden}\n").as_bytes()).next()?.ok()?;
        Some((name, value.replace(self.dollar, "$").replace(self.backslash, "\\")))
    }

    fn hide(&self, entry: &str) -> String {
        let quoted = is_quoted(entry);
        let mut is_escaped = false;
        let hide = |c: char| {
            let was_escaped = is_escaped;
            is_escaped = quoted && c == '\\' && !was_escaped;
            match c {
                '$' if !was_escaped => self.dollar,
                '\\' if !quoted => self.backslash,
                c => c,
            }
        };
        entry.chars().map(hide).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &str) -> Option<String> {
        let entries = parse(line).ok()?;
        assert_eq!(entries.len(), 1, "{line}");
        entries.into_iter().next().map(|entry| entry.value)
    }

    #[test]
    fn a_value_is_what_is_written() {
        for (line, expected) in [
            ("A=abc$foo0123", "abc$foo0123"),
            ("A=\"abc$foo0123\"", "abc$foo0123"),
            ("A='abc$foo0123'", "abc$foo0123"),
            ("A=$", "$"),
            ("A=$$PATH${HOME}$(x)$1", "$$PATH${HOME}$(x)$1"),
            ("A=\"${HOME}\" # not the home", "${HOME}"),
            ("A=\"a\\$b\\\\$c\\\"d\\n\"", "a$b\\$c\"d\n"),
            ("A='a\\$b\\n'", "a\\$b\\n"),
            ("A=a\\b\\$c\\", "a\\b\\$c\\"),
            ("export A = x", "x"),
            ("A=a#b # c", "a#b"),
            ("A=", ""),
            ("A= ", ""),
            ("A=x ", "x"),
            ("A=x\r\n", "x"),
            ("A=\"one\ntwo $x\n# three\"", "one\ntwo $x\n# three"),
            ("A=\u{e000}$\u{e001}", "\u{e000}$\u{e001}"),
        ] {
            assert_eq!(value(line).as_deref(), Some(expected), "{line:?}");
        }
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_not_quoted() {
        let text = "# don't\n\nA=1\nB=canary canary\nC=\"x\ny\"\ncanary\nD='open canary\nE=1\n";
        let problems = parse(text).err().unwrap();
        let numbers: Vec<_> = problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        assert_eq!(numbers, [".env, line 4", ".env, line 7", ".env, line 8"]);
        assert!(!problems.concat().contains("canary"));
    }

    #[test]
    fn every_entry_has_its_line() {
        let entries = parse("\nA=1\n# x\nB=\"a\nb\"\nC=3").ok().unwrap();
        let lines: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.line)).collect();
        assert_eq!(lines, [("A", 2), ("B", 4), ("C", 6)]);
    }
}
