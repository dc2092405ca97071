//! Each request and its answer, as the connection must know of them.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use axum::{
    body::{Body, HttpBody},
    http::{HeaderValue, Response, header},
};
use bytes::Bytes;
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
    header::{EXPECT, UPGRADE},
};
use pin_project_lite::pin_project;
use tower::Service;

use super::life::{Life, Phase};
use crate::{
    api::{Api, Crowded, is_short},
    state::Place,
};

/// The answer behind which a connection speaks no HTTP any longer.
const SWITCHING_PROTOCOLS: u16 = 101;

/// What to do with the requests of a connection.
#[derive(Clone, Debug)]
pub(super) enum Admission {
    /// They are answered. One that wants to take the connection over is shown the place that goes with it.
    Placed(Place),
    /// There are too many connections: only short requests are answered.
    Crowded(super::reserve::Refused),
}

/// Answers the requests of one connection.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) api: Api,
    pub(super) life: Arc<Life>,
    pub(super) admission: Admission,
}

impl Service<Request<Incoming>> for Exchange {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Answering<<Api as Service<Request<Question>>>::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Question>>::poll_ready(&mut self.api, context)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        self.life.set(Phase::Asked);
        match &self.admission {
            Admission::Placed(place) => {
                if request.headers().contains_key(UPGRADE) {
                    request.extensions_mut().insert(place.clone());
                }
            }
            Admission::Crowded(refused) => {
                if !is_short(&request) {
                    refused.count();
                    request.extensions_mut().insert(Crowded);
                }
            }
        }
        let has_body = !request.body().is_end_stream();
        self.life.set_unread(has_body);
        let life = has_body.then(|| Arc::clone(&self.life));
        let waits = has_body && request.headers().contains_key(EXPECT);
        let request = request.map(|body| Question { body, life, waits });
        Answering { inner: self.api.call(request), life: Arc::clone(&self.life) }
    }
}

pin_project! {
    /// A request's body, which tells when it was read to its end.
    pub(super) struct Question {
        #[pin]
        body: Incoming,
        // There as long as its end was not seen.
        life: Option<Arc<Life>>,
        // The caller sends it only when it is asked for.
        waits: bool,
    }

    impl PinnedDrop for Question {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let Some(life) = this.life.take() else { return };
            // What is small came with its head, and hyper has it here already.
            if !*this.waits {
                let _ = this.body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop()));
            }
            if this.body.is_end_stream() {
                life.set_unread(false);
            }
        }
    }
}

impl HttpBody for Question {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(context));
        let is_ended = frame.is_none() || this.body.is_end_stream();
        if is_ended && let Some(life) = this.life.take() {
            life.set_unread(false);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// An answer that is being made.
    pub(super) struct Answering<F> {
        #[pin]
        inner: F,
        life: Arc<Life>,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for Answering<F> {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(mut response) = ready!(this.inner.poll(context));
        if response.status().as_u16() == SWITCHING_PROTOCOLS {
            this.life.set(Phase::Taken);
        } else if this.life.is_unread() {
            // What is left of the body would be read as the next request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| Answer { body, life: Arc::clone(this.life) })))
    }
}

pin_project! {
    /// An answer's body, which tells when hyper has taken all of it.
    pub(super) struct Answer {
        #[pin]
        body: Body,
        life: Arc<Life>,
    }

    impl PinnedDrop for Answer {
        fn drop(this: Pin<&mut Self>) {
            this.life.change(Phase::Asked, Phase::Answered);
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
