//! Bodies with their limits of time: a request's must come in time, and an answer's keeps its request
//! under way until the client has taken it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    BoxError,
    body::{Body, Bytes},
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::sockets::Request;

/// The part of a body's whole time that may pass without a byte of it.
const STALL_PART: u32 = 3;

/// The body did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the body must come within `http.body_timeout_ms`, and without a pause of a third of it")]
pub struct TooSlow;

/// A request's body. Its time begins when it is first asked for.
#[derive(Debug)]
pub struct RequestBody {
    body: Incoming,
    is_read: Arc<AtomicBool>,
    timeout: Duration,
    /// When it has to be whole, and when the next part of it has to be there.
    ends: Option<(Instant, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub fn new(body: Incoming, timeout: Duration) -> Self {
        let is_read = Arc::new(AtomicBool::new(body.is_end_stream()));
        Self { body, is_read, timeout, ends: None, timer: None }
    }

    /// Returns a flag that says, now and later, whether all of it was read.
    pub fn is_read(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_read)
    }

    /// Whether its time is over; if not, the task wakes once it is.
    fn is_late(&mut self, cx: &mut Context<'_>, end: Instant) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() != end {
            timer.as_mut().reset(end);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let stall = self.timeout / STALL_PART;
        let (whole, next) = match self.ends {
            Some(ends) => ends,
            None => {
                let now = Instant::now();
                (now + self.timeout, now + stall)
            }
        };
        self.ends = Some((whole, next));
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if self.body.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                let now = Instant::now();
                self.ends = Some((whole, now + stall));
                let in_time = now < whole || self.body.is_end_stream();
                Poll::Ready(Some(if in_time { Ok(frame) } else { Err(TooSlow.into()) }))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                self.is_read.store(true, Ordering::Relaxed);
                Poll::Ready(None)
            }
            Poll::Pending if self.is_late(cx, whole.min(next)) => Poll::Ready(Some(Err(TooSlow.into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body.
#[derive(Debug)]
pub struct AnswerBody {
    body: Body,
    request: Request,
}

impl AnswerBody {
    pub fn new(body: Body, mut request: Request) -> Self {
        request.answered();
        Self { body, request }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.request.progressed();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
