//! A program in a sandbox on a channel: the channel's bytes in and out, and its end as SSH tells it.

use std::io;

use belljar_api::{
    error::ErrorBody,
    exec::{ExecExit, StartExec, opcode},
    limits::{AGENT_PORT, EXEC_START_MAX},
};
use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use russh::Sig;
use tokio::sync::mpsc;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};

use super::{
    bridge::{CHUNK, Outbox, gone, taken},
    inbox::Inbox,
};
use crate::{
    app::App,
    ingress::{self, Target},
    node_link::BodyStream,
};

/// The agent's address as it sees it.
const URL: &str = "ws://localhost/api/v1/exec";

type Socket = WebSocketStream<BodyStream>;

/// What a client wants beside sending bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// Columns and rows.
    Resize(u16, u16),
    Signal(u8),
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    #[error("{0}")]
    Refused(String),
    #[error("the connection to the sandbox broke off: {0}")]
    Broken(#[from] tungstenite::Error),
    #[error("the sandbox closed the connection")]
    Closed,
    #[error("the sandbox does not speak the protocol; it runs an agent of another version")]
    Protocol,
    #[error("the client is gone")]
    Client(#[from] io::Error),
}

/// Runs a program to its end.
pub(super) async fn run(
    app: &App,
    sandbox: &str,
    start: &StartExec,
    inbox: &Inbox,
    outbox: &Outbox,
    mut controls: mpsc::Receiver<Control>,
) -> Result<ExecExit, ProgramError> {
    let socket = attach(app, sandbox, start).await?;
    let (mut to_guest, mut from_guest) = socket.split();
    let mut shown = std::pin::pin!(show(&mut from_guest, outbox));
    tokio::select! {
        exit = &mut shown => exit,
        // Input fails when the program has ended, too: then its output and its end are still to be read.
        error = feed(&mut to_guest, inbox, outbox, &mut controls) => shown.await.or(Err(error)),
    }
}

async fn attach(app: &App, sandbox: &str, start: &StartExec) -> Result<Socket, ProgramError> {
    let target = Target { sandbox: sandbox.to_owned(), port: AGENT_PORT };
    let stream = ingress::open(app, &target).await.map_err(|error| ProgramError::Refused(error.told()))?;
    let limits = WebSocketConfig::default().max_message_size(Some(EXEC_START_MAX)).max_frame_size(Some(EXEC_START_MAX));
    let attached = client_async_with_config(URL, stream, Some(limits)).await;
    let (mut socket, _) = attached.map_err(|error| match error {
        tungstenite::Error::Http(answer) => refused(answer.body().as_deref().unwrap_or_default()),
        other => other.into(),
    })?;
    let mut first = vec![opcode::START];
    first.extend(serde_json::to_vec(start).map_err(|_| ProgramError::Protocol)?);
    if first.len() > EXEC_START_MAX {
        return Err(ProgramError::Refused("the command line is too long for any program".to_owned()));
    }
    socket.send(Message::binary(first)).await?;
    match next(&mut socket).await? {
        (opcode::STARTED, _) => Ok(socket),
        (opcode::REFUSED, body) => Err(refused(&body)),
        _ => Err(ProgramError::Protocol),
    }
}

fn refused(body: &[u8]) -> ProgramError {
    let words = serde_json::from_slice::<ErrorBody>(body).map(|body| body.error);
    ProgramError::Refused(words.unwrap_or_else(|_| "the sandbox refused without words".to_owned()))
}

/// The next message of the guest: its opcode and what follows.
async fn next<S>(stream: &mut S) -> Result<(u8, Bytes), ProgramError>
where
    S: StreamExt<Item = Result<Message, tungstenite::Error>> + Unpin,
{
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(mut bytes))) if !bytes.is_empty() => {
                let rest = bytes.split_off(1);
                return Ok((bytes[0], rest));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => return Err(ProgramError::Closed),
            Some(Ok(_)) => return Err(ProgramError::Protocol),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// Passes output to the client until the program has ended.
async fn show(from: &mut SplitStream<Socket>, outbox: &Outbox) -> Result<ExecExit, ProgramError> {
    /// What SSH calls stderr.
    const STDERR: u32 = 1;
    loop {
        match next(from).await? {
            (opcode::STDOUT, bytes) => outbox.data_bytes(bytes).await.map_err(gone)?,
            (opcode::STDERR, bytes) => outbox.extended_data_bytes(STDERR, bytes).await.map_err(gone)?,
            (opcode::EXIT, body) => return serde_json::from_slice(&body).map_err(|_| ProgramError::Protocol),
            _ => return Err(ProgramError::Protocol),
        }
    }
}

/// Passes input and controls to the program until that fails.
async fn feed(
    to: &mut SplitSink<Socket, Message>,
    inbox: &Inbox,
    outbox: &Outbox,
    controls: &mut mpsc::Receiver<Control>,
) -> ProgramError {
    let mut open = true;
    let mut send = async || -> Result<(), ProgramError> {
        loop {
            tokio::select! {
                bytes = inbox.take(CHUNK), if open => match bytes {
                    Some(bytes) => {
                        to.send(message(opcode::STDIN, &bytes)).await?;
                        taken(outbox, bytes.len()).await?;
                    }
                    None => {
                        open = false;
                        to.send(message(opcode::STDIN_END, &[])).await?;
                    }
                },
                control = controls.recv() => match control {
                    Some(Control::Resize(cols, rows)) => {
                        let ([c1, c0], [r1, r0]) = (cols.to_be_bytes(), rows.to_be_bytes());
                        to.send(message(opcode::RESIZE, &[c1, c0, r1, r0])).await?;
                    }
                    Some(Control::Signal(number)) => to.send(message(opcode::SIGNAL, &[number])).await?,
                    // The channel's owner drops us with its end of this.
                    None => std::future::pending().await,
                },
            }
        }
    };
    match send().await {
        Ok(()) => ProgramError::Closed,
        Err(error) => error,
    }
}

fn message(opcode: u8, payload: &[u8]) -> Message {
    let mut message = Vec::with_capacity(1 + payload.len());
    message.push(opcode);
    message.extend_from_slice(payload);
    Message::binary(message)
}

/// Linux's number of a signal that SSH names (RFC 4254, 6.10).
pub(super) fn number(signal: &Sig) -> Option<u8> {
    Some(match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(name) => match name.as_str() {
            "USR2" => 12,
            "CONT" => 18,
            "STOP" => 19,
            "TSTP" => 20,
            "WINCH" => 28,
            _ => return None,
        },
    })
}

/// SSH's name of a signal of Linux.
pub(super) fn name(number: i32) -> Sig {
    match number {
        1 => Sig::HUP,
        2 => Sig::INT,
        3 => Sig::QUIT,
        4 => Sig::ILL,
        6 => Sig::ABRT,
        8 => Sig::FPE,
        9 => Sig::KILL,
        10 => Sig::USR1,
        11 => Sig::SEGV,
        13 => Sig::PIPE,
        14 => Sig::ALRM,
        15 => Sig::TERM,
        other => Sig::Custom(format!("{other}@belljar")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_one_name_and_number() {
        for wanted in (1..=64).filter(|number| !matches!(name(*number), Sig::Custom(_))) {
            assert_eq!(number(&name(wanted)).map(i32::from), Some(wanted));
        }
        assert_eq!(number(&Sig::Custom("USR2".into())), Some(12));
        assert_eq!(number(&Sig::Custom("EVIL".into())), None);
    }
}
