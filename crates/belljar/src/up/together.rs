//! Server and node in one process: what `belljar up` runs.
//!
//! ```text
//! bind -> data directory -> server -> node -> node joined: ready -> SIGINT: end sandboxes, node, server
//!   \-------\-----------------\--------\-> error: nothing is left running
//!                                               \----> SIGTERM, SIGHUP: node, server; the VMs go on
//! ```
//! They meet as they would on two machines: the node dials the server, if only through a pipe in memory.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
};

use anyhow::Context as _;
use belljar_node::{
    Artifacts, JailOptions, JailSetting, Machine, NodeConfig, ServerSetting, Shutdown, storage::StorageOptions,
};
use belljar_server::{Listeners, Server, ServerConfig};
use belljar_vmm::probe::DriverChoice;
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};

use super::{
    data_dir::DataDir,
    summary::{Summary, exports},
};
use crate::{
    report::Failure,
    settings::{SSH_HOST_KEY_FILE, UpSettings},
};

/// The server's store, in the data directory.
const DATABASE: &str = "server.db";
/// What seals its secrets, in the data directory.
const SECRETS_KEY: &str = "secrets.key";
/// Connections that wait to be accepted, per listener.
const BACKLOG: u32 = 1024;

/// Binds all addresses or none.
pub fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let hint = "choose another address with --listen";
    addresses.iter().map(|address| bind_one(*address).map_err(|error| cannot_listen(*address, error, hint))).collect()
}

/// Binds the address for SSH.
pub fn bind_ssh(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let hint = "choose another address for SSH with --ssh-listen, or none with --ssh-listen none";
    address.map(|address| bind_one(address).map_err(|error| cannot_listen(address, error, hint))).transpose()
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn cannot_listen(address: SocketAddr, error: io::Error, hint: &str) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(format!("{address} is in use by another program"))
            .hint(format!("`belljar down` ends a Belljar of this user; else {hint}"))
            .into(),
        _ => Failure::new(format!("cannot listen on {address}")).because(error).hint(hint).into(),
    }
}

/// How clients of this machine reach an address that we listen on.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
}

/// Server and node, prepared.
#[derive(Debug)]
pub struct Together {
    server: Server,
    node: NodeConfig,
    listeners: Listeners,
    /// What to say once it runs.
    pub summary: Summary,
}

/// Prepares server and node for a data directory and bound listeners.
pub async fn prepare(
    dir: &DataDir,
    settings: &UpSettings,
    mut listeners: Listeners,
    ssh: Option<TcpListener>,
) -> anyhow::Result<Together> {
    let addresses = listeners.plain.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let secure = listeners.tls.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let first =
        addresses.first().copied().map(reachable).ok_or_else(|| Failure::new("there is no address to listen on"))?;
    let api_url = format!("http://{first}");
    let choice = driver(settings)?;
    let mut server = belljar_server::prepare(ServerConfig {
        database: dir.path().join(DATABASE),
        secrets_key: dir.path().join(SECRETS_KEY),
        sandbox_url_base: public_url(settings, &secure).unwrap_or_else(|| api_url.clone()),
        ingress_domain: settings.ingress_domain.clone(),
        trusted_proxies: settings.trusted_proxies.clone(),
        tls: settings.tls.as_ref().map(|tls| tls.source.clone()),
        default_image: belljar_image::DEFAULT_IMAGE.to_owned(),
        node_token: None,
    })
    .await?;
    let mut ssh_at = None;
    if let Some(listener) = ssh {
        ssh_at = Some(listener.local_addr()?.to_string());
        server = server.with_ssh(listener, &dir.path().join(SSH_HOST_KEY_FILE))?;
    }
    if let Some(key) = server.first_key() {
        dir.write_key(key)?;
    }
    let (dial, pipes) = mpsc::channel(1);
    listeners.pipes = Some(pipes);
    let node = NodeConfig {
        data_dir: dir.path().to_owned(),
        server: ServerSetting::Here(dial),
        node_token: server.node_token().to_owned(),
        artifacts: Artifacts { kernel: settings.kernel.clone(), initrd: settings.initrd.clone() },
        image_store: settings.image_store.clone(),
        driver: settings.driver.clone(),
        vmm_dir: Some(settings.vmm_dir.clone()),
        jail: jail_options(settings.jail),
        templates: settings.templates,
        spares: settings.spares,
        network: settings.network.clone(),
        resident: settings.resident,
        disk_limits: settings.disk_limits,
        hidden_features: settings.hidden_features,
        gpus: settings.gpus.clone(),
        memory_mb: settings.memory_mb.map(u64::from),
        storage: StorageOptions {
            volume_path: settings.volume_file.clone(),
            volume_size: settings.volume_size_mb.map(|size| size << 20),
        },
    };
    let summary = Summary {
        pid: std::process::id(),
        exports: dir.key().map(|key| exports(&api_url, &key).to_vec()).unwrap_or_default(),
        api_url,
        listen: addresses
            .iter()
            .map(ToString::to_string)
            .chain(secure.iter().map(|address| format!("https://{address}")))
            .collect(),
        ssh: ssh_at.zip(server.ssh_gateway().map(|gateway| gateway.fingerprint.clone())),
        driver: choice.driver.map(|kind| kind.to_string()).unwrap_or_default(),
        reason: choice.reason,
        better: choice.better,
        data_dir: dir.path().to_owned(),
        log: None,
    };
    Ok(Together { server, node, listeners, summary })
}

