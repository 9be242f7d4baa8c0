//! One connection: who it is, its channels, and the task of each.
//!
//! ```text
//! channel: opened ─(env, pty-req)*─► started ─► its task ends ─► told its end, closed
//!             └──────────────────────────┴─(client closes, or is gone)─► the task is dropped, and with it the program
//! ```
//!
//! The methods of [`Handler`] run in russh's session loop and never wait for a sandbox; tasks do.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use belljar_api::{
    exec::{ExecProgram, TerminalSize},
    limits::AGENT_PORT,
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty, Sig,
    keys::Algorithm,
    server::{Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    bridge::{self, Outbox},
    channel::{Opened, Work},
    inbox::Inbox,
    keys::KnownKey,
    program::{self, Control},
    reverse,
    user::{User, open_port},
};
use crate::{
    app::App,
    clock::now_ms,
    error::ApiError,
    ingress::{self, Target},
    limits::{SSH_CHANNELS_MAX, SSH_FORWARD_PATIENCE, SSH_FORWARDS_MAX, SSH_OFFERS_MAX},
};

/// Who is at the other end, for programs that ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
}

/// Why a connection ends before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Protocol(#[from] russh::Error),
    #[error("more than {SSH_OFFERS_MAX} keys were offered")]
    TooManyKeys,
}

/// See the module.
pub(super) struct Connection {
    app: Arc<App>,
    ends: Ends,
    /// Told once, with the key that opened the connection.
    opened_by: Option<oneshot::Sender<Arc<KnownKey>>>,
    offers: usize,
    user: String,
    channels: HashMap<ChannelId, Slot>,
    /// Forwarded connections that their client has closed, and whose last bytes are under way.
    leaving: Vec<AbortOnDropHandle<()>>,
    /// Ports of the sandbox that lead to the client, by the address and the port that it asked for.
    forwards: HashMap<(String, u32), AbortOnDropHandle<()>>,
}

/// What a channel was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Session,
    Forward,
}

/// A channel.
struct Slot {
    kind: Kind,
    inbox: Arc<Inbox>,
    /// What was asked for so far; gone once it has started.
    opened: Option<Opened>,
    controls: mpsc::Sender<Control>,
    /// Dropped with the channel.
    task: Option<AbortOnDropHandle<()>>,
}

impl Connection {
    pub(super) fn new(app: Arc<App>, ends: Ends, opened_by: oneshot::Sender<Arc<KnownKey>>) -> Self {
        Self {
            app,
            ends,
            opened_by: Some(opened_by),
            offers: 0,
            user: String::new(),
            channels: HashMap::new(),
            leaving: Vec::new(),
            forwards: HashMap::new(),
        }
    }

    /// The key, when it opens a connection. RSA with SHA-1 does not.
    fn known(&self, key: &russh::keys::PublicKey, algorithm: &Algorithm) -> Option<Arc<KnownKey>> {
        if matches!(algorithm, Algorithm::Rsa { hash: None }) {
            return None;
        }
        self.app.live.ssh_keys.find(key)
    }

    fn is_full(&mut self) -> bool {
        self.leaving.retain(|task| !task.is_finished());
        self.channels.len() + self.leaving.len() >= SSH_CHANNELS_MAX
    }

    /// Runs what a channel is for.
    fn start(&mut self, id: ChannelId, work: Work, session: &mut Session) -> Result<(), SessionError> {
        let started = self.channels.get_mut(&id).and_then(|slot| slot.opened.take().map(|opened| (slot, opened)));
        let Some((slot, opened)) = started else { return Ok(session.channel_failure(id)?) };
        session.channel_success(id)?;
        let (app, inbox, handle) = (Arc::clone(&self.app), Arc::clone(&slot.inbox), session.handle());
        let (user, ends) = (self.user.clone(), self.ends);
        slot.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            opened.run(&app, &user, ends, work, &inbox, &handle).await;
        })));
        Ok(())
    }

    fn opened(&mut self, id: ChannelId) -> Option<&mut Opened> {
        self.channels.get_mut(&id)?.opened.as_mut()
    }

    /// Answers a request that changes a channel before it starts.
    fn answer(id: ChannelId, done: bool, session: &mut Session) -> Result<(), SessionError> {
        match done {
            true => session.channel_success(id)?,
            false => session.channel_failure(id)?,
        }
        Ok(())
    }

    fn control(&self, id: ChannelId, control: Control) {
        if let Some(slot) = self.channels.get(&id) {
            // A channel that takes none for so long has more on its hands than its size.
            let _ = slot.controls.try_send(control);
        }
    }
}

