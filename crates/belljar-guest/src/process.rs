//! One process from fork to last line, and the table of all.
//!
//! ```text
//! start ─► running ─(status collected)─► draining ─(pipes ended, or quiet)─► ended
//! ```
//!
//! One task per process ([`watch_over`]) owns its pipes, its timeout and its end. While draining the process still
//! shows as running, so that whoever sees `exited` sees all its output. A pipe that something in the background keeps
//! open does not hold the end up; the task goes on reading it, for a closed pipe would kill the writer.
//!
//! Not here: who restarts it ([`crate::managed`]), how it is asked for ([`crate::process_api`]).

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use belljar_api::process::{OutputMode, OutputStream, ProcessInfo, ProcessStatus, StdinMode};
use tokio::{
    net::unix::pipe,
    sync::{oneshot, watch},
    task::yield_now,
    time::{Instant, sleep_until},
};

use crate::{
    cgroup::{Cgroup, Cgroups},
    launch::{Launch, LaunchError, Streams},
    limits::{DRAIN_MAX, DRAIN_QUIET, OUTPUT_TOTAL_BYTES_MAX, PROCESSES_ENDED_MAX, PROCESSES_RUNNING_MAX, READ_CHUNK},
    logs::{Logs, Source, command_line},
    managed::Managed,
    output::{Budget, Output},
    pipes::{self, Pipe, Sink},
    reaper::{Child, Exit, Reaper, kill_group},
    sync::{lock, now_ms},
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) exit: Exit,
    pub(crate) oom_killed: bool,
    pub(crate) timed_out: bool,
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
}

impl End {
    pub(crate) fn status(&self) -> ProcessStatus {
        match self.exit {
            _ if self.oom_killed => ProcessStatus::OomKilled,
            Exit::Code(_) => ProcessStatus::Exited,
            Exit::Signal(_) => ProcessStatus::Signaled,
        }
    }

    pub(crate) fn exit_code(&self) -> Option<i32> {
        match self.exit {
            Exit::Code(code) => Some(code),
            Exit::Signal(_) => None,
        }
    }

    pub(crate) fn signal(&self) -> Option<i32> {
        match self.exit {
            Exit::Code(_) => None,
            Exit::Signal(signal) => Some(signal),
        }
    }
}

/// How a process is to be started.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) launch: Launch,
    pub(crate) stdin: StdinMode,
    pub(crate) stdout: OutputMode,
    pub(crate) stderr: OutputMode,
    /// Time after which it is killed.
    pub(crate) timeout: Option<Duration>,
}

impl Plan {
    /// What a request means that says no more: nothing to read, both outputs captured, all the time it wants.
    pub(crate) fn new(launch: Launch) -> Self {
        let (stdin, stdout, stderr) = (StdinMode::default(), OutputMode::default(), OutputMode::default());
        Self { launch, stdin, stdout, stderr, timeout: None }
    }
}

/// A process that was started.
pub(crate) struct Process {
    pub(crate) handle: i64,
    pub(crate) pid: i32,
    command: String,
    args: Vec<String>,
    started_at: i64,
    /// What it wrote; shared by the lives of a managed process.
    pub(crate) output: Arc<Output>,
    /// Its supervisor.
    pub(crate) managed: Option<Arc<Managed>>,
    /// The pipe to it, while it is open.
    pub(crate) stdin: tokio::sync::Mutex<Option<pipe::Sender>>,
    stdin_open: watch::Sender<bool>,
    cgroup: Option<Cgroup>,
    end: watch::Sender<Option<End>>,
}

impl Process {
    /// As the API shows it.
    pub(crate) fn info(&self) -> ProcessInfo {
        let end = *self.end.borrow();
        ProcessInfo {
            handle: self.handle,
            pid: i64::from(self.pid),
            status: end.map_or(ProcessStatus::Running, |end| end.status()),
            exit_code: end.and_then(|end| end.exit_code()),
            signal: end.and_then(|end| end.signal()),
            oom_killed: end.is_some_and(|end| end.oom_killed),
            stdin_writable: end.is_none() && *self.stdin_open.borrow(),
            command: self.command.clone(),
            args: self.args.clone(),
            started_at: self.started_at,
            ended_at: end.map(|end| end.at),
            managed: self.managed.as_ref().map(|managed| managed.info()),
        }
    }

