//! The WebSocket of a terminal session.

use std::net::TcpStream;

use serde_json::Value;
use tungstenite::{Message, WebSocket, client::IntoClientRequest};

use crate::{sandbox::Sandbox, world::World};

/// An attached terminal.
pub struct Terminal {
    socket: WebSocket<TcpStream>,
    /// All output so far.
    pub seen: Vec<u8>,
}

/// Opens a WebSocket to a path of the sandbox's own API.
pub fn websocket(world: &World, sandbox: &Sandbox<'_>, path: &str) -> WebSocket<TcpStream> {
    let mut request = format!("ws://{}{path}", world.address()).into_client_request().expect("a request");
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {}", world.key()).parse().expect("a header"));
    headers.insert("x-tensorlake-sandbox-id", sandbox.id.parse().expect("a header"));
    let stream = TcpStream::connect(world.address()).expect("a connection");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a timeout");
    tungstenite::client(request, stream).expect("an upgrade").0
}

impl Terminal {
    /// Attaches to the session that `POST /api/v1/pty` answered.
    pub fn attach(world: &World, sandbox: &Sandbox<'_>, session: &Value) -> Self {
        let (id, token) = (session["session_id"].as_str().expect("an id"), session["token"].as_str().expect("a token"));
        let socket = websocket(world, sandbox, &format!("/api/v1/pty/{id}/ws?token={token}"));
        let mut terminal = Self { socket, seen: Vec::new() };
        terminal.send(2, &[]);
        terminal
    }

    fn send(&mut self, opcode: u8, payload: &[u8]) {
        let message = [&[opcode], payload].concat();
        self.socket.send(Message::binary(message)).expect("a message is sent");
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        self.send(0, text.as_bytes());
    }

    /// Tells the new size.
    pub fn resize(&mut self, cols: u16, rows: u16) {
        self.send(1, &[cols.to_be_bytes(), rows.to_be_bytes()].concat());
    }

    /// Reads until `text` has been shown.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            assert_eq!(self.read(), None, "the terminal ended before it showed {text:?}: {:?}", self.text());
        }
    }

    /// Reads until the program ends; answers its exit code.
    pub fn wait(&mut self) -> i32 {
        loop {
            if let Some(code) = self.read() {
                return code;
            }
        }
    }

    /// What was shown so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    fn read(&mut self) -> Option<i32> {
        match self.socket.read().unwrap_or_else(|error| panic!("{error}; shown so far: {}", self.text())) {
            Message::Binary(data) if data[0] == 0 => self.seen.extend_from_slice(&data[1..]),
            Message::Binary(data) if data[0] == 3 => {
                return Some(i32::from_be_bytes(data[1..5].try_into().expect("four bytes")));
            }
            Message::Close(frame) => panic!("closed: {frame:?}"),
            Message::Binary(_) | Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
        None
    }
}
