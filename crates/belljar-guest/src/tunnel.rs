//! `GET /api/v1/tunnels/tcp?port=N`: a TCP connection to the guest's loopback, carried by a WebSocket.
//!
//! The end of either direction becomes a Close frame or a shutdown of the socket; the other direction goes on for as
//! long as the WebSocket allows: after a client's Close nothing more can be sent to it. A client that wants more says
//! `half_close=true`; see [`belljar_api::tunnel`].

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::StatusCode,
    response::Response,
    routing::get,
};
use belljar_api::{error::code, limits::WS_MESSAGE_MAX, tunnel::TCP_PATH};
use bytes::{Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{
    agent::Agent,
    connect::connect_local,
    error::{ApiError, Params},
    limits::TUNNEL_CHUNK,
};

/// The route.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route(TCP_PATH, get(tunnel))
}

#[derive(Deserialize)]
struct TunnelQuery {
    #[serde(default)]
    port: String,
    #[serde(default)]
    half_close: bool,
}

/// Connects first: 101 means that somebody listens.
async fn tunnel(
    State(_): State<Arc<Agent>>,
    Params(query): Params<TunnelQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let port = match query.port.parse::<u16>() {
        Ok(port) if port > 0 => port,
        _ => return Err(ApiError::invalid(format!("port: `{}` is not between 1 and 65535", query.port))),
    };
    let upgrade = upgrade.map_err(|error| ApiError::invalid(error.body_text()))?;
    let tcp = connect_local(port).await.map_err(|error| refused(port, &error))?;
    let upgrade = upgrade.max_message_size(WS_MESSAGE_MAX).max_frame_size(WS_MESSAGE_MAX);
    Ok(upgrade.on_upgrade(move |socket| carry(socket, tcp, query.half_close)))
}

fn refused(port: u16, error: &io::Error) -> ApiError {
    let message = format!("nothing listens on port {port} of the sandbox: {error}");
    ApiError::new(StatusCode::BAD_GATEWAY, code::CONNECTION_REFUSED, message)
}

async fn carry(socket: WebSocket, tcp: TcpStream, half_close: bool) {
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = tcp.into_split();
    let ended = {
        let mut inward = std::pin::pin!(to_guest(&mut stream, &mut writer, half_close));
        tokio::select! {
            ended = &mut inward => ended,
            // The guest has ended and the client was sent a Close: until it answers it may still send.
            sent = from_guest(&mut sink, &mut reader, half_close) => match sent {
                Ok(()) => inward.await,
                Err(_) => Ended::Gone,
            },
        }
    };
    match ended {
        Ended::Closed => drop(writer.shutdown().await),
        Ended::Text => drop(sink.send(close(close_code::PROTOCOL, "a tunnel carries binary messages")).await),
        Ended::Gone => {}
    }
}

/// Why nothing more comes from the client.
enum Ended {
    /// It said so.
    Closed,
    /// It sent text, which is not part of the protocol.
    Text,
    /// One of the two connections broke off.
    Gone,
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

async fn from_guest(
    sink: &mut SplitSink<WebSocket, Message>,
    reader: &mut OwnedReadHalf,
    half_close: bool,
) -> Result<(), axum::Error> {
    loop {
        let mut chunk = BytesMut::with_capacity(TUNNEL_CHUNK);
        match reader.read_buf(&mut chunk).await {
            Ok(0) if half_close => return sink.send(Message::Binary(Bytes::new())).await,
            Err(_) if half_close => return sink.send(close(close_code::ERROR, "the connection broke off")).await,
            Ok(0) | Err(_) => return sink.send(close(close_code::NORMAL, "")).await,
            Ok(_) => sink.send(Message::Binary(chunk.freeze())).await?,
        }
    }
}

async fn to_guest(stream: &mut SplitStream<WebSocket>, writer: &mut OwnedWriteHalf, half_close: bool) -> Ended {
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(bytes))) if bytes.is_empty() && half_close => {
                if writer.shutdown().await.is_err() {
                    return Ended::Gone;
                }
            }
            Some(Ok(Message::Binary(bytes))) => {
                if writer.write_all(&bytes).await.is_err() {
                    return Ended::Gone;
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) => return Ended::Closed,
            Some(Ok(Message::Text(_))) => return Ended::Text,
            Some(Err(_)) | None => return Ended::Gone,
        }
    }
}
