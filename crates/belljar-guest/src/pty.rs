//! Terminals: sessions that outlive their clients.
//!
//! ```text
//! create ─► alive ─(program ends)─► dead, replayed for 60 s ─► gone
//!             ├─(no client for 300 s)─► as DELETE
//!             └─(DELETE)─► SIGHUP, 5 s, SIGKILL ─► gone at once
//! ```
//!
//! One task per session ([`drive`]) reads the terminal into a ring of 1 MiB. Each client has a position in that ring.
//! The task does not read further than the slowest attached client allows, so a program that prints faster than its
//! client reads waits, as on a real terminal; a client that does not move for too long is cut off.
//!
//! A copy of the sandbox has copies of its terminals, with tokens that nobody knows: those of the parent must not open
//! them. They can be listed and closed, and end as any terminal does that has no client for long.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
};

use belljar_api::{
    limits::{PTY_COLS_MAX, PTY_REPLAY_BYTES, PTY_ROWS_MAX, PTY_SESSIONS_MAX},
    pty::PtyInfo,
};
use bytes::Bytes;
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{OpenptyResult, Winsize, openpty},
};
use subtle::ConstantTimeEq;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    cgroup::{Cgroup, Cgroups},
    launch::{Launch, LaunchError, Streams},
    limits::{
        DRAIN_MAX, PTY_CLIENTS_MAX, PTY_DEAD_KEPT, PTY_IDLE, PTY_LISTED_MAX, PTY_STALL_MAX, PTY_STOP_GRACE, READ_CHUNK,
    },
    random,
    reaper::{Child, Exit, Reaper},
    sync::{lock, now_ms},
    user::Identity,
};

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PtyError {
    #[error("{PTY_SESSIONS_MAX} terminals are open already; close one first")]
    TooMany,
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("no terminal: {0}")]
    Open(#[from] io::Error),
}

/// A size that a terminal can have.
pub(crate) fn clamp(rows: u16, cols: u16) -> (u16, u16) {
    (rows.clamp(1, PTY_ROWS_MAX), cols.clamp(1, PTY_COLS_MAX))
}

/// All terminals.
pub(crate) struct Sessions {
    reaper: Arc<Reaper>,
    cgroups: Arc<Cgroups>,
    /// Oldest first.
    sessions: Mutex<Vec<Arc<Session>>>,
    last: Mutex<i64>,
}

/// What a new terminal is to run.
pub(crate) struct NewSession {
    pub(crate) launch: Launch,
    pub(crate) command: String,
    pub(crate) args: Vec<String>,
    pub(crate) rows: u16,
    pub(crate) cols: u16,
}

/// One terminal.
pub(crate) struct Session {
    pub(crate) id: String,
    token: Mutex<String>,
    pid: i32,
    command: String,
    args: Vec<String>,
    created_at: i64,
    terminal: AsyncFd<File>,
    state: Mutex<State>,
    /// Input of one client at a time.
    typing: tokio::sync::Mutex<()>,
    /// Output, end or cut-off: wakes clients.
    changed: watch::Sender<()>,
    /// A client took output: wakes the reader.
    taken: watch::Sender<()>,
    attached: watch::Sender<usize>,
    terminating: watch::Sender<bool>,
    cgroup: Option<Cgroup>,
}

struct State {
    rows: u16,
    cols: u16,
    ring: VecDeque<u8>,
    /// Bytes ever read.
    head: u64,
    /// Position of each client; `None` until it is ready.
    clients: HashMap<u64, Option<u64>>,
    last_client: u64,
    end: Option<(i64, i32)>,
}

impl State {
    fn oldest(&self) -> u64 {
        self.head - self.ring.len() as u64
    }

    /// Bytes that the slowest client still has to take.
    fn lag(&self) -> u64 {
        self.clients.values().flatten().map(|position| self.head - position).max().unwrap_or(0)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.head += bytes.len() as u64;
        self.ring.extend(bytes);
        let excess = self.ring.len().saturating_sub(PTY_REPLAY_BYTES);
        self.ring.drain(..excess);
    }
}

