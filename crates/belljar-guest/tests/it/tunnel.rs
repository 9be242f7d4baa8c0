use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::harness::{Agent, websocket};

async fn open(agent: &Agent) -> (WebSocketStream<belljar_link::LinkStream>, TcpStream) {
    open_with(agent, "").await
}

async fn open_with(agent: &Agent, more: &str) -> (WebSocketStream<belljar_link::LinkStream>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let path = format!("/api/v1/tunnels/tcp?port={port}{more}");
    let (near, far) = tokio::join!(websocket(agent, &path), listener.accept());
    (near.expect("a tunnel"), far.expect("a connection").0)
}

#[tokio::test]
async fn bytes_go_both_ways_and_ends_are_passed_on() {
    let agent = Agent::start().await;
    let (mut near, mut far) = open(&agent).await;
    near.send(Message::binary(vec![1; 16 * 1024])).await.expect("sent");
    let mut got = vec![0; 16 * 1024];
    far.read_exact(&mut got).await.expect("read");
    assert_eq!(got, vec![1; 16 * 1024]);
    far.write_all(b"answer").await.expect("written");
    assert_eq!(near.next().await.expect("a message").expect("ok"), Message::binary(&b"answer"[..]));
    // The guest ends: a Close; what the client still sends arrives.
    far.shutdown().await.expect("half closed");
    assert!(matches!(near.next().await, Some(Ok(Message::Close(_)))));
    let (mut near, mut far) = open(&agent).await;
    near.close(None).await.expect("closed");
    got.clear();
    far.read_to_end(&mut got).await.expect("the end");
    assert!(got.is_empty());
}

#[tokio::test]
async fn each_direction_can_end_for_itself() {
    let agent = Agent::start().await;
    let (mut near, mut far) = open_with(&agent, "&half_close=true").await;
    near.send(Message::binary(&b"question"[..])).await.expect("sent");
    near.send(Message::binary(Vec::new())).await.expect("the end");
    let mut question = String::new();
    far.read_to_string(&mut question).await.expect("read to the end");
    assert_eq!(question, "question");
    for part in [&b"an "[..], b"answer"] {
        far.write_all(part).await.expect("written");
        assert_eq!(near.next().await.expect("a message").expect("ok"), Message::binary(part));
    }
    drop(far);
    assert_eq!(near.next().await.expect("a message").expect("ok"), Message::binary(Vec::new()));

    // The other way round.
    let (mut near, mut far) = open_with(&agent, "&half_close=true").await;
    far.shutdown().await.expect("half closed");
    assert_eq!(near.next().await.expect("a message").expect("ok"), Message::binary(Vec::new()));
    near.send(Message::binary(&b"still here"[..])).await.expect("sent");
    let mut got = [0; 10];
    far.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"still here");
    // What breaks off does not look like an orderly end.
    let (mut near, far) = open_with(&agent, "&half_close=true").await;
    far.set_zero_linger().expect("linger");
    drop(far);
    match near.next().await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1011),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn text_is_a_protocol_error() {
    let agent = Agent::start().await;
    let (mut near, mut far) = open(&agent).await;
    near.send(Message::text("hello")).await.expect("sent");
    match near.next().await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1002),
        other => panic!("{other:?}"),
    }
    assert_eq!(far.read(&mut [0; 1]).await.expect("the end"), 0);
}

#[tokio::test]
async fn what_cannot_be_reached_is_refused_before_the_upgrade() {
    let agent = Agent::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    for (query, status) in
        [(format!("port={port}"), 502), ("port=0".into(), 400), ("port=65536".into(), 400), (String::new(), 400)]
    {
        let refused = websocket(&agent, &format!("/api/v1/tunnels/tcp?{query}")).await.err();
        assert_eq!(refused, Some(status), "{query}");
    }
}
