//! What runs at once: so many streams of each caller.

use std::sync::Arc;

use dashmap::{DashMap, mapref::entry::Entry};

/// Counts what runs, by name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Slots(Arc<DashMap<Arc<str>, u32>>);

impl Slots {
    /// A place among the `limit` that `who` has; `None` when they are taken.
    #[must_use]
    pub fn take(&self, who: &Arc<str>, limit: u32) -> Option<Slot> {
        let mut count = self.0.entry(Arc::clone(who)).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Slot { who: Arc::clone(who), slots: self.clone() })
    }

    /// A place, even where all are taken: what already runs is counted, not refused.
    #[must_use]
    pub fn occupy(&self, who: &Arc<str>) -> Slot {
        let mut count = self.0.entry(Arc::clone(who)).or_insert(0);
        *count = count.saturating_add(1);
        drop(count);
        Slot { who: Arc::clone(who), slots: self.clone() }
    }
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    who: Arc<str>,
    slots: Slots,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.slots.0.entry(Arc::clone(&self.who)) {
            *count.get_mut() = count.get().saturating_sub(1);
            if *count.get() == 0 {
                // Nobody is remembered who has nothing running.
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_left_and_nothing_is_remembered() {
        let slots = Slots::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let held: Vec<_> = (0..2).map(|_| slots.take(&a, 2).unwrap()).collect();
        assert!(slots.take(&a, 2).is_none());
        assert!(slots.take(&b, 2).is_some());
        drop(held);
        assert!(slots.take(&a, 2).is_some());
        let (_one, _two) = (slots.occupy(&a), slots.occupy(&a));
        drop(slots.occupy(&a));
        assert!(slots.take(&a, 2).is_none(), "what runs anyway counts");
        drop((_one, _two));
        assert!(slots.0.is_empty());
    }
}
