//! Connections beyond those that there may be: each is answered one short request, or told that there are too many.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    task::AbortHandle,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::life::{Life, Phase};
use crate::config::RESERVED_CONNECTIONS;

/// How long one of the reserve may keep another waiting: one that was asked something, and one that was not.
const TURN: Duration = Duration::from_millis(100);
const TURN_OF_THE_SILENT: Duration = Duration::from_millis(10);

/// How often refused connections are looked at, and how often they are told of.
const GATHER: Duration = Duration::from_millis(500);
const TELL: Duration = Duration::from_secs(60);

/// Counts connections that were refused.
#[derive(Clone, Debug, Default)]
pub(super) struct Refused(Arc<AtomicU64>);

impl Refused {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Says now and then how many there were.
    pub(super) async fn tell(self, connections: usize, shutdown: CancellationToken) {
        let mut now_and_then = interval(GATHER);
        now_and_then.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told: Option<Instant> = None;
        let mut is_ending = false;
        while !is_ending {
            tokio::select! {
                () = shutdown.cancelled() => is_ending = true,
                _ = now_and_then.tick() => {}
            }
            if told.is_some_and(|told| told.elapsed() < TELL) {
                continue;
            }
            let refused = self.0.swap(0, Relaxed);
            if refused > 0 {
                told = Some(Instant::now());
                tracing::warn!(refused, connections, "connections were refused: there are as many as there can be");
            }
        }
    }
}

/// The connections of the reserve, the oldest first.
#[derive(Debug)]
pub(super) struct Reserve {
    running: VecDeque<Running>,
    refused: Refused,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    life: Arc<Life>,
    task: AbortHandle,
}

impl Running {
    /// Whether it must give way to another.
    fn is_over(&self) -> bool {
        let turn = if self.life.phase() == Phase::Fresh { TURN_OF_THE_SILENT } else { TURN };
        self.since.elapsed() >= turn
    }
}

impl Reserve {
    pub(super) fn new(refused: Refused) -> Self {
        Self { running: VecDeque::new(), refused }
    }

    /// Lets `serve` run, which is the connection of that life, if there is room or can be made.
    pub(super) async fn admit(
        &mut self,
        life: Arc<Life>,
        serve: impl Future<Output = ()> + Send + 'static,
        tasks: &TaskTracker,
    ) {
        if !self.make_room() {
            // They came at once, and are answered soon, or were silent long enough.
            sleep(TURN_OF_THE_SILENT).await;
            if !self.make_room() {
                self.refused.count();
                return;
            }
        }
        let task = tasks.spawn(serve).abort_handle();
        self.running.push_back(Running { since: Instant::now(), life, task });
    }

    /// Whether there is room, if need be in the place of one that takes too long.
    fn make_room(&mut self) -> bool {
        self.running.retain(|one| !one.task.is_finished());
        if self.running.len() < RESERVED_CONNECTIONS {
            return true;
        }
        let over = self.running.iter().position(Running::is_over).and_then(|at| self.running.remove(at));
        over.is_some_and(|one| {
            one.task.abort();
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn who_takes_long_makes_room_sooner_if_it_says_nothing() {
        let tasks = TaskTracker::new();
        let refused = Refused::default();
        let mut reserve = Reserve::new(refused.clone());
        let life = |phase: Phase| {
            let life = Arc::new(Life::new(Instant::now()));
            life.set(phase);
            life
        };
        reserve.admit(life(Phase::Fresh), pending(), &tasks).await;
        for _ in 1..RESERVED_CONNECTIONS {
            reserve.admit(life(Phase::Asked), pending(), &tasks).await;
        }
        reserve.admit(life(Phase::Asked), pending(), &tasks).await;
        assert_eq!(refused.0.load(Relaxed), 0, "in the place of the one that says nothing");
        reserve.admit(life(Phase::Asked), pending(), &tasks).await;
        assert_eq!(refused.0.load(Relaxed), 1);
        advance(TURN).await;
        for _ in 0..RESERVED_CONNECTIONS {
            reserve.admit(life(Phase::Asked), async {}, &tasks).await;
        }
        assert_eq!(refused.0.load(Relaxed), 1);
        tasks.close();
        tasks.wait().await;
    }
}
