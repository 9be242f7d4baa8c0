//! Many connections over one tunnel, in both directions, with our own client: each has its own end and its own pace. The
//! agent is a plain process here, so that its 127.0.0.1 is ours.

use std::{net::SocketAddr, time::Duration};

use belljar_client::{Client, Sandbox};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::System;

/// Connections at once.
const MANY: usize = 200;
/// More than fits into all buffers on the way.
const TOO_MUCH: usize = 64 << 20;

/// Both ways in which a service is reached through a sandbox: the service's port to where it can be connected to.
#[derive(Clone, Copy, Debug)]
enum Way {
    Forward,
    Reverse,
}

impl Way {
    const BOTH: [Self; 2] = [Self::Forward, Self::Reverse];

    async fn open(self, sandbox: &Sandbox, service: u16) -> (SocketAddr, JoinHandle<()>) {
        match self {
            Self::Forward => {
                let tunnel = sandbox.tunnel("127.0.0.1:0".parse().unwrap(), service).await.unwrap();
                (tunnel.address(), tokio::spawn(tunnel.serve(|_| {})))
            }
            Self::Reverse => {
                let tunnel = sandbox.reverse_tunnel(0, "127.0.0.1", service).await.unwrap();
                let address = SocketAddr::from(([127, 0, 0, 1], tunnel.port()));
                (address, tokio::spawn(async move { drop(tunnel.serve(|_| {}).await) }))
            }
        }
    }
}

/// Runs `check` for a service through both kinds of tunnel.
fn check(service: fn(TcpStream) -> JoinHandle<()>, check: impl AsyncFn(SocketAddr)) {
    let system = System::start();
    let client = Client::new(&format!("http://{}", system.address), Some(&system.key)).unwrap();
    system.runtime.block_on(async {
        let id = client.create(&Default::default()).await.unwrap().sandbox_id;
        let sandbox = client.sandbox(&id);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                service(stream);
            }
        });
        for way in Way::BOTH {
            let (address, serving) = way.open(&sandbox, port).await;
            timeout(Duration::from_secs(60), check(address)).await.unwrap_or_else(|_| panic!("{way:?} hangs"));
            serving.abort();
        }
        client.delete(&id).await.unwrap();
    });
}

/// Answers once all has come: works only if each direction ends for itself.
fn count(mut stream: TcpStream) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut all = Vec::new();
        if stream.read_to_end(&mut all).await.is_ok() {
            let _ = stream.write_all(format!("{} bytes", all.len()).as_bytes()).await;
        }
    })
}

async fn check_count(address: SocketAddr, size: usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&vec![7; size]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, format!("{size} bytes"));
}

#[test]
fn hundreds_of_connections_share_a_tunnel_and_end_for_themselves() {
    check(count, async |address| {
        let connections = (0..MANY).map(|n| tokio::spawn(check_count(address, n * 1000)));
        for connection in connections.collect::<Vec<_>>() {
            connection.await.unwrap();
        }
    });
}

#[test]
fn one_that_stands_still_stops_no_other() {
    fn stall_or_count(stream: TcpStream) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut first = [0];
            if stream.peek(&mut first).await.is_ok() && first == [b's'] {
                sleep(Duration::from_secs(600)).await;
            }
            let _ = count(stream).await;
        })
    }
    check(stall_or_count, async |address| {
        let mut stalled = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_u8(b's').await.unwrap();
            // What fits is taken, then nothing more.
            let filled = timeout(Duration::from_millis(100), stream.write_all(&vec![0; TOO_MUCH])).await;
            assert!(filled.is_err(), "{TOO_MUCH} bytes went to somebody who reads nothing");
            stalled.push(stream);
        }
        check_count(address, 100_000).await;
    });
}

#[test]
fn what_breaks_off_never_looks_like_an_orderly_end() {
    // A service that is there and breaks off in the middle.
    fn break_off(mut stream: TcpStream) -> JoinHandle<()> {
        tokio::spawn(async move {
            let _ = stream.write_all(b"half").await;
            let _ = stream.read_u8().await;
            let _ = stream.set_zero_linger();
        })
    }
    check(break_off, async |address| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        stream.write_u8(b'.').await.unwrap();
        let read = stream.read(&mut [0; 1]).await;
        assert!(read.is_err(), "half an answer looked like a whole one");
    });
}