    /// Milliseconds since the epoch.
    pub(crate) fn started_at(&self) -> i64 {
        self.started_at
    }

    pub(crate) fn end(&self) -> Option<End> {
        *self.end.borrow()
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        loop {
            if let Some(end) = *end.borrow_and_update() {
                return end;
            }
            // The sender lives in `self`: this cannot fail while we are here.
            let _ = end.changed().await;
        }
    }

    /// Signals its process group; false when it has ended.
    pub(crate) fn signal(&self, reaper: &Reaper, number: i32) -> io::Result<bool> {
        reaper.signal_group(self.pid, number)
    }

    /// Kills it and all it started.
    pub(crate) fn kill(&self, reaper: &Reaper) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        match self.signal(reaper, libc::SIGKILL) {
            // Without a cgroup what is left of the group is all we can find.
            Ok(false) if self.cgroup.is_none() => drop(kill_group(self.pid, libc::SIGKILL)),
            Ok(_) => {}
            Err(error) => tracing::warn!("process {}: cannot be killed: {error}", self.pid),
        }
    }

    /// Closes the pipe to it, also under a write that waits; false when there is none.
    pub(crate) async fn close_stdin(&self) -> bool {
        if !self.stdin_open.send_replace(false) {
            return false;
        }
        self.stdin.lock().await.take();
        true
    }

    /// Waits until stdin is closed from this side.
    pub(crate) async fn stdin_closed(&self) {
        let _ = self.stdin_open.subscribe().wait_for(|open| !open).await;
    }
}

/// All processes, and what starting one needs.
pub(crate) struct Table {
    pub(crate) reaper: Arc<Reaper>,
    cgroups: Arc<Cgroups>,
    logs: Arc<Logs>,
    budget: Arc<Budget>,
    entries: Mutex<Entries>,
    /// Held while a managed process is named.
    pub(crate) naming: Mutex<()>,
}

#[derive(Default)]
struct Entries {
    last_handle: i64,
    started: usize,
    processes: BTreeMap<i64, Arc<Process>>,
}

impl Entries {
    fn running(&self) -> usize {
        self.processes.values().filter(|process| process.end().is_none()).count()
    }
}

/// Our ends of a process's pipes.
struct Ours {
    stdin: Option<pipe::Sender>,
    pipes: [Pipe; 2],
}

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("{PROCESSES_RUNNING_MAX} processes run already; end one first")]
    TooMany,
    #[error("no pipe for the process: {0}")]
    Pipe(io::Error),
}

impl Table {
    pub(crate) fn new(reaper: Arc<Reaper>, cgroups: Arc<Cgroups>, logs: Arc<Logs>) -> Self {
        Self { reaper, cgroups, logs, budget: Arc::default(), entries: Mutex::default(), naming: Mutex::default() }
    }

    /// Output for a process that is to be started.
    pub(crate) fn new_output(&self) -> Arc<Output> {
        Arc::new(Output::new(Arc::clone(&self.budget)))
    }

    /// Starts a process and its task.
    pub(crate) fn start(
        self: &Arc<Self>,
        plan: &Plan,
        output: Arc<Output>,
        managed: Option<Arc<Managed>>,
    ) -> Result<Arc<Process>, StartError> {
        let (stdin, to_child) = pipes::stdin(plan.stdin).map_err(StartError::Pipe)?;
        let (stdout, from_stdout) = pipes::output(plan.stdout).map_err(StartError::Pipe)?;
        let (stderr, from_stderr) = pipes::output(plan.stderr).map_err(StartError::Pipe)?;
        let ours = Ours {
            stdin: to_child,
            pipes: [Pipe::new(OutputStream::Stdout, from_stdout), Pipe::new(OutputStream::Stderr, from_stderr)],
        };
        let streams = Streams { files: [stdin, stdout, stderr], terminal: false };
        self.begin(plan, streams, ours, output, managed)
    }

