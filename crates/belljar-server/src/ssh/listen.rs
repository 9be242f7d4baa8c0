//! Accepts SSH connections and watches over each: until it has a key, while that key holds, and at the shutdown.

use std::{
    net::{Shutdown, SocketAddr},
    path::Path,
    sync::Arc,
};

use belljar_api::ssh_key::SshGateway;
use russh::{
    Disconnect, MethodKind, MethodSet, SshId,
    server::{Config, RunningSession, run_stream},
};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    SshError, host_key,
    keys::{KnownKey, fingerprint},
    session::{Connection, Ends},
};
use crate::{
    app::App,
    limits::{
        ACCEPT_PAUSE, SSH_AUTH_TRIES, SSH_CONNECTIONS_MAX, SSH_GOODBYE, SSH_KEEP_ALIVE, SSH_KEEP_ALIVE_TRIES,
        SSH_LOGIN_GRACE, SSH_PACKET, SSH_PENDING_MAX, SSH_WINDOW,
    },
    listen::set_up,
};

/// What we call ourselves.
const SERVER_ID: &str = concat!("SSH-2.0-belljar_", env!("CARGO_PKG_VERSION"));

/// How a connection ended. It is only ever logged, at the lowest level: any error will do.
type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// A listener for SSH and its host key.
pub(crate) struct Gateway {
    app: Arc<App>,
    listener: TcpListener,
    config: Arc<Config>,
    public: SshGateway,
}

impl Gateway {
    pub(crate) fn new(app: Arc<App>, listener: TcpListener, host_key: &Path) -> Result<Self, SshError> {
        let port = listener.local_addr().map_err(SshError::Listener)?.port();
        let key = host_key::load_or_make(host_key)?;
        let mut public = key.public_key().clone();
        public.set_comment("");
        let line = public
            .to_openssh()
            .map_err(|error| SshError::HostKey { path: host_key.to_owned(), why: error.to_string() })?;
        let public = SshGateway { port, host_key: line.trim().to_owned(), fingerprint: fingerprint(&public) };
        let config = Config {
            server_id: SshId::Standard(SERVER_ID.into()),
            methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
            // Keys cannot be guessed: there is nothing to slow down, and agents hold many.
            auth_rejection_time: std::time::Duration::ZERO,
            keys: vec![key],
            window_size: SSH_WINDOW,
            manual_window: true,
            maximum_packet_size: SSH_PACKET,
            max_auth_attempts: SSH_AUTH_TRIES,
            // The keepalives say whether somebody is there.
            inactivity_timeout: None,
            keepalive_interval: Some(SSH_KEEP_ALIVE),
            keepalive_max: SSH_KEEP_ALIVE_TRIES,
            ..Config::default()
        };
        Ok(Self { app, listener, config: Arc::new(config), public })
    }

    /// What clients need to know.
    pub(crate) fn public(&self) -> SshGateway {
        self.public.clone()
    }

    /// Serves until the shutdown, which says goodbye to every client.
    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(SSH_CONNECTIONS_MAX));
        let pending = Arc::new(Semaphore::new(SSH_PENDING_MAX));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an SSH connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Closed at once, and not kept waiting: who knocks a thousand times must not shut others out for long.
            let permits = (Arc::clone(&places).try_acquire_owned(), Arc::clone(&pending).try_acquire_owned());
            let (Ok(place), Ok(waits)) = permits else {
                tracing::debug!(%client, "too many SSH connections");
                continue;
            };
            let guest = Visit { app: Arc::clone(&self.app), config: Arc::clone(&self.config), client };
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                let _place = place;
                if let Err(error) = guest.receive(stream, waits, shutdown).await {
                    tracing::debug!(%client, %error, "an SSH connection ended");
                }
            });
        }
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
    }
}

/// One connection, from outside.
struct Visit {
    app: Arc<App>,
    config: Arc<Config>,
    client: SocketAddr,
}

impl Visit {
    async fn receive(self, stream: TcpStream, waits: OwnedSemaphorePermit, shutdown: CancellationToken) -> Ended {
        set_up(&stream)?;
        // Whatever russh waits for, it ends with the socket.
        let socket = SockRef::from(&stream).try_clone()?;
        let _closer = Closer(socket);
        let ends = Ends { client: self.client, server: stream.local_addr()? };
        let (opened_by, opened) = oneshot::channel();
        let connection = Connection::new(self.app, ends, opened_by);
        let login = async {
            let session = run_stream(self.config, stream, connection).await?;
            Ok::<_, super::session::SessionError>((session, opened))
        };
        let late = tokio::time::sleep(SSH_LOGIN_GRACE);
        tokio::pin!(late);
        let (mut session, opened) = tokio::select! {
            begun = login => begun?,
            () = &mut late => return Err("no login in time".into()),
            () = shutdown.cancelled() => return Ok(()),
        };
        let key = tokio::select! {
            ended = &mut session => return Ok(ended?),
            key = opened => key?,
            () = &mut late => return Err("no login in time".into()),
            () = shutdown.cancelled() => return Ok(()),
        };
        drop(waits);
        attend(&mut session, &key, &shutdown).await
    }
}

/// Waits for the end of a connection, or brings it about.
async fn attend(session: &mut RunningSession<Connection>, key: &KnownKey, shutdown: &CancellationToken) -> Ended {
    let words = tokio::select! {
        ended = &mut *session => return Ok(ended?),
        () = key.removed.cancelled() => "the key was removed",
        () = shutdown.cancelled() => "the server stops",
    };
    let handle = session.handle();
    let goodbye = async {
        let _ = handle.disconnect(Disconnect::ByApplication, words.to_owned(), "en".to_owned()).await;
        session.await
    };
    match timeout(SSH_GOODBYE, goodbye).await {
        Ok(ended) => Ok(ended?),
        // The socket is closed with us.
        Err(_) => Ok(()),
    }
}

/// Closes a connection for all who hold it.
struct Closer(socket2::Socket);

impl Drop for Closer {
    fn drop(&mut self) {
        // One that is closed already cannot be closed again.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
