//! The load: connections that each send a request, wait for its answer, and send the next.
//!
//! Written on the socket itself, so that the load costs less than anything it measures.

use std::{
    cell::{Cell, RefCell},
    io::{self, Read, Write},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    task::{JoinSet, LocalSet},
    time::{sleep, timeout},
};

use crate::{process::Process, target::ANSWER};

/// Before anything is counted: connections are made, caches fill.
const WARM_UP: Duration = Duration::from_millis(500);

/// What one measurement found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    /// CPU time of the target for one request.
    pub(crate) cpu_micros: f64,
    pub(crate) rss_mib: f64,
}

/// What the connections share.
#[derive(Debug, Default)]
struct Shared {
    counting: Cell<bool>,
    stopping: Cell<bool>,
    micros: RefCell<Vec<f64>>,
}

pub(crate) async fn run(process: &Process, path: &str, body: &str, connections: usize, duration: Duration) -> Measured {
    let request: Rc<[u8]> = request(process.address, path, body).into_bytes().into();
    let shared = Rc::new(Shared::default());
    let work = async {
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            tasks.spawn_local(connection(process.address, Rc::clone(&request), Rc::clone(&shared)));
        }
        sleep(WARM_UP).await;
        let (begin, cpu_before) = (Instant::now(), process.cpu_micros());
        shared.counting.set(true);
        sleep(duration).await;
        shared.counting.set(false);
        let (elapsed, cpu) = (begin.elapsed(), process.cpu_micros() - cpu_before);
        shared.stopping.set(true);
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap().unwrap();
        }
        (elapsed, cpu)
    };
    let limit = WARM_UP + duration + Duration::from_secs(10);
    let (elapsed, cpu) = timeout(limit, LocalSet::new().run_until(work)).await.expect("the target answers no more");

    let mut micros = shared.micros.take();
    micros.sort_by(f64::total_cmp);
    let count = micros.len();
    assert!(count > 0, "not one answer in {elapsed:?}");
    Measured {
        per_second: count as f64 / elapsed.as_secs_f64(),
        p50_micros: micros[count / 2],
        p99_micros: micros[count * 99 / 100],
        cpu_micros: cpu / count as f64,
        rss_mib: process.rss_mib(),
    }
}

fn request(address: SocketAddr, path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn connection(address: SocketAddr, request: Rc<[u8]>, shared: Rc<Shared>) -> io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut is_first = true;
    while !shared.stopping.get() {
        let begin = Instant::now();
        write_all(&stream, &request).await?;
        let answer = read_answer(&stream, &mut buffer).await?;
        if shared.counting.get() {
            shared.micros.borrow_mut().push(begin.elapsed().as_secs_f64() * 1e6);
        }
        if is_first && !contains(answer, ANSWER) {
            return Err(io::Error::other(String::from_utf8_lossy(answer)));
        }
        is_first = false;
    }
    Ok(())
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One answer, which has status 200, a content length, and room in `buffer`.
async fn read_answer<'b>(stream: &TcpStream, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let (mut filled, mut wanted) = (0, None);
    loop {
        match stream.try_read(&mut buffer[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.readable().await?;
                continue;
            }
            Err(error) => return Err(error),
        }
        if wanted.is_none() {
            wanted = answer_length(&buffer[..filled])?;
        }
        if wanted.is_some_and(|wanted| filled >= wanted) {
            return Ok(&buffer[..filled]);
        }
    }
}

/// Bytes of head and body, once the head is there.
fn answer_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let bad = || io::Error::other(String::from_utf8_lossy(bytes));
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad())?;
    let mut lines = head.split("\r\n");
    if !lines.next().is_some_and(|status| status.starts_with("HTTP/1.1 200")) {
        return Err(bad());
    }
    let mut headers = lines.filter_map(|line| line.split_once(':'));
    let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.and_then(|(_, value)| value.trim().parse().ok()).ok_or_else(bad)?;
    Ok(Some(end + 4 + length))
}

fn contains(bytes: &[u8], piece: &[u8]) -> bool {
    bytes.windows(piece.len()).any(|window| window == piece)
}

/// Whether `GET /` at `address` is answered with 200 now.
pub(crate) fn answers_200(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        io::Result::Ok(status == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
