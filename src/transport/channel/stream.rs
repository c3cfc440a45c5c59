//! The byte stream under HTTP/2: small messages leave together.
//!
//! h2 writes a message of 256 bytes or more by itself, and the end of its stream by itself again, so as not to copy it,
//! where several buffers can be written at once. What a lock sends is a little larger than that, and a system call
//! costs more than such a copy. Where only one buffer can be written it copies up to 1 KiB; above, it writes the head
//! and the message one after the other, and the [`BufWriter`] puts them together.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tokio::net::TcpStream;

/// A connection that writes when it is flushed.
pub(super) type Stream = TokioIo<OneBuffer>;

/// So many bytes wait at most. What is larger does not, and is not copied.
const MOST: usize = 4 << 10;

pub(super) fn stream(tcp: TcpStream) -> Stream {
    TokioIo::new(OneBuffer(BufWriter::with_capacity(MOST, tcp)))
}

/// Says of itself, by what it does not implement, that one buffer at a time is best. A [`BufWriter`] never does.
#[derive(Debug)]
pub(super) struct OneBuffer(BufWriter<TcpStream>);

#[cfg(test)]
impl OneBuffer {
    /// Who is on the other side.
    pub(super) fn peer(&self) -> io::Result<std::net::SocketAddr> {
        self.0.get_ref().peer_addr()
    }
}

impl AsyncWrite for OneBuffer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl AsyncRead for OneBuffer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A lock's transaction was written in three: its head, itself, and the end of its stream.
    #[tokio::test]
    async fn what_is_written_before_a_flush_leaves_at_once() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let (client, accepted) =
            tokio::join!(TcpStream::connect(server.local_addr().expect("an address")), server.accept());
        let mut stream = stream(client.expect("connected")).into_inner();
        let (mut peer, _) = accepted.expect("accepted");
        assert!(!stream.is_write_vectored());
        for part in [9, 300, 9] {
            stream.write_all(&vec![1; part]).await.expect("written");
        }
        assert_eq!(stream.0.buffer().len(), 318, "nothing has left");
        stream.flush().await.expect("flushed");
        drop(stream);
        let mut received = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut peer, &mut received).await.expect("read");
        assert_eq!(received, [1; 318]);
    }
}
