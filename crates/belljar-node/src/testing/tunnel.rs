//! Connections of the server to the ports of sandboxes.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    guest::{BROKEN, ECHO, SILENT},
    *,
};
use crate::{limits::SERVER_PING, uplink};

const SECOND: Duration = Duration::from_secs(1);

/// A connection to a port: the two bodies.
#[derive(Debug)]
struct Stream {
    to_guest: mpsc::Sender<io::Result<Bytes>>,
    from_guest: Incoming,
}

impl Stream {
    async fn send(&self, bytes: &'static [u8]) {
        self.to_guest.send(Ok(Bytes::from_static(bytes))).await.expect("sent");
    }

    async fn next(&mut self) -> Option<hyper::Result<Bytes>> {
        Some(self.from_guest.frame().await?.map(|frame| frame.into_data().expect("bytes")))
    }

    /// Goes without a word, as a client does that is killed.
    fn cut(self) {
        let _ = self.to_guest.try_send(Err(io::ErrorKind::ConnectionAborted.into()));
    }
}

/// A server that is connected to the node.
struct Server(SendRequest<Body>);

impl Server {
    async fn connect(it: &Fixture) -> Self {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let ctx = it.ctx.clone();
        tokio::spawn(async move { uplink::serve(&ctx, None, theirs).await });
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(ours)).await.expect("a connection");
        tokio::spawn(connection);
        Self(sender)
    }

    /// Opens a connection to a port; where that fails, the answer.
    async fn open(&self, id: &str, port: u16) -> Result<Stream, (StatusCode, String)> {
        let (to_guest, parts) = mpsc::channel(4);
        let request = Request::post(format!("http://node/v1/streams/{id}/{port}"));
        let request = request.body(Body::from_stream(ReceiverStream::new(parts))).expect("a request");
        let response = self.0.clone().send_request(request).await.expect("an answer");
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            return Err((status, String::from_utf8_lossy(&body).into_owned()));
        }
        Ok(Stream { to_guest, from_guest: response.into_body() })
    }
}

async fn echo(stream: &mut Stream) {
    stream.send(b"hello").await;
    assert_eq!(stream.next().await.expect("an answer").expect("bytes"), "hello");
}

#[tokio::test(start_paused = true)]
async fn a_connection_wakes_what_sleeps() {
    for resident in [Duration::ZERO, SECOND * 30] {
        let it = Fixture::with(Options { resident, ..Options::default() }).await;
        let server = Server::connect(&it).await;
        let id = it.run(named(60)).await;
        it.machine(&id).write(7, 77);
        let before = it.contents(&id);
        it.suspend(&id).await;
        sleep(SECOND).await;
        let (one, two) = tokio::join!(server.open(&id, ECHO), server.open(&id, ECHO));
        let (mut one, mut two) = (one.expect("a stream"), two.expect("a stream"));
        echo(&mut one).await;
        echo(&mut two).await;
        assert_eq!((it.report(&id).state, it.contents(&id)), (NodeState::Running, before));
        // Only a connection keeps it awake.
        sleep(SECOND * 1000).await;
        echo(&mut one).await;
        drop(one);
        two.cut();
        let begun = Instant::now();
        it.wait(&id, |state| *state == NodeState::Suspended).await;
        assert_eq!(begun.elapsed().as_secs(), 60);
        it.finish().await;
    }
}

/// A guest that has nothing to say does not notice that its client is gone; the node does.
#[tokio::test(start_paused = true)]
async fn a_connection_counts_until_its_client_is_gone() {
    let it = Fixture::new().await;
    let server = Server::connect(&it).await;
    let id = it.run(named(60)).await;
    for orderly in [true, false] {
        let stream = server.open(&id, SILENT).await.expect("a stream");
        sleep(SECOND * 1000).await;
        if orderly {
            drop(stream)
        } else {
            stream.cut()
        }
        let begun = Instant::now();
        it.wait(&id, |state| *state == NodeState::Suspended).await;
        assert_eq!(begun.elapsed().as_secs(), 60);
    }
    // One that only says no more may still hear something.
    let Stream { to_guest, mut from_guest } = server.open(&id, SILENT).await.expect("a stream");
    drop(to_guest);
    sleep(SECOND * 1000).await;
    assert_eq!(it.report(&id).state, NodeState::Running);
    // Until the sandbox sleeps: that is no orderly end.
    it.suspend(&id).await;
    assert!(from_guest.frame().await.expect("a word").is_err());
    it.finish().await;
}