    /// Starts a process whose streams are the caller's. It stands in the table like any other, without output.
    pub(crate) fn start_attached(
        self: &Arc<Self>,
        launch: Launch,
        streams: Streams,
    ) -> Result<Arc<Process>, StartError> {
        let pipes = [Pipe::new(OutputStream::Stdout, None), Pipe::new(OutputStream::Stderr, None)];
        self.begin(&Plan::new(launch), streams, Ours { stdin: None, pipes }, self.new_output(), None)
    }

    fn begin(
        self: &Arc<Self>,
        plan: &Plan,
        streams: Streams,
        ours: Ours,
        output: Arc<Output>,
        managed: Option<Arc<Managed>>,
    ) -> Result<Arc<Process>, StartError> {
        let handle = {
            let mut entries = lock(&self.entries);
            if entries.running() >= PROCESSES_RUNNING_MAX {
                return Err(StartError::TooMany);
            }
            entries.last_handle += 1;
            entries.last_handle
        };
        let cgroup = self.cgroups.create('p', handle);
        let child = match plan.launch.start(&self.reaper, streams, cgroup.as_ref()) {
            Ok(child) => child,
            Err(error) => {
                if let Some(cgroup) = &cgroup {
                    self.cgroups.remove(cgroup);
                }
                return Err(error.into());
            }
        };
        let process = Arc::new(Process {
            handle,
            pid: child.pid,
            command: plan.launch.command.clone(),
            args: plan.launch.args.clone(),
            started_at: now_ms(),
            output,
            managed,
            stdin_open: watch::Sender::new(ours.stdin.is_some()),
            stdin: tokio::sync::Mutex::new(ours.stdin),
            cgroup,
            end: watch::Sender::new(None),
        });
        self.enter(Arc::clone(&process));
        tokio::spawn(watch_over(Arc::clone(self), Arc::clone(&process), ours.pipes, child, plan.timeout));
        Ok(process)
    }

    fn enter(&self, process: Arc<Process>) {
        let mut entries = lock(&self.entries);
        entries.started += 1;
        // A managed process is shown once, as the life it is in.
        if let Some(managed) = &process.managed {
            entries.processes.retain(|_, other| other.managed.as_ref().is_none_or(|of| of.id != managed.id));
        }
        entries.processes.insert(process.handle, process);
    }

    /// Finds a process by pid, the latest that had it, or by its supervisor's name.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Process>> {
        let entries = lock(&self.entries);
        let mut newest_first = entries.processes.values().rev();
        let found = match name.parse::<i32>() {
            Ok(pid) => newest_first.find(|process| process.pid == pid),
            Err(_) => newest_first
                .find(|process| process.managed.as_ref().is_some_and(|managed| managed.name.as_deref() == Some(name))),
        };
        found.cloned()
    }

    /// Takes a managed process out of the list.
    pub(crate) fn forget(&self, managed: &Managed) {
        lock(&self.entries)
            .processes
            .retain(|_, process| process.managed.as_ref().is_none_or(|of| of.id != managed.id));
    }

    /// All processes, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<Process>> {
        lock(&self.entries).processes.values().cloned().collect()
    }

    /// Those that run, and those started so far.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let entries = lock(&self.entries);
        (entries.running(), entries.started)
    }

    /// Bounds what ended processes hold: how many they are, and their output.
    fn prune(&self) {
        let mut entries = lock(&self.entries);
        let is_over = |process: &&Arc<Process>| {
            process.end().is_some() && process.managed.as_ref().is_none_or(|managed| managed.is_stopped())
        };
        let ended: Vec<i64> = entries.processes.values().filter(is_over).map(|process| process.handle).collect();
        for handle in &ended[..ended.len().saturating_sub(PROCESSES_ENDED_MAX)] {
            if let Some(managed) = entries.processes.remove(handle).and_then(|process| process.managed.clone()) {
                managed.dismiss();
            }
        }
        for process in entries.processes.values().filter(is_over) {
            if !self.budget.is_exceeded() {
                return;
            }
            tracing::debug!("process {}: output dropped, more than {OUTPUT_TOTAL_BYTES_MAX} bytes in all", process.pid);
            process.output.forget();
        }
    }
}

