//! Reading variables by name, and gathering what is wrong with them.

use std::{collections::BTreeSet, fs, ops::RangeInclusive, time::Duration};

use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, Variables, without_mark};

/// Reads variables by name and remembers what it was asked for and what was wrong.
pub(super) struct Reader<'a> {
    variables: &'a Variables,
    pub(super) asked: BTreeSet<&'static str>,
    pub(super) problems: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(variables: &'a Variables) -> Self {
        Self { variables, asked: BTreeSet::new(), problems: Vec::new() }
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.problems.is_empty() { Ok(value) } else { Err(ConfigError(self.problems)) }
    }

    /// The trimmed value; blank is unset. Quotes around it are a mistake, which `docker run --env-file` makes of what is right
    /// in `.env`: nothing that is set here needs them.
    pub(super) fn text(&mut self, name: &'static str) -> Option<&'a str> {
        self.asked.insert(name);
        let value = self.variables.get(name).map(|value| value.trim())?;
        let value = match unquoted(value) {
            Some(inner) => {
                self.problems.push(format!("{name} {QUOTED}"));
                inner.trim()
            }
            None => value,
        };
        Some(value).filter(|value| !value.is_empty())
    }

    /// A variable that is not this service's own.
    pub(super) fn foreign(&self, name: &str) -> Option<&'a str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The value as `understand` sees it, or `default`. The problem says what was expected, and shows the value:
    /// not for secrets.
    pub(super) fn parse<T>(
        &mut self,
        name: &'static str,
        default: T,
        expected: &str,
        understand: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(value) = self.text(name) else {
            return default;
        };
        understand(value).unwrap_or_else(|| {
            let shown: String = value.chars().take(60).collect();
            self.problems.push(format!("{name} must be {expected}, not {shown:?}"));
            default
        })
    }

    pub(super) fn seconds(&mut self, name: &'static str, default: Duration, range: RangeInclusive<u64>) -> Duration {
        let expected = format!("whole seconds from {} to {}", range.start(), range.end());
        let seconds = |v: &str| v.parse().ok().filter(|s| range.contains(s)).map(Duration::from_secs);
        self.parse(name, default, &expected, seconds)
    }

    pub(super) fn switch(&mut self, name: &'static str, default: bool) -> bool {
        self.parse(name, default, "on or off", |v| match v.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Some(true),
            "off" | "false" | "no" | "0" => Some(false),
            _ => None,
        })
    }

    pub(super) fn header_text(&mut self, name: &'static str) -> Option<String> {
        let plain = |v: &str| v.bytes().all(|b| b.is_ascii_graphic()).then(|| Some(v.to_owned()));
        self.parse(name, None, "one word of visible ASCII characters", plain)
    }

    /// Secrets of which one must be there at least, separated by commas or lines. No problem shows a value.
    pub(super) fn secrets(&mut self, name: &'static str, file_name: &'static str) -> Vec<SecretString> {
        let problems = self.problems.len();
        let Some(text) = self.secret_value(name, file_name) else {
            if self.problems.len() == problems {
                self.problems.push(format!("{name} (or {file_name}) is required"));
            }
            return Vec::new();
        };
        let values: Vec<String> = words(text.expose_secret()).map(str::to_owned).collect();
        let problem = if values.is_empty() {
            Some("holds no key")
        } else if values.iter().any(|value| unquoted(value).is_some()) {
            Some(QUOTED)
        } else if values.iter().any(|value| is_placeholder(value)) {
            Some("is a placeholder; put the key of your account in its place, or start with --demo")
        } else if !values.iter().all(|value| value.bytes().all(|b| b.is_ascii_graphic())) {
            Some("must be one word of visible ASCII characters, or several separated by commas")
        } else if values.iter().collect::<BTreeSet<_>>().len() < values.len() {
            Some("holds a key twice")
        } else {
            None
        };
        self.problems.extend(problem.map(|problem| format!("{name} {problem}")));
        values.into_iter().map(SecretString::from).collect()
    }

    /// A secret of one word.
    pub(super) fn optional_secret(&mut self, name: &'static str, file_name: &'static str) -> Option<SecretString> {
        let value = self.secret_value(name, file_name)?;
        if !value.expose_secret().bytes().all(|b| b.is_ascii_graphic()) {
            self.problems.push(format!("{name} must be one word of visible ASCII characters"));
        }
        Some(value)
    }

    /// A secret from its variable or from the file that its `_FILE` variable names. No problem shows its value.
    pub(super) fn secret_value(&mut self, name: &'static str, file_name: &'static str) -> Option<SecretString> {
        let direct = self.text(name);
        let from_file = self.text(file_name).and_then(|path| match fs::read_to_string(path) {
            Ok(content) => match without_mark(&content).trim() {
                "" => {
                    self.problems.push(format!("{file_name}: the file {path:?} is empty"));
                    None
                }
                content => match unquoted(content) {
                    Some(_) => {
                        self.problems.push(format!("{file_name}: the content of {path:?} {QUOTED}"));
                        None
                    }
                    None => Some(content.to_owned()),
                },
            },
            Err(error) => {
                self.problems.push(format!("{file_name}: cannot read {path:?}: {error}"));
                None
            }
        });
        let value = match (direct, from_file) {
            (Some(direct), Some(file)) if !words(direct).eq(words(&file)) => {
                self.problems.push(format!("{name} and {file_name} are both set and differ; keep one"));
                return None;
            }
            (Some(direct), _) => direct.to_owned(),
            (None, Some(file)) => file,
            (None, None) => return None,
        };
        Some(SecretString::from(value))
    }
}

/// What is wrong with a value in quotes.
pub(super) const QUOTED: &str = "has quotes around it, which would be a part of it; leave them out";

/// What stands between quotes, if there are some around all of it.
pub(super) fn unquoted(value: &str) -> Option<&str> {
    let within = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    within('"').or_else(|| within('\''))
}

/// Whether a key is what examples have in its place.
fn is_placeholder(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let key = key.strip_prefix("sk-").unwrap_or(&key);
    key == "..." || key.starts_with("your-") || key.starts_with("your_")
}

/// What stands between commas and line ends.
pub(super) fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', '\n']).map(str::trim).filter(|word| !word.is_empty())
}
