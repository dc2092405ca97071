//! The breaker: whoever has failed too often is left alone for a while, and callers are told at once.
//!
//! | state | a question | until |
//! |---|---|---|
//! | closed | passes | `failures` of them fail within `within`, and no more than that succeed meanwhile |
//! | open | is turned away | `open` is over |
//! | half-open | passes as a probe; others are turned away | the probe succeeds: closed; it fails: open, for twice as long |
//!
//! The successes count because a busy service has a few failures in any ten seconds, and an upstream that answers all the
//! others is not down. A probe that takes longer than it was open for is not waited for: one more is let through. A probe
//! whose caller leaves has shown nothing, and the next question is one.
//!
//! `pool` has one for each key, which only having no connection counts against, and one for each key and model.
//!
//! The time is given to it; it waits for nothing and locks nothing.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::config::BreakerLimits;

/// See above.
#[derive(Debug)]
pub(super) struct Breaker {
    limits: BreakerLimits,
    /// While closed: when the last failures were, and how many had succeeded before each. No more than can matter.
    failures: VecDeque<(Instant, u64)>,
    successes: u64,
    /// Unless it is closed.
    open: Option<Open>,
}

/// Open, or half-open while a probe is out.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// When the next probe may go.
    until: Instant,
    /// How long it is open each time.
    pause: Duration,
    /// How many probes went.
    probes: u32,
}

/// As what a question passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    Closed,
    /// And which one.
    Probe(u32),
}

impl Breaker {
    pub(super) fn new(limits: BreakerLimits) -> Self {
        Self { limits, failures: VecDeque::new(), successes: 0, open: None }
    }

    /// How long questions are turned away; `None` if one may pass.
    pub(super) fn turns_away(&self, now: Instant) -> Option<Duration> {
        self.open.map(|open| open.until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Lets a question pass that is not turned away. What becomes of it must be told.
    pub(super) fn pass(&mut self, now: Instant) -> Passed {
        let Some(open) = &mut self.open else { return Passed::Closed };
        open.probes += 1;
        open.until = now + open.pause;
        Passed::Probe(open.probes)
    }

    /// Whether that closed it.
    pub(super) fn succeeded(&mut self, passed: Passed) -> bool {
        self.successes += 1;
        // One that passed before it opened says nothing about now.
        matches!(passed, Passed::Probe(_)) && self.open.take().is_some()
    }

    /// For how long that opened it, if it did.
    pub(super) fn failed(&mut self, passed: Passed, now: Instant) -> Option<Duration> {
        let pause = match (passed, self.open) {
            (Passed::Probe(probe), Some(open)) if probe == open.probes => (open.pause * 2).min(self.limits.longest),
            (_, Some(_)) => return None,
            (_, None) if self.is_too_much(now) => self.limits.open,
            (_, None) => return None,
        };
        self.failures.clear();
        let probes = self.open.map_or(0, |open| open.probes);
        self.open = Some(Open { until: now + pause, pause, probes });
        Some(pause)
    }

    /// Counts one failure more.
    fn is_too_much(&mut self, now: Instant) -> bool {
        let most = self.limits.failures;
        self.failures.push_back((now, self.successes));
        while self.failures.len() > most || self.failures.front().is_some_and(|(at, _)| *at + self.limits.within < now)
        {
            self.failures.pop_front();
        }
        let meanwhile = self.failures.front().map_or(0, |(_, before)| self.successes - before);
        most > 0 && self.failures.len() == most && usize::try_from(meanwhile).is_ok_and(|meanwhile| meanwhile <= most)
    }

    /// Whether nothing in it matters any more, so that it can be forgotten: it is closed and its failures are long ago, or
    /// nobody has wanted to know for as long as it was open.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        match self.open {
            Some(open) => open.until + open.pause <= now,
            None => self.failures.back().is_none_or(|(at, _)| *at + self.limits.within < now),
        }
    }

    /// Nothing came of it: its caller left, or what came says nothing here.
    pub(super) fn left(&mut self, passed: Passed, now: Instant) {
        if let (Passed::Probe(probe), Some(open)) = (passed, &mut self.open)
            && probe == open.probes
        {
            open.until = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(BreakerLimits::default()), Instant::now())
    }

    /// Open since the moment that is returned.
    fn opened() -> (Breaker, Instant) {
        let (mut breaker, now) = breaker();
        let opened: Vec<_> = (0..5).map(|_| fail(&mut breaker, now)).collect();
        assert_eq!(opened, [None, None, None, None, Some(5 * SECOND)]);
        (breaker, now)
    }

    fn fail(breaker: &mut Breaker, now: Instant) -> Option<Duration> {
        assert_eq!(breaker.turns_away(now), None);
        let passed = breaker.pass(now);
        breaker.failed(passed, now)
    }

