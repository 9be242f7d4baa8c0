//! The control plane: HTTP API, authentication, store, placement, and the proxy to the guests.
//!
//! ```text
//! listener -> edge (id, key) -+-> router -> handler -> app -> store -> commit -> table, outbox
//!                             +-> ingress ------------------(node connection)----------> guest port
//!                             +-> node connection: outbox out, reports in
//! SSH listener -> key -> channel ---------------(node connection)----------> guest agent, guest port
//! ```
//!
//! `belljar up` and `belljar server` call [`prepare`], show what it returns, and then [`Server::run`]. The server knows
//! no VMM, no host path and no guest but through the node that holds it; see [`belljar_api::node`].

mod acme;
mod app;
mod auth;
mod build;
mod build_log;
mod clock;
mod config;
mod dockerfile;
mod error;
mod http;
mod ingress;
mod life;
mod limits;
mod listen;
mod node_link;
mod openapi;
mod placement;
mod pool;
mod routes;
mod secret;
mod secret_file;
mod serve;
mod snapshot;
mod ssh;
mod stall;
mod store;
mod table;
mod tls;
mod visible;

use std::{path::Path, sync::Arc};

use belljar_api::sandbox::TerminationReason;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    acme::{AcmeConfig, AcmeError, LETS_ENCRYPT, Standing, standings},
    config::{ConfigError, ServerConfig},
    listen::Listeners,
    openapi::openapi,
    secret::{SealError, SecretError},
    ssh::{SshError, host_key_fingerprint},
    store::{OpenError, StoreError},
    tls::{TlsError, TlsFiles, TlsSource},
};
use crate::{
    acme::Issuer,
    app::{App, Live, place, pool as pools},
    store::{SqliteStore, Store},
    tls::Tls,
};

