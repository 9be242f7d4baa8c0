//! Connections of the server to the ports of sandboxes.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};

use super::{
    guest::{ECHO, SILENT},
    *,
};
use crate::uplink;

const SECOND: Duration = Duration::from_secs(1);

type Stream = TokioIo<hyper::upgrade::Upgraded>;

/// A server that is connected to the node.
struct Server(SendRequest<Empty<Bytes>>);

impl Server {
    async fn connect(it: &Fixture) -> Self {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let ctx = it.ctx.clone();
        tokio::spawn(async move { uplink::serve(&ctx, theirs).await });
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(ours)).await.expect("a connection");
        tokio::spawn(connection);
        Self(sender)
    }

    /// Opens a connection to a port; where that fails, the answer.
    async fn open(&self, id: &str, port: u16) -> Result<Stream, (StatusCode, String)> {
        let request = Request::builder().method(Method::CONNECT).uri(format!("{id}:{port}"));
        let request = request.body(Empty::new()).expect("a request");
        let response = self.0.clone().send_request(request).await.expect("an answer");
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            return Err((status, String::from_utf8_lossy(&body).into_owned()));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await.expect("a stream")))
    }
}

async fn echo(stream: &mut Stream) {
    stream.write_all(b"hello").await.expect("written");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.expect("read");
    assert_eq!(&answer, b"hello");
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
        drop((one, two));
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
    let stream = server.open(&id, SILENT).await.expect("a stream");
    sleep(SECOND * 1000).await;
    drop(stream);
    let begun = Instant::now();
    it.wait(&id, |state| *state == NodeState::Suspended).await;
    assert_eq!(begun.elapsed().as_secs(), 60);
    // One that only says no more may still hear something.
    let mut stream = server.open(&id, SILENT).await.expect("a stream");
    stream.shutdown().await.expect("half closed");
    sleep(SECOND * 1000).await;
    assert_eq!(it.report(&id).state, NodeState::Running);
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
