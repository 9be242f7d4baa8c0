//! Terminals of a sandbox: sessions, and attaching to one over a WebSocket.

use belljar_api::{
    limits::WS_MESSAGE_MAX,
    pty::{CreatePty, CreatedPty, PtyInfo, PtyList, ResizePty, opcode},
};
use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{HeaderValue, Method};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::{
    Error, Sandbox,
    transport::{query_value, segment},
    websocket::Socket,
};

const ATTACHED: &str = "terminal";

impl Sandbox {
    /// Starts a program in a terminal of its own.
    pub async fn create_pty(&self, request: &CreatePty) -> Result<CreatedPty, Error> {
        self.transport.json(self.call(Method::POST, "/api/v1/pty").json(request)?).await
    }

    /// The terminal sessions.
    pub async fn ptys(&self) -> Result<PtyList, Error> {
        self.transport.json(self.call(Method::GET, "/api/v1/pty")).await
    }

    /// One terminal session.
    pub async fn pty(&self, session_id: &str) -> Result<PtyInfo, Error> {
        self.transport.json(self.call(Method::GET, format!("/api/v1/pty/{}", segment(session_id)))).await
    }

    /// Changes the size of a terminal without attaching to it.
    pub async fn resize_pty(&self, session_id: &str, size: ResizePty) -> Result<(), Error> {
        let path = format!("/api/v1/pty/{}/resize", segment(session_id));
        self.transport.nothing(self.call(Method::POST, path).json(&size)?).await
    }

    /// Hangs up on a terminal session.
    pub async fn delete_pty(&self, session_id: &str) -> Result<(), Error> {
        self.transport.nothing(self.call(Method::DELETE, format!("/api/v1/pty/{}", segment(session_id)))).await
    }

    /// Attaches to a terminal session: first comes what it wrote lately, then what it writes. Detaching (dropping)
    /// does not end it; the same session can be attached to again.
    pub async fn attach_pty(&self, session: &CreatedPty) -> Result<Terminal, Error> {
        let (id, token) = (segment(&session.session_id), query_value(&session.token));
        let path = format!("/api/v1/pty/{id}/ws?token={token}");
        let value = HeaderValue::from_str(&session.token)
            .map_err(|_| Error::protocol(ATTACHED, "the session token is no header value"))?;
        let mut socket = self.websocket(&path, &[("x-pty-token", value)]).await?;
        socket.send(Message::binary(vec![opcode::READY])).await.map_err(broken)?;
        let (sink, stream) = socket.split();
        Ok(Terminal { input: TerminalInput { sink }, output: TerminalOutput { stream } })
    }
}

/// An attached terminal.
#[derive(Debug)]
pub struct Terminal {
    /// What goes to the program.
    pub input: TerminalInput,
    /// What comes from it.
    pub output: TerminalOutput,
}

/// The way to the program of an attached terminal.
#[derive(Debug)]
pub struct TerminalInput {
    sink: SplitSink<Socket, Message>,
}

impl TerminalInput {
    /// Types `bytes`.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for chunk in bytes.chunks(WS_MESSAGE_MAX - 1) {
            let mut message = Vec::with_capacity(1 + chunk.len());
            message.push(opcode::DATA);
            message.extend_from_slice(chunk);
            self.sink.send(Message::binary(message)).await.map_err(broken)?;
        }
        Ok(())
    }

    /// Tells the new size of the window.
    pub async fn resize(&mut self, size: ResizePty) -> Result<(), Error> {
        let mut message = vec![opcode::RESIZE];
        message.extend_from_slice(&size.cols.to_be_bytes());
        message.extend_from_slice(&size.rows.to_be_bytes());
        self.sink.send(Message::binary(message)).await.map_err(broken)
    }

    /// Asks for a sign of life, so that a dead connection is noticed.
    pub async fn ping(&mut self) -> Result<(), Error> {
        self.sink.send(Message::Ping(Bytes::new())).await.map_err(broken)
    }
}

/// What an attached terminal shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalEvent {
    /// Bytes to show.
    Output(Bytes),
    /// The program ended; a signal counts as its negative number.
    Exit(i32),
    /// The server closed the connection without an exit code, with its reason.
    Closed(String),
}

/// The way from the program of an attached terminal.
#[derive(Debug)]
pub struct TerminalOutput {
    stream: SplitStream<Socket>,
}

impl TerminalOutput {
    /// The next event. After [`TerminalEvent::Exit`] or [`TerminalEvent::Closed`] there are no more.
    pub async fn next(&mut self) -> Result<TerminalEvent, Error> {
        loop {
            match self.stream.next().await {
                None => return Ok(TerminalEvent::Closed(String::new())),
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(Message::Binary(message))) => match decode(message)? {
                    Some(event) => return Ok(event),
                    None => continue,
                },
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
                    return Ok(TerminalEvent::Closed(reason));
                }
                Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            }
        }
    }
}

fn decode(mut message: Bytes) -> Result<Option<TerminalEvent>, Error> {
    match message.first() {
        Some(&opcode::DATA) => Ok(Some(TerminalEvent::Output(message.split_off(1)))),
        Some(&opcode::EXIT) => match <[u8; 4]>::try_from(&message[1..]) {
            Ok(code) => Ok(Some(TerminalEvent::Exit(i32::from_be_bytes(code)))),
            Err(_) => Err(Error::protocol(ATTACHED, format!("an exit message of {} bytes", message.len()))),
        },
        // Opcodes of a newer agent.
        _ => Ok(None),
    }
}

fn broken(error: tungstenite::Error) -> Error {
    Error::Transport { what: ATTACHED.to_owned(), source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_decoded() {
        let decode = |bytes: &'static [u8]| decode(Bytes::from_static(bytes));
        assert_eq!(decode(b"\0hi").expect("data"), Some(TerminalEvent::Output(Bytes::from_static(b"hi"))));
        assert_eq!(decode(&[3, 0xff, 0xff, 0xff, 0xf7]).expect("exit"), Some(TerminalEvent::Exit(-9)));
        assert!(decode(&[3, 0]).is_err());
        assert_eq!(decode(&[9, 1]).expect("newer"), None);
        assert_eq!(decode(&[]).expect("empty"), None);
    }
}
