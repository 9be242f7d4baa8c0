//! Tunnels: what the ends of a WebSocket tell each other, and what of it reaches the guest.

use belljar_api::limits::WS_MESSAGE_MAX;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

use super::{
    Harness, check_error,
    guest::{CLOSED_PORT, CUT_PORT, ECHO_PORT, SINK_PORT},
};

type Socket = WebSocketStream<TcpStream>;

async fn open(harness: &Harness, id: &str, query: &str) -> Result<Socket, StatusCode> {
    let url = format!("ws://{id}.local/api/v1/tunnels/tcp?{query}");
    let mut request = url.into_client_request().expect("a request");
    let key = HeaderValue::from_str(&format!("Bearer {}", harness.key)).expect("a header");
    request.headers_mut().insert(header::AUTHORIZATION, key);
    let stream = TcpStream::connect(harness.addr).await.expect("the server");
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => Err(answer.status()),
        Err(error) => panic!("{error}"),
    }
}

async fn next(socket: &mut Socket) -> Message {
    socket.next().await.expect("a message").expect("no error")
}

/// The code with which the server closes.
async fn closed(socket: &mut Socket) -> CloseCode {
    match next(socket).await {
        Message::Close(Some(frame)) => frame.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_ends_are_passed_on() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let mut socket = open(&harness, &id, &format!("port={ECHO_PORT}")).await.expect("a tunnel");
    let (mut sent, mut back) = (0, 0);
    for size in [1, 16 * 1024, WS_MESSAGE_MAX] {
        socket.send(Message::binary(vec![7; size])).await.expect("sent");
        sent += size;
        while back < sent {
            back += next(&mut socket).await.into_data().len();
        }
    }
    socket.send(Message::Ping("are you there".into())).await.expect("sent");
    assert_eq!(next(&mut socket).await, Message::Pong("are you there".into()));
    // The guest ends when it is told of our end, which is a Close here; nothing more can come then.
    socket.close(None).await.expect("closed");
    assert!(matches!(next(&mut socket).await, Message::Close(_)));
    assert!(socket.next().await.is_none());
}

#[tokio::test]
async fn the_guests_end_is_a_close_and_what_is_still_sent_arrives() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let mut socket = open(&harness, &id, &format!("port={SINK_PORT}")).await.expect("a tunnel");
    assert_eq!(closed(&mut socket).await, CloseCode::Normal);
    drop(socket);
    // With an end for each direction it is an empty message, and ours is one too.
    let mut socket = open(&harness, &id, &format!("port={SINK_PORT}&half_close=true")).await.expect("a tunnel");
    assert_eq!(next(&mut socket).await, Message::binary(Vec::new()));
    for _ in 0..10 {
        socket.send(Message::binary(vec![1; 10_000])).await.expect("sent");
    }
    socket.send(Message::binary(Vec::new())).await.expect("the end");
    node.left.subscribe().wait_for(|left| *left == 100_000).await.expect("all of it");
}

#[tokio::test]
async fn each_direction_can_end_for_itself() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let mut socket = open(&harness, &id, &format!("port={ECHO_PORT}&half_close=true")).await.expect("a tunnel");
    socket.send(Message::binary(&b"question"[..])).await.expect("sent");
    socket.send(Message::binary(Vec::new())).await.expect("the end");
    let mut back = Vec::new();
    loop {
        match next(&mut socket).await {
            Message::Binary(bytes) if bytes.is_empty() => break,
            message => back.extend(message.into_data()),
        }
    }
    assert_eq!(back, b"question");
}

/// A program, or its sandbox, dies in the middle of an answer, whether or not the client has ended its question.
#[tokio::test]
async fn what_breaks_off_never_looks_like_an_orderly_end() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(&format!(r#"{{"exposed_ports":[{CUT_PORT}]}}"#)).await;
    for is_over in [false, true] {
        let mut socket = open(&harness, &id, &format!("port={CUT_PORT}&half_close=true")).await.expect("a tunnel");
        assert!(matches!(next(&mut socket).await, Message::Binary(bytes) if !bytes.is_empty()));
        socket.send(Message::binary(&b"."[..])).await.expect("sent");
        if is_over {
            socket.send(Message::binary(Vec::new())).await.expect("the end");
        }
        assert_eq!(closed(&mut socket).await, CloseCode::Error, "{is_over}");
    }
    // The same in the body of an answer whose end is that of its connection.
    let request = harness
        .request("GET", "/")
        .header("x-tensorlake-sandbox-id", &id)
        .header("x-tensorlake-sandbox-port", CUT_PORT)
        .body(axum::body::Body::empty());
    let response = harness.send(request.expect("a request")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn what_is_no_part_of_the_protocol_is_named() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let long = Message::binary(vec![7; WS_MESSAGE_MAX + 1]);
    for (message, code) in [(Message::text("hello"), CloseCode::Protocol), (long, CloseCode::Size)] {
        let mut socket = open(&harness, &id, &format!("port={ECHO_PORT}")).await.expect("a tunnel");
        socket.send(message).await.expect("sent");
        assert_eq!(closed(&mut socket).await, code);
    }
}

#[tokio::test]
async fn what_cannot_be_reached_is_refused_before_the_upgrade() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    for (query, status) in [
        (format!("port={CLOSED_PORT}"), StatusCode::BAD_GATEWAY),
        ("port=0".into(), StatusCode::BAD_REQUEST),
        ("port=65536".into(), StatusCode::BAD_REQUEST),
        ("port=9501".into(), StatusCode::BAD_REQUEST),
        (format!("port={ECHO_PORT}&half_close=maybe"), StatusCode::BAD_REQUEST),
        (String::new(), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(open(&harness, &id, &query).await.err(), Some(status), "{query}");
    }
    let path = format!("/api/v1/tunnels/tcp?port={ECHO_PORT}");
    let reply = harness.ask(harness.request("GET", &path).header("x-tensorlake-sandbox-id", &id), "").await;
    check_error(&reply, StatusCode::BAD_REQUEST, belljar_api::error::code::INVALID_ARGUMENT, "a tunnel is a WebSocket");
}
