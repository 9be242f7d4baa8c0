//! Listeners in a guest whose connections are for somebody outside: `belljar tunnel --reverse` here, `ssh -R` in
//! [`crate::ssh`]. The wire is in [`belljar_api::tunnel`].
//!
//! The guest only tells of connections and hands their plain bytes over; HTTP/2 with the client, which gives each of them
//! its flow control, is spoken here.
//!
//! ```text
//! bind --101--> listening --line--> Offer -> take: a byte stream, each direction ends for itself
//!                                      \-> taken and dropped: the guest's program sees a reset
//!      the sandbox sleeps or ends --> next answers None        dropped --> closed in the guest, connections too
//! ```

use std::sync::Arc;

use axum::body::Body;
use belljar_api::{
    error::{ErrorBody, code},
    limits::AGENT_PORT,
    tunnel::{
        Offer, PORT_HEADER, REVERSE_CONNECTIONS_MAX, REVERSE_FRAME, REVERSE_PATH, REVERSE_UPGRADE, REVERSE_WINDOW,
    },
};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::{
    client::conn::http2,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, copy_bidirectional_with_sizes},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::{
    body::{GuestBody, Progress},
    exchange::failed,
    guest,
    proxy::{Hold, connect},
};
use crate::{
    error::ApiError,
    limits::{GUEST_CONNECT_TIMEOUT, KEEP_ALIVE_AFTER, NODE_PING_TIMEOUT, SPLICE_BUFFER},
    node_link::{BodyStream, NodeLink, channel},
};

/// Bytes of a refusal of the guest's that are read.
const REFUSAL_MAX: usize = 64 * 1024;
/// Longest line of the guest's.
const LINE_MAX: u64 = 1024;

/// A connection in the guest, here.
pub(crate) type GuestConnection = TokioIo<Upgraded>;

/// Reaches the agent of a sandbox.
#[derive(Debug, Clone)]
struct Agent {
    link: Arc<NodeLink>,
    sandbox_id: Arc<str>,
}

/// A port of a sandbox that is listened on.
#[derive(Debug)]
pub(crate) struct GuestListener {
    port: u16,
    lines: BufReader<GuestConnection>,
    agent: Agent,
    /// The guest keeps to the same number; this is for one that does not.
    places: Arc<Semaphore>,
}

/// A connection that somebody in the guest has made. It counts as one until this is dropped.
#[derive(Debug)]
pub(crate) struct Offered {
    offer: Offer,
    agent: Agent,
    _place: OwnedSemaphorePermit,
}

impl GuestListener {
    /// Listens on `port` (0: any free one) on 127.0.0.1 of a sandbox. 409 when something listens there already.
    pub(super) async fn bind(link: Arc<NodeLink>, sandbox_id: &str, port: u16) -> Result<Self, ApiError> {
        let agent = Agent { link, sandbox_id: sandbox_id.into() };
        let (head, stream) = agent.upgrade(&format!("{REVERSE_PATH}?port={port}")).await?;
        let port = head.headers().get(PORT_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        let words = "the sandbox does not say where it listens; it runs an agent of another version";
        let port = port.ok_or_else(|| ApiError::new(StatusCode::BAD_GATEWAY, code::PROXY_ERROR, words))?;
        let places = Arc::new(Semaphore::new(REVERSE_CONNECTIONS_MAX as usize));
        Ok(Self { port, lines: BufReader::new(stream), agent, places })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The next connection; `None` when the sandbox sleeps, has ended, or cannot be reached any more.
    pub(crate) async fn next(&mut self) -> Option<Offered> {
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let mut line = Vec::new();
        (&mut self.lines).take(LINE_MAX).read_until(b'\n', &mut line).await.ok()?;
        let offer = serde_json::from_slice(&line).ok()?;
        Some(Offered { offer, agent: self.agent.clone(), _place: place })
    }
}

impl Offered {
    /// Who connected, `address:port`. The guest says so, and may say anything.
    pub(crate) fn peer(&self) -> &str {
        &self.offer.peer
    }

    /// Takes it. Dropping the stream before its end resets it.
    pub(crate) async fn take(&self) -> Result<GuestConnection, ApiError> {
        Ok(self.agent.upgrade(&format!("{REVERSE_PATH}/{}", self.offer.id)).await?.1)
    }
}

impl Agent {
    async fn upgrade(&self, path: &str) -> Result<(Response<()>, GuestConnection), ApiError> {
        let asked = async {
            let stream = connect(&self.link, &self.sandbox_id, AGENT_PORT).await?;
            let mut sender = guest::http1(stream).await.map_err(|error| failed(&error))?;
            let request = Request::get(path)
                .header(header::HOST, "localhost")
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, REVERSE_UPGRADE)
                .body(GuestBody::empty(Progress::new()))
                .map_err(|error| ApiError::internal(error.to_string()))?;
            let mut answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refusal(answer).await);
            }
            let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|error| failed(&error))?;
            Ok((answer.map(drop), TokioIo::new(upgraded)))
        };
        let late = |_| ApiError::unreachable(self.link.id());
        tokio::time::timeout(GUEST_CONNECT_TIMEOUT, asked).await.map_err(late)?
    }
}

