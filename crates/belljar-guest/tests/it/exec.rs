use std::time::Duration;

use belljar_api::{
    error::ErrorBody,
    exec::{ExecExit, opcode},
};
use belljar_link::LinkStream;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::harness::{Agent, PATIENCE, living_below, parse, websocket};

/// A program and what it wrote so far.
struct Program {
    socket: WebSocketStream<LinkStream>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Program {
    async fn start(agent: &Agent, start: Value) -> Self {
        let mut program = Self::asked(agent, start).await;
        match program.next().await {
            (opcode::STARTED, pid) => assert_eq!(pid.len(), 4),
            other => panic!("{other:?}"),
        }
        program
    }

    async fn asked(agent: &Agent, start: Value) -> Self {
        let socket = websocket(agent, "/api/v1/exec").await.expect("a connection");
        let mut program = Self { socket, stdout: Vec::new(), stderr: Vec::new() };
        program.send(opcode::START, start.to_string().as_bytes()).await;
        program
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.socket.send(Message::binary([&[opcode], payload].concat())).await.expect("sent");
    }

    async fn next(&mut self) -> (u8, Vec<u8>) {
        match timeout(PATIENCE, self.socket.next()).await.expect("in time").expect("a message").expect("no error") {
            Message::Binary(bytes) => (bytes[0], bytes[1..].to_vec()),
            other => panic!("{other:?}"),
        }
    }

    /// Reads until stdout holds `text`.
    async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            assert!(self.step().await.is_none(), "{:?}", String::from_utf8_lossy(&self.stdout));
        }
    }

    async fn step(&mut self) -> Option<ExecExit> {
        match self.next().await {
            (opcode::STDOUT, bytes) => self.stdout.extend(bytes),
            (opcode::STDERR, bytes) => self.stderr.extend(bytes),
            (opcode::EXIT, exit) => return Some(parse(&exit)),
            other => panic!("{other:?}"),
        }
        None
    }

    async fn end(&mut self) -> ExecExit {
        loop {
            if let Some(exit) = self.step().await {
                return exit;
            }
        }
    }
}

fn code(code: i32) -> ExecExit {
    ExecExit { exit_code: Some(code), ..ExecExit::default() }
}

fn line(line: &str) -> Value {
    json!({ "program": { "line": line } })
}

#[tokio::test]
async fn output_and_exit_code_come_as_they_are() {
    let agent = Agent::start().await;
    let mut program = Program::start(&agent, line("printf 'a\\000\\377'; printf e >&2; exit 7")).await;
    assert_eq!(program.end().await, code(7));
    assert_eq!((program.stdout.as_slice(), program.stderr.as_slice()), (b"a\0\xff".as_slice(), b"e".as_slice()));
    let mut program = Program::start(&agent, json!({ "program": { "line": "echo $X" }, "env": { "X": "y" } })).await;
    program.end().await;
    assert_eq!(program.stdout, b"y\n");
    let mut program = Program::start(&agent, line("kill -TERM $$")).await;
    assert_eq!(program.end().await, ExecExit { signal: Some(15), ..ExecExit::default() });
}

#[tokio::test]
async fn much_goes_through_in_both_directions_at_once() {
    let agent = Agent::start().await;
    let program = Program::start(&agent, line("cat")).await;
    let (mut sink, mut stream) = program.socket.split();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| u8::try_from(n * 7 % 251).expect("small")).collect();
    let bytes = sent.clone();
    let writing = tokio::spawn(async move {
        for chunk in bytes.chunks(60_000) {
            sink.send(Message::binary([&[opcode::STDIN], chunk].concat())).await.expect("sent");
        }
        sink.send(Message::binary(vec![opcode::STDIN_END])).await.expect("sent");
        sink
    });
    let mut got = Vec::new();
    loop {
        match timeout(PATIENCE, stream.next()).await.expect("in time").expect("a message").expect("no error") {
            Message::Binary(bytes) if bytes[0] == opcode::STDOUT => got.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) if bytes[0] == opcode::EXIT => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    drop(writing.await.expect("written"));
}

