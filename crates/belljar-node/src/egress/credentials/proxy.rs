//! The proxy of one sandbox, for the hosts to which its secrets are bound.
//!
//! ```text
//! accept --TLS: a name that a secret is bound to--> requests --swap--> pool of connections to the host --> answer
//!    |                \-- any other name: no certificate                \-- stray placeholder: 403
//!    \-- too many: closed                                                \-- host not permitted, not reached: 403, 502
//! ```
//! HTTP/1.1 and HTTP/2 on both sides, upgrades over HTTP/1.1. Bodies pass as they come, either way, at the pace of whoever
//! reads them; a placeholder in a body is not looked for and not swapped. How the host is reached is the caller's
//! ([`Dial`]); that it is who it says is checked against the roots that the node trusts.

use std::{
    collections::BTreeSet,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use async_trait::async_trait;
use belljar_api::network::HostName;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body_util::{Either, Full};
use hyper::{body::Incoming, service::service_fn, upgrade::OnUpgrade};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Allowance, swap::swap};
use crate::{chain, egress::limits};

/// The port of HTTPS, on both sides.
const HTTPS: u16 = 443;
/// Headers about one connection (RFC 9110, 7.6.1), and what would lead a guest past the proxy (`alt-svc`).
const NOT_FORWARDED: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::ALT_SVC,
];

/// How hosts are reached.
#[async_trait]
pub(crate) trait Dial: Send + Sync {
    /// Connects to a host, if the sandbox may reach it.
    async fn dial(&self, host: &HostName, port: u16) -> Result<TcpStream, DialError>;
}

/// A host that was not reached.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Unreachable(String),
}

type Body = Either<Incoming, Full<Bytes>>;
/// The two ends of a connection that becomes something else than HTTP, once it does.
type Switch = Mutex<Option<(OnUpgrade, OnUpgrade)>>;
type Pool = Client<HttpsConnector<Connect>, Incoming>;

/// One sandbox's proxy. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    allowance: Allowance,
    /// To hosts, in whatever version they speak.
    pool: Pool,
    /// In HTTP/1.1: only there a connection can become something else.
    upgrades: Pool,
    acceptor: TlsAcceptor,
    refusals: Mutex<BTreeSet<String>>,
}

impl Proxy {
    /// A proxy for a sandbox that has these secrets.
    pub(crate) fn new(allowance: Allowance, dial: Arc<dyn Dial>, roots: RootCertStore) -> Result<Self, rustls::Error> {
        let certificates = Arc::new(Certificates(allowance.clone()));
        let provider = Arc::new(ring::default_provider());
        let versions = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let mut tls = versions.with_no_client_auth().with_cert_resolver(certificates);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let (any, one) = (hyper_rustls::HttpsConnectorBuilder::new(), hyper_rustls::HttpsConnectorBuilder::new());
        let connect = Connect { dial };
        let any = any.with_tls_config(client.clone()).https_only().enable_all_versions();
        let one = one.with_tls_config(client).https_only().enable_http1();
        let shared = Shared {
            allowance,
            pool: pool(any.wrap_connector(connect.clone())),
            upgrades: pool(one.wrap_connector(connect)),
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            refusals: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Requests that were refused since the last call, in lines for the sandbox's log, each once.
    pub(crate) fn take_refusals(&self) -> Vec<String> {
        let mut refusals = self.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *refusals).into_iter().collect()
    }

    /// Serves on a socket, which is bound already, until `stop`. It has then let go of it.
    pub(crate) async fn serve(&self, listener: std::net::TcpListener, stop: CancellationToken) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let stop = stop.child_token();
        let (slots, tasks) = (Arc::new(Semaphore::new(limits::PROXY_CONNECTIONS_MAX)), TaskTracker::new());
        let accept = async {
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) if crate::egress::is_of_peer(&error) => continue,
                    Err(error) => return Err(error),
                };
                let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                let (this, stop) = (self.shared.clone(), stop.clone());
                tasks.spawn(stop.run_until_cancelled_owned(async move {
                    let _slot = slot;
                    this.connection(stream).await;
                }));
            }
        };
        let served = stop.run_until_cancelled(accept).await.unwrap_or(Ok(()));
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        served
    }
}

