//! The little of HTTP/1.1 that the load and the scripted upstream speak, on the socket itself: so that they cost less
//! than anything that is measured.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// One end of a connection, and what has been read from it but not yet taken.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    taken: usize,
    filled: usize,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        Self::on(TcpStream::connect(address).await?)
    }

    pub(crate) fn on(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024], taken: 0, filled: 0 })
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The head of a request or an answer, without the empty line behind it.
    async fn head(&mut self) -> io::Result<&str> {
        let head = self.up_to(b"\r\n\r\n").await?;
        std::str::from_utf8(head).map_err(io::Error::other)
    }

    /// Takes a request. Its end is an error of the kind `UnexpectedEof` when the client has left.
    pub(crate) async fn request(&mut self) -> io::Result<()> {
        let length = content_length(self.head().await?).unwrap_or(0);
        self.take(length).await?;
        Ok(())
    }

    /// Takes the head of an answer, which has status 200, and tells the length of its body if that is known.
    pub(crate) async fn answer(&mut self) -> io::Result<Option<usize>> {
        self.answer_of("200").await
    }

    /// The same, with another status.
    pub(crate) async fn answer_of(&mut self, status: &str) -> io::Result<Option<usize>> {
        let head = self.head().await?;
        if head.strip_prefix("HTTP/1.1 ").is_some_and(|rest| rest.starts_with(status)) {
            Ok(content_length(head))
        } else {
            Err(io::Error::other(head.to_owned()))
        }
    }

    /// The next chunk of a body of unknown length; `None` behind the last.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<&[u8]>> {
        let line = std::str::from_utf8(self.up_to(b"\r\n").await?).map_err(io::Error::other)?;
        let size = usize::from_str_radix(line, 16).map_err(io::Error::other)?;
        let data = self.take(size + 2).await?;
        Ok((size > 0).then(|| &data[..size]))
    }

    /// As many bytes as are asked for.
    pub(crate) async fn take(&mut self, length: usize) -> io::Result<&[u8]> {
        while self.filled - self.taken < length {
            self.fill().await?;
        }
        let begin = self.taken;
        self.taken += length;
        Ok(&self.buffer[begin..self.taken])
    }

    /// Waits until the other end has left.
    pub(crate) async fn left(&mut self) -> io::Result<()> {
        loop {
            self.taken = self.filled;
            self.fill().await?;
        }
    }

    /// Whether the other end is still there, as far as can be told without waiting.
    pub(crate) fn is_open(&self) -> bool {
        let looked = self.stream.try_read(&mut [0; 256]);
        looked.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |read| read > 0)
    }

    /// What comes before `mark`, which is taken too.
    async fn up_to(&mut self, mark: &[u8]) -> io::Result<&[u8]> {
        let length = loop {
            if let Some(found) = memmem::find(&self.buffer[self.taken..self.filled], mark) {
                break found;
            }
            self.fill().await?;
        };
        Ok(&self.take(length + mark.len()).await?[..length])
    }

    /// Reads more, at the front of the buffer if nothing is left there.
    async fn fill(&mut self) -> io::Result<()> {
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        } else if self.filled == self.buffer.len() && self.taken > 0 {
            self.buffer.copy_within(self.taken.., 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
        } else if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.filled += read;
                Ok(())
            }
        }
    }
}

fn content_length(head: &str) -> Option<usize> {
    let mut headers = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    value.trim().parse().ok()
}

/// A request with a JSON body.
pub(crate) fn post(address: SocketAddr, path: &str, accept: &str, body: &str) -> Vec<u8> {
    post_with(address, path, &format!("accept: {accept}\r\n"), body)
}

/// The same, with headers of its own, each with its line end.
pub(crate) fn post_with(address: SocketAddr, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\n{headers}content-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A request without a body.
pub(crate) fn get(address: SocketAddr, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").into_bytes()
}

/// Whether `GET /` at `address` is answered with 200 now.
pub(crate) fn answers_200(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&get(address, "/"))?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        io::Result::Ok(status == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
