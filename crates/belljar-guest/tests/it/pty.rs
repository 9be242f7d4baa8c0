use belljar_api::{
    limits::PTY_SESSIONS_MAX,
    pty::{CreatedPty, PtyInfo, PtyList, opcode},
};
use belljar_link::LinkStream;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::harness::{Agent, PATIENCE, json as bytes, websocket};

/// A client of a terminal.
struct Terminal {
    socket: WebSocketStream<LinkStream>,
    shown: String,
}

impl Terminal {
    async fn attach(agent: &Agent, pty: &CreatedPty) -> Self {
        let path = format!("/api/v1/pty/{}/ws?token={}", pty.session_id, pty.token);
        let mut terminal = Self { socket: websocket(agent, &path).await.expect("attached"), shown: String::new() };
        terminal.send(opcode::READY, &[]).await;
        terminal
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) {
        let message = [&[opcode], payload].concat();
        self.socket.send(Message::binary(message)).await.expect("sent");
    }

    async fn next(&mut self) -> Message {
        timeout(PATIENCE, self.socket.next()).await.expect("in time").expect("a message").expect("no error")
    }

    /// Reads until `text` was shown.
    async fn until(&mut self, text: &str) {
        while !self.shown.contains(text) {
            match self.next().await {
                Message::Binary(bytes) if bytes[0] == opcode::DATA => {
                    self.shown.push_str(&String::from_utf8_lossy(&bytes[1..]));
                }
                other => panic!("{other:?} after {:?}", self.shown),
            }
        }
    }

    /// Reads to the end: exit code, and code and reason of the Close.
    async fn end(mut self) -> (Option<i32>, u16, String) {
        let mut exit = None;
        loop {
            match self.next().await {
                Message::Binary(bytes) if bytes[0] == opcode::EXIT => {
                    exit = Some(i32::from_be_bytes(bytes[1..].try_into().expect("four bytes")));
                }
                Message::Close(Some(frame)) => return (exit, frame.code.into(), frame.reason.to_string()),
                Message::Binary(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn create(agent: &Agent, script: &str) -> CreatedPty {
    let content = json!({"command": "sh", "args": ["-c", script], "rows": 0, "cols": 100});
    agent.get("POST", "/api/v1/pty", content, 201).await
}

#[tokio::test]
async fn a_terminal_takes_input_and_size_and_tells_its_end() {
    let agent = Agent::start().await;
    let pty = create(&agent, "echo $TERM; tty; stty size; while read line; do echo got $line; stty size; [ $line = end ] && exit 3; done; exit 4").await;
    assert_eq!(pty.token.len(), 64);
    let mut terminal = Terminal::attach(&agent, &pty).await;
    terminal.until("1 100\r\n").await;
    assert!(terminal.shown.starts_with("xterm-256color\r\n/dev/pts/"), "{}", terminal.shown);
    terminal.send(opcode::DATA, b"hello\n").await;
    terminal.until("got hello\r\n1 100\r\n").await;
    terminal.send(opcode::RESIZE, &[0, 120, 0, 40]).await;
    terminal.send(opcode::DATA, b"end\n").await;
    terminal.until("got end\r\n40 120\r\n").await;
    assert_eq!(terminal.end().await, (Some(3), 1000, "exit:3".to_owned()));
    let info: PtyInfo = agent.get("GET", &format!("/api/v1/pty/{}", pty.session_id), (), 200).await;
    assert_eq!((info.is_alive, info.exit_code, info.rows, info.cols), (false, Some(3), 40, 120));
    // A dead session is still replayed.
    let mut late = Terminal::attach(&agent, &pty).await;
    late.until("got end\r\n").await;
    assert_eq!(late.end().await.0, Some(3));
}

#[tokio::test]
async fn a_client_comes_back_and_two_see_the_same() {
    let agent = Agent::start().await;
    let pty = create(&agent, "stty -echo; echo hello; exec cat").await;
    let mut first = Terminal::attach(&agent, &pty).await;
    first.until("hello\r\n").await;
    drop(first);
    let mut second = Terminal::attach(&agent, &pty).await;
    second.until("hello\r\n").await;
    let mut third = Terminal::attach(&agent, &pty).await;
    third.until("hello\r\n").await;
    second.send(opcode::DATA, b"both\n").await;
    second.until("both\r\n").await;
    third.until("both\r\n").await;
    second.send(opcode::DATA, b"\x04").await;
    assert_eq!(second.end().await, (Some(0), 1000, "exit:0".to_owned()));
    assert_eq!(third.end().await, (Some(0), 1000, "exit:0".to_owned()));
}

#[tokio::test]
async fn much_output_comes_whole_to_a_client_that_reads() {
    let agent = Agent::start().await;
    let pty = create(&agent, "read go; seq 1 300000; echo done").await;
    let mut terminal = Terminal::attach(&agent, &pty).await;
    terminal.send(opcode::DATA, b"\n").await;
    terminal.until("done\r\n").await;
    let numbers = terminal.shown.lines().filter_map(|line| line.parse::<u32>().ok());
    assert!(numbers.eq(1..=300_000));
}

#[tokio::test]
async fn deletion_ends_clients_and_program() {
    let agent = Agent::start().await;
    let pty = create(&agent, "echo up; exec sleep 1000").await;
    let mut terminal = Terminal::attach(&agent, &pty).await;
    terminal.until("up\r\n").await;
    let path = format!("/api/v1/pty/{}", pty.session_id);
    assert_eq!(agent.ask("DELETE", &path, "").await.0, 204);
    assert_eq!(terminal.end().await, (None, 1001, "session terminated".to_owned()));
    assert_eq!(agent.refused("GET", &path, "").await, (404, "SESSION_NOT_FOUND".to_owned()));
}

#[tokio::test]
async fn only_the_token_attaches_and_it_is_never_listed() {
    let agent = Agent::start().await;
    let pty = create(&agent, "exec sleep 1000").await;
    let path = format!("/api/v1/pty/{}/ws", pty.session_id);
    for query in [String::new(), "?token=".to_owned(), format!("?token={}", "0".repeat(64))] {
        assert_eq!(websocket(&agent, &format!("{path}{query}")).await.err(), Some(403));
    }
    assert_eq!(websocket(&agent, "/api/v1/pty/none/ws?token=x").await.err(), Some(404));
    let (_, list) = agent.ask("GET", "/api/v1/pty", "").await;
    assert!(!String::from_utf8_lossy(&list).contains(&pty.token));
    let list: PtyList = crate::harness::parse(&list);
    assert_eq!(list.sessions.len(), 1);
    let resize = format!("/api/v1/pty/{}/resize", pty.session_id);
    assert_eq!(agent.ask("POST", &resize, bytes(json!({"rows": 9999, "cols": 0}))).await.0, 204);
    let info: PtyInfo = agent.get("GET", &format!("/api/v1/pty/{}", pty.session_id), (), 200).await;
    assert_eq!((info.rows, info.cols), (500, 1));
}

#[tokio::test]
async fn terminals_are_counted() {
    let agent = Agent::start().await;
    for _ in 0..PTY_SESSIONS_MAX {
        create(&agent, "exec sleep 1000").await;
    }
    let refused = agent.refused("POST", "/api/v1/pty", bytes(json!({"command": "sh"}))).await;
    assert_eq!(refused, (429, "TOO_MANY_SESSIONS".to_owned()));
}