/// Also when the other direction has ended long since.
#[tokio::test(start_paused = true)]
async fn what_the_guest_breaks_off_does_not_end_in_good_order() {
    let it = Fixture::new().await;
    let server = Server::connect(&it).await;
    let id = it.run(named(0)).await;
    for is_over in [false, true] {
        let mut stream = server.open(&id, BROKEN).await.expect("a stream");
        assert_eq!(stream.next().await.expect("an answer").expect("bytes"), "half");
        stream.send(b"go").await;
        let Stream { to_guest, mut from_guest } = stream;
        let kept = (!is_over).then_some(to_guest);
        assert!(from_guest.frame().await.expect("a word").is_err(), "{is_over}");
        drop(kept);
    }
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_made_tells_why() {
    let it = Fixture::with(Options { resident: Duration::ZERO, ..Options::default() }).await;
    let server = Server::connect(&it).await;
    let mut stubborn = named(0);
    stubborn.settings.auto_resume = false;
    let (id, stubborn) = (it.run(named(0)).await, it.run(stubborn).await);
    it.suspend(&id).await;
    it.suspend(&stubborn).await;
    sleep(SECOND).await;
    let refused = |answer: Result<Stream, (StatusCode, String)>| answer.expect_err("no stream");
    let (status, words) = refused(server.open(&stubborn, ECHO).await);
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(words.contains("is not to be woken"), "{words}");
    it.world.faults.arm(Some(1), false);
    let (status, words) = refused(server.open(&id, ECHO).await);
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(words.contains("cannot be resumed now"), "{words}");
    it.world.faults.arm(None, false);
    assert_eq!(refused(server.open(&id, 1).await).0, StatusCode::BAD_GATEWAY);
    assert_eq!(refused(server.open(&id, 0).await).0, StatusCode::FORBIDDEN);
    assert_eq!(refused(server.open(&new_id(), ECHO).await).0, StatusCode::NOT_FOUND);
    it.command(&id, Op::Terminate { reason: TerminationReason::User }).await;
    assert_eq!(refused(server.open(&id, ECHO).await).0, StatusCode::SERVICE_UNAVAILABLE);
    it.finish().await;
}

/// A connection that comes while the sandbox falls asleep: at every moment it gets through, and no idle sandbox sleeps
/// under it.
#[tokio::test(start_paused = true)]
async fn a_connection_of_the_same_moment_gets_through() {
    for by_command in [true, false] {
        let it = Fixture::new().await;
        let server = Server::connect(&it).await;
        let id = it.run(named(if by_command { 0 } else { 60 })).await;
        for moment in 0..40 {
            if by_command {
                it.command(&id, Op::Suspend).await;
            } else {
                sleep(SECOND * 60).await;
            }
            for _ in 0..moment {
                tokio::task::yield_now().await;
            }
            let begun = Instant::now();
            let mut stream = server.open(&id, ECHO).await.expect("a stream");
            echo(&mut stream).await;
            assert!(begun.elapsed() < SECOND, "it waited {:?}", begun.elapsed());
            sleep(SECOND * 100).await;
            echo(&mut stream).await;
            assert_eq!(it.report(&id).state, NodeState::Running);
        }
        it.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_server_elsewhere_can_vanish_without_a_word() {
    let it = Fixture::with(Options::default()).await;
    for (pings, stays) in [(Some(SERVER_PING), false), (None, true)] {
        let (mut ours, theirs) = tokio::io::duplex(1 << 20);
        let ctx = it.ctx.clone();
        let served = tokio::spawn(async move { uplink::serve(&ctx, pings, theirs).await });
        // It begins as HTTP/2 does, with no settings of its own, and says no more.
        ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("written");
        sleep(SECOND * 3600).await;
        assert_eq!(!served.is_finished(), stays, "{pings:?}");
        served.abort();
    }
    it.finish().await;
}
