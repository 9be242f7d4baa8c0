//! A port on 127.0.0.1 of a sandbox that leads to a service on our side: one connection to the sandbox, on which the
//! guest opens a stream for everyone who connects there. The wire is in [`belljar_api::tunnel`].
//!
//! ```text
//! listening (101) -> serve: POST -> dial the service -> 200, pump both ways, each direction ends for itself
//!                                              \-> cannot: 502, the guest's program sees a reset
//!                    -> the sandbox sleeps, ends, or cannot be reached any more: serve returns
//! ```

use std::{convert::Infallible, io, sync::Arc};

use belljar_api::tunnel::{
    PORT_HEADER, REVERSE_CONNECTIONS_MAX, REVERSE_FRAME, REVERSE_PATH, REVERSE_UPGRADE, REVERSE_WINDOW,
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error, Sandbox,
    limits::{CHUNK, CONNECT_TIMEOUT, PING_EVERY, PING_PATIENCE},
};

const WHAT: &str = "reverse tunnel";

/// A listener in a sandbox whose connections end at a service of ours.
#[derive(Debug)]
pub struct ReverseTunnel {
    connection: Upgraded,
    port: u16,
    to: Arc<(String, u16)>,
}

impl Sandbox {
    /// Listens on `port` (0: any free one) on 127.0.0.1 of the sandbox, for connections to `host` and its port `to` as
    /// seen from here. `CONFLICT` when something listens there already. Nothing is connected before
    /// [`ReverseTunnel::serve`].
    pub async fn reverse_tunnel(&self, port: u16, host: &str, to: u16) -> Result<ReverseTunnel, Error> {
        let call = self
            .call(Method::GET, format!("{REVERSE_PATH}?port={port}"))
            .header(header::CONNECTION, HeaderValue::from_static("Upgrade"))
            .header(header::UPGRADE, HeaderValue::from_static(REVERSE_UPGRADE));
        let what = call.what();
        let answer = self.transport.send(&call, |status| status == StatusCode::SWITCHING_PROTOCOLS).await?;
        let port = bound(answer.headers()).filter(|_| answer.status() == StatusCode::SWITCHING_PROTOCOLS);
        let port = port.ok_or_else(|| Error::protocol(&what, format!("no reverse tunnel ({})", answer.status())))?;
        let upgraded = hyper::upgrade::on(answer).await;
        let connection = upgraded.map_err(|source| Error::Transport { what, source: Box::new(source) })?;
        Ok(ReverseTunnel { connection, port, to: Arc::new((host.to_owned(), to)) })
    }
}

fn bound(headers: &HeaderMap) -> Option<u16> {
    headers.get(PORT_HEADER)?.to_str().ok()?.parse().ok()
}

impl ReverseTunnel {
    /// Where it listens in the sandbox.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Serves connections until the sandbox ends the tunnel, which is an error when it was not orderly; dropping it
    /// closes the listener and every connection. `failed` hears of each whose service could not be reached.
    pub async fn serve(self, failed: impl Fn(Error) + Send + Sync + 'static) -> Result<(), Error> {
        let tasks = TaskTracker::new();
        // Ends the connections when this future is dropped.
        let ended = CancellationToken::new();
        let _guard = ended.clone().drop_guard();
        let (to, failed) = (self.to, Arc::new(failed));
        let service = service_fn(move |request: Request<Incoming>| {
            let (to, failed, tasks, ended) = (Arc::clone(&to), Arc::clone(&failed), tasks.clone(), ended.clone());
            async move {
                let (sender, body) = body();
                let mut response = Response::new(body);
                match dial(&request, &to).await {
                    Ok(stream) => {
                        let carried = carry(request.into_body(), stream, sender);
                        tasks.spawn(async move { ended.run_until_cancelled(carried).await });
                    }
                    Err(error) => {
                        failed(error);
                        *response.status_mut() = StatusCode::BAD_GATEWAY;
                    }
                }
                Ok::<_, Infallible>(response)
            }
        });
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(REVERSE_WINDOW)
            .initial_connection_window_size(REVERSE_WINDOW * REVERSE_CONNECTIONS_MAX)
            .max_frame_size(REVERSE_FRAME)
            .max_concurrent_streams(REVERSE_CONNECTIONS_MAX)
            .max_send_buf_size(REVERSE_WINDOW as usize)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .serve_connection(self.connection, service)
            .await
            .map_err(|source| Error::Transport { what: WHAT.to_owned(), source: Box::new(source) })
    }
}

async fn dial(request: &Request<Incoming>, to: &(String, u16)) -> Result<TcpStream, Error> {
    if request.method() != Method::POST {
        return Err(Error::protocol(WHAT, format!("a {} from the sandbox", request.method())));
    }
    let (host, port) = to;
    let failed = |source| Error::Local { what: format!("connecting to {host}:{port}"), source };
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), *port))).await;
    let stream = connected.map_err(late).and_then(|connected| connected).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// Bytes, or the end.
type Part = Option<Bytes>;

/// A body, and where its parts go in. It fails when that is dropped before the end.
fn body() -> (mpsc::Sender<Part>, StreamBody<impl Stream<Item = io::Result<Frame<Bytes>>>>) {
    let (sender, mut parts) = mpsc::channel::<Part>(1);
    let parts = stream::poll_fn(move |cx| {
        parts.poll_recv(cx).map(|part| match part {
            Some(part) => part.map(|bytes| Ok(Frame::data(bytes))),
            None => Some(Err(io::ErrorKind::ConnectionAborted.into())),
        })
    });
    (sender, StreamBody::new(parts))
}

/// Carries until both directions have ended. Whoever breaks off, the other side sees no orderly end.
async fn carry(from_guest: Incoming, mut stream: TcpStream, to_guest: mpsc::Sender<Part>) -> io::Result<()> {
    // Takes effect when this is dropped, too.
    stream.set_zero_linger()?;
    let (mut reader, mut writer) = stream.split();
    let inward = async {
        let mut from_guest = from_guest.into_data_stream();
        while let Some(bytes) = from_guest.next().await {
            writer.write_all(&bytes.map_err(io::Error::other)?).await?;
        }
        writer.shutdown().await
    };
    let outward = async {
        let mut chunk = BytesMut::new();
        loop {
            // What was sent is let go by then, so that this is the same memory again.
            chunk.reserve(CHUNK);
            let is_over = reader.read_buf(&mut chunk).await? == 0;
            let part = (!is_over).then(|| chunk.split().freeze());
            to_guest.send(part).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            if is_over {
                return Ok(());
            }
        }
    };
    tokio::try_join!(inward, outward)?;
    // What was written last may still be on its way.
    SockRef::from(&stream).set_linger(None)
}
