//! Takes a request to a guest port and its answer back, streaming both ways.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::body::Body;
use belljar_api::error::code;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::{
    body::{ClientBody, GuestBody, Lease, Progress, Stalled},
    forwarded::{Origin, forwarded},
    guest::{self, Http1},
    headers,
    pool::Route,
    proxy::{Hold, Outside, connect},
    websocket,
};
use crate::{
    app::App,
    error::ApiError,
    limits::{CLIENT_BODY_STALL, GUEST_ANSWER_TIMEOUT, INTERIM_ANSWERS_MAX, SPLICE_BUFFER},
    node_link::{BodyStream, NodeLink},
    stall::Impatient,
};

/// One request and its answer.
pub(super) struct Exchange<'a> {
    pub(super) app: &'a App,
    pub(super) link: Arc<NodeLink>,
    pub(super) sandbox_id: String,
    pub(super) route: Route,
    pub(super) port: u16,
    pub(super) is_grpc: bool,
}

/// How a client changes the protocol, if it wants to.
struct Switch {
    client: OnUpgrade,
    /// It asked by an extended `CONNECT` of HTTP/2.
    is_extended: bool,
}

impl Exchange<'_> {
    pub(super) async fn run(
        self,
        outside: Outside,
        host: Option<HeaderValue>,
        key_used: bool,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let is_extended = websocket::is_extended(&request);
        if is_extended {
            websocket::to_http1(&mut request);
        }
        let switch = headers::upgrade(request.headers())
            .map(|_| Switch { client: hyper::upgrade::on(&mut request), is_extended });
        let progress = Progress::new();
        let forwarded = forwarded(outside.peer, host.as_ref(), request.headers(), &self.app.trusted_proxies);
        let origin = Origin { forwarded, host, key_used };
        let outgoing = self.outgoing(&origin, request, progress.clone())?;
        let send = async {
            match self.is_grpc {
                true => self.send_http2(&outside, outgoing).await,
                false => self.send_http1(outgoing, &progress).await,
            }
        };
        let answer = tokio::select! {
            answer = send => answer?,
            who = progress.stalled() => return Err(late(who)),
        };
        self.answer(switch.map(|switch| (switch, outside.hold)), answer)
    }

    /// The request as the guest gets it: path and query byte for byte, the rest by the header rules.
    fn outgoing(
        &self,
        origin: &Origin,
        request: Request<Incoming>,
        progress: Progress,
    ) -> Result<Request<GuestBody>, ApiError> {
        let (parts, body) = request.into_parts();
        let mut headers = headers::to_guest(&parts.headers, origin, self.port, self.is_grpc);
        let path = parts.uri.path_and_query().cloned();
        let mut outgoing = Request::new(GuestBody::new(body, progress));
        *outgoing.method_mut() = parts.method;
        *outgoing.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        if self.is_grpc {
            // The authority of HTTP/2 stands in the URI; what a header said of it is the same.
            let host = headers.remove(http::header::HOST);
            let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("localhost");
            let path = outgoing.uri().path_and_query().map_or("/", |path| path.as_str());
            let uri = Uri::builder().scheme("http").authority(host).path_and_query(path).build();
            *outgoing.uri_mut() = uri.map_err(|_| ApiError::invalid(format!("{host:?} is not a host name")))?;
            *outgoing.version_mut() = http::Version::HTTP_2;
        }
        *outgoing.headers_mut() = headers;
        Ok(outgoing)
    }

    /// Sends it over a kept connection, or over a new one when nothing of it went out or nothing comes of it twice.
    async fn send_http1(
        &self,
        request: Request<GuestBody>,
        progress: &Progress,
    ) -> Result<(Response<Incoming>, Lease), ApiError> {
        let has_body = !request.body().is_end_stream();
        let request = match self.app.live.guests.take(&self.sandbox_id, self.port) {
            None => request,
            Some(mut sender) => {
                let again = repeatable(&request, progress);
                let flood = Flood::default();
                match flood.guard(sender.try_send_request(flood.watch(request))).await? {
                    Ok(response) => {
                        let lease = self.lease(sender, &response, has_body);
                        return Ok((response, lease));
                    }
                    Err(mut error) => match error.take_message() {
                        Some(request) => request,
                        // The guest closed an unused connection just when it was used.
                        None if !error.error().is_parse() && again.is_some() => match again {
                            Some(request) => request,
                            None => return Err(failed(&error.into_error())),
                        },
                        None => return Err(failed(&error.into_error())),
                    },
                }
            }
        };
        let mut sender = guest::http1(self.open().await?).await.map_err(|error| failed(&error))?;
        let flood = Flood::default();
        let sent = flood.guard(sender.send_request(flood.watch(request))).await?;
        let response = sent.map_err(|error| failed(&error))?;
        let lease = self.lease(sender, &response, has_body);
        Ok((response, lease))
    }

    /// Sends it over the connection that the client's calls to this port share.
    async fn send_http2(
        &self,
        outside: &Outside,
        request: Request<GuestBody>,
    ) -> Result<(Response<Incoming>, Lease), ApiError> {
        let connection = match outside.grpc.get(&self.sandbox_id, self.port) {
            Some(connection) => connection,
            None => {
                let stream = self.open().await?;
                let opened = outside.grpc.open(&self.sandbox_id, self.port, stream).await;
                opened.map_err(|error| failed(&error))?
            }
        };
        let response = connection.sender().send_request(request).await.map_err(|error| failed(&error))?;
        Ok((response, Lease::Http2(connection)))
    }

    /// A server that refuses a request and does not read its body closes the connection behind its answer, and says so to
    /// nobody: a request that came in between would get no answer.
    fn lease(&self, sender: Http1, response: &Response<Incoming>, has_body: bool) -> Lease {
        if has_body && !response.status().is_success() {
            return Lease::Once(sender);
        }
        Lease::Http1(sender, self.app.live.guests.clone(), self.route.clone(), self.port)
    }

    async fn open(&self) -> Result<BodyStream, ApiError> {
        connect(&self.link, &self.sandbox_id, self.port).await
    }

    fn answer(
        self,
        switch: Option<(Switch, Hold)>,
        (mut answer, lease): (Response<Incoming>, Lease),
    ) -> Result<Response<Body>, ApiError> {
        if headers::is_ambiguous(answer.headers()) {
            let words = "the sandbox's answer has a Content-Length and a Transfer-Encoding; a server sends one of them";
            return Err(ApiError::new(StatusCode::BAD_GATEWAY, code::PROXY_ERROR, words));
        }
        let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        let mut headers = headers::to_client(answer.headers(), switched);
        let mut status = answer.status();
        let body = match (switched, switch) {
            (true, Some((switch, hold))) => {
                splice(switch.client, hyper::upgrade::on(&mut answer), hold);
                if switch.is_extended {
                    websocket::to_http2(&mut headers);
                    status = StatusCode::OK;
                }
                Body::empty()
            }
            (true, None) => {
                let words = "the sandbox changed the protocol without being asked";
                return Err(ApiError::new(StatusCode::BAD_GATEWAY, code::PROXY_ERROR, words));
            }
            // An extended CONNECT that is answered with success is a WebSocket, whatever the guest meant.
            (false, Some((Switch { is_extended: true, .. }, _))) if status.is_success() => {
                let words = "the sandbox answered a WebSocket handshake without one";
                return Err(ApiError::new(StatusCode::BAD_GATEWAY, code::PROXY_ERROR, words));
            }
            (false, _) => Body::new(ClientBody::new(answer.into_body(), lease)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// The same request anew, when it may be sent twice: it asks for nothing to be done, and has no body.
fn repeatable(request: &Request<GuestBody>, progress: &Progress) -> Option<Request<GuestBody>> {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    (is_safe && request.body().is_end_stream()).then(|| {
        let mut again = Request::new(GuestBody::empty(progress.clone()));
        *again.method_mut() = request.method().clone();
        *again.uri_mut() = request.uri().clone();
        *again.headers_mut() = request.headers().clone();
        again
    })
}

/// Ends a request whose guest answers "not yet" (1xx) without end.
#[derive(Debug, Clone, Default)]
struct Flood {
    seen: Arc<AtomicUsize>,
    over: CancellationToken,
}

impl Flood {
    fn watch(&self, mut request: Request<GuestBody>) -> Request<GuestBody> {
        let this = self.clone();
        hyper::ext::on_informational(&mut request, move |_| {
            if this.seen.fetch_add(1, Ordering::Relaxed) >= INTERIM_ANSWERS_MAX {
                this.over.cancel();
            }
        });
        request
    }

    async fn guard<T>(&self, sending: impl Future<Output = T>) -> Result<T, ApiError> {
        tokio::select! {
            sent = sending => Ok(sent),
            () = self.over.cancelled() => {
                let words = format!("the sandbox sent more than {INTERIM_ANSWERS_MAX} interim answers (1xx) and no other");
                Err(ApiError::new(StatusCode::BAD_GATEWAY, code::PROXY_ERROR, words))
            }
        }
    }
}

fn late(who: Stalled) -> ApiError {
    match who {
        Stalled::Guest => {
            let words = format!("no answer from the sandbox in {} s", GUEST_ANSWER_TIMEOUT.as_secs());
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, code::READ_TIMEOUT, words)
        }
        Stalled::Client => {
            let words = format!("nothing more of the request's body came for {} s", CLIENT_BODY_STALL.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, code::READ_TIMEOUT, words)
        }
    }
}

/// The guest ended the connection, or sent what is not HTTP. Something may have run, so the client must not replay it.
pub(super) fn failed(error: &hyper::Error) -> ApiError {
    if error.is_parse() {
        let words = format!("the sandbox's answer is not HTTP: {error}");
        return ApiError::new(StatusCode::BAD_GATEWAY, code::PROXY_ERROR, words);
    }
    let words = format!("the sandbox closed the connection before it answered: {error}");
    ApiError::new(StatusCode::BAD_GATEWAY, code::CONNECTION_CLOSED, words)
}

/// Connects two upgraded connections until both ends are done.
fn splice(client: OnUpgrade, guest: OnUpgrade, hold: Hold) {
    tokio::spawn(async move {
        let _hold = hold;
        let (client, guest) = match tokio::try_join!(client, guest) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade did not happen"),
        };
        let (mut client, mut guest) = (Impatient::new(TokioIo::new(client)), TokioIo::new(guest));
        let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut guest, SPLICE_BUFFER, SPLICE_BUFFER);
        if let Err(error) = copied.await {
            tracing::debug!(%error, "a spliced connection ended");
        }
    });
}