fn pool(connector: HttpsConnector<Connect>) -> Pool {
    let (count, time) = limits::PROXY_IDLE;
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(count)
        .pool_idle_timeout(time)
        .build(connector)
}

/// Shows certificates only for names that a secret is bound to.
struct Certificates(Allowance);

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host: HostName = hello.server_name()?.parse().ok()?;
        let contents = self.0.safe.contents()?;
        contents.bound_to(&self.0.secrets, &host).next()?;
        match contents.authority.certificate(&host) {
            Ok(certificate) => Some(certificate),
            Err(error) => {
                tracing::warn!(%host, %error, "cannot issue a certificate");
                None
            }
        }
    }
}

impl Shared {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        // The guest may do as it likes; what it sees is the end of its connection.
        let Ok(Ok(tls)) = timeout(limits::PROXY_HANDSHAKE, self.acceptor.accept(stream)).await else { return };
        let Some(host) = named(&tls) else { return };
        let switch = Arc::new(Switch::default());
        let service = service_fn(|request| {
            let (this, host, switch) = (self.clone(), host.clone(), switch.clone());
            async move { Ok::<_, std::convert::Infallible>(this.answer(&host, &switch, request).await) }
        });
        let mut server = auto::Builder::new(TokioExecutor::new());
        server
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::PROXY_HEAD)
            .max_buf_size(limits::PROXY_HEADERS_MAX)
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(limits::PROXY_HEAD)
            .max_concurrent_streams(limits::PROXY_STREAMS_MAX)
            .max_header_list_size(u32::try_from(limits::PROXY_HEADERS_MAX).unwrap_or(u32::MAX));
        let _ = server.serve_connection_with_upgrades(TokioIo::new(tls), service).await;
        let switched = switch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((from, to)) = switched
            && let (Ok(from), Ok(to)) = tokio::join!(from, to)
        {
            let _ = copy_bidirectional(&mut TokioIo::new(from), &mut TokioIo::new(to)).await;
        }
    }

    async fn answer(&self, host: &HostName, switch: &Switch, request: Request<Incoming>) -> Response<Body> {
        match self.exchange(host, switch, request).await {
            Ok(response) => response,
            Err(refusal) => {
                if refusal.status != StatusCode::BAD_GATEWAY {
                    self.note(format!("blocked: https {host}, {}", refusal.words));
                }
                refusal.answer()
            }
        }
    }

    fn note(&self, line: String) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() < limits::PROXY_REFUSALS_MAX {
            refusals.insert(line);
        }
    }

    fn put_secrets(&self, host: &HostName, head: &mut Parts) -> Result<(), Refusal> {
        let unknown = || Refusal::new(StatusCode::BAD_GATEWAY, "the node has not been told the secrets yet; try again");
        let contents = self.allowance.safe.contents().ok_or_else(unknown)?;
        let bound: Vec<_> = contents.bound_to(&self.allowance.secrets, host).collect();
        swap(head, &bound).map_err(|stray| Refusal::new(StatusCode::FORBIDDEN, stray.to_string()))
    }

    async fn exchange(
        &self,
        host: &HostName,
        switch: &Switch,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        // An answer to TRACE is the request, the secret with it.
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            let words = format!("{} is not possible here", request.method());
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, words));
        }
        check_authority(&request, host)?;
        let is_upgrade = is_upgrade(request.version(), request.headers());
        let from = is_upgrade.then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        self.put_secrets(host, &mut head)?;
        head.uri = target(host, &head.uri)?;
        head.headers.remove(header::HOST);
        head.version = Version::default();
        forward(&mut head.headers, is_upgrade);
        let pool = if is_upgrade { &self.upgrades } else { &self.pool };
        let mut response =
            pool.request(Request::from_parts(head, body)).await.map_err(|error| Refusal::failed(&error))?;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if let (true, Some(from)) = (switched, from) {
            let to = hyper::upgrade::on(&mut response);
            *switch.lock().unwrap_or_else(PoisonError::into_inner) = Some((from, to));
        }
        forward(response.headers_mut(), switched);
        *response.version_mut() = Version::default();
        Ok(response.map(Either::Left))
    }
}

