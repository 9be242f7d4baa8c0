//! `GET /api/v1/exec`: a program on a WebSocket, its bytes as they are; see [`belljar_api::exec`].
//!
//! ```text
//! first message ─► started ─┬─(outputs ended)─► its exit is told ─► closed
//!                           └─(client gone)──► hung up
//! ```
//!
//! Nothing is kept here: output is read from the program as fast as the client takes it, and input from the client as
//! fast as the program does. As under sshd, a connection lasts until the program *and* whoever it left its pipes to have
//! closed them; a terminal ends with its program. Who is hung up and stays (`nohup`, `tmux`) is left alone.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
    routing::get,
};
use belljar_api::{
    error::ErrorBody,
    exec::{ExecExit, ExecProgram, StartExec, TerminalSize, opcode},
    limits::EXEC_START_MAX,
    process::{OutputMode, StdinMode},
};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::unix::pipe,
    time::timeout,
};

use crate::{
    agent::Agent,
    error::ApiError,
    launch::{Launch, LaunchError, Request, Settings, Streams},
    limits::{DRAIN_MAX, EXEC_CHUNK, EXEC_GOODBYE, EXEC_START_PATIENCE},
    pipes,
    process::{Process, StartError},
    pty,
};

/// The route.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route("/api/v1/exec", get(attach))
}

async fn attach(
    State(agent): State<Arc<Agent>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|error| ApiError::invalid(error.body_text()))?;
    let upgrade = upgrade.max_message_size(EXEC_START_MAX).max_frame_size(EXEC_START_MAX);
    Ok(upgrade.on_upgrade(move |socket| converse(socket, agent)))
}

async fn converse(socket: WebSocket, agent: Arc<Agent>) {
    let (mut sink, mut stream) = socket.split();
    let Ok(Some(start)) = timeout(EXEC_START_PATIENCE, first(&mut stream)).await else { return };
    let running = match start.and_then(|start| Running::start(&agent, start)) {
        Ok(running) => running,
        Err(error) => {
            let body = serde_json::to_vec(&ErrorBody::new(error.code, error.message)).unwrap_or_default();
            let _ = sink.send(message(opcode::REFUSED, &body)).await;
            return close(&mut sink).await;
        }
    };
    let Running { process, mut input, mut output } = running;
    let pid = u32::try_from(process.pid).unwrap_or(0);
    if sink.send(message(opcode::STARTED, &pid.to_be_bytes())).await.is_ok() {
        tokio::select! {
            told = show_output(&mut sink, &mut output, &process) => {
                if told.is_ok() {
                    close(&mut sink).await;
                    // A connection that is dropped with input unread is reset, and the exit would be lost with it.
                    let rest = async { while let Some(Ok(_)) = stream.next().await {} };
                    let _ = timeout(EXEC_GOODBYE, rest).await;
                    return;
                }
            }
            () = take_input(&mut stream, &mut input, &process, &agent) => {}
        }
    }
    // Closing a terminal hangs up by itself; who has pipes must be told.
    if matches!(output, Output::Pipes(_)) {
        let _ = process.signal(&agent.reaper, libc::SIGHUP);
    }
}

/// The START message; `None` when the client went away before it.
async fn first(stream: &mut SplitStream<WebSocket>) -> Option<Result<StartExec, ApiError>> {
    loop {
        let bytes = match stream.next().await? {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Ping(_) | Message::Pong(_)) => continue,
            Ok(Message::Text(_)) => return Some(Err(ApiError::invalid("a program takes binary messages"))),
            Ok(Message::Close(_)) | Err(_) => return None,
        };
        let start = match bytes.split_first() {
            Some((&opcode::START, json)) => serde_json::from_slice(json).map_err(|error| error.to_string()),
            _ => Err("the first message must be START".to_owned()),
        };
        return Some(start.map_err(ApiError::invalid));
    }
}

/// A program and our ends of its streams.
struct Running {
    process: Arc<Process>,
    input: Input,
    output: Output,
}

