//! Streams made of steps: each item is what one step brings, and an error is the last one.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll, ready};

use tokio_util::sync::ReusableBoxFuture;

use crate::error::Result;

/// What brings the items.
pub(crate) trait Step: Send + 'static {
    type Item: 'static;

    /// In how many places up to the last item something may be missing.
    fn gaps(&self) -> u64;

    fn step(&mut self) -> impl Future<Output = Result<Self::Item>> + Send;
}

/// The stream of what the steps bring. A step under way is kept between calls, so dropping a wait loses nothing.
pub(crate) struct Steps<S: Step> {
    step: ReusableBoxFuture<'static, (S, Result<S::Item>)>,
    /// An error was told.
    done: bool,
    gaps: u64,
}

impl<S: Step> Steps<S> {
    pub(crate) fn new(first: S) -> Self {
        Self { step: ReusableBoxFuture::new(one(first)), done: false, gaps: 0 }
    }

    /// In how many places up to the last item something may be missing.
    pub(crate) fn gaps(&self) -> u64 {
        self.gaps
    }

    /// The next item; after an error it waits for ever.
    pub(crate) async fn next(&mut self) -> Result<S::Item> {
        poll_fn(|context| match self.poll(context) {
            Poll::Ready(Some(item)) => Poll::Ready(item),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        })
        .await
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<S::Item>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let (state, item) = ready!(self.step.poll(context));
        (self.done, self.gaps) = (item.is_err(), state.gaps());
        if !self.done {
            self.step.set(one(state));
        }
        Poll::Ready(Some(item))
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }
}

/// `stream!(Observer => Candidate)`: for a struct with a field `steps`, to be the stream of what they bring.
macro_rules! stream {
    ($stream:ident => $item:ty) => {
        impl tokio_stream::Stream for $stream {
            type Item = $crate::Result<$item>;

            fn poll_next(
                self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Self::Item>> {
                self.get_mut().steps.poll(context)
            }
        }

        impl std::fmt::Debug for $stream {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($stream))
                    .field("done", &self.steps.is_done())
                    .finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use stream;

async fn one<S: Step>(mut state: S) -> (S, Result<S::Item>) {
    let item = state.step().await;
    (state, item)
}