    #[test]
    fn five_failures_in_ten_seconds_open_it_and_four_or_slower_ones_do_not() {
        let (breaker, now) = opened();
        assert_eq!(breaker.turns_away(now + SECOND), Some(4 * SECOND));
        assert_eq!(breaker.turns_away(now + 5 * SECOND), None);

        let (mut slow, now) = self::breaker();
        for n in 0..20 {
            assert_eq!(fail(&mut slow, now + n * (SECOND * 26 / 10)), None, "{n}");
        }
        assert!(slow.failures.len() < 5, "no more than can matter");
    }

    #[test]
    fn failures_among_more_successes_do_not_open_it() {
        let (mut breaker, now) = breaker();
        for n in 0..100 {
            assert_eq!(fail(&mut breaker, now), None, "{n}");
            breaker.succeeded(Passed::Closed);
            breaker.succeeded(Passed::Closed);
        }
        let (mut breaker, now) = self::breaker();
        let opened: Vec<_> = (0..5)
            .map(|_| {
                breaker.succeeded(Passed::Closed);
                fail(&mut breaker, now).is_some()
            })
            .collect();
        assert_eq!(opened, [false, false, false, false, true], "every other one is too much");
    }

    #[test]
    fn one_probe_goes_and_closes_it() {
        let (mut breaker, now) = opened();
        let later = now + 5 * SECOND;
        let probe = breaker.pass(later);
        assert!(breaker.turns_away(later).is_some(), "the others");
        assert!(breaker.succeeded(probe));
        assert_eq!(breaker.turns_away(later), None);
        for _ in 0..4 {
            assert_eq!(fail(&mut breaker, later), None, "it begins to count anew");
        }
        assert_eq!(fail(&mut breaker, later), Some(5 * SECOND));
    }

    #[test]
    fn each_probe_that_fails_doubles_the_pause_up_to_a_minute() {
        let (mut breaker, mut now) = opened();
        let mut pause = 5 * SECOND;
        for expected in [10, 20, 40, 60, 60] {
            now += pause;
            pause = fail(&mut breaker, now).unwrap();
            assert_eq!(pause, expected * SECOND);
            assert_eq!(breaker.turns_away(now), Some(pause));
        }
    }

    #[test]
    fn a_probe_whose_caller_leaves_makes_room_for_the_next_one() {
        let (mut breaker, now) = opened();
        let later = now + 5 * SECOND;
        let probe = breaker.pass(later);
        breaker.left(probe, later + SECOND);
        assert_eq!(breaker.turns_away(later + SECOND), None);
        let next = breaker.pass(later + SECOND);
        breaker.left(probe, later + SECOND);
        assert!(breaker.turns_away(later + SECOND).is_some(), "the next one is out");
        assert!(breaker.succeeded(next));
    }

    #[test]
    fn a_slow_probe_is_not_waited_for() {
        let (mut breaker, now) = opened();
        let slow = breaker.pass(now + 5 * SECOND);
        assert_eq!(breaker.turns_away(now + 9 * SECOND), Some(SECOND));
        let quick = breaker.pass(now + 10 * SECOND);
        assert_eq!(breaker.failed(slow, now + 11 * SECOND), None, "the newest one decides");
        assert!(breaker.succeeded(quick));
        assert_eq!(breaker.turns_away(now + 11 * SECOND), None);
    }

    #[test]
    fn what_passed_before_it_opened_changes_nothing() {
        let (mut breaker, now) = opened();
        assert!(!breaker.succeeded(Passed::Closed));
        assert_eq!(breaker.failed(Passed::Closed, now), None);
        breaker.left(Passed::Closed, now);
        assert_eq!(breaker.turns_away(now), Some(5 * SECOND));
    }

    #[test]
    fn it_is_stale_when_nothing_in_it_can_matter_any_more() {
        let (mut breaker, now) = breaker();
        assert!(breaker.is_stale(now));
        fail(&mut breaker, now);
        assert!(!breaker.is_stale(now + 10 * SECOND) && breaker.is_stale(now + 11 * SECOND));
        let (breaker, now) = opened();
        assert!(!breaker.is_stale(now + 9 * SECOND) && breaker.is_stale(now + 10 * SECOND));
    }

    #[test]
    fn it_can_be_told_never_to_open() {
        let mut breaker = Breaker::new(BreakerLimits { failures: 0, ..BreakerLimits::default() });
        let now = Instant::now();
        for _ in 0..100 {
            assert_eq!(fail(&mut breaker, now), None);
        }
        assert!(breaker.failures.is_empty());
    }
}
