//! HTTP/2, frame by frame: what an edge does with streams is not left to a library that would do it right.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use loona_hpack::Decoder;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_util::sync::CancellationToken;

use super::{
    Play, Seen, Shared,
    edge::{Reason, Record, Refusal},
    framing::{Framing, Part},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is let in of a request without being asked for more.
const WINDOW: u32 = 1 << 24;

/// No frame may be longer unless the other side said so, which is not asked.
const MAX_FRAME: usize = 16_384;

/// Between two words that come behind a reset.
const LATE_PACE: Duration = Duration::from_millis(10);

/// Between saying that a connection will end and saying with which stream.
const LEAVE_WAIT: Duration = Duration::from_millis(30);

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 32;
}

/// What scripts and switches want of a connection.
pub enum Order {
    Part(u32, Part),
    /// The frame with END_STREAM that was held back.
    End(u32),
    Reset(u32, Reason),
    /// A word on a stream that is reset.
    Late(u32),
    /// GOAWAY, first without a last stream.
    LeaveSoon,
    Leave(Reason),
    Cut,
}

/// A stream from its request to its end.
struct Stream {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// What the client lets in.
    window: i64,
    queue: VecDeque<Vec<u8>>,
    /// Nothing comes behind the queue.
    ends: bool,
    /// All of the answer is sent but for the frame that says so.
    is_whole: bool,
    gone: CancellationToken,
}

struct Connection {
    shared: Arc<Shared>,
    record: Arc<Record>,
    orders: UnboundedSender<Order>,
    out: Vec<u8>,
    decoder: Decoder<'static>,
    /// Headers of a stream whose block goes on.
    block: Option<(u32, u8, Vec<u8>)>,
    streams: HashMap<u32, Stream>,
    answered: HashSet<u32>,
    /// The last stream that was let in; those behind the other one no longer are.
    last: u32,
    leaves_behind: Option<u32>,
    window: i64,
    first_window: i64,
}

/// Why a connection ends.
enum Ended {
    Broken,
    Cut,
}

pub async fn serve(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    record: Arc<Record>,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let (orders, queue) = unbounded_channel();
    record.takes_orders(orders.clone());
    if let Some(age) = shared.edge.age_limit() {
        later(&orders, age, Order::LeaveSoon);
    }
    let mut connection = Connection {
        shared,
        record,
        orders,
        out: Vec::new(),
        decoder: Decoder::new(),
        block: None,
        streams: HashMap::new(),
        answered: HashSet::new(),
        last: 0,
        leaves_behind: None,
        window: 65_535,
        first_window: 65_535,
    };
    let outcome = connection.run(&mut io, queue).await;
    for stream in connection.streams.values() {
        stream.gone.cancel();
    }
    outcome
}

fn later(orders: &UnboundedSender<Order>, wait: Duration, order: Order) {
    let orders = orders.clone();
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        // The connection may be gone by then.
        let _ = orders.send(order);
    });
}

impl Connection {
    async fn run(
        &mut self,
        io: &mut (impl AsyncRead + AsyncWrite + Unpin),
        mut orders: UnboundedReceiver<Order>,
    ) -> io::Result<()> {
        let mut preface = [0; PREFACE.len()];
        io.read_exact(&mut preface).await?;
        if preface != PREFACE {
            return Ok(());
        }
        self.greet();
        let mut unread = Vec::new();
        loop {
            let mut taken = 0;
            while let Some((kind, flags, stream, payload, length)) = frame(&unread[taken..]) {
                if self.take(kind, flags, stream, payload).is_err() {
                    return Ok(());
                }
                taken += length;
            }
            unread.drain(..taken);
            if !self.out.is_empty() {
                io.write_all(&self.out).await?;
                io.flush().await?;
                self.out.clear();
            }
            if self.leaves_behind.is_some() && self.streams.is_empty() {
                return io.shutdown().await;
            }
            tokio::select! {
                read = io.read_buf(&mut unread) => if read? == 0 { return Ok(()) },
                Some(order) = orders.recv() => {
                    let mut next = Some(order);
                    while let Some(order) = next {
                        if let Err(Ended::Cut) = self.obey(order) {
                            self.record.is_cut.store(true, Ordering::SeqCst);
                            return Ok(());
                        }
                        next = orders.try_recv().ok();
                    }
                }
            }
        }
    }

