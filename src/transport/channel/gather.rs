//! Small messages leave together.
//!
//! h2 writes a message of 256 bytes or more by itself, and the end of its stream by itself again, so as not to copy it,
//! where several buffers can be written at once. What a lock sends is a little larger than that, and a system call
//! costs more than such a copy. Where only one buffer can be written it copies up to 1 KiB; above, it writes the head
//! and the message one after the other, and they are put together here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};

/// A connection that writes when it is flushed.
pub(super) struct Gather<T> {
    inner: T,
    waiting: BytesMut,
}

/// So many bytes wait at most. What is larger does not, and is not copied.
const MOST: usize = 16 << 10;

impl<T> Gather<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, waiting: BytesMut::new() }
    }
}

impl<T: Write + Unpin> Gather<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.waiting.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Gather<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.waiting.len() + bytes.len() > MOST {
            ready!(self.poll_send(cx))?;
        }
        if bytes.len() > MOST {
            return Pin::new(&mut self.inner).poll_write(cx, bytes);
        }
        self.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<T: Read + Unpin> Read for Gather<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Takes so many bytes at once, and every second time none.
    struct Slow {
        writes: Vec<Vec<u8>>,
        at_once: usize,
        busy: bool,
    }

    impl Write for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.busy = !self.busy;
            if self.busy {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let taken = bytes.len().min(self.at_once);
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Writes each of them, as often as it takes.
    async fn write(to: &mut Gather<Slow>, all: &[&[u8]]) {
        for mut bytes in all.iter().copied() {
            while !bytes.is_empty() {
                let written = poll_fn(|cx| Pin::new(&mut *to).poll_write(cx, bytes)).await.expect("written");
                bytes = &bytes[written..];
            }
        }
    }

    async fn sizes(at_once: usize, sizes: &[usize], end: impl AsyncFn(&mut Gather<Slow>)) -> Vec<usize> {
        let all: Vec<Vec<u8>> = (1..).zip(sizes).map(|(byte, &size)| vec![byte; size]).collect();
        let mut to = Gather::new(Slow { writes: Vec::new(), at_once, busy: false });
        write(&mut to, &all.iter().map(Vec::as_slice).collect::<Vec<_>>()).await;
        end(&mut to).await;
        assert_eq!(to.inner.writes.concat(), all.concat(), "what was written, in order");
        to.inner.writes.iter().map(Vec::len).collect()
    }

    async fn flush(to: &mut Gather<Slow>) {
        poll_fn(|cx| Pin::new(&mut *to).poll_flush(cx)).await.expect("flushed");
    }

    async fn shut_down(to: &mut Gather<Slow>) {
        poll_fn(|cx| Pin::new(&mut *to).poll_shutdown(cx)).await.expect("shut down");
    }

    #[tokio::test]
    async fn what_is_written_before_a_flush_leaves_at_once() {
        assert_eq!(sizes(usize::MAX, &[9, 300, 9, 2000], flush).await, [2318]);
        assert_eq!(sizes(usize::MAX, &[9, 300], shut_down).await, [309]);
    }

    #[tokio::test]
    async fn what_is_large_neither_waits_nor_overtakes() {
        assert_eq!(sizes(usize::MAX, &[9, MOST + 1, 5], flush).await, [9, MOST + 1, 5]);
        assert_eq!(sizes(usize::MAX, &[9, MOST, 5], flush).await, [9, MOST, 5]);
    }

    #[tokio::test]
    async fn a_peer_that_reads_slowly_gets_all_of_it() {
        assert_eq!(sizes(1000, &[9, 2000, 5], flush).await, [1000, 1000, 14]);
        sizes(999, &[MOST - 1, 2, 3 * MOST, 1], shut_down).await;
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_an_error() {
        let mut to = Gather::new(Slow { writes: Vec::new(), at_once: 0, busy: false });
        write(&mut to, &[b"lost"]).await;
        let error = poll_fn(|cx| Pin::new(&mut to).poll_flush(cx)).await.expect_err("nothing is taken");
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
