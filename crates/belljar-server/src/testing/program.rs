//! What `/api/v1/exec` runs in the test double's sandboxes: a few programs that are only words.

use axum::body::Body;
use belljar_api::{
    error::{ErrorBody, code},
    exec::{ExecExit, ExecProgram, StartExec, opcode},
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

/// Bytes that `expand` writes before it reads: more than any window.
pub(super) const EXPANDED: usize = 8 << 20;

/// Answers a request for a program; `left` counts the ends of all.
pub(super) fn attach(mut request: Request<Incoming>, left: watch::Sender<usize>) -> Response<Body> {
    let key = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(io) = upgrade.await {
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
            let _ = Program { socket }.run().await;
        }
        left.send_modify(|left| *left += 1);
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, key)
        .body(Body::empty())
        .expect("answer")
}

struct Program {
    socket: WebSocketStream<TokioIo<Upgraded>>,
}

impl Program {
    async fn send(&mut self, opcode: u8, payload: &[u8]) -> Option<()> {
        self.socket.send(Message::binary([&[opcode], payload].concat())).await.ok()
    }

    /// The next message; `None` when the client is gone.
    async fn next(&mut self) -> Option<(u8, Bytes)> {
        match self.socket.next().await?.ok()? {
            Message::Binary(mut bytes) => {
                let rest = bytes.split_off(1);
                Some((bytes[0], rest))
            }
            _ => None,
        }
    }

    async fn exit(&mut self, exit: ExecExit) -> Option<()> {
        self.send(opcode::EXIT, &serde_json::to_vec(&exit).expect("JSON")).await?;
        self.socket.close(None).await.ok()
    }

    async fn code(&mut self, code: i32) -> Option<()> {
        self.exit(ExecExit { exit_code: Some(code), ..ExecExit::default() }).await
    }

    /// Reads to the end of the input; how many bytes there were.
    async fn count(&mut self, echo: bool) -> Option<usize> {
        let mut count = 0;
        loop {
            match self.next().await? {
                (opcode::STDIN, bytes) => {
                    count += bytes.len();
                    if echo {
                        self.send(opcode::STDOUT, &bytes).await?;
                    }
                }
                (opcode::STDIN_END, _) => return Some(count),
                _ => {}
            }
        }
    }

    async fn run(mut self) -> Option<()> {
        let (_, first) = self.next().await?;
        let start: StartExec = serde_json::from_slice(&first).expect("START");
        let line = match &start.program {
            ExecProgram::Line(line) => line.clone(),
            other => format!("{other:?}").to_lowercase(),
        };
        if line == "refuse" {
            let body = ErrorBody::new(code::INVALID_ARGUMENT, "working_dir: it is not there");
            self.send(opcode::REFUSED, &serde_json::to_vec(&body).expect("JSON")).await?;
            return self.socket.close(None).await.ok();
        }
        self.send(opcode::STARTED, &[0, 0, 0, 7]).await?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("exit", code) => self.code(code.parse().expect("a number")).await,
            ("show", _) => {
                self.send(opcode::STDOUT, &first).await?;
                self.send(opcode::STDERR, b"and an error").await?;
                self.code(0).await
            }
            ("cat", _) => {
                self.count(true).await?;
                self.code(0).await
            }
            ("expand", _) => {
                let chunk = [b'x'; 32 * 1024];
                for _ in 0..EXPANDED / chunk.len() {
                    self.send(opcode::STDOUT, &chunk).await?;
                }
                let count = self.count(false).await?;
                self.send(opcode::STDERR, count.to_string().as_bytes()).await?;
                self.code(0).await
            }
            // Tells sizes and ends by the first signal.
            ("login", _) => loop {
                match self.next().await? {
                    (opcode::RESIZE, size) => self.send(opcode::STDOUT, format!("{size:?}").as_bytes()).await?,
                    (opcode::SIGNAL, number) => {
                        let signal = Some(i32::from(number[0]));
                        return self.exit(ExecExit { signal, ..ExecExit::default() }).await;
                    }
                    _ => {}
                }
            },
            ("break", _) => None,
            // Waits until it is left.
            ("sleep", _) => loop {
                self.next().await?;
            },
            // Reads nothing, for ever.
            ("stuck", _) => {
                std::future::pending::<()>().await;
                None
            }
            (other, _) => panic!("no such program: {other}"),
        }
    }
}
