//! A byte stream of the two bodies of one HTTP/2 exchange: to a port of a guest, through its node, and to the client of a
//! reverse tunnel.
//!
//! Each direction ends for itself. One that is cut off fails for whoever reads it, and never looks like an orderly end:
//! dropping a stream before `shutdown` cuts it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::{BodyDataStream, BodyExt, combinators::MapErr};
use hyper::body::{Body, Frame, Incoming};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_util::{io::StreamReader, sync::PollSender};

use crate::limits::SPLICE_BUFFER;

type Reader = StreamReader<BodyDataStream<MapErr<Incoming, fn(hyper::Error) -> io::Error>>, Bytes>;

/// See the module.
#[derive(Debug)]
pub(crate) struct BodyStream {
    reader: Reader,
    writer: Writer,
}

impl BodyStream {
    /// Of the body that comes, and the [`channel`] whose other end goes out as the other body.
    pub(crate) fn new(incoming: Incoming, writer: Writer) -> Self {
        let broken: fn(hyper::Error) -> io::Error = |error| io::Error::new(io::ErrorKind::ConnectionReset, error);
        Self { reader: StreamReader::new(incoming.map_err(broken).into_data_stream()), writer }
    }
}

impl AsyncRead for BodyStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for BodyStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let part = &bytes[..bytes.len().min(SPLICE_BUFFER)];
        if !part.is_empty() {
            ready!(self.writer.poll_send(cx, || Part::Bytes(Bytes::copy_from_slice(part))))?;
        }
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was taken is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.writer.0.is_closed() {
            // Where nobody listens any more there is nobody to tell; whether that is a loss the other direction says.
            let _ = ready!(self.writer.poll_send(cx, || Part::End));
            self.writer.0.close();
        }
        Poll::Ready(Ok(()))
    }
}

/// What goes out.
#[derive(Debug)]
enum Part {
    Bytes(Bytes),
    End,
}

/// The near end of an [`Upward`] body.
#[derive(Debug)]
pub(crate) struct Writer(PollSender<Part>);

impl Writer {
    fn poll_send(&mut self, cx: &mut Context<'_>, part: impl FnOnce() -> Part) -> Poll<io::Result<()>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.0.poll_reserve(cx)).map_err(gone)?;
        Poll::Ready(self.0.send_item(part()).map_err(gone))
    }
}

/// A body that carries what is written at the other end. It fails when that is dropped without having ended it.
#[derive(Debug)]
pub(crate) struct Upward(mpsc::Receiver<Part>);

/// A body and the end that is written to. One part waits to be taken; all else stays with whoever writes.
pub(crate) fn channel() -> (Writer, Upward) {
    let (sender, receiver) = mpsc::channel(1);
    (Writer(PollSender::new(sender)), Upward(receiver))
}

impl Body for Upward {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(match ready!(self.0.poll_recv(cx)) {
            Some(Part::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Part::End) => None,
            None => Some(Err(io::ErrorKind::ConnectionAborted.into())),
        })
    }
}
