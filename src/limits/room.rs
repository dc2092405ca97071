//! Memory that all share, and of which nobody may have more than a part: bodies of requests while they are read.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dashmap::{DashMap, mapref::entry::Entry};

/// How much of it one may have: a quarter.
const SHARE: usize = 4;

/// The room for bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Room(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    taken: AtomicUsize,
    /// By those who have taken some.
    by_name: DashMap<Arc<str>, usize>,
}

impl Room {
    /// For so many bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Shared { max, taken: AtomicUsize::new(0), by_name: DashMap::new() }))
    }

    /// Nothing yet, for whoever that is; where nobody is told apart, all of it is everybody's.
    #[must_use]
    pub fn hold(&self, who: Option<Arc<str>>) -> Hold {
        Hold { room: self.clone(), who, bytes: 0 }
    }

    /// Bytes that are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }
}

/// Bytes that are taken, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    room: Room,
    who: Option<Arc<str>>,
    bytes: usize,
}

impl Hold {
    /// Takes more. False: there is no more, or this one has its part; then nothing was taken.
    pub fn take(&mut self, bytes: usize) -> bool {
        let Shared { max, taken, by_name } = &*self.room.0;
        let before = taken.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= *max
            && self.who.as_ref().is_none_or(|who| {
                let mut theirs = by_name.entry(Arc::clone(who)).or_insert(0);
                let fits = *theirs + bytes <= max / SHARE;
                *theirs += if fits { bytes } else { 0 };
                fits
            });
        if fits {
            self.bytes += bytes;
        } else {
            taken.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Shared { taken, by_name, .. } = &*self.room.0;
        taken.fetch_sub(self.bytes, Ordering::Relaxed);
        let Some(who) = self.who.take() else { return };
        if let Entry::Occupied(mut theirs) = by_name.entry(who) {
            *theirs.get_mut() -= self.bytes.min(*theirs.get());
            if *theirs.get() == 0 {
                theirs.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_a_quarter_and_all_have_the_whole_until_it_is_given_back() {
        let room = Room::new(1000);
        let hold = |who: &str| room.hold(Some(who.into()));
        let (mut a, mut b) = (hold("a"), hold("a"));
        assert!(a.take(200) && !b.take(51) && b.take(50) && !a.take(1));
        let mut others: Vec<_> = ["b", "c", "d"].map(hold).into();
        assert!(others.iter_mut().all(|other| other.take(250)));
        assert!(!hold("e").take(1) && !room.hold(None).take(1));
        drop(others);
        assert!(room.hold(None).take(750), "nobody in particular may have all that is left");
        drop((a, b));
        assert_eq!((room.taken(), room.0.by_name.len()), (0, 0));
    }
}
