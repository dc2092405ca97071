//! A proxy in front of the service that breaks connections where a test says, and notes what passes.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, broadcast},
    task::JoinHandle,
};

use super::upstream::Seen;

/// How a connection is cut.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// As by a process that ends: FIN.
    Fin,
    /// As by a machine that knows nothing of the connection: RST.
    Rst,
}

/// The proxy. It stops when it is dropped, and cuts what is left.
///
/// It reads the requests that pass, one by one; they must have no body. `GET /page` it answers itself, so that a test
/// can have a page of the same origin as the service.
pub struct CuttingProxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    service: SocketAddr,
    page: &'static str,
    connections: AtomicUsize,
    requests: Mutex<Vec<Seen>>,
    /// The bytes behind which an answer is to stop.
    trap: Mutex<Option<Vec<u8>>>,
    stopped: Notify,
    cuts: broadcast::Sender<Cut>,
}

impl CuttingProxy {
    pub async fn start(service: SocketAddr, page: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            service,
            page,
            connections: AtomicUsize::new(0),
            requests: Mutex::default(),
            trap: Mutex::default(),
            stopped: Notify::new(),
            cuts: broadcast::Sender::new(16),
        });
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((browser, _)) = listener.accept().await {
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    let cuts = shared.cuts.subscribe();
                    let shared = Arc::clone(&shared);
                    // However a connection ends: both sides see it.
                    tokio::spawn(async move { drop(pass(browser, &shared, cuts).await) });
                }
            }
        });
        Self { address, shared, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Cuts every connection there is, and tells how many that were.
    pub fn cut(&self, how: Cut) -> usize {
        self.shared.cuts.send(how).unwrap_or(0)
    }

    /// In the next answer these bytes are the last that pass; the connection stays, to be cut.
    pub fn stop_behind(&self, bytes: &[u8]) {
        let old = self.shared.trap.lock().expect("the trap").replace(bytes.to_vec());
        assert!(old.is_none(), "the bytes of the last call have not come yet");
    }

    /// Waits until an answer has stopped.
    pub async fn stopped(&self) {
        tokio::time::timeout(super::PATIENCE, self.shared.stopped.notified()).await.expect("the bytes come");
    }

    /// Connections so far. A browser opens some that it never uses.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.requests.lock().expect("the requests").clone()
    }
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut(Cut::Fin);
    }
}

async fn pass(mut browser: TcpStream, shared: &Shared, mut cuts: broadcast::Receiver<Cut>) -> io::Result<()> {
    let mut service = TcpStream::connect(shared.service).await?;
    browser.set_nodelay(true)?;
    let (mut unread, mut answers) = (Vec::new(), Vec::new());
    let mut is_stopped = false;
    loop {
        let passed = answers.len();
        tokio::select! {
            how = cuts.recv() => return cut([browser, service], how.unwrap_or(Cut::Fin)),
            read = browser.read_buf(&mut unread) => {
                if read? == 0 {
                    return Ok(());
                }
                while let Some(head) = take_head(&mut unread) {
                    let seen = parse(&head);
                    let is_page = seen.line.starts_with("GET /page");
                    shared.requests.lock().expect("the requests").push(seen);
                    if is_page {
                        browser.write_all(page(shared.page).as_bytes()).await?;
                    } else {
                        service.write_all(&head).await?;
                    }
                }
            }
            read = service.read_buf(&mut answers), if !is_stopped => {
                if read? == 0 {
                    return Ok(());
                }
                let stop = shared.spring(&answers, passed);
                browser.write_all(&answers[passed..stop.unwrap_or(answers.len())]).await?;
                if stop.is_some() {
                    is_stopped = true;
                    shared.stopped.notify_one();
                }
            }
        }
    }
}

impl Shared {
    /// Where to stop in `answers`, of which that many bytes have passed.
    fn spring(&self, answers: &[u8], passed: usize) -> Option<usize> {
        let mut trap = self.trap.lock().expect("the trap");
        let bytes = trap.as_ref()?;
        // They may have begun to come in what has passed already.
        let from = (passed + 1).saturating_sub(bytes.len());
        let at = answers[from..].windows(bytes.len()).position(|window| window == bytes)?;
        let stop = from + at + bytes.len();
        *trap = None;
        Some(stop)
    }
}

fn cut(streams: [TcpStream; 2], how: Cut) -> io::Result<()> {
    if let Cut::Rst = how {
        for stream in &streams {
            // With nothing to linger for, closing sends RST.
            stream.set_zero_linger()?;
        }
    }
    drop(streams);
    Ok(())
}

fn take_head(unread: &mut Vec<u8>) -> Option<Vec<u8>> {
    let at = unread.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(unread.drain(..at + 4).collect())
}

fn parse(head: &[u8]) -> Seen {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let line = lines.next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
    Seen { line, headers, body: Value::Null }
}

/// Never from the browser's cache: whoever reloads asks again.
fn page(html: &str) -> String {
    let length = html.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\ncache-control: no-store\r\n\
         content-length: {length}\r\n\r\n{html}"
    )
}
