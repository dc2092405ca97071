//! Room for requests, and a request's way past the guard.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::response::{IntoResponse, Response};
use pin_project_lite::pin_project;

use crate::api::error::ApiError;

/// A request's place among those that are answered at once, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    /// `None`: there is no room.
    pub(super) fn enter(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let entered = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(entered)
    }
}

/// A place that a request hands on to the task that works for it. In the request's extensions; free when the last clone is
/// gone.
#[derive(Clone, Debug)]
pub(crate) struct HeldPlace(#[expect(dead_code, reason = "it is there to be held")] Arc<InFlight>);

impl HeldPlace {
    pub(super) fn new(place: InFlight) -> Self {
        Self(Arc::new(place))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pin_project! {
    /// A request on its way past the guard.
    pub(crate) struct Guarding<F> {
        #[pin]
        step: Step<F>,
        // Given back when the head of the answer is there, for what is long is the body; and when the request is dropped.
        place: Option<InFlight>,
    }
}

pin_project! {
    #[project = StepNow]
    enum Step<F> {
        // Nothing is configured that it could be refused for.
        Open { #[pin] inner: F },
        Guarded { answer: Boxed<Response> },
        Refused { error: Option<ApiError> },
    }
}

impl<F> Guarding<F> {
    pub(super) fn open(inner: F, place: Option<InFlight>) -> Self {
        Self { step: Step::Open { inner }, place }
    }

    pub(super) fn guarded(answer: Boxed<Response>, place: Option<InFlight>) -> Self {
        Self { step: Step::Guarded { answer }, place }
    }

    pub(super) fn refused(error: ApiError) -> Self {
        Self { step: Step::Refused { error: Some(error) }, place: None }
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Guarding<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.step.project() {
            StepNow::Open { inner } => {
                let Ok(response) = ready!(inner.poll(context));
                response
            }
            StepNow::Guarded { answer } => ready!(answer.as_mut().poll(context)),
            StepNow::Refused { error } => error.take().unwrap_or(ApiError::Internal).into_response(),
        };
        *this.place = None;
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_dropped_and_one_too_many_takes_none() {
        let count = Arc::default();
        let held: Vec<_> = (0..3).map(|_| InFlight::enter(&count, 3).unwrap()).collect();
        for _ in 0..5 {
            assert!(InFlight::enter(&count, 3).is_none());
        }
        drop(held);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_or_panics_leaves_its_place() {
        let count = Arc::default();
        let place = || InFlight::enter(&count, 1);
        let waiting = std::future::pending::<Result<Response, Infallible>>();
        let mut guarding = Box::pin(Guarding::open(waiting, Some(place().unwrap())));
        assert!(futures_util::poll!(guarding.as_mut()).is_pending());
        assert!(place().is_none());
        drop(guarding);

        let broken = async { panic!("broken") };
        let guarding = Guarding::open(broken, Some(place().unwrap()));
        let caught = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(guarding)).await;
        assert!(caught.is_err());
        assert!(place().is_some());
    }
}