/// What the guest said instead.
async fn refusal(answer: Response<hyper::body::Incoming>) -> ApiError {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), REFUSAL_MAX).collect().await;
    let said = body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
    let said = said.unwrap_or_else(|| ErrorBody::new(code::PROXY_ERROR, format!("the sandbox answered {status}")));
    let status = if status.is_client_error() { status } else { StatusCode::BAD_GATEWAY };
    ApiError::new(status, &said.code, said.error)
}

/// Answers a client that asks for a reverse tunnel: 101 means that the guest listens.
pub(super) async fn answer<B>(
    link: Arc<NodeLink>,
    sandbox_id: &str,
    hold: Hold,
    mut request: Request<B>,
) -> Result<Response<Body>, ApiError> {
    let port = wanted(request.uri().query().unwrap_or_default())?;
    let upgrade = request.headers().get(header::UPGRADE);
    if !upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(REVERSE_UPGRADE.as_bytes())) {
        let words = format!("this wants `Connection: upgrade` and `Upgrade: {REVERSE_UPGRADE}`, over HTTP/1.1");
        return Err(ApiError::invalid(words));
    }
    let client = hyper::upgrade::on(&mut request);
    let listener = GuestListener::bind(link, sandbox_id, port).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(REVERSE_UPGRADE));
    headers.insert(PORT_HEADER, HeaderValue::from(listener.port()));
    tokio::spawn(async move {
        let _hold = hold;
        if let Err(error) = serve(client, listener).await {
            tracing::debug!(%error, "a reverse tunnel broke off");
        }
    });
    Ok(response)
}

fn wanted(query: &str) -> Result<u16, ApiError> {
    let port = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "port");
    let port = port.map(|(_, value)| value.into_owned()).unwrap_or_default();
    port.parse().map_err(|_| ApiError::invalid(format!("port: {port:?} is not between 0 and 65535")))
}

/// Offers every connection to the client, until it or the sandbox is gone.
async fn serve(client: OnUpgrade, mut listener: GuestListener) -> hyper::Result<()> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(REVERSE_WINDOW)
        .initial_connection_window_size(REVERSE_WINDOW * REVERSE_CONNECTIONS_MAX)
        .max_frame_size(REVERSE_FRAME)
        .max_send_buf_size(REVERSE_WINDOW as usize)
        .keep_alive_interval(KEEP_ALIVE_AFTER)
        .keep_alive_timeout(NODE_PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(client.await?)
        .await?;
    let offers = async {
        // Dropped with us, and every connection with it.
        let mut carried = JoinSet::new();
        while let Some(offered) = listener.next().await {
            while carried.try_join_next().is_some() {}
            let sender = sender.clone();
            carried.spawn(async move {
                if let Err(error) = carry(&offered, sender).await {
                    tracing::debug!(error = error.message, "a connection of a reverse tunnel broke off");
                }
            });
        }
    };
    tokio::select! {
        ended = connection => ended,
        () = offers => Ok(()),
    }
}

async fn carry(offered: &Offered, mut sender: http2::SendRequest<Body>) -> Result<(), ApiError> {
    let accepted = async {
        let (writer, body) = channel();
        let uri = Uri::builder().scheme("http").authority(offered.peer()).path_and_query("/").build().ok()?;
        let request = Request::post(uri).body(Body::new(body)).ok()?;
        sender.ready().await.ok()?;
        let answer = sender.send_request(request).await.ok()?;
        answer.status().is_success().then(|| BodyStream::new(answer.into_body(), writer))
    };
    let accepted = accepted.await;
    let mut guest = offered.take().await?;
    // Taken all the same, so that the guest's program sees at once that nobody is there.
    let Some(mut client) = accepted else { return Ok(()) };
    let carried = copy_bidirectional_with_sizes(&mut guest, &mut client, SPLICE_BUFFER, SPLICE_BUFFER);
    carried.await.map(drop).map_err(|error| ApiError::internal(error.to_string()))
}
