//! `ai-service healthcheck`: asks the service on this machine for `/health`. Containers have no curl.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::config::Listen;

/// Longer than `/health` waits for the upstream, so that a slow upstream does not make the service look dead.
const LIMIT: Duration = Duration::from_secs(8);

/// The body of `/health`, if the answer is 200.
///
/// # Errors
/// No connection, no answer in 8 s, or another status.
pub fn ask(listen: &Listen) -> io::Result<String> {
    let deadline = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&address(listen), LIMIT)?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            length => answer.extend_from_slice(part.get(..length).unwrap_or_default()),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    if head.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(io::Error::other(format!("/health answered {}", head.lines().next().unwrap_or_default())))
    }
}

/// Where the service can be reached from this machine.
fn address(listen: &Listen) -> SocketAddr {
    let ip = match listen.host.parse() {
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        Ok(ip) => ip,
        // `localhost`: tokio listens on the first address it resolves to.
        Err(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    SocketAddr::new(ip, listen.port)
}