/// What a client has to do next.
pub(crate) enum Next {
    Output(Bytes),
    /// All output was taken and the program has ended.
    Exited(i32),
    Terminated,
    /// It was too slow.
    CutOff,
    Wait,
}

impl Sessions {
    pub(crate) fn new(reaper: Arc<Reaper>, cgroups: Arc<Cgroups>) -> Self {
        Self { reaper, cgroups, sessions: Mutex::default(), last: Mutex::default() }
    }

    /// Opens a terminal and starts its program in it.
    pub(crate) fn create(self: &Arc<Self>, mut new: NewSession) -> Result<Arc<Session>, PtyError> {
        // Counting and entering are one step.
        let mut sessions = lock(&self.sessions);
        if sessions.iter().filter(|session| session.is_alive()).count() >= PTY_SESSIONS_MAX {
            return Err(PtyError::TooMany);
        }
        let (rows, cols) = clamp(new.rows, new.cols);
        let (master, slave) = open(rows, cols)?;
        let terminal = watched(master)?;
        give(&slave, new.launch.identity.as_ref());
        new.launch.default_env("TERM", "xterm-256color");
        let number = {
            let mut last = lock(&self.last);
            *last += 1;
            *last
        };
        let cgroup = self.cgroups.create('t', number);
        let files = [slave.try_clone()?, slave.try_clone()?, slave];
        let streams = Streams { files, terminal: true };
        let child = match new.launch.start(&self.reaper, streams, cgroup.as_ref()) {
            Ok(child) => child,
            Err(error) => {
                if let Some(cgroup) = &cgroup {
                    self.cgroups.remove(cgroup);
                }
                return Err(error.into());
            }
        };
        let state =
            State { rows, cols, ring: VecDeque::new(), head: 0, clients: HashMap::new(), last_client: 0, end: None };
        let session = Arc::new(Session {
            id: random::hex::<8>(),
            token: Mutex::new(random::hex::<32>()),
            pid: child.pid,
            command: new.command,
            args: new.args,
            created_at: now_ms(),
            terminal,
            state: Mutex::new(state),
            typing: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(()),
            taken: watch::Sender::new(()),
            attached: watch::Sender::new(0),
            terminating: watch::Sender::new(false),
            cgroup,
        });
        sessions.push(Arc::clone(&session));
        if sessions.len() > PTY_LISTED_MAX
            && let Some(oldest) = sessions.iter().position(|session| !session.is_alive())
        {
            sessions.remove(oldest);
        }
        tokio::spawn(drive(Arc::clone(self), Arc::clone(&session), child));
        Ok(session)
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Session>> {
        lock(&self.sessions).iter().find(|session| session.id == id).cloned()
    }

    pub(crate) fn list(&self) -> Vec<PtyInfo> {
        lock(&self.sessions).iter().map(|session| session.info()).collect()
    }

    /// Makes all tokens known so far worthless: they are another sandbox's.
    pub(crate) fn renew_tokens(&self) {
        for session in lock(&self.sessions).iter() {
            *lock(&session.token) = random::hex::<32>();
        }
    }

    /// Takes a session off the list and ends it; its task sees to the rest.
    pub(crate) fn terminate(&self, session: &Session) {
        self.remove(session);
        session.terminating.send_replace(true);
        session.changed.send_replace(());
    }

    fn remove(&self, session: &Session) {
        lock(&self.sessions).retain(|other| other.id != session.id);
    }
}

impl Session {
    pub(crate) fn info(&self) -> PtyInfo {
        let state = lock(&self.state);
        PtyInfo {
            session_id: self.id.clone(),
            pid: i64::from(self.pid),
            command: self.command.clone(),
            args: self.args.clone(),
            rows: state.rows,
            cols: state.cols,
            created_at: self.created_at,
            ended_at: state.end.map(|(at, _)| at),
            exit_code: state.end.map(|(_, code)| code),
            is_alive: state.end.is_none(),
            client_count: state.clients.len(),
        }
    }

