//! The scenarios of streams: what is asked, of whom, and how an answer is read.
//!
//! Everyone is asked with one request a stream, and reads the same events from the same scripted upstream.

pub(crate) mod burst;
pub(crate) mod idle;
pub(crate) mod paced;
pub(crate) mod resume;
pub(crate) mod upstream;

use std::{io, net::SocketAddr, time::Instant};

use memchr::memmem;

use crate::{
    http::{Connection, post},
    load::{Measured, Tally},
    target::{self, QUESTION, Target},
};

const BARE: Target = Target { path: "/chat/stream", ..target::BARE };

/// The same, handing on together what has come together.
const MERGING: Target = Target { name: "bare axum + reqwest that merges", role: "bare-merging", ..BARE };

const SERVICE: Target = target::SERVICE;

const ALL: [Target; 3] = [BARE, MERGING, SERVICE];

fn question(address: SocketAddr, target: &Target) -> Vec<u8> {
    post(address, target.path, "text/event-stream", QUESTION)
}

/// Asks and reads to the end of a stream, which must have so many words.
async fn read(connection: &mut Connection, request: &[u8], words: usize, tally: &Tally) -> io::Result<()> {
    let begin = Instant::now();
    connection.send(request).await?;
    connection.answer().await?;
    let (mut seen, mut has_ended, mut last) = (0, false, None);
    while let Some(events) = connection.chunk().await? {
        let new = words_in(events);
        tally.bytes(events.len());
        has_ended = memmem::find(events, br#"{"type":"END","#).is_some();
        if new > 0 {
            let now = Instant::now();
            match last.replace(now) {
                None => tally.first(now - begin),
                Some(last) => tally.gap(now - last),
            }
            tally.words(new);
            seen += new;
        }
    }
    if seen != words || !has_ended {
        return Err(io::Error::other(format!("a stream of {seen} words instead of {words}, END: {has_ended}")));
    }
    tally.answer(begin.elapsed());
    Ok(())
}

/// How many words there are in one HTTP chunk, which always has whole events.
fn words_in(events: &[u8]) -> usize {
    memmem::find_iter(events, br#"{"type":"CHUNK","#).count()
}

fn cpu_per_word(measured: &Measured) -> f64 {
    measured.cpu_micros / measured.words
}
