//! The load: connections that each send one request after the other, each a random one of those that there are.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinSet, LocalSet},
    time::{sleep, timeout},
};

use crate::{
    database::{CONVERSATIONS, LONG_CONVERSATIONS},
    process::Process,
};

/// Before anything is counted: connections are made, caches fill.
const WARM_UP: Duration = Duration::from_millis(500);

/// What one measurement found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    /// CPU time of the service for one request, all its threads.
    pub(crate) cpu_micros: f64,
    pub(crate) rss_mib: f64,
}

/// What may be asked, and what every answer to it holds.
#[derive(Debug)]
pub(crate) struct Requests {
    all: Vec<Vec<u8>>,
    answer: &'static str,
}

impl Requests {
    /// `POST /chat`, one for each conversation, each with `rest` behind its message.
    pub(crate) fn chat(rest: impl Fn(usize) -> String) -> Self {
        let request = |number| {
            let body = format!(r#"{{"message":"And what if it rains on day {number}?"{}}}"#, rest(number));
            let head = "POST /chat HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json";
            format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
        };
        Self { all: (0..CONVERSATIONS).map(request).collect(), answer: "This is the simulated OpenAI" }
    }

    pub(crate) fn get(path: impl Fn(usize) -> String) -> Self {
        let request = |number| format!("GET {} HTTP/1.1\r\nhost: bench\r\n\r\n", path(number)).into_bytes();
        Self { all: (0..LONG_CONVERSATIONS).map(request).collect(), answer: r#""role": "assistant""# }
    }
}

/// What the connections share.
#[derive(Debug, Default)]
struct Shared {
    counting: Cell<bool>,
    stopping: Cell<bool>,
    micros: RefCell<Vec<f64>>,
    /// Steps through the requests in an order that looks random and is the same every time.
    next: Cell<usize>,
}

pub(crate) async fn run(process: &Process, requests: &Requests, connections: usize, duration: Duration) -> Measured {
    let shared = Rc::new(Shared::default());
    let requests = Rc::new(Requests { all: requests.all.clone(), answer: requests.answer });
    let work = async {
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            tasks.spawn_local(connection(process.address, Rc::clone(&requests), Rc::clone(&shared)));
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
    let (elapsed, cpu) = timeout(limit, LocalSet::new().run_until(work)).await.expect("the service answers no more");

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

async fn connection(address: SocketAddr, requests: Rc<Requests>, shared: Rc<Shared>) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(128 * 1024);
    while !shared.stopping.get() {
        // A prime, so that it comes by each once before it comes by one twice.
        let number = shared.next.replace(shared.next.get() + 7919);
        let begin = Instant::now();
        stream.write_all(&requests.all[number % requests.all.len()]).await?;
        let is_good = read_answer(&mut stream, &mut buffer, requests.answer.as_bytes()).await?;
        if shared.counting.get() {
            shared.micros.borrow_mut().push(begin.elapsed().as_secs_f64() * 1e6);
        }
        if !is_good {
            return Err(io::Error::other(String::from_utf8_lossy(&buffer)));
        }
    }
    Ok(())
}

/// Reads one answer, which has a content length. False: it is not a 200 with `words` in it.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>, words: &[u8]) -> io::Result<bool> {
    buffer.clear();
    let mut wanted = None;
    while wanted.is_none_or(|wanted| buffer.len() < wanted) {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if wanted.is_none() {
            let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&buffer[..end]);
            let mut headers = head.lines().filter_map(|line| line.split_once(": "));
            let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            wanted = Some(end + 4 + length.and_then(|(_, length)| length.parse::<usize>().ok()).expect("a length"));
        }
    }
    Ok(buffer.starts_with(b"HTTP/1.1 200") && memchr::memmem::find(buffer, words).is_some())
}
