use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    task::{JoinHandle, JoinSet},
};

use crate::{
    Acceptor, ConnectOptions, Connector, LinkError, LinkStream, OpenError, RefuseCode, Session, connect,
    core::{
        decoder::{Decoder, Item},
        frame::{AbortCode, Body, encode},
        hello::{Hello, HelloKind},
    },
    limits::{MAX_STREAMS, TX_BUFFER, VERSION, WINDOW},
    serve,
};

/// Far longer than anything here takes; a test that reaches it fails.
const OPTIONS: ConnectOptions = ConnectOptions { timeout: Duration::from_secs(60) };

/// Ports of the guest in these tests.
const ECHO: u16 = 7;
const SILENT: u16 = 9;
const CLOSED: u16 = 1;

/// Echoes, keeps without reading, or refuses, by port.
fn guest(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> JoinHandle<LinkError> {
    let (mut acceptor, session) = serve(io);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(incoming) = acceptor.accept().await {
            match incoming.port {
                ECHO => {
                    tokio::spawn(echo(incoming.accept()));
                }
                SILENT => kept.push(incoming.accept()),
                _ => incoming.refuse(RefuseCode::Refused),
            }
        }
    });
    tokio::spawn(session)
}

async fn echo(stream: LinkStream) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn host(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> (Connector, JoinHandle<LinkError>) {
    let (connector, session) = connect(io, OPTIONS).await.unwrap();
    (connector, tokio::spawn(session))
}

async fn pair() -> (Connector, JoinHandle<LinkError>, JoinHandle<LinkError>) {
    let (a, b) = duplex(64 * 1024);
    let guest = guest(b);
    let (connector, session) = host(a).await;
    (connector, session, guest)
}

/// Two ends of a new stream, for tests that play the guest's program themselves.
async fn ends() -> (Connector, Acceptor, LinkStream, LinkStream) {
    let (a, b) = duplex(64 * 1024);
    let (mut acceptor, session) = serve(b);
    tokio::spawn(session);
    let (connector, _) = host(a).await;
    let (ours, theirs) = tokio::join!(connector.open(ECHO), async { acceptor.accept().await.unwrap().accept() });
    (connector, acceptor, ours.unwrap(), theirs)
}

/// Sends `data` to an echo and expects it back, and then the end.
async fn round_trip(connector: &Connector, data: Vec<u8>) {
    let (mut from, mut to) = tokio::io::split(connector.open(ECHO).await.unwrap());
    let mut got = Vec::new();
    let send = async {
        to.write_all(&data).await.unwrap();
        to.shutdown().await.unwrap();
    };
    tokio::join!(send, async { from.read_to_end(&mut got).await.unwrap() });
    assert!(got == data, "{} bytes sent, {} came back", data.len(), got.len());
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 255 + seed) % 256).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_at_once() {
    let (connector, ..) = pair().await;
    let mut tasks = JoinSet::new();
    for i in 0..200 {
        let connector = connector.clone();
        tasks.spawn(async move { round_trip(&connector, pattern(i * 997, i)).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    // Larger than every buffer on the way.
    round_trip(&connector, pattern(5 * 1024 * 1024, 0)).await;
}

#[tokio::test]
async fn more_streams_in_turn_than_at_once() {
    let (connector, ..) = pair().await;
    for i in 0..2 * MAX_STREAMS {
        round_trip(&connector, pattern(1, i)).await;
    }
    let mut held = Vec::new();
    for _ in 0..MAX_STREAMS {
        held.push(connector.open(SILENT).await.unwrap());
    }
    assert!(matches!(connector.open(SILENT).await, Err(OpenError::TooManyStreams { port: SILENT })));
    held.pop();
    // The place is free when the reset is sent, which `open` cannot overtake: it waits for no answer.
    while let Err(OpenError::TooManyStreams { .. }) = connector.open(ECHO).await {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn each_direction_ends_for_itself() {
    let (_connector, _acceptor, mut ours, mut theirs) = ends().await;
    let mut text = String::new();
    ours.write_all(b"question").await.unwrap();
    ours.shutdown().await.unwrap();
    theirs.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "question");
    theirs.write_all(b"answer").await.unwrap();
    theirs.shutdown().await.unwrap();
    text.clear();
    ours.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");
    assert_eq!(ours.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn dropping_after_shutdown_delivers_everything() {
    let (_connector, _acceptor, mut ours, mut theirs) = ends().await;
    let data = pattern(TX_BUFFER, 3);
    theirs.write_all(&data).await.unwrap();
    theirs.shutdown().await.unwrap();
    drop(theirs);
    let mut got = Vec::new();
    ours.read_to_end(&mut got).await.unwrap();
    assert!(got == data);
    // The other end reads no more, and says so.
    let error = async {
        loop {
            if let Err(error) = ours.write_all(&data).await {
                return error;
            }
        }
    };
    assert_eq!(error.await.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn dropping_before_shutdown_is_an_error_and_not_an_end() {
    let (_connector, _acceptor, mut ours, mut theirs) = ends().await;
    theirs.write_all(b"half an ans").await.unwrap();
    drop(theirs);
    let mut got = Vec::new();
    assert_eq!(ours.read_to_end(&mut got).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn refusals_name_port_and_reason() {
    let (connector, ..) = pair().await;
    let error = connector.open(CLOSED).await.unwrap_err();
    assert_eq!(error.to_string(), "link: guest port 1: connection refused");

    let (connector, mut acceptor, ..) = ends().await;
    let (opened, ()) = tokio::join!(connector.open(5), async { drop(acceptor.accept().await) });
    assert!(matches!(opened, Err(OpenError::Refused { port: 5, code: RefuseCode::Failed })));
    drop(acceptor);
    assert!(matches!(connector.open(5).await, Err(OpenError::Refused { port: 5, code: RefuseCode::Refused })));
}

#[tokio::test]
async fn an_open_that_is_given_up_is_not_offered_later() {
    let (connector, mut acceptor, mut ours, mut theirs) = ends().await;
    {
        let mut open = Box::pin(connector.open(5));
        assert!(is_pending(open.as_mut()).await);
    }
    // Sent after the reset, so that the guest knows of it when this arrives.
    ours.write_all(b"x").await.unwrap();
    theirs.read_exact(&mut [0]).await.unwrap();
    let (opened, port) = tokio::join!(connector.open(6), async {
        let incoming = acceptor.accept().await.unwrap();
        let port = incoming.port;
        drop(incoming.accept());
        port
    });
    assert_eq!(port, 6);
    assert!(matches!(opened, Err(OpenError::Refused { port: 6, code: RefuseCode::Failed })), "dropped unanswered");
}

/// Polls once, lets the others run, and polls once more: true if still pending.
async fn is_pending(mut future: Pin<&mut impl Future>) -> bool {
    for _ in 0..2 {
        if std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

#[tokio::test]
async fn a_stalled_reader_stops_only_itself() {
    let (connector, ..) = pair().await;
    let mut stalled = connector.open(SILENT).await.unwrap();
    let stuck = tokio::spawn(async move { stalled.write_all(&vec![0; 4 * WINDOW]).await });
    for i in 0..20 {
        round_trip(&connector, pattern(3 * WINDOW, i)).await;
    }
    assert!(!stuck.is_finished());
    stuck.abort();
}

#[tokio::test]
async fn the_end_of_the_bytes_ends_the_session_for_everybody() {
    let (connector, session, guest) = pair().await;
    let mut stream = connector.open(ECHO).await.unwrap();
    guest.abort();
    assert!(matches!(session.await.unwrap(), LinkError::Eof));
    assert!(matches!(connector.closed().await, LinkError::Eof));
    assert!(connector.is_closed());
    let error = stream.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(error.to_string(), "link: the other end closed the connection");
    assert!(matches!(connector.open(ECHO).await, Err(OpenError::Ended { port: ECHO, reason: LinkError::Eof })));
}

#[tokio::test]
async fn what_was_finished_can_be_read_after_the_session() {
    let (a, b) = duplex(64 * 1024);
    let (mut acceptor, session) = serve(b);
    let guest = tokio::spawn(session);
    let (connector, host) = host(a).await;
    let (ours, theirs) = tokio::join!(connector.open(ECHO), async { acceptor.accept().await.unwrap().accept() });
    let (mut ours, mut theirs) = (ours.unwrap(), theirs);
    theirs.write_all(b"answer").await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut first = [0];
    ours.read_exact(&mut first).await.unwrap();
    // The end may still be under way behind the first byte: another stream's answer comes after it.
    let _ = tokio::join!(connector.open(ECHO), async { acceptor.accept().await.unwrap().refuse(RefuseCode::Refused) });
    guest.abort();
    host.await.unwrap();
    let mut rest = String::new();
    ours.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "nswer");
    assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// The guest's port: hosts come and go, and what one left behind stays in the pipe.
#[derive(Clone)]
struct Port(Arc<Mutex<DuplexStream>>);

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_host_that_comes_back_starts_over_on_the_same_port() {
    let (a, b) = duplex(10_000);
    let port = Port(Arc::new(Mutex::new(a)));
    let (mut acceptor, session) = serve(b);
    tokio::spawn(session);
    let mut old_guest_stream: Option<LinkStream> = None;
    for round in 0..10 {
        let (connector, session) = connect(port.clone(), OPTIONS).await.unwrap();
        let session = tokio::spawn(session);
        if let Some(mut old) = old_guest_stream.take() {
            let error = old.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.to_string(), "link: the host started a new session");
        }
        let (ours, mut theirs) = tokio::join!(connector.open(round), async {
            let incoming = acceptor.accept().await.unwrap();
            assert_eq!(incoming.port, round);
            incoming.accept()
        });
        let mut ours = ours.unwrap();
        theirs.write_all(b"alive").await.unwrap();
        ours.read_exact(&mut [0; 5]).await.unwrap();
        // The host dies with frames half sent in both directions.
        ours.write_all(&pattern(TX_BUFFER, 1)).await.unwrap();
        theirs.write_all(&pattern(TX_BUFFER, 2)).await.unwrap();
        tokio::task::yield_now().await;
        session.abort();
        assert!(matches!(connector.closed().await, LinkError::Dropped));
        old_guest_stream = Some(theirs);
    }
}

/// Plays a guest by hand: reads the host's HELLO and answers with what `answer` makes of it.
async fn forged(answer: impl FnOnce(Hello) -> Vec<u8> + Send + 'static) -> Result<(Connector, Session), LinkError> {
    let (a, mut b) = duplex(64 * 1024);
    tokio::spawn(async move {
        let mut decoder = Decoder::new(HelloKind::Hello);
        let hello = loop {
            let count = b.read(decoder.space()).await.unwrap();
            decoder.filled(count);
            if let Some(Item::Hello(hello)) = decoder.decode().unwrap() {
                break hello;
            }
        };
        b.write_all(&answer(hello)).await.unwrap();
        // Until the host has gone.
        tokio::io::copy(&mut b, &mut tokio::io::sink()).await.unwrap();
    });
    connect(a, OPTIONS).await
}

fn ack(hello: Hello, then: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    hello.encode(HelloKind::Ack, &mut out);
    then(&mut out);
    out
}

/// Why the session with such a guest ends.
async fn check(then: impl FnOnce(u32, &mut Vec<u8>) + Send + 'static, want: &str) {
    let (connector, session) = match forged(|hello| ack(hello, |out| then(hello.epoch, out))).await {
        Ok(pair) => pair,
        Err(error) => return assert_eq!(error.to_string(), want),
    };
    assert_eq!(session.await.to_string(), want);
    assert_eq!(connector.closed().await.to_string(), want);
}

#[tokio::test]
async fn a_hostile_guest_ends_its_session() {
    let garbage = "link: no frame header where one must be (first byte 0x55); the byte stream was cut or is garbage";
    check(|_, out| out.extend([0x55; 1000]), garbage).await;
    let unknown = "link: the peer sent DATA for stream 7, which never was opened";
    check(|epoch, out| encode(out, epoch, 7, Body::Data(b"x")), unknown).await;
    let aborted = "link: the guest agent gave up the session: it received bytes that are not a frame";
    check(|epoch, out| encode(out, epoch, 0, Body::Abort(AbortCode::NotAFrame)), aborted).await;
}

#[tokio::test]
async fn versions_that_differ_are_both_named() {
    let error = forged(|hello| ack(Hello { version: 9, ..hello }, |_| {})).await.unwrap_err();
    assert!(matches!(error, LinkError::Version { host: VERSION, guest: 9 }), "{error}");

    let (mut a, b) = duplex(64 * 1024);
    let _guest = guest(b);
    let hello = Hello { version: 9, ..Hello::random() };
    a.write_all(&hello.preamble()).await.unwrap();
    let mut answer = [0; crate::core::hello::HELLO_LEN];
    a.read_exact(&mut answer).await.unwrap();
    assert_eq!(Hello::parse(HelloKind::Ack, &answer), Some(Hello { version: VERSION, ..hello }));
    // And it still is there for a host that it understands.
    let (connector, _session) = host(a).await;
    round_trip(&connector, pattern(100, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_given_up() {
    let (a, _b) = duplex(64 * 1024);
    let error = connect(a, ConnectOptions { timeout: Duration::from_secs(5) }).await.unwrap_err();
    assert!(matches!(error, LinkError::HandshakeTimeout(_)));
    // An answer to an earlier host is none.
    let stale = forged(|hello| ack(Hello { nonce: !hello.nonce, ..hello }, |_| {})).await.unwrap_err();
    assert!(matches!(stale, LinkError::HandshakeTimeout(_)));
}

#[tokio::test]
async fn a_guest_says_that_it_gives_up() {
    let (mut a, b) = duplex(256 * 1024);
    let _guest = guest(b);
    let hello = Hello::random();
    let mut wire = hello.preamble();
    encode(&mut wire, hello.epoch, 1, Body::Fin);
    a.write_all(&wire).await.unwrap();
    let mut want = ack(hello, |_| {});
    encode(&mut want, hello.epoch, 0, Body::Abort(AbortCode::Violation));
    let mut got = vec![0; want.len()];
    a.read_exact(&mut got).await.unwrap();
    assert_eq!(got, want);
}
