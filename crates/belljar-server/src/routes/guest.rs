//! What the guest agent answers, through the ingress.

use super::{Answers, BYTES, EVENTS, Route, Verb, guest};

const PATH: &[(&str, &str)] = &[("path", "Path in the guest; `..` is refused.")];
const NO_CONTENT: Answers = &[(204, "", "Done.")];

/// See the module.
pub(super) static ROUTES: &[Route] = &[
    guest(Verb::Get, "/api/v1/health", "Say that the agent answers", &[(200, "Health", "It does.")]),
    guest(Verb::Get, "/api/v1/info", "Show the agent", &[(200, "AgentInfo", "Version and counts.")]),
    guest(Verb::Post, "/api/v1/processes", "Start a process", &[(201, "ProcessInfo", "It runs.")]).body("StartProcess"),
    guest(Verb::Get, "/api/v1/processes", "List processes", &[(200, "ProcessList", "Running and recently ended.")]),
    guest(Verb::Post, "/api/v1/processes/run", "Run a program to its end", &[(200, EVENTS, "Its output as it comes.")])
        .body("RunProcess"),
    guest(Verb::Get, "/api/v1/processes/{process}", "Show a process", &[(200, "ProcessInfo", "The process.")]),
    guest(Verb::Delete, "/api/v1/processes/{process}", "End a process and its group", NO_CONTENT),
    guest(Verb::Post, "/api/v1/processes/{process}/signal", "Send a signal", &[(200, "SignalSent", "It is sent.")])
        .body("SendSignal"),
    guest(
        Verb::Post,
        "/api/v1/processes/{process}/restart",
        "Restart a managed process",
        &[(200, "ProcessInfo", "The new one.")],
    ),
    guest(Verb::Post, "/api/v1/processes/{process}/stdin", "Write to stdin", NO_CONTENT).body(BYTES),
    guest(Verb::Post, "/api/v1/processes/{process}/stdin/close", "Close stdin", NO_CONTENT),
    guest(
        Verb::Get,
        "/api/v1/processes/{process}/{stream}",
        "Read `stdout`, `stderr` or `output`",
        &[(200, "OutputLines", "The lines that are kept.")],
    ),
    guest(
        Verb::Get,
        "/api/v1/processes/{process}/{stream}/follow",
        "Follow `stdout`, `stderr` or `output`",
        &[(200, EVENTS, "What is kept, then what comes.")],
    )
    .query(&[("offset", "Number of the first line to send.")]),
    guest(Verb::Get, "/api/v1/files", "Read a file", &[(200, BYTES, "Its bytes.")]).query(PATH),
    guest(Verb::Put, "/api/v1/files", "Write a file", NO_CONTENT).query(PATH).body(BYTES),
    guest(Verb::Delete, "/api/v1/files", "Remove a file", NO_CONTENT).query(PATH),
    guest(Verb::Get, "/api/v1/files/list", "List a directory", &[(200, "DirectoryList", "Directories first.")])
        .query(PATH),
    guest(Verb::Post, "/api/v1/pty", "Open a terminal", &[(201, "CreatedPty", "The session and its token.")])
        .body("CreatePty"),
    guest(Verb::Get, "/api/v1/pty", "List terminals", &[(200, "PtyList", "Without their tokens.")]),
    guest(Verb::Get, "/api/v1/pty/{session}", "Show a terminal", &[(200, "PtyInfo", "The session.")]),
    guest(Verb::Delete, "/api/v1/pty/{session}", "Close a terminal", NO_CONTENT),
    guest(Verb::Post, "/api/v1/pty/{session}/resize", "Resize a terminal", NO_CONTENT).body("ResizePty"),
    guest(Verb::Get, "/api/v1/pty/{session}/ws", "Attach to a terminal (WebSocket)", &[(101, "", "Attached.")])
        .query(&[("token", "The session's token.")]),
    guest(
        Verb::Get,
        "/api/v1/exec",
        "Run a program with every byte of its streams (WebSocket); the first message is a `StartExec`",
        &[(101, "", "Say what to run.")],
    ),
    guest(
        Verb::Get,
        belljar_api::tunnel::TCP_PATH,
        "Reach a TCP port of the guest (WebSocket)",
        &[(101, "", "Connected.")],
    )
    .query(&[
        ("port", "Port on 127.0.0.1 of the guest."),
        ("half_close", "`true`: an empty message ends one direction; without, a Close frame ends both."),
    ]),
    guest(
        Verb::Get,
        belljar_api::tunnel::REVERSE_PATH,
        "Listen on a port of the guest, for connections to the client (`Upgrade: belljar-reverse`)",
        &[
            (101, "", "It listens where `x-belljar-port` says. The connection is HTTP/2, the guest its client."),
            (409, "ErrorBody", "Something listens there already."),
        ],
    )
    .query(&[("port", "Port on 127.0.0.1 of the guest; 0 is any free one.")]),
];
