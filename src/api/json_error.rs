//! Where and why a text is not JSON, in the words and with the positions of Python's `json` module.
//!
//! Clients of the original see these in `detail[].ctx.error` and `detail[].loc`. Only texts that `serde_json` has
//! already refused come here, so this is about explaining, never about accepting.

/// What Python's decoder says of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Explanation {
    /// The first error: its position in characters, and its message.
    At(usize, &'static str),
    /// Nested deeper than Python follows.
    TooDeep,
    /// Nothing: it would accept `NaN`, a lone surrogate, a number too large.
    Accepted,
}

/// The first error in `text` as Python's decoder reports it.
pub(crate) fn explain(text: &str) -> Explanation {
    let mut scanner = Scanner { rest: text.chars(), at: 0 };
    scanner.skip_space();
    let outcome = scanner.value(0).and_then(|()| {
        scanner.skip_space();
        match scanner.peek() {
            None => Ok(()),
            Some(_) => Err(scanner.fault("Extra data")),
        }
    });
    match outcome {
        Err(Stop::Fault(at, message)) => Explanation::At(at, message),
        Err(Stop::TooDeep) => Explanation::TooDeep,
        Ok(()) => Explanation::Accepted,
    }
}

/// Levels that Python follows, about.
const MAX_DEPTH: usize = 990;

enum Stop {
    Fault(usize, &'static str),
    TooDeep,
}

struct Scanner<'a> {
    rest: std::str::Chars<'a>,
    /// Characters read so far.
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        self.at += 1;
        Some(c)
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.next();
        }
        found
    }

    fn fault(&self, message: &'static str) -> Stop {
        Stop::Fault(self.at, message)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\n' | '\r')) {
            self.next();
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::TooDeep);
        }
        match self.peek() {
            Some('"') => self.string(),
            Some('{') => self.object(depth),
            Some('[') => self.array(depth),
            _ => {
                let literals = ["null", "true", "false", "NaN", "Infinity", "-Infinity"];
                match literals.iter().find(|word| self.rest.as_str().starts_with(**word)) {
                    Some(word) => {
                        self.rest = self.rest.as_str().get(word.len()..).unwrap_or_default().chars();
                        self.at += word.len();
                        Ok(())
                    }
                    None => self.number(),
                }
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), Stop> {
        self.next();
        self.skip_space();
        if self.take('}') {
            return Ok(());
        }
        loop {
            if self.peek() != Some('"') {
                return Err(self.fault("Expecting property name enclosed in double quotes"));
            }
            self.string()?;
            self.skip_space();
            if !self.take(':') {
                return Err(self.fault("Expecting ':' delimiter"));
            }
            self.skip_space();
            self.value(depth + 1)?;
            self.skip_space();
            if self.take('}') {
                return Ok(());
            }
            if !self.take(',') {
                return Err(self.fault("Expecting ',' delimiter"));
            }
            self.skip_space();
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Stop> {
        self.next();
        self.skip_space();
        if self.take(']') {
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.skip_space();
            if self.take(']') {
                return Ok(());
            }
            if !self.take(',') {
                return Err(self.fault("Expecting ',' delimiter"));
            }
            self.skip_space();
        }
    }

    fn string(&mut self) -> Result<(), Stop> {
        let unterminated = Stop::Fault(self.at, "Unterminated string starting at");
        self.next();
        loop {
            let at = self.at;
            match self.next() {
                None => return Err(unterminated),
                Some('"') => return Ok(()),
                Some('\\') => match self.next() {
                    None => return Err(unterminated),
                    Some('u') => self.unicode_escape()?,
                    Some('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {}
                    Some(_) => return Err(Stop::Fault(at, "Invalid \\escape")),
                },
                Some(c) if c <= '\u{1f}' => return Err(Stop::Fault(at, "Invalid control character at")),
                Some(_) => {}
            }
        }
    }

    /// The four digits behind `\u`; the fault is put at the `u`.
    fn unicode_escape(&mut self) -> Result<(), Stop> {
        let fault = Stop::Fault(self.at - 1, "Invalid \\uXXXX escape");
        for _ in 0..4 {
            if !self.next().is_some_and(|c| c.is_ascii_hexdigit()) {
                return Err(fault);
            }
        }
        // Python wants one character more, for the end of the string.
        if self.peek().is_none() { Err(fault) } else { Ok(()) }
    }

    /// As much as forms a number: `01` is a 0, and what follows it is somebody else's fault.
    fn number(&mut self) -> Result<(), Stop> {
        let fault = self.fault("Expecting value");
        let text = self.rest.as_str().as_bytes();
        let digits = |from: usize| text.iter().skip(from).take_while(|b| b.is_ascii_digit()).count();
        let sign = usize::from(text.first() == Some(&b'-'));
        let mut length = match text.get(sign) {
            Some(b'0') => sign + 1,
            Some(b'1'..=b'9') => sign + digits(sign),
            _ => return Err(fault),
        };
        if text.get(length) == Some(&b'.') && digits(length + 1) > 0 {
            length += 1 + digits(length + 1);
        }
        if matches!(text.get(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(text.get(length + 1), Some(b'+' | b'-')));
            let exponent = digits(length + 1 + sign);
            if exponent > 0 {
                length += 1 + sign + exponent;
            }
        }
        for _ in 0..length {
            self.next();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Explanation, explain};

    #[test]
    fn texts_that_python_accepts_have_no_explanation() {
        for text in ["NaN", "[-Infinity]", r#""\ud800""#, "1e999", "{}", " [1, 2.5e-3, \"x\"] "] {
            assert_eq!(explain(text), Explanation::Accepted, "{text}");
        }
        assert_eq!(explain(&"[".repeat(100_000)), Explanation::TooDeep);
    }

    #[test]
    fn positions_count_characters_not_bytes() {
        assert_eq!(explain(r#"{"안녕":}"#), Explanation::At(6, "Expecting value"));
    }

    #[test]
    fn an_escape_needs_a_character_behind_it() {
        assert_eq!(explain(r#""\u0041"#), Explanation::At(2, "Invalid \\uXXXX escape"));
    }
}