#[tokio::test]
async fn the_end_is_told_also_where_input_is_left() {
    let agent = Agent::start().await;
    let mut program = Program::start(&agent, line("head -c 5; exit 6")).await;
    for _ in 0..40 {
        program.send(opcode::STDIN, &[b'x'; 50_000]).await;
    }
    assert_eq!((program.end().await, program.stdout.as_slice()), (code(6), b"xxxxx".as_slice()));
}

#[tokio::test]
async fn a_terminal_has_its_size_and_a_login_shell() {
    let agent = Agent::start().await;
    let terminal = json!({ "program": "login", "terminal": { "rows": 40, "cols": 120 } });
    let mut program = Program::start(&agent, terminal).await;
    program.send(opcode::STDIN, b"stty size; echo $TERM\n").await;
    program.until("40 120").await;
    program.until("xterm-256color").await;
    program.send(opcode::RESIZE, &[0, 100, 0, 30]).await;
    program.send(opcode::STDIN, b"stty size; exit 3\n").await;
    program.until("30 100").await;
    assert_eq!(program.end().await, code(3));
}

#[tokio::test]
async fn signals_reach_the_program() {
    let agent = Agent::start().await;
    let mut program =
        Program::start(&agent, line("trap 'echo got; exit 4' USR1; echo up; while :; do sleep 0.01; done")).await;
    program.until("up").await;
    program.send(opcode::SIGNAL, &[10]).await;
    assert_eq!(program.end().await, code(4));
    assert_eq!(program.stdout, b"up\ngot\n");
}

#[tokio::test]
async fn who_goes_away_hangs_up() {
    let agent = Agent::start().await;
    for start in [
        line("echo up; exec sleep 1000"),
        json!({ "program": { "line": "echo up; exec sleep 1000" }, "terminal": { "rows": 1, "cols": 1 } }),
    ] {
        let mut program = Program::start(&agent, start).await;
        program.until("up").await;
        assert_eq!(living_below(agent.pid()).len(), 1);
        drop(program);
        let gone = async {
            while !living_below(agent.pid()).is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("the program ends");
    }
    // Who wants to stay, stays.
    let mut program = Program::start(&agent, line("trap '' HUP; echo up; sleep 0.3; echo done > stayed")).await;
    program.until("up").await;
    drop(program);
    let written = async {
        while std::fs::read_to_string(agent.home().join("stayed")).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, written).await.expect("it goes on");
}

#[tokio::test]
async fn what_cannot_start_says_so() {
    let agent = Agent::start().await;
    for start in [json!({ "program": "what" }), json!({ "working_dir": "/no/such" }), json!({ "env": { "a=b": "" } })] {
        let mut program = Program::asked(&agent, start).await;
        let (kind, body) = program.next().await;
        let error: ErrorBody = parse(&body);
        assert_eq!((kind, error.code.as_str()), (opcode::REFUSED, "INVALID_ARGUMENT"), "{}", error.error);
    }
}

#[tokio::test]
async fn sftp_is_served_by_the_agent_itself() {
    let agent = Agent::start().await;
    std::fs::write(agent.home().join("file"), "hello").expect("file");
    let mut program = Program::start(&agent, json!({ "program": "sftp" })).await;
    program.send(opcode::STDIN, &[0, 0, 0, 5, 1, 0, 0, 0, 3]).await;
    program.until("limits@openssh.com").await;
    program.stdout.clear();
    program.send(opcode::STDIN, &[[0, 0, 0, 13, 17, 0, 0, 0, 9, 0, 0, 0, 4].as_slice(), b"file"].concat()).await;
    program.until("\0\0\0\u{5}").await;
    assert_eq!(program.stdout[4..9], [105, 0, 0, 0, 9]);
    program.send(opcode::STDIN_END, &[]).await;
    assert_eq!(program.end().await, code(0));
}