    fn is_alive(&self) -> bool {
        lock(&self.state).end.is_none()
    }

    /// Whether a client's token is this session's; takes as long for a nearly right one as for a wrong one.
    pub(crate) fn has_token(&self, token: &str) -> bool {
        lock(&self.token).as_bytes().ct_eq(token.as_bytes()).into()
    }

    pub(crate) fn token(&self) -> String {
        lock(&self.token).clone()
    }

    /// Adds a client that is not ready yet; `None` when there are too many. Detach with [`Session::detach`].
    pub(crate) fn attach(&self) -> Option<u64> {
        let mut state = lock(&self.state);
        if state.clients.len() >= PTY_CLIENTS_MAX {
            return None;
        }
        state.last_client += 1;
        let client = state.last_client;
        state.clients.insert(client, None);
        self.attached.send_replace(state.clients.len());
        Some(client)
    }

    pub(crate) fn detach(&self, client: u64) {
        let mut state = lock(&self.state);
        state.clients.remove(&client);
        self.attached.send_replace(state.clients.len());
        drop(state);
        self.taken.send_replace(());
    }

    /// The client wants output now, from the oldest that is kept.
    pub(crate) fn ready(&self, client: u64) {
        let mut state = lock(&self.state);
        let oldest = state.oldest();
        if let Some(position @ None) = state.clients.get_mut(&client) {
            *position = Some(oldest);
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// Changes whenever [`Session::next`] may say something new.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Takes the next output of a client, at most `most` bytes.
    pub(crate) fn next(&self, client: u64, most: usize) -> Next {
        if *self.terminating.borrow() {
            return Next::Terminated;
        }
        let mut state = lock(&self.state);
        let position = match state.clients.get(&client) {
            None => return Next::CutOff,
            Some(None) => return Next::Wait,
            Some(Some(position)) => *position,
        };
        if position == state.head {
            return state.end.map_or(Next::Wait, |(_, code)| Next::Exited(code));
        }
        let start = usize::try_from(position - state.oldest()).unwrap_or(0);
        let end = state.ring.len().min(start + most);
        let output: Bytes = state.ring.range(start..end).copied().collect();
        state.clients.insert(client, Some(position + output.len() as u64));
        drop(state);
        self.taken.send_replace(());
        Next::Output(output)
    }

    /// Types. Waits while the program does not read; what is typed after its end is lost.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let _typing = self.typing.lock().await;
        while !bytes.is_empty() {
            let written = self.terminal.async_io(Interest::WRITABLE, |mut file| file.write(bytes)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        let (rows, cols) = clamp(rows, cols);
        if resize(&self.terminal, rows, cols) {
            let mut state = lock(&self.state);
            (state.rows, state.cols) = (rows, cols);
        }
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.room().await;
        self.terminal.async_io(Interest::READABLE, |mut file| file.read(buffer)).await
    }

    /// Waits until every client has taken enough for one more read to fit, and cuts off those that do not move.
    async fn room(&self) {
        let mut taken = self.taken.subscribe();
        let limit = (PTY_REPLAY_BYTES - READ_CHUNK) as u64;
        loop {
            taken.mark_unchanged();
            if lock(&self.state).lag() <= limit {
                return;
            }
            if timeout(PTY_STALL_MAX, taken.changed()).await.is_err() {
                let mut state = lock(&self.state);
                let head = state.head;
                state.clients.retain(|_, position| position.is_none_or(|position| head - position <= limit));
                self.attached.send_replace(state.clients.len());
                drop(state);
                self.changed.send_replace(());
            }
        }
    }

    fn push(&self, bytes: &[u8]) {
        lock(&self.state).push(bytes);
        self.changed.send_replace(());
    }
}

/// A new terminal: our end, which does not block, and the program's.
pub(crate) fn open(rows: u16, cols: u16) -> io::Result<(File, OwnedFd)> {
    let OpenptyResult { master, slave } = openpty(Some(&window(rows, cols)), None)?;
    for end in [&master, &slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
    Ok((File::from(master), slave))
}

/// Makes a terminal its user's: else programs such as tmux and script cannot open their own. Only root can give it away.
pub(crate) fn give(slave: &OwnedFd, to: Option<&Identity>) {
    if let Some(identity) = to {
        let _ = std::os::unix::fs::fchown(slave, Some(identity.uid), None);
    }
}

#[expect(unsafe_code, reason = "tokio takes any type for a descriptor, so it wants to be told that ours is one")]
pub(crate) fn watched(master: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` is one open descriptor, the same for as long as it lives.
    Ok(unsafe { AsyncFd::register(master) }?)
}

/// Tells a terminal its size; false when it is gone.
#[expect(unsafe_code, reason = "a terminal's size is set by ioctl")]
pub(crate) fn resize(terminal: &impl AsRawFd, rows: u16, cols: u16) -> bool {
    let (rows, cols) = clamp(rows, cols);
    let size = window(rows, cols);
    // SAFETY: the kernel reads one `winsize`, which lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    result == 0
}

fn window(rows: u16, cols: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

/// The task of one session; see the module's drawing.
async fn drive(sessions: Arc<Sessions>, session: Arc<Session>, mut child: Child) {
    let mut buffer = vec![0; READ_CHUNK];
    let mut terminating = session.terminating.subscribe();
    let mut idle = std::pin::pin!(idle(session.attached.subscribe()));
    let mut kill_at: Option<Instant> = None;
    let mut is_open = true;
    let exit = loop {
        tokio::select! {
            exit = &mut child.exit => break exit.unwrap_or(Exit::Signal(libc::SIGKILL)),
            read = session.read(&mut buffer), if is_open => match read {
                Ok(count) if count > 0 => session.push(&buffer[..count]),
                // Nobody has the other end open; the program may run on without a terminal.
                Ok(_) | Err(_) => is_open = false,
            },
            () = &mut idle, if !*session.terminating.borrow() => sessions.terminate(&session),
            _ = terminating.wait_for(|terminating| *terminating), if kill_at.is_none() => {
                kill_at = Some(Instant::now() + PTY_STOP_GRACE);
                hang_up(&sessions.reaper, &session, libc::SIGHUP);
            }
            () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                kill_at = Some(Instant::now() + PTY_STOP_GRACE);
                hang_up(&sessions.reaper, &session, libc::SIGKILL);
            }
        }
    };
    // What the program wrote is there already; what is left behind may go on writing, but not into this session.
    let _ = timeout(DRAIN_MAX, drain(&session, &mut buffer)).await;
    let code = match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => -signal,
    };
    lock(&session.state).end = Some((now_ms(), code));
    session.changed.send_replace(());
    if *session.terminating.borrow() {
        hang_up(&sessions.reaper, &session, libc::SIGKILL);
    }
    if let Some(cgroup) = &session.cgroup {
        sessions.cgroups.remove(cgroup);
    }
    tokio::select! {
        () = sleep(PTY_DEAD_KEPT) => {}
        _ = terminating.wait_for(|terminating| *terminating) => {}
    }
    sessions.remove(&session);
}

async fn drain(session: &Session, buffer: &mut [u8]) {
    loop {
        session.room().await;
        match session.terminal.get_ref().read(buffer) {
            Ok(count) if count > 0 => session.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Returns when nobody was attached for [`PTY_IDLE`].
async fn idle(mut attached: watch::Receiver<usize>) {
    loop {
        // The session holds the sender; an error means that it is gone, and this with it.
        let _ = attached.wait_for(|count| *count == 0).await;
        if timeout(PTY_IDLE, attached.wait_for(|count| *count > 0)).await.is_err() {
            return;
        }
    }
}

fn hang_up(reaper: &Reaper, session: &Session, signal: i32) {
    if let Err(error) = reaper.signal_group(session.pid, signal) {
        tracing::warn!("terminal {}: {error}", session.id);
    }
    if signal == libc::SIGKILL
        && let Some(cgroup) = &session.cgroup
    {
        cgroup.kill();
    }
}

#[cfg(test)]
#[path = "pty_test.rs"]
mod tests;
