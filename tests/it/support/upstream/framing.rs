//! From the bytes of an HTTP/1.1 response to its parts, which any version of HTTP can carry.

/// A part of a response.
#[derive(Debug, PartialEq)]
pub enum Part {
    Head {
        status: u16,
        headers: Vec<(String, String)>,
    },
    Data(Vec<u8>),
    End,
    /// What cannot be told in another version.
    Malformed,
}

#[derive(Clone, Copy)]
enum State {
    Head,
    /// So much of the body is missing.
    Length(usize),
    ChunkSize,
    Chunk(usize),
    /// The line that ends a chunk; behind the last one, the body.
    ChunkEnd {
        is_last: bool,
    },
    UntilClose,
    Over,
}

/// Takes a response in pieces of any size.
pub struct Framing {
    unread: Vec<u8>,
    state: State,
}

impl Framing {
    pub fn new() -> Self {
        Self { unread: Vec::new(), state: State::Head }
    }

    /// Whether nothing can come behind what has been.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Part> {
        self.unread.extend_from_slice(bytes);
        let mut parts = Vec::new();
        while let Some(part) = self.step(&mut parts) {
            self.state = part;
        }
        parts
    }

    /// The other side closed the connection.
    pub fn close(&mut self) -> Option<Part> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Over => None,
            State::UntilClose => Some(Part::End),
            _ => Some(Part::Malformed),
        }
    }

    /// The next state, if there are bytes for it.
    fn step(&mut self, parts: &mut Vec<Part>) -> Option<State> {
        match self.state {
            State::Head => {
                let head = String::from_utf8_lossy(&self.line(b"\r\n\r\n")?).into_owned();
                let Some((part, state)) = head_of(&head) else {
                    parts.push(Part::Malformed);
                    return Some(State::Over);
                };
                parts.push(part);
                Some(ended(state, parts))
            }
            State::Length(missing) => {
                let data = self.data(missing)?;
                let missing = missing - data.len();
                parts.push(Part::Data(data));
                Some(ended(State::Length(missing), parts))
            }
            State::ChunkSize => {
                let line = self.line(b"\r\n")?;
                let size = std::str::from_utf8(&line).ok().and_then(|line| usize::from_str_radix(line, 16).ok());
                Some(match size {
                    Some(0) => State::ChunkEnd { is_last: true },
                    Some(size) => State::Chunk(size),
                    None => {
                        parts.push(Part::Malformed);
                        State::Over
                    }
                })
            }
            State::Chunk(missing) => {
                let data = self.data(missing)?;
                let missing = missing - data.len();
                parts.push(Part::Data(data));
                Some(if missing == 0 { State::ChunkEnd { is_last: false } } else { State::Chunk(missing) })
            }
            State::ChunkEnd { is_last } => {
                self.line(b"\r\n")?;
                Some(if is_last { ended(State::Length(0), parts) } else { State::ChunkSize })
            }
            State::UntilClose => {
                let data = self.data(usize::MAX)?;
                parts.push(Part::Data(data));
                Some(State::UntilClose)
            }
            State::Over => None,
        }
    }

    /// What stands before `end`, which is taken too.
    fn line(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        let at = self.unread.windows(end.len()).position(|window| window == end)?;
        let rest = self.unread.split_off(at + end.len());
        let mut line = std::mem::replace(&mut self.unread, rest);
        line.truncate(at);
        Some(line)
    }

    /// At most so many bytes, if there are any.
    fn data(&mut self, most: usize) -> Option<Vec<u8>> {
        let rest = self.unread.split_off(most.min(self.unread.len()));
        Some(std::mem::replace(&mut self.unread, rest)).filter(|data| !data.is_empty())
    }
}

fn ended(state: State, parts: &mut Vec<Part>) -> State {
    if matches!(state, State::Length(0)) {
        parts.push(Part::End);
        return State::Over;
    }
    state
}

fn head_of(head: &str) -> Option<(Part, State)> {
    let mut lines = head.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let mut state = State::UntilClose;
    let mut headers = Vec::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let (name, value) = (name.to_lowercase(), value.trim().to_owned());
        match name.as_str() {
            "transfer-encoding" => state = State::ChunkSize,
            "connection" | "keep-alive" => {}
            "content-length" => {
                state = State::Length(value.parse().ok()?);
                headers.push((name, value));
            }
            _ => headers.push((name, value)),
        }
    }
    Some((Part::Head { status, headers }, state))
}