enum Input {
    /// `None` once it is closed.
    Pipe(Option<pipe::Sender>),
    Terminal(Arc<AsyncFd<File>>),
}

enum Output {
    /// Stdout and stderr; `None` once it has ended.
    Pipes([Option<pipe::Receiver>; 2]),
    Terminal(Arc<AsyncFd<File>>),
}

impl Running {
    fn start(agent: &Agent, start: StartExec) -> Result<Self, ApiError> {
        let settings = agent.settings()?;
        let (command, args) = program(&settings, &start)?;
        let StartExec { env, working_dir, user, terminal, .. } = start;
        let launch = Launch::prepare(&settings, Request { command, args, env, working_dir, user })?;
        match terminal {
            Some(size) => Self::in_terminal(agent, launch, size),
            None => Self::with_pipes(agent, launch),
        }
    }

    fn with_pipes(agent: &Agent, launch: Launch) -> Result<Self, ApiError> {
        let failed = |error| ApiError::from(StartError::Pipe(error));
        let (stdin, to_program) = pipes::stdin(StdinMode::Pipe).map_err(failed)?;
        let (stdout, from_stdout) = pipes::output(OutputMode::Capture).map_err(failed)?;
        let (stderr, from_stderr) = pipes::output(OutputMode::Capture).map_err(failed)?;
        let streams = Streams { files: [stdin, stdout, stderr], terminal: false };
        let process = agent.table.start_attached(launch, streams)?;
        Ok(Self { process, input: Input::Pipe(to_program), output: Output::Pipes([from_stdout, from_stderr]) })
    }

    fn in_terminal(agent: &Agent, mut launch: Launch, size: TerminalSize) -> Result<Self, ApiError> {
        let failed = |error: io::Error| ApiError::internal(format!("no terminal: {error}"));
        let (rows, cols) = pty::clamp(size.rows, size.cols);
        let (master, slave) = pty::open(rows, cols).map_err(failed)?;
        let terminal = Arc::new(pty::watched(master).map_err(failed)?);
        pty::give(&slave, launch.identity.as_ref());
        launch.default_env("TERM", "xterm-256color");
        let files = [slave.try_clone().map_err(failed)?, slave.try_clone().map_err(failed)?, slave];
        let process = agent.table.start_attached(launch, Streams { files, terminal: true })?;
        Ok(Self { process, input: Input::Terminal(Arc::clone(&terminal)), output: Output::Terminal(terminal) })
    }
}

/// Program and arguments of what was asked for.
fn program(settings: &Settings, start: &StartExec) -> Result<(String, Vec<String>), ApiError> {
    let shell = || {
        let identity = settings.identity(start.user.as_ref()).map_err(LaunchError::User)?;
        let own = identity.map(|identity| identity.shell).filter(|shell| Path::new(shell).exists());
        Ok::<_, ApiError>(own.unwrap_or_else(|| "/bin/sh".to_owned()))
    };
    Ok(match &start.program {
        ExecProgram::Login => (shell()?, vec!["-l".to_owned()]),
        ExecProgram::Line(line) => (shell()?, vec!["-c".to_owned(), line.clone()]),
        // Ourselves, by the one name that holds when our file is hidden below the guest's root file system.
        ExecProgram::Sftp => ("/proc/self/exe".to_owned(), vec![crate::sftp::OPTION.to_owned()]),
    })
}

type Sink = SplitSink<WebSocket, Message>;

fn message(opcode: u8, payload: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(1 + payload.len());
    message.put_u8(opcode);
    message.put_slice(payload);
    Message::Binary(message.freeze())
}

async fn close(sink: &mut Sink) {
    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    let _ = sink.send(Message::Close(Some(frame))).await;
}

