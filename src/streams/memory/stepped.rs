//! The log in steps, for tests that try every order in which steps can be taken.
//!
//! Shuttle runs the tasks of such a test on one thread and decides at the end of every turn who goes on. A turn can end
//! * before each primitive of the log, and behind a read: so between a reader's `notified`, its read and its wait;
//! * inside of an append, where it wakes a reader. Whoever then wants the locked session waits, as at the real lock.
//!
//! The rest of an append is one step: compare, entries, status and wake-up come under one guard, which every other
//! primitive has to take. That guard is DashMap's and not Shuttle's, as `Notify` is Tokio's. That there is one guard, and
//! that both keep what they promise, is left to tests with threads.

use std::{
    future::poll_fn,
    mem::ManuallyDrop,
    pin::pin,
    task::{Context, Wake, Waker},
};

use shuttle::{
    Config, Runner,
    scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Schedule, Scheduler, Task, TaskId},
};

use super::*;

/// Lets Shuttle decide who goes on. It knows no time: this is all that its `sleep` does.
fn end_turn() {
    shuttle::thread::sleep(Duration::ZERO);
}

#[derive(Debug)]
pub(crate) struct SteppedLog {
    pub(crate) log: MemoryLog,
    /// A session may be free again.
    freed: Notify,
}

impl SteppedLog {
    pub(crate) fn new(limits: MemoryLogLimits) -> Self {
        Self { log: MemoryLog::new(limits), freed: Notify::new() }
    }

    pub(super) async fn step<'a, T>(
        &'a self,
        id: StreamId,
        primitive: impl FnOnce(&'a MemoryLog) -> Pending<'a, T>,
    ) -> T {
        end_turn();
        loop {
            let freed = self.freed.notified();
            if !self.log.sessions.try_get(&id).is_locked() {
                break;
            }
            freed.await;
        }
        let done = primitive(&self.log).await;
        self.freed.notify_waiters();
        done
    }
}

impl StreamLog for SteppedLog {
    fn create(&self, id: StreamId, owner: Owner, start: Batch, held: usize) -> Pending<'_, Result<(), CreateError>> {
        Box::pin(self.step(id, move |log| log.create(id, owner, start, held)))
    }

    fn append(&self, id: StreamId, behind: Seq, batch: Batch) -> Pending<'_, Result<(), AppendError>> {
        Box::pin(self.step(id, move |log| log.append(id, behind, batch)))
    }

    fn read(&self, id: StreamId, cursor: Seq) -> Pending<'_, Option<Slice>> {
        Box::pin(async move {
            let slice = self.step(id, |log| log.read(id, cursor)).await;
            end_turn();
            slice
        })
    }

    fn state(&self, id: StreamId) -> Pending<'_, Option<State>> {
        Box::pin(self.step(id, move |log| log.state(id)))
    }

    fn watch(&self, id: StreamId) -> Pending<'_, Option<Arc<Notify>>> {
        Box::pin(self.step(id, move |log| log.watch(id)))
    }
}

/// `future`, so that who wakes it has its turn ended by that.
pub(crate) async fn ending_turns<F: Future>(future: F) -> F::Output {
    struct EndsTurn(Waker);

    impl Wake for EndsTurn {
        fn wake(self: Arc<Self>) {
            self.0.wake_by_ref();
            end_turn();
        }
    }

    let mut future = pin!(future);
    poll_fn(|context| {
        let waker = Waker::from(Arc::new(EndsTurn(context.waker().clone())));
        future.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

/// The orders to try.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Orders {
    /// Every one.
    All,
    /// Every one in which at most so many turns end though who has it could go on. Most mistakes need one or two.
    Preempting(usize),
    /// So many at random, and so many of those in which two preemptions stand at random places.
    Random(usize),
}

impl Orders {
    /// Runs `scene` in each of them. How many they were.
    pub(crate) fn explore(self, scene: impl Fn() + Clone + Send + Sync + 'static) -> usize {
        // A reader sets up its poll, for which there has to be a clock. Nobody waits on this runtime, so it stands still,
        // and no poll comes to the rescue: after a lost wake-up a reader waits for ever, which Shuttle calls a deadlock.
        // It is not dropped: that would wake, outside of Shuttle, the readers which a scene that failed has left behind.
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let clock = ManuallyDrop::new(clock);
        let _entered = clock.enter();
        let mut config = Config::new();
        config.stack_size = 256 * 1024;
        match self {
            Self::All => Runner::new(DfsScheduler::new(None, false), config).run(scene),
            Self::Preempting(most) => {
                let scheduler = Preempting { all: DfsScheduler::new(None, false), most, so_far: 0 };
                Runner::new(scheduler, config).run(scene)
            }
            Self::Random(count) => {
                Runner::new(RandomScheduler::new(count), config.clone()).run(scene.clone())
                    + Runner::new(PctScheduler::new(3, count), config).run(scene)
            }
        }
    }
}

#[derive(Debug)]
struct Preempting {
    all: DfsScheduler,
    most: usize,
    so_far: usize,
}

impl Scheduler for Preempting {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.so_far = 0;
        self.all.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        let goes_on = runnable.iter().position(|task| Some(task.id()) == current);
        let choices = match goes_on {
            Some(at) if self.so_far == self.most => &runnable[at..=at],
            _ => runnable,
        };
        let next = self.all.next_task(choices, current, is_yielding);
        self.so_far += usize::from(goes_on.is_some() && next != current);
        next
    }

    fn next_u64(&mut self) -> u64 {
        self.all.next_u64()
    }
}
