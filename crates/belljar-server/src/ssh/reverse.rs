//! `-R`: a port of the sandbox whose connections are the SSH client's to serve, over a reverse tunnel of the guest agent
//! ([`belljar_api::tunnel`]).
//!
//! ```text
//! tcpip-forward -> tunnel (the guest listens) -> each CONNECT: forwarded-tcpip channel opened -> bridge
//! ```

use std::{convert::Infallible, sync::Arc};

use axum::body::Body;
use belljar_api::{
    error::ErrorBody,
    limits::AGENT_PORT,
    tunnel::{PORT_HEADER, REVERSE_CONNECTIONS_MAX, REVERSE_PATH, REVERSE_UPGRADE, REVERSE_WINDOW},
};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1, server::conn::http2, service::service_fn, upgrade::Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use russh::{
    Channel, ChannelMsg,
    server::{Handle, Msg},
};
use tokio_util::sync::CancellationToken;

use super::{bridge, inbox::Inbox};
use crate::{
    app::App,
    ingress::{self, Target},
    limits::{NODE_PING, NODE_PING_TIMEOUT},
};

/// A port of the sandbox that is listened on.
pub(super) struct Tunnel {
    pub(super) port: u16,
    connection: Upgraded,
}

/// Lets the guest listen on a port, or on any when it is 0.
pub(super) async fn listen(app: &App, sandbox: String, port: u16) -> Result<Tunnel, String> {
    let stream = ingress::open(app, &Target { sandbox, port: AGENT_PORT }).await.map_err(|error| error.told())?;
    let broken = |error: hyper::Error| format!("the connection to the sandbox broke off: {error}");
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("{REVERSE_PATH}?port={port}"))
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, REVERSE_UPGRADE)
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        let words = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error);
        return Err(words.unwrap_or_else(|_| format!("the sandbox answered {status}")));
    }
    let told = answer.headers().get(PORT_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    let port = told.ok_or("the sandbox does not say where it listens")?;
    Ok(Tunnel { port, connection: hyper::upgrade::on(answer).await.map_err(broken)? })
}

impl Tunnel {
    /// Offers every connection to the client, until the sandbox ends the tunnel or this is dropped. `address` is what the
    /// client asked for, by which it knows the tunnel.
    pub(super) async fn serve(self, address: String, handle: Handle) {
        // Ends the connections when this future is dropped.
        let ended = CancellationToken::new();
        let _guard = ended.clone().drop_guard();
        let port = u32::from(self.port);
        let service = service_fn(move |request: Request<Incoming>| {
            let (handle, address, ended) = (handle.clone(), address.clone(), ended.clone());
            async move {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = match offer(&request, &handle, address, port).await {
                    Some(channel) => {
                        tokio::spawn(async move { ended.run_until_cancelled(carry(request, channel)).await });
                        StatusCode::OK
                    }
                    None => StatusCode::BAD_GATEWAY,
                };
                Ok::<_, Infallible>(response)
            }
        });
        let served = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(REVERSE_WINDOW)
            .initial_connection_window_size(REVERSE_WINDOW * REVERSE_CONNECTIONS_MAX)
            .max_concurrent_streams(REVERSE_CONNECTIONS_MAX)
            .max_send_buf_size(REVERSE_WINDOW as usize)
            .keep_alive_interval(NODE_PING)
            .keep_alive_timeout(NODE_PING_TIMEOUT)
            .serve_connection(self.connection, service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "a reverse tunnel broke off");
        }
    }
}

/// Asks the client to take a connection.
async fn offer(request: &Request<Incoming>, handle: &Handle, address: String, port: u32) -> Option<Channel<Msg>> {
    if request.method() != Method::CONNECT {
        return None;
    }
    let (host, peer) = request.uri().authority().map(|peer| (peer.host().to_owned(), peer.port_u16()))?;
    handle.channel_open_forwarded_tcpip(address, port, host, u32::from(peer.unwrap_or(0))).await.ok()
}

async fn carry(request: Request<Incoming>, channel: Channel<Msg>) {
    let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
    let (mut read, outbox) = channel.split();
    let (inbox, outbox) = (Inbox::default(), Arc::new(outbox));
    // Taken out at once, wherever it is to go: russh must not be made to wait.
    let receive = async {
        while let Some(message) = read.wait().await {
            match message {
                ChannelMsg::Data { data } => inbox.push(&data),
                ChannelMsg::Eof => inbox.end(),
                ChannelMsg::Close => inbox.close(),
                _ => {}
            }
        }
        // The channel is gone; what came over it is still passed on, unless the connection is gone, too.
        inbox.close();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = bridge::carry(&inbox, &outbox, TokioIo::new(upgraded)) => {}
        () = receive => {}
    }
    let _ = outbox.close().await;
}
