//! `cargo xtask bench net`: what the ways into a sandbox and out of it cost, each figure beside its floor of the same run.
//!
//! The way in is measured on the `process` driver: the agent is a child of this machine, so that its loopback is ours, and
//! server and client of what is measured lie in this program. The link is then a socket, faster than that of any VM; what
//! tunnels carry of a real link is measured with a real guest ([`guest`]), and so is the way out ([`out`]).

mod guest;
mod load;
mod out;

use std::{
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use belljar_client::Sandbox as Remote;
use belljar_link::{ConnectOptions, Connector};
use belljar_tests::World;
use serde_json::json;
use tokio::{
    net::{TcpStream, UnixStream},
    runtime::Runtime,
};

use self::load::{Client, drain, serve_bytes, serve_http};
use crate::{
    memory, progress,
    table::{Samples, Table},
};

/// Requests of each kind whose time is taken, in turn.
const REQUESTS: usize = 2000;
/// Clients of the load, each with one request under way.
const CLIENTS: usize = 32;
/// How long the load goes on before memory is looked at, and then until the end.
const LOAD: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(10)];
/// Bytes that are carried to measure a rate.
const BYTES: u64 = 512 << 20;
/// Longer than an agent takes to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A link to an agent, and nothing else: the floor.
struct BareLink {
    agent: Child,
    _dir: tempfile::TempDir,
    link: Connector,
}

impl BareLink {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("link.sock");
        let agent = Command::new(agent())
            .args(["--hosted", "--listen"])
            .arg(&socket)
            .arg("--root")
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the agent starts");
        let stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                // The agent has no way to say that its socket is there.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let (link, session) =
            belljar_link::connect(stream, ConnectOptions { timeout: PATIENCE }).await.expect("a link");
        tokio::spawn(session);
        Self { agent, _dir: dir, link }
    }
}

impl Drop for BareLink {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// The agent of the `process` driver that the server runs with.
fn agent() -> PathBuf {
    let driver = std::env::var("BELLJAR_DRIVER").unwrap_or_default();
    let agent = driver.strip_prefix("process:");
    agent.expect("BELLJAR_DRIVER is not process:AGENT: run this with `cargo xtask bench net`").into()
}

/// All of it, or the part of this name.
pub(crate) fn run(table: &mut Table, part: Option<&str>) {
    let wanted = |name| part.is_none_or(|part| part == name);
    if wanted("in") {
        way_in(table);
    }
    if wanted("guest") {
        guest::run(table);
    }
    if wanted("out") {
        out::run(table);
    }
}

fn way_in(table: &mut Table) {
    let world = World::start();
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (port, bytes) = (serve_http().await, serve_bytes(BYTES).await);
        let sandbox = world.create(&json!({"timeout_secs": 0, "exposed_ports": [port]}));
        let bare = BareLink::start().await;
        let headers = format!("host: {port}-{}.local\r\nauthorization: Bearer {}\r\n", sandbox.id, world.key());
        requests(&world, &bare, port, &headers, table).await;
        rate(&world, &headers, table).await;
        let client = belljar_client::Client::new(&format!("http://{}", world.address()), Some(world.key()));
        carry(&bare, &client.expect("a client").sandbox(&sandbox.id), bytes, table).await;
        drop(bare);
        sandbox.delete();
    });
}

/// One request at a time over a kept connection: through the ingress, and over the bare link to the same server.
async fn requests(world: &World, bare: &BareLink, port: u16, headers: &str, table: &mut Table) {
    progress("requests one by one");
    let stream = TcpStream::connect(world.address()).await.expect("the server");
    stream.set_nodelay(true).expect("no delay");
    let mut ingress = Client::new(stream, headers);
    let mut floor = Client::new(bare.link.open(port).await.expect("a stream"), "host: x\r\n");
    let (mut through, mut direct) = (Vec::new(), Vec::new());
    for n in 0..REQUESTS + 100 {
        let (a, b) = (floor.ask().await, ingress.ask().await);
        // The first ones fill caches.
        if n >= 100 {
            direct.push(a);
            through.push(b);
        }
    }
    let (direct, through) = (Samples::of(direct), Samples::of(through));
    let more = through.p50() - direct.p50();
    table.samples("GET of 1 KiB over the bare link", &direct, "floor");
    table.samples("GET of 1 KiB through the ingress", &through, &format!("floor + {more:.2} ms, <= 1 ms at p50"));
}

/// As many requests as go, and what the server grows by meanwhile.
async fn rate(world: &World, headers: &str, table: &mut Table) {
    progress("as many requests as go");
    let begun = Instant::now();
    let [warm, end] = LOAD;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let stream = TcpStream::connect(world.address()).await.expect("the server");
        stream.set_nodelay(true).expect("no delay");
        let mut client = Client::new(stream, headers);
        clients.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < end {
                let took = client.ask().await;
                if begun.elapsed() >= warm {
                    times.push(took);
                }
            }
            times
        });
    }
    tokio::time::sleep(warm).await;
    let before = memory::resident_mib(world.server_pid());
    let mut times = Vec::new();
    while let Some(of_one) = clients.join_next().await {
        times.extend(of_one.expect("a client"));
    }
    let grown = memory::resident_mib(world.server_pid()) - before;
    let per_second = times.len() as f64 / (end - warm).as_secs_f64();
    table.value("requests of 1 KiB with 32 under way", per_second, "/s", ">= 5000, both cores shared");
    table.samples("  one of them", &Samples::of(times), "");
    table.value("  growth of the server meanwhile", grown, "MiB", "flat");
}

/// A large answer: over the bare link, through a tunnel, and through one the other way round.
async fn carry(bare: &BareLink, sandbox: &Remote, port: u16, table: &mut Table) {
    progress("tunnels");
    let mut best = [0.0_f64; 3];
    for _ in 0..3 {
        let link = drain(bare.link.open(port).await.expect("a stream"), BYTES).await;
        let tunnel = sandbox.tunnel("127.0.0.1:0".parse().expect("address"), port).await.expect("a tunnel");
        let address = tunnel.address();
        let serving = tokio::spawn(tunnel.serve(|error| panic!("{error}")));
        let forward = drain(TcpStream::connect(address).await.expect("the tunnel"), BYTES).await;
        serving.abort();
        let tunnel = sandbox.reverse_tunnel(0, "127.0.0.1", port).await.expect("a tunnel");
        let there = tunnel.port();
        let serving = tokio::spawn(tunnel.serve(|error| panic!("{error}")));
        let back = drain(TcpStream::connect(("127.0.0.1", there)).await.expect("the tunnel"), BYTES).await;
        serving.abort();
        for (best, now) in best.iter_mut().zip([link, forward, back]) {
            *best = best.max(now);
        }
    }
    let share = |rate: f64| format!("{:.0} % of the socket", 100.0 * rate / best[0]);
    table.value("512 MiB over a link that is a socket", best[0], "MB/s", "floor");
    table.value("512 MiB through a tunnel", best[1], "MB/s", &share(best[1]));
    table.value("512 MiB through a reverse tunnel", best[2], "MB/s", &share(best[2]));
}