/// This program makes the jails, also when its file has been replaced.
pub(crate) fn jail_options(kind: JailSetting) -> JailOptions {
    JailOptions { kind, launcher: vec!["/proc/self/exe".into(), "jail".into()] }
}

/// Where clients reach sandboxes: as the operator says, or in TLS under the name that has a certificate.
fn public_url(settings: &UpSettings, secure: &[SocketAddr]) -> Option<String> {
    let derived = || {
        let (name, address) = (settings.ingress_domain.as_ref()?, secure.first()?);
        Some(if address.port() == 443 {
            format!("https://{name}")
        } else {
            format!("https://{name}:{}", address.port())
        })
    };
    settings.public_url.clone().or_else(derived)
}

/// What runs the sandboxes: it is known to be there.
fn driver(settings: &UpSettings) -> anyhow::Result<DriverChoice> {
    let choice = Machine::probe(Some(&settings.vmm_dir), settings.network.kind).choose(&settings.driver);
    if choice.driver.is_none() {
        let failure = Failure::new(format!("this machine can run no virtual machine: {}", choice.reason));
        return Err(choice.better.into_iter().fold(failure, Failure::hint).hint("`belljar doctor` says more").into());
    }
    Ok(choice)
}

impl Together {
    /// Runs until a signal or a failure. `ready` is called once requests are answered, also by the sandboxes of
    /// an earlier life: the node has found them and has joined the server.
    pub async fn run(self, ready: impl FnOnce(Summary) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut stop = pin!(asked_to_stop()?);
        let (stop_server, server_stopped) = oneshot::channel::<()>();
        let (stop_node, node_stopped) = watch::channel(Shutdown::No);
        let stopped = async {
            // A dropped sender means that we are going away, too.
            let _ = server_stopped.await;
        };
        let mut joined = pin!(self.server.first_node());
        let mut server = tokio::spawn(self.server.run(self.listeners, stopped));
        let mut node = pin!(belljar_node::run(self.node, node_stopped));

        // A node opens everything it needs before it first waits for something.
        if let std::task::Poll::Ready(ended) = futures_util::poll!(node.as_mut()) {
            drop(stop_server);
            server.await.context("the server panicked")?;
            return ended.context("the node cannot start");
        }
        let mut ready = Some(|| ready(self.summary));
        let mode = loop {
            tokio::select! {
                mode = &mut stop => break mode,
                ended = &mut node => {
                    ended.context("the node failed")?;
                    return Err(Failure::new("the node ended by itself").into());
                }
                ended = &mut server => {
                    ended.context("the server panicked")?;
                    return Err(Failure::new("the server ended by itself").into());
                }
                () = &mut joined, if ready.is_some() => ready.take().map_or(Ok(()), |ready| ready())?,
            }
        };
        tracing::info!(?mode, "stopping");
        // The server goes last: it hears from the node how the sandboxes ended.
        let _ = stop_node.send(mode);
        let node = tokio::select! {
            ended = &mut node => ended.context("the node did not stop cleanly"),
            _ = asked_to_stop()? => Err(Failure::new("stopped a second time, before the node was done").into()),
        };
        drop(stop_server);
        server.await.context("the server panicked")?;
        node
    }
}

/// Resolves with the way to stop that the next signal asks for.
fn asked_to_stop() -> io::Result<impl Future<Output = Shutdown>> {
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = int.recv() => Shutdown::EndSandboxes,
            _ = term.recv() => Shutdown::KeepSandboxes,
            _ = hangup.recv() => Shutdown::KeepSandboxes,
        }
    })
}
