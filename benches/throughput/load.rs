//! The load: connections that each ask, take the answer, and ask again, while what it costs is measured.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinSet, LocalSet},
    time::sleep,
};

use crate::{http::Connection, process::Process};

/// How much load, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    /// From the start of one connection to that of the next.
    pub(crate) stagger: Duration,
    /// Before anything is counted: connections are made, caches fill.
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

impl Load {
    /// All connections at once.
    pub(crate) fn of(connections: usize, duration: Duration) -> Self {
        Self { connections, stagger: Duration::ZERO, warm_up: Duration::from_millis(500), duration }
    }
}

/// What the connections note down while it counts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    is_counting: Cell<bool>,
    answers: RefCell<Vec<f64>>,
    firsts: RefCell<Vec<f64>>,
    gaps: RefCell<Vec<f64>>,
    words: Cell<usize>,
    chunks: Cell<usize>,
    bytes: Cell<usize>,
}

impl Tally {
    /// A whole answer, by the time it took.
    pub(crate) fn answer(&self, took: Duration) {
        self.note(&self.answers, took);
    }

    /// The first words of a stream, by the time from the question to them.
    pub(crate) fn first(&self, took: Duration) {
        self.note(&self.firsts, took);
    }

    /// The next words of a stream, by the time since the last.
    pub(crate) fn gap(&self, took: Duration) {
        self.note(&self.gaps, took);
    }

    /// So many words in one HTTP chunk.
    pub(crate) fn words(&self, count: usize) {
        if self.is_counting.get() {
            self.words.set(self.words.get() + count);
            self.chunks.set(self.chunks.get() + 1);
        }
    }

    /// So many bytes of a stream, whatever they say.
    pub(crate) fn bytes(&self, count: usize) {
        if self.is_counting.get() {
            self.bytes.set(self.bytes.get() + count);
        }
    }

    fn note(&self, times: &RefCell<Vec<f64>>, took: Duration) {
        if self.is_counting.get() {
            times.borrow_mut().push(took.as_secs_f64() * 1e6);
        }
    }
}

/// What one measurement found.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    /// CPU time of the target.
    pub(crate) cpu_micros: f64,
    pub(crate) rss_mib: f64,
    pub(crate) answers: Micros,
    pub(crate) firsts: Micros,
    pub(crate) gaps: Micros,
    pub(crate) words: f64,
    /// HTTP chunks that had words.
    pub(crate) chunks: f64,
    pub(crate) bytes: f64,
}

/// Times in microseconds, the shortest first.
#[derive(Debug)]
pub(crate) struct Micros(Vec<f64>);

impl Micros {
    fn sorted(mut micros: Vec<f64>) -> Self {
        micros.sort_by(f64::total_cmp);
        Self(micros)
    }

    pub(crate) fn count(&self) -> f64 {
        self.0.len() as f64
    }

    /// The time that so many percent do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        self.0.get(self.0.len() * percent / 100).copied().unwrap_or(f64::NAN)
    }
}

/// Repeats `exchange` on every connection.
pub(crate) async fn run<E>(process: &Process, load: Load, exchange: E) -> Measured
where
    E: AsyncFn(&mut Connection, &Tally) -> io::Result<()> + 'static,
{
    let (tally, exchange) = (Rc::new(Tally::default()), Rc::new(exchange));
    let work = async {
        let mut tasks = JoinSet::new();
        for number in 0..load.connections {
            let delay = load.stagger * u32::try_from(number).unwrap();
            tasks.spawn_local(repeat(process.address, delay, Rc::clone(&exchange), Rc::clone(&tally)));
        }
        sleep(load.warm_up).await;
        let (begin, cpu_before) = (Instant::now(), process.cpu_micros());
        tally.is_counting.set(true);
        sleep(load.duration).await;
        tally.is_counting.set(false);
        let (seconds, cpu_micros) = (begin.elapsed().as_secs_f64(), process.cpu_micros() - cpu_before);
        // None ends by itself, so this one has failed.
        if let Some(ended) = tasks.try_join_next() {
            panic!("a connection failed: {ended:?}");
        }
        (seconds, cpu_micros)
    };
    let (seconds, cpu_micros) = LocalSet::new().run_until(work).await;
    let answers = Micros::sorted(tally.answers.take());
    assert!(answers.count() > 0.0, "not one whole answer in {seconds} s");
    Measured {
        seconds,
        cpu_micros,
        rss_mib: process.rss_mib(),
        answers,
        firsts: Micros::sorted(tally.firsts.take()),
        gaps: Micros::sorted(tally.gaps.take()),
        words: tally.words.get() as f64,
        chunks: tally.chunks.get() as f64,
        bytes: tally.bytes.get() as f64,
    }
}

async fn repeat<E>(address: SocketAddr, delay: Duration, exchange: Rc<E>, tally: Rc<Tally>) -> io::Result<()>
where
    E: AsyncFn(&mut Connection, &Tally) -> io::Result<()>,
{
    sleep(delay).await;
    let mut connection = Connection::open(address).await?;
    loop {
        exchange(&mut connection, &tally).await?;
    }
}