    fn greet(&mut self) {
        let mut settings = Vec::new();
        let limit = self.shared.edge.stream_limit().and_then(|most| u32::try_from(most).ok());
        for (name, value) in [(3_u16, limit), (4, Some(WINDOW))] {
            if let Some(value) = value {
                settings.extend(name.to_be_bytes());
                settings.extend(value.to_be_bytes());
            }
        }
        self.write(kind::SETTINGS, 0, 0, &settings);
        self.write(kind::WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
    }

    fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
        self.out.extend(&length[1..]);
        self.out.extend([kind, flags]);
        self.out.extend(stream.to_be_bytes());
        self.out.extend(payload);
    }

    fn reset(&mut self, stream: u32, reason: Reason) {
        self.write(kind::RST_STREAM, 0, stream, &(reason as u32).to_be_bytes());
        self.forget(stream);
    }

    fn go_away(&mut self, last: u32, reason: Reason) {
        let payload = [last.to_be_bytes(), (reason as u32).to_be_bytes()].concat();
        self.write(kind::GOAWAY, 0, 0, &payload);
    }

    fn leave(&mut self, reason: Reason) {
        if self.leaves_behind.is_none() {
            self.go_away(self.last, reason);
            self.leaves_behind = Some(self.last);
        }
    }

    fn forget(&mut self, stream: u32) {
        if let Some(stream) = self.streams.remove(&stream) {
            stream.gone.cancel();
            self.record.ended();
        }
    }

    /// A frame of the client's.
    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Ended> {
        match kind {
            kind::DATA => self.data(flags, stream, payload)?,
            kind::HEADERS => {
                let mut block = unpadded(flags, payload).ok_or(Ended::Broken)?;
                if flags & flag::PRIORITY != 0 {
                    block = block.get(5..).ok_or(Ended::Broken)?;
                }
                self.block = Some((stream, flags, block.to_vec()));
                self.headers_if_whole(flags)?;
            }
            kind::CONTINUATION => {
                self.block.as_mut().ok_or(Ended::Broken)?.2.extend(payload);
                self.headers_if_whole(flags)?;
            }
            kind::RST_STREAM => self.was_reset(stream),
            kind::SETTINGS if flags & flag::ACK == 0 => self.settings(payload),
            kind::PING if flags & flag::ACK == 0 => {
                self.shared.edge.saw_ping();
                self.write(kind::PING, flag::ACK, 0, payload);
            }
            kind::GOAWAY => self.leaves_behind = self.leaves_behind.or(Some(self.last)),
            kind::WINDOW_UPDATE => self.window_update(stream, payload)?,
            _ => {}
        }
        Ok(())
    }