/// Passes all output on, then tells how the program ended.
async fn show_output(sink: &mut Sink, output: &mut Output, process: &Process) -> Result<(), axum::Error> {
    match output {
        Output::Pipes([stdout, stderr]) => {
            while stdout.is_some() || stderr.is_some() {
                let chunk = tokio::select! {
                    chunk = read_pipe(stdout, opcode::STDOUT) => chunk,
                    chunk = read_pipe(stderr, opcode::STDERR) => chunk,
                };
                if let Some(chunk) = chunk {
                    sink.send(Message::Binary(chunk)).await?;
                }
            }
        }
        Output::Terminal(terminal) => show_terminal(sink, terminal, process).await?,
    }
    let end = process.ended().await;
    let exit = ExecExit { exit_code: end.exit_code(), signal: end.signal(), oom_killed: end.oom_killed };
    sink.send(message(opcode::EXIT, &serde_json::to_vec(&exit).unwrap_or_default())).await
}

/// The next bytes of a pipe behind their opcode; `None` at its end. One that has ended waits for ever.
async fn read_pipe(pipe: &mut Option<pipe::Receiver>, opcode: u8) -> Option<Bytes> {
    let Some(receiver) = pipe else { return std::future::pending().await };
    let mut chunk = BytesMut::with_capacity(1 + EXEC_CHUNK);
    chunk.put_u8(opcode);
    match receiver.read_buf(&mut chunk).await {
        Ok(count) if count > 0 => Some(chunk.freeze()),
        Ok(_) | Err(_) => {
            *pipe = None;
            None
        }
    }
}

async fn show_terminal(sink: &mut Sink, terminal: &AsyncFd<File>, process: &Process) -> Result<(), axum::Error> {
    let mut buffer = vec![0; EXEC_CHUNK];
    loop {
        tokio::select! {
            read = terminal.async_io(Interest::READABLE, |mut file| file.read(&mut buffer)) => match read {
                Ok(count) if count > 0 => sink.send(message(opcode::STDOUT, &buffer[..count])).await?,
                // Nobody has the other end open; the program may run on without a terminal.
                Ok(_) | Err(_) => return Ok(()),
            },
            _ = process.ended() => break,
        }
    }
    // What the program wrote is there already; what it left in the background has no more time than this.
    let rest = async {
        loop {
            match terminal.get_ref().read(&mut buffer) {
                Ok(count) if count > 0 => sink.send(message(opcode::STDOUT, &buffer[..count])).await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    };
    timeout(DRAIN_MAX, rest).await.unwrap_or(Ok(()))
}

/// Passes input on; returns when the client is gone or does not speak the protocol.
async fn take_input(stream: &mut SplitStream<WebSocket>, input: &mut Input, process: &Process, agent: &Agent) {
    loop {
        let bytes = match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Text(_) | Message::Close(_)) | Err(_)) | None => return,
        };
        match bytes.split_first() {
            Some((&opcode::STDIN, bytes)) => input.write(bytes).await,
            Some((&opcode::STDIN_END, _)) => input.end(),
            Some((&opcode::RESIZE, &[c1, c0, r1, r0])) => {
                if let Input::Terminal(terminal) = input {
                    pty::resize(&**terminal, u16::from_be_bytes([r1, r0]), u16::from_be_bytes([c1, c0]));
                }
            }
            Some((&opcode::SIGNAL, &[number])) if (1..=64).contains(&number) => {
                // One that has ended just now has no use for it.
                let _ = process.signal(&agent.reaper, i32::from(number));
            }
            _ => return,
        }
    }
}

impl Input {
    /// Waits while the program does not read. What it does not want to read is lost.
    async fn write(&mut self, mut bytes: &[u8]) {
        match self {
            Self::Pipe(to) => {
                if let Some(pipe) = to
                    && pipe.write_all(bytes).await.is_err()
                {
                    *to = None;
                }
            }
            Self::Terminal(terminal) => {
                while !bytes.is_empty() {
                    match terminal.async_io(Interest::WRITABLE, |mut file| file.write(bytes)).await {
                        Ok(written) => bytes = &bytes[written..],
                        Err(_) => return,
                    }
                }
            }
        }
    }

    fn end(&mut self) {
        if let Self::Pipe(to) = self {
            *to = None;
        }
    }
}
