//! Tunnels to a real guest, beside the bare link of the same guest: the server goes away meanwhile, and the link is ours.

use std::time::Instant;

use belljar_client::Sandbox as Remote;
use belljar_link::{ConnectOptions, Connector};
use belljar_tests::{Sandbox, World};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    runtime::Runtime,
};

use super::{PATIENCE, load::drain};
use crate::{progress, table::Table};

/// Bytes that are carried to measure a rate, MiB.
const MIB: u64 = 128;
const BYTES: u64 = MIB << 20;
/// Rounds of link, tunnels, link and so on, so that a slow moment of the machine is everybody's, and how often each rate is
/// taken in one. The median counts.
const ROUNDS: usize = 5;
const TIMES: usize = 2;
/// Ports in the guest: one sends all to whoever connects, the other takes all and then says so.
const SOURCE: u16 = 7000;
const SINK: u16 = 7001;

/// Both servers, and with a port of a reverse tunnel the same as clients.
const PROGRAM: &str = "
import socket, sys, threading
MIB, block = int(sys.argv[1]), bytes(1 << 20)
def source(s):
    for _ in range(MIB): s.sendall(block)
    s.close()
def sink(s):
    while s.recv(1 << 20): pass
    s.sendall(b'.'); s.close()
def serve(port, what):
    listener = socket.create_server(('127.0.0.1', port))
    print('listens', flush=True)
    while True: what(listener.accept()[0])
if len(sys.argv) > 2:
    globals()[sys.argv[2]](socket.create_connection(('127.0.0.1', int(sys.argv[3]))))
else:
    threading.Thread(target=serve, args=(7001, sink)).start()
    serve(7000, source)
";

/// Rates from the guest and to it, MB/s: over the link, through a tunnel, through one the other way round.
type Rates = [[Vec<f64>; 3]; 2];

pub(super) fn run(table: &mut Table) {
    let world = World::start_with(&[("BELLJAR_DRIVER", "auto".to_owned())]);
    let sandbox = world.create(&json!({"timeout_secs": 0}));
    sandbox.serve(&json!({"command": "python3", "args": ["-c", PROGRAM, MIB.to_string()]}));
    let runtime = Runtime::new().expect("a runtime");
    let mut rates = Rates::default();
    // The first of everything is slower: an emulator translates it.
    for round in 0..=ROUNDS {
        progress(&format!("a guest's bare link, and tunnels to it, {round} of {ROUNDS}"));
        let mut taken = Rates::default();
        world.down_keep();
        runtime.block_on(over_link(&world, &sandbox, &mut taken));
        world.up();
        let client = belljar_client::Client::new(&format!("http://{}", world.address()), Some(world.key()));
        let remote = client.expect("a client").sandbox(&sandbox.id);
        runtime.block_on(through_tunnels(&remote, &sandbox, &mut taken));
        if round > 0 {
            let both = rates.iter_mut().flatten().zip(taken.into_iter().flatten());
            both.for_each(|(all, more)| all.extend(more));
        }
    }
    for (way, rates) in ["from", "to"].into_iter().zip(rates) {
        let [link, tunnel, reverse] = rates.map(median);
        let share = |rate: f64| format!("{:.0} % of the link, >= 70 %", 100.0 * rate / link);
        table.value(&format!("{MIB} MiB {way} a guest over its bare link"), link, "MB/s", "floor");
        table.value("  through a tunnel", tunnel, "MB/s", &share(tunnel));
        table.value("  through a reverse tunnel", reverse, "MB/s", &share(reverse));
    }
    sandbox.delete();
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

async fn over_link(world: &World, sandbox: &Sandbox<'_>, rates: &mut Rates) {
    let socket = world.storage().join("sandboxes").join(&sandbox.id).join("run/link.sock");
    let stream = UnixStream::connect(socket).await.expect("the link's socket");
    let (link, session) = belljar_link::connect(stream, ConnectOptions { timeout: PATIENCE }).await.expect("a link");
    let session = tokio::spawn(session);
    let open = async |link: &Connector, port| link.open(port).await.expect("a stream");
    for _ in 0..TIMES {
        rates[0][0].push(drain(open(&link, SOURCE).await, BYTES).await);
        rates[1][0].push(fill(open(&link, SINK).await).await);
    }
    session.abort();
    // Only then it is closed, and the server can have it.
    let _ = session.await;
}

async fn through_tunnels(remote: &Remote, sandbox: &Sandbox<'_>, rates: &mut Rates) {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let ours = service.local_addr().expect("an address").port();
    for _ in 0..TIMES {
        for (port, way) in [(SOURCE, 0), (SINK, 1)] {
            let tunnel = remote.tunnel("127.0.0.1:0".parse().expect("address"), port).await.expect("a tunnel");
            let address = tunnel.address();
            let serving = tokio::spawn(tunnel.serve(|error| panic!("{error}")));
            let stream = TcpStream::connect(address).await.expect("the tunnel");
            let rate = if way == 0 { drain(stream, BYTES).await } else { fill(stream).await };
            rates[way][1].push(rate);
            serving.abort();
        }
        let tunnel = remote.reverse_tunnel(0, "127.0.0.1", ours).await.expect("a tunnel");
        let there = tunnel.port().to_string();
        let serving = tokio::spawn(tunnel.serve(|error| panic!("{error}")));
        for (what, way) in [("source", 0), ("sink", 1)] {
            let args = ["-c", PROGRAM, &MIB.to_string(), what, &there];
            sandbox.start(&json!({"command": "python3", "args": args}));
            let (stream, _) = service.accept().await.expect("a connection from the guest");
            let rate = if way == 0 { drain(stream, BYTES).await } else { fill(stream).await };
            rates[way][2].push(rate);
        }
        serving.abort();
    }
}

/// Sends all and waits until the other side has it; gives megabytes per second.
async fn fill(mut io: impl AsyncRead + AsyncWrite + Unpin) -> f64 {
    let begun = Instant::now();
    let block = vec![7; 256 * 1024];
    for _ in 0..BYTES / block.len() as u64 {
        io.write_all(&block).await.expect("written");
    }
    io.shutdown().await.expect("its end");
    assert_eq!(io.read_u8().await.expect("an answer"), b'.');
    BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64()
}