    fn data(&mut self, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Ended> {
        let length = u32::try_from(payload.len()).expect("a short frame");
        if length > 0 {
            self.write(kind::WINDOW_UPDATE, 0, 0, &length.to_be_bytes());
        }
        let bytes = unpadded(flags, payload).ok_or(Ended::Broken)?;
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        open.body.extend(bytes);
        let is_over = flags & flag::END_STREAM != 0;
        if is_over {
            self.begin(stream);
        } else if length > 0 {
            self.write(kind::WINDOW_UPDATE, 0, stream, &length.to_be_bytes());
        }
        Ok(())
    }

    fn headers_if_whole(&mut self, flags: u8) -> Result<(), Ended> {
        if flags & flag::END_HEADERS == 0 {
            return Ok(());
        }
        let (stream, flags, block) = self.block.take().ok_or(Ended::Broken)?;
        // Also those of streams that are refused: the table goes on with them.
        let headers = self.decoder.decode(&block).map_err(|_| Ended::Broken)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = headers.iter().map(|(name, value)| (text(name), text(value))).collect();
        if self.leaves_behind.is_some_and(|last| stream > last) || self.streams.contains_key(&stream) {
            return Ok(());
        }
        let limit = self.shared.edge.stream_limit();
        if limit.is_some_and(|most| self.streams.len() >= most) {
            self.shared.edge.saw_too_many();
            self.reset(stream, Reason::Refused);
            return Ok(());
        }
        match self.shared.edge.refusal() {
            Some(Refusal::Reset(reason)) => self.reset(stream, reason),
            Some(Refusal::GoAway(reason)) => self.leave(reason),
            None => self.let_in(stream, flags, headers),
        }
        Ok(())
    }

    fn let_in(&mut self, id: u32, flags: u8, headers: Vec<(String, String)>) {
        let stream = Stream {
            headers,
            body: Vec::new(),
            window: self.first_window,
            queue: VecDeque::new(),
            ends: false,
            is_whole: false,
            gone: CancellationToken::new(),
        };
        self.streams.insert(id, stream);
        self.last = id;
        if self.record.begun() >= self.shared.edge.request_limit() {
            self.leave(Reason::NoError);
        }
        if flags & flag::END_STREAM != 0 {
            self.begin(id);
        }
    }

    /// The request is there.
    fn begin(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let headers = std::mem::take(&mut stream.headers);
        let body = std::mem::take(&mut stream.body);
        let named = |name: &str| headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value);
        let line = format!("{} {}", named(":method"), named(":path"));
        let host = ("host".to_owned(), named(":authority").to_owned());
        let headers = headers.into_iter().filter(|(name, _)| !name.starts_with(':')).chain([host]).collect();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
        let script = self.shared.script(Seen { line, headers, body });
        let (shared, orders, gone) = (Arc::clone(&self.shared), self.orders.clone(), stream.gone.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = play(id, script, &shared, &orders, &gone) => {}
                () = gone.cancelled() => {}
            }
        });
    }

    fn was_reset(&mut self, id: u32) {
        let is_needless = match self.streams.get(&id) {
            Some(stream) => stream.is_whole,
            None => self.answered.contains(&id),
        };
        self.shared.edge.saw_reset(is_needless);
        if !self.streams.contains_key(&id) {
            return;
        }
        self.forget(id);
        let during = self.shared.edge.behind_resets();
        if !during.is_zero() {
            let orders = self.orders.clone();
            tokio::spawn(async move {
                let until = tokio::time::Instant::now() + during;
                while tokio::time::Instant::now() < until && orders.send(Order::Late(id)).is_ok() {
                    tokio::time::sleep(LATE_PACE).await;
                }
            });
        }
    }

    fn settings(&mut self, payload: &[u8]) {
        for setting in payload.chunks_exact(6) {
            let value = i64::from(u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]));
            if setting[..2] == [0, 4] {
                for stream in self.streams.values_mut() {
                    stream.window += value - self.first_window;
                }
                self.first_window = value;
            }
        }
        self.write(kind::SETTINGS, flag::ACK, 0, &[]);
        self.pump_all();
    }

    fn window_update(&mut self, id: u32, payload: &[u8]) -> Result<(), Ended> {
        let payload: [u8; 4] = payload.try_into().map_err(|_| Ended::Broken)?;
        let more = i64::from(u32::from_be_bytes(payload) & 0x7fff_ffff);
        if id == 0 {
            self.window += more;
            self.pump_all();
        } else if let Some(stream) = self.streams.get_mut(&id) {
            stream.window += more;
            self.pump(id);
        }
        Ok(())
    }

    fn obey(&mut self, order: Order) -> Result<(), Ended> {
        match order {
            Order::Part(id, Part::Head { status, headers }) if self.streams.contains_key(&id) => {
                let mut block = Vec::new();
                literal(&mut block, ":status", &status.to_string());
                for (name, value) in headers {
                    literal(&mut block, &name, &value);
                }
                self.write(kind::HEADERS, flag::END_HEADERS, id, &block);
            }
            Order::Part(id, Part::Data(bytes)) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.queue.push_back(bytes);
                    self.pump(id);
                }
            }
            Order::Part(id, Part::End) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.ends = true;
                    self.pump(id);
                }
            }
            Order::End(id) => self.end(id),
            Order::Reset(id, reason) if self.streams.contains_key(&id) => self.reset(id, reason),
            Order::Late(id) if self.window > 64 => {
                let word: &[u8] = b"data: {\"choices\":[]}\n\n";
                self.window -= 22;
                self.write(kind::DATA, 0, id, word);
            }
            Order::LeaveSoon if self.leaves_behind.is_none() => {
                self.go_away(i32::MAX as u32, Reason::NoError);
                later(&self.orders, LEAVE_WAIT, Order::Leave(Reason::NoError));
            }
            Order::Leave(reason) => self.leave(reason),
            Order::Cut => return Err(Ended::Cut),
            Order::Part(..) | Order::Reset(..) | Order::Late(_) | Order::LeaveSoon => {}
        }
        Ok(())
    }

    fn pump_all(&mut self) {
        let waiting: Vec<_> =
            self.streams.iter().filter(|(_, open)| !open.queue.is_empty()).map(|(id, _)| *id).collect();
        for id in waiting {
            self.pump(id);
        }
    }

    /// Sends what the client lets in.
    fn pump(&mut self, id: u32) {
        while let Some(stream) = self.streams.get_mut(&id) {
            let Some(front) = stream.queue.front_mut() else { break };
            let most = usize::try_from(stream.window.min(self.window)).unwrap_or(0).min(MAX_FRAME);
            if most == 0 {
                return;
            }
            let rest = front.split_off(most.min(front.len()));
            let bytes = std::mem::replace(front, rest);
            if front.is_empty() {
                stream.queue.pop_front();
            }
            let length = i64::try_from(bytes.len()).expect("a short frame");
            stream.window -= length;
            self.window -= length;
            self.write(kind::DATA, 0, id, &bytes);
        }
        let wait = self.shared.edge.end_wait();
        match self.streams.get_mut(&id) {
            Some(stream) if stream.ends && !stream.is_whole => {
                stream.is_whole = true;
                if wait.is_zero() {
                    self.end(id);
                } else {
                    later(&self.orders, wait, Order::End(id));
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, id: u32) {
        if self.streams.contains_key(&id) {
            self.write(kind::DATA, flag::END_STREAM, id, &[]);
            self.answered.insert(id);
            self.forget(id);
        }
    }
}

/// The first frame: kind, flags, stream, payload, and its length with its head.
fn frame(bytes: &[u8]) -> Option<(u8, u8, u32, &[u8], usize)> {
    let (head, rest) = bytes.split_at_checked(9)?;
    let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).ok()?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
    Some((head[3], head[4], stream, rest.get(..length)?, 9 + length))
}

fn unpadded(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    if flags & flag::PADDED == 0 {
        return Some(payload);
    }
    let (padding, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(*padding))?)
}