/// The name that the guest asked for in its handshake.
fn named(tls: &TlsStream<TcpStream>) -> Option<HostName> {
    tls.get_ref().1.server_name()?.parse().ok()
}

/// Refuses a request that is for another host than its connection: the certificate was not shown for that one.
fn check_authority(request: &Request<Incoming>, host: &HostName) -> Result<(), Refusal> {
    let of_header = request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or_default());
    let given = [request.uri().authority().map(http::uri::Authority::as_str), of_header];
    let is_host = |authority: &str| {
        let name = authority.strip_suffix(":443").unwrap_or(authority);
        name.parse::<HostName>().is_ok_and(|name| name == *host)
    };
    let many = request.headers().get_all(header::HOST).iter().count() > 1;
    if many || given.iter().all(Option::is_none) || !given.into_iter().flatten().all(is_host) {
        let words = "the request names another host than its connection";
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, words));
    }
    Ok(())
}

fn is_upgrade(version: Version, headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asks = connection.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    version == Version::HTTP_11 && asks && headers.contains_key(header::UPGRADE)
}

/// Where the request goes: this host, whatever else stands there.
fn target(host: &HostName, uri: &Uri) -> Result<Uri, Refusal> {
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let built = Uri::builder().scheme("https").authority(host.as_str()).path_and_query(path).build();
    built.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the target of the request is not a path"))
}

/// Takes away what is about one connection only; an upgrade keeps what makes it one.
fn forward(headers: &mut HeaderMap, is_upgrade: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|word| word.trim().parse().ok())
        .filter(|name| !is_upgrade || *name != header::UPGRADE)
        .collect();
    // Trailers are announced to whoever is next, too; gRPC servers insist.
    let trailers = headers.get(header::TE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in named.iter().chain(&NOT_FORWARDED).chain([&header::TE]) {
        if !(is_upgrade && *name == header::UPGRADE) {
            headers.remove(name);
        }
    }
    if trailers {
        headers.insert(header::TE, http::HeaderValue::from_static("trailers"));
    }
    if is_upgrade {
        headers.insert(header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    }
}

/// A request that is answered here.
struct Refusal {
    status: StatusCode,
    words: String,
}

impl Refusal {
    fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self { status, words: words.into() }
    }

    /// The host was not reached, or did not answer as HTTP wants it.
    fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(DialError::Forbidden(words)) = error.downcast_ref() {
                return Self::new(StatusCode::FORBIDDEN, words.clone());
            }
            // An `io::Error` shows what is in it, and not as its cause.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
        }
        Self::new(StatusCode::BAD_GATEWAY, format!("the host did not answer: {}", chain(error)))
    }

    fn answer(self) -> Response<Body> {
        let text = format!("belljar: {}\n", self.words);
        let mut response = Response::new(Either::Right(Full::from(text)));
        *response.status_mut() = self.status;
        let text = http::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text);
        response
    }
}

/// Opens connections for the pools.
#[derive(Clone)]
struct Connect {
    dial: Arc<dyn Dial>,
}

impl tower::Service<Uri> for Connect {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dial = self.dial.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().parse().map_err(io::Error::other)?;
            let stream = timeout(limits::PROXY_CONNECT, dial.dial(&host, HTTPS)).await??;
            Ok(TokioIo::new(stream))
        })
    }
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        Self::other(error)
    }
}