impl Handler for Connection {
    type Error = SessionError;

    async fn auth_publickey_offered(&mut self, _: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, SessionError> {
        self.offers += 1;
        if self.offers > SSH_OFFERS_MAX {
            return Err(SessionError::TooManyKeys);
        }
        Ok(if self.known(offer.public_key, offer.algorithm).is_some() { Auth::Accept } else { only_keys() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, SessionError> {
        let Some(known) = self.known(key.public_key, key.algorithm) else { return Ok(only_keys()) };
        user.clone_into(&mut self.user);
        tracing::info!(client = %self.ends.client, key = known.id, user, "an SSH connection was opened");
        let now = now_ms();
        if known.touch(now) {
            let (store, id) = (Arc::clone(&self.app.store), known.id.clone());
            tokio::spawn(async move {
                if let Err(error) = store.touch_ssh_key(&id, now).await {
                    tracing::warn!(%error, "cannot note that an SSH key was used");
                }
            });
        }
        if let Some(opened_by) = self.opened_by.take() {
            let _ = opened_by.send(known);
        }
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), SessionError> {
        if self.is_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        // What comes is handed to us as it comes; the half that would queue it is not needed.
        let (_, outbox) = channel.split();
        let id = outbox.id();
        let (opened, controls) = Opened::new(Arc::new(outbox));
        self.channels.insert(
            id,
            Slot { kind: Kind::Session, inbox: Arc::default(), opened: Some(opened), controls, task: None },
        );
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        if self.is_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let (_, outbox) = channel.split();
        let (id, inbox) = (outbox.id(), Arc::<Inbox>::default());
        let target = target(&self.user, host, port);
        let (app, bytes, handle) = (Arc::clone(&self.app), Arc::clone(&inbox), session.handle());
        let task = tokio::spawn(async move { forward(&app, target, reply, &bytes, &Arc::new(outbox), &handle).await });
        let (controls, _) = mpsc::channel(1);
        self.channels.insert(
            id,
            Slot { kind: Kind::Forward, inbox, opened: None, controls, task: Some(AbortOnDropHandle::new(task)) },
        );
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        // A program is hung up at once; bytes for a port still get there.
        if let Some(Slot { inbox, kind: Kind::Forward, task: Some(task), .. }) = self.channels.remove(&id) {
            inbox.close();
            self.leaving.push(task);
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), SessionError> {
        if let Some(slot) = self.channels.get(&id) {
            slot.inbox.end();
        }
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), SessionError> {
        if let Some(slot) = self.channels.get(&id) {
            slot.inbox.push(data);
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let done = self.opened(id).is_some_and(|opened| opened.give_terminal(term, size(cols, rows)));
        Self::answer(id, done, session)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let done = self.opened(id).is_some_and(|opened| opened.set(name, value));
        Self::answer(id, done, session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), SessionError> {
        self.start(id, Work::Shell, session)
    }

    async fn exec_request(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), SessionError> {
        // A program's words are text on the way to the guest; what is none cannot be meant.
        match std::str::from_utf8(data) {
            Ok(line) => self.start(id, Work::Program(ExecProgram::Line(line.to_owned())), session),
            Err(_) => Self::answer(id, false, session),
        }
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        match name {
            "sftp" => self.start(id, Work::Program(ExecProgram::Sftp), session),
            _ => Self::answer(id, false, session),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        session: &mut Session,
    ) -> Result<(), SessionError> {
        let size = size(cols, rows);
        match self.opened(id) {
            Some(opened) => opened.resize(size),
            None => self.control(id, Control::Resize(size.cols, size.rows)),
        }
        let _ = session;
        Ok(())
    }

    /// The guest listens on its loopback, whatever the address: as sshd does unless it is told to let others in. russh wants
    /// the answer before it goes on, so this is the one place where a connection waits for a sandbox.
    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, SessionError> {
        let wanted = u16::try_from(*port).ok().filter(|wanted| *wanted != AGENT_PORT);
        let (Ok(user), Some(wanted)) = (User::parse(&self.user), wanted) else { return Ok(false) };
        if self.forwards.len() >= SSH_FORWARDS_MAX {
            return Ok(false);
        }
        let listening = timeout(SSH_FORWARD_PATIENCE, ingress::listen(&self.app, &user.sandbox, wanted)).await;
        let late = |_| Err("the sandbox does not answer".to_owned());
        let listener = match listening.map_or_else(late, |listener| listener.map_err(ApiError::told)) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::debug!(error, port = wanted, "a port of a sandbox was not forwarded");
                return Ok(false);
            }
        };
        *port = u32::from(listener.port());
        let serving = tokio::spawn(reverse::serve(listener, address.to_owned(), session.handle()));
        self.forwards.insert((address.to_owned(), *port), AbortOnDropHandle::new(serving));
        Ok(true)
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _: &mut Session) -> Result<bool, SessionError> {
        Ok(self.forwards.remove(&(address.to_owned(), port)).is_some())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Session) -> Result<(), SessionError> {
        if let Some(number) = program::number(&signal) {
            self.control(id, Control::Signal(number));
        }
        Ok(())
    }
}

/// No, and only keys will do.
fn only_keys() -> Auth {
    let methods = MethodSet::from([MethodKind::PublicKey].as_slice());
    Auth::Reject { proceed_with_methods: Some(methods), partial_success: false }
}

fn size(cols: u32, rows: u32) -> TerminalSize {
    let clamp = |side: u32| u16::try_from(side).unwrap_or(u16::MAX);
    TerminalSize { rows: clamp(rows), cols: clamp(cols) }
}

/// Where a forwarded connection leads: to the sandbox itself, by any of the names it has for itself.
fn target(user: &str, host: &str, port: u32) -> Result<Target, ChannelOpenFailure> {
    let refused = |words: &str| ChannelOpenFailure::Other { code: 1, reason: words.to_owned() };
    let user = User::parse(user).map_err(|error| refused(&error.to_string()))?;
    let is_own = host == "localhost" || host == user.sandbox || host.parse::<std::net::IpAddr>().is_ok_and(is_own);
    if !is_own {
        return Err(refused("only ports of the sandbox itself can be reached: forward to localhost"));
    }
    let port = open_port(port).ok_or_else(|| refused("no such port, or a reserved one"))?;
    Ok(Target { sandbox: user.sandbox, port })
}

fn is_own(address: std::net::IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

/// Connects first: an opened channel means that somebody listens.
async fn forward(
    app: &App,
    target: Result<Target, ChannelOpenFailure>,
    reply: ChannelOpenHandle,
    inbox: &Inbox,
    outbox: &Outbox,
    handle: &Handle,
) {
    let target = match target {
        Ok(target) => target,
        Err(failure) => return reply.reject(failure).await,
    };
    match ingress::open(app, &target).await {
        Ok(stream) => {
            reply.accept().await;
            if let Err(error) = bridge::carry(inbox, outbox, stream).await {
                tracing::debug!(%error, "a forwarded connection broke off");
            }
            let _ = handle.close(outbox.id()).await;
        }
        Err(error) => {
            tracing::debug!(error = error.told(), port = target.port, "a forwarded connection was refused");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, port: u32, expected: Option<u16>) {
        assert_eq!(target("box", host, port).ok().map(|target| target.port), expected, "{host}:{port}");
    }

    #[test]
    fn only_the_sandboxs_own_ports_are_forwarded() {
        for host in ["localhost", "127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "box"] {
            check(host, 80, Some(80));
        }
        for host in ["example.org", "10.0.0.1", "169.254.169.254", "other", ""] {
            check(host, 80, None);
        }
        for port in [0, 9501, 65_536, u32::MAX] {
            check("localhost", port, None);
        }
        assert!(target("No Such", "localhost", 80).is_err());
    }
}