/// Label of the key that the first start makes.
const FIRST_KEY_NAME: &str = "default";

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A value of the configuration.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The certificates.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The database file.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The database.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// Its secrets.
    #[error("{0}")]
    Secrets(#[from] SecretError),
    /// Where contexts of image builds go.
    #[error("cannot make a directory for the contexts of image builds beside {beside}: {source}")]
    Contexts {
        /// The database.
        beside: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operating system gives no random bytes.
    #[error("no randomness: {0}")]
    Randomness(String),
}

/// A server that is ready to run.
pub struct Server {
    app: Arc<App>,
    first_key: Option<String>,
    node_token: String,
    tls: Option<Tls>,
    ssh: Option<ssh::Gateway>,
}

impl std::fmt::Debug for Server {
    /// Without its secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

/// Opens the store, checks the configuration and makes what a first start needs.
pub async fn prepare(config: ServerConfig) -> Result<Server, ServerError> {
    let urls = config.check()?;
    let live = Arc::new(Live::default());
    let tls = open_tls(&config, &live)?;
    let observer = Arc::clone(&live);
    let database = config.database.clone();
    let open = move || SqliteStore::open(&database, Arc::new(move |change| observer.committed(change)));
    let opened = tokio::task::spawn_blocking(open).await.map_err(|_| StoreError::Closed)?;
    let sqlite = Arc::new(opened?);
    let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&sqlite);
    for row in store.held_sandboxes().await? {
        live.table.apply(&row);
    }
    match store.fail_builds(app::build::RESTARTED, clock::now_ms()).await? {
        0 => {}
        builds => tracing::warn!(builds, "image builds were under way when the server went; they have failed"),
    }
    for builder in store.builders().await? {
        let detail = "the build that it was for was over when the server started".to_owned();
        let ending = life::Ending { reason: TerminationReason::User, detail, at: clock::now_ms() };
        store.terminate_sandbox(&builder, ending).await?;
    }
    let contexts = app::build::context::directory(&config.database)
        .map_err(|source| ServerError::Contexts { beside: config.database.clone(), source })?;
    for node in store.nodes().await? {
        live.nodes.set_driver(node.id, node.driver);
    }
    let keys = store.keys().await?;
    let is_first_start = keys.is_empty();
    keys.into_iter().for_each(|key| live.keys.add(key));
    store.ssh_keys().await?.into_iter().for_each(|key| live.ssh_keys.add(key));
    let node_token = match config.node_token {
        Some(token) => token,
        None => auth::new_node_token().map_err(|error| ServerError::Randomness(error.to_string()))?,
    };
    let secrets = secret::Secrets::open(&config.secrets_key, &*store).await?;
    let app = Arc::new(App {
        store,
        live,
        urls,
        default_image: config.default_image,
        contexts,
        ingress_domain: config.ingress_domain,
        trusted_proxies: config.trusted_proxies,
        node_token: auth::NodeToken::new(&node_token),
        secrets,
        sessions: TaskTracker::new(),
        stopping: CancellationToken::new(),
        #[cfg(test)]
        sqlite,
    });
    let first_key = if is_first_start { Some(make_first_key(&app).await?) } else { None };
    Ok(Server { app, first_key, node_token, tls, ssh: None })
}

fn open_tls(config: &ServerConfig, live: &Arc<Live>) -> Result<Option<Tls>, TlsError> {
    Ok(Some(match &config.tls {
        None => return Ok(None),
        Some(TlsSource::Files(files)) => Tls::of_files(files.clone())?,
        Some(TlsSource::Acme(acme)) => {
            let (names, live) = (config.acme_names(acme)?, Arc::clone(live));
            Tls::of_issuer(Issuer::open(acme, names, move |target| live.shows(target))?)?
        }
    }))
}

async fn make_first_key(app: &App) -> Result<String, ServerError> {
    let key = auth::new_key().map_err(|error| ServerError::Randomness(error.to_string()))?;
    let row = store::KeyRow {
        id: auth::new_key_id(),
        name: FIRST_KEY_NAME.to_owned(),
        hash: auth::hash(&key),
        created_at: clock::now_ms(),
    };
    app.store.create_key(row).await?;
    Ok(key)
}

impl Server {
    /// The API key that this start made, when the store had none. It is shown now or never.
    pub fn first_key(&self) -> Option<&str> {
        self.first_key.as_deref()
    }

    /// The token with which nodes join.
    pub fn node_token(&self) -> &str {
        &self.node_token
    }

    /// Serves SSH, too, on this listener, with the host key in this file; it is made when it is not there.
    pub fn with_ssh(mut self, listener: TcpListener, host_key: &Path) -> Result<Self, SshError> {
        let gateway = ssh::Gateway::new(Arc::clone(&self.app), listener, host_key)?;
        self.app.live.ssh_gateway.set(gateway.public()).map_err(|_| SshError::Twice)?;
        self.ssh = Some(gateway);
        Ok(self)
    }

    /// Where `ssh` finds the sandboxes, and the host key.
    pub fn ssh_gateway(&self) -> Option<&belljar_api::ssh_key::SshGateway> {
        self.app.live.ssh_gateway.get()
    }

    /// Resolves when the first node has joined, which it does once the server runs.
    pub fn first_node(&self) -> impl Future<Output = ()> + use<> {
        self.app.live.nodes.next()
    }

    /// Serves on every listener until `shutdown` resolves, then lets open requests end for a few seconds. When it
    /// returns, the nodes are disconnected and the store is closed.
    pub async fn run(self, listeners: impl Into<Listeners>, shutdown: impl Future<Output = ()>) {
        let stop = CancellationToken::new();
        let acceptor = self.tls.as_ref().map(Tls::acceptor);
        let http = listen::serve(Arc::clone(&self.app), listeners.into(), acceptor, stop.clone());
        let ssh = async {
            if let Some(gateway) = self.ssh {
                gateway.serve(stop.clone()).await;
            }
        };
        let serve = async { tokio::join!(http, ssh) };
        let follow = async {
            match &self.tls {
                Some(tls) => tls.follow().await,
                None => std::future::pending().await,
            }
        };
        let stopping = async {
            shutdown.await;
            stop.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = serve => {}
            () = place::run(Arc::clone(&self.app)) => {}
            () = pools::run(Arc::clone(&self.app)) => {}
            () = follow => {}
            () = stopping => {}
        }
        // Only now: the requests that were still open needed the nodes.
        self.app.stopping.cancel();
        self.app.sessions.close();
        self.app.sessions.wait().await;
    }
}

/// [`prepare`] and [`Server::run`] for a caller that needs nothing from between.
pub async fn run(
    config: ServerConfig,
    listeners: impl Into<Listeners>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    prepare(config).await?.run(listeners, shutdown).await;
    Ok(())
}

#[cfg(test)]
mod testing;