/// A header field in HPACK's plainest form: literal, never indexed, without Huffman coding.
fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        let mut length = text.len();
        if length < 127 {
            block.push(u8::try_from(length).expect("below 127"));
        } else {
            block.push(127);
            length -= 127;
            while length >= 128 {
                block.push(u8::try_from(length % 128).expect("below 128") | 128);
                length /= 128;
            }
            block.push(u8::try_from(length).expect("below 128"));
        }
        block.extend(text.as_bytes());
    }
}

/// Plays a script on a stream.
async fn play(id: u32, script: Vec<Play>, shared: &Shared, orders: &UnboundedSender<Order>, gone: &CancellationToken) {
    let broken = || if shared.edge.resets_are_cuts() { Order::Cut } else { Order::Reset(id, Reason::Internal) };
    let mut framing = Framing::new();
    for step in script {
        let parts = match step {
            Play::Send(bytes) => framing.feed(&bytes),
            Play::Pause(time) => {
                tokio::time::sleep(time).await;
                continue;
            }
            Play::Hold => {
                shared.release.notified().await;
                continue;
            }
            Play::Until(gate) => {
                gate.cancelled().await;
                continue;
            }
            Play::Close => framing.close().into_iter().collect(),
            Play::Reset => {
                let _ = orders.send(broken());
                return;
            }
            Play::Silence => {
                gone.cancelled().await;
                shared.left.notify_one();
                return;
            }
        };
        for part in parts {
            let order = if part == Part::Malformed { broken() } else { Order::Part(id, part) };
            // A connection that is gone takes no more; `gone` says so too.
            let _ = orders.send(order);
        }
    }
    if !framing.is_over() {
        gone.cancelled().await;
    }
}