/// The task of one process; see the module's drawing.
async fn watch_over(
    table: Arc<Table>,
    process: Arc<Process>,
    mut pipes: [Pipe; 2],
    mut child: Child,
    timeout: Option<Duration>,
) {
    let sink = Sink { output: &process.output, logs: &table.logs, source: Arc::new(source(&process)) };
    let mut buffer = vec![0; READ_CHUNK];
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let (exit, timed_out) = run(&table, &process, &mut pipes, &mut child.exit, deadline, &mut buffer, &sink).await;
    let at = now_ms();
    let oom_killed = matches!(exit, Exit::Signal(_)) && process.cgroup.as_ref().is_some_and(Cgroup::was_oom_killed);
    drain(&mut pipes, &mut buffer, &sink).await;
    for pipe in &mut pipes {
        pipe.flush(&sink);
    }
    process.close_stdin().await;
    process.end.send_replace(Some(End { exit, oom_killed, timed_out, at }));
    sink.announce();
    // The output of a managed process goes on in its next life; its supervisor says when there is none.
    if process.managed.is_none() {
        process.output.set_finished(true);
    }
    // Who waits for the end is told before the rest is tidied.
    yield_now().await;
    if let Some(cgroup) = &process.cgroup {
        table.cgroups.remove(cgroup);
    }
    table.prune();
    while pipes.iter().any(|pipe| pipe.is_open()) {
        let [first, second] = &mut pipes;
        let mut other = [0; 4096];
        tokio::select! {
            () = first.pass_on(&mut buffer, &sink) => {}
            () = second.pass_on(&mut other, &sink) => {}
        }
    }
}

/// Reads until the process's status is there, and kills it at the deadline.
async fn run(
    table: &Table,
    process: &Process,
    pipes: &mut [Pipe; 2],
    exit: &mut oneshot::Receiver<Exit>,
    deadline: Option<Instant>,
    buffer: &mut [u8],
    sink: &Sink<'_>,
) -> (Exit, bool) {
    let mut timed_out = false;
    let [stdout, stderr] = pipes;
    let (for_stdout, for_stderr) = buffer.split_at_mut(READ_CHUNK / 2);
    loop {
        tokio::select! {
            // The reaper keeps the sender until there is a status.
            exit = &mut *exit => return (exit.unwrap_or(Exit::Signal(libc::SIGKILL)), timed_out),
            () = stdout.pass_on(for_stdout, sink) => {}
            () = stderr.pass_on(for_stderr, sink) => {}
            () = at(deadline), if !timed_out => {
                timed_out = true;
                process.kill(&table.reaper);
            }
        }
    }
}

/// Reads what is there, until both pipes have ended or been quiet, or the background has talked for long enough.
async fn drain(pipes: &mut [Pipe; 2], buffer: &mut [u8], sink: &Sink<'_>) {
    let end = Instant::now() + DRAIN_MAX;
    let [stdout, stderr] = pipes;
    let (for_stdout, for_stderr) = buffer.split_at_mut(READ_CHUNK / 2);
    while stdout.is_open() || stderr.is_open() {
        let quiet = Instant::now() + DRAIN_QUIET;
        tokio::select! {
            biased;
            () = stdout.pass_on(for_stdout, sink) => {}
            () = stderr.pass_on(for_stderr, sink) => {}
            () = sleep_until(quiet.min(end)) => return,
        }
        if Instant::now() >= end {
            return;
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn source(process: &Process) -> Source {
    let managed = process.managed.as_ref();
    Source {
        handle: process.handle,
        pid: i64::from(process.pid),
        command: command_line(&process.command, &process.args),
        managed_id: managed.map(|managed| managed.id.clone()).unwrap_or_default(),
        managed_name: managed.and_then(|managed| managed.name.clone()).unwrap_or_default(),
    }
}
