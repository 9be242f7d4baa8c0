//! The one table of routes: the router is built from it and the OpenAPI document is written from it, so that neither
//! has what the other lacks.

use axum::routing::MethodFilter;

/// Answers without a key, for load balancers and service managers.
pub(crate) const HEALTH_PATH: &str = "/healthz";

/// Schema name of a body that is bytes.
pub(crate) const BYTES: &str = "bytes";
/// Schema name of a body that is server-sent events, each `data:` a `RunEvent`.
pub(crate) const EVENTS: &str = "events";

/// An HTTP method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    pub(crate) fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
            Self::Patch => MethodFilter::PATCH,
            Self::Delete => MethodFilter::DELETE,
        }
    }

    /// As OpenAPI spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    CreateSandbox,
    ListSandboxes,
    GetSandbox,
    PatchSandbox,
    DeleteSandbox,
    ListArchived,
    GetArchived,
    GetLogs,
    GetLogProcesses,
    IntrospectKey,
    ListKeys,
    CreateKey,
    DeleteKey,
    ListImages,
    GetImage,
    Health,
    ConnectNode,
    /// Answered by the guest agent, through the ingress.
    Guest,
    /// A part of the wire protocol that a later release brings; the words say so.
    NotYet(&'static str),
}

/// Where a route is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// As it stands, and below `/v1/namespaces/{ns}`.
    Lifecycle,
    /// As it stands.
    Host,
    /// As it stands, in requests that name a sandbox.
    Guest,
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    /// The holder of an API key.
    Key,
    /// The holder of the node token.
    Node,
    /// Anyone.
    Nobody,
}

/// A route and its description.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) verb: Verb,
    pub(crate) path: &'static str,
    pub(crate) op: Op,
    pub(crate) scope: Scope,
    pub(crate) auth: Auth,
    pub(crate) summary: &'static str,
    /// Query parameters with their meaning.
    pub(crate) query: &'static [(&'static str, &'static str)],
    /// Schema of the request's body.
    pub(crate) body: Option<&'static str>,
    /// Status, schema (or empty) and meaning of each answer but the errors that all share.
    pub(crate) answers: &'static [(u16, &'static str, &'static str)],
}

type Answers = &'static [(u16, &'static str, &'static str)];

const fn route(verb: Verb, path: &'static str, op: Op, summary: &'static str, answers: Answers) -> Route {
    Route { verb, path, op, scope: Scope::Host, auth: Auth::Key, summary, query: &[], body: None, answers }
}

const fn lifecycle(verb: Verb, path: &'static str, op: Op, summary: &'static str, answers: Answers) -> Route {
    Route { scope: Scope::Lifecycle, ..route(verb, path, op, summary, answers) }
}

const fn guest(verb: Verb, path: &'static str, summary: &'static str, answers: Answers) -> Route {
    Route { scope: Scope::Guest, ..route(verb, path, Op::Guest, summary, answers) }
}

const fn later(verb: Verb, path: &'static str, words: &'static str) -> Route {
    route(verb, path, Op::NotYet(words), words, &[])
}

const fn later_lifecycle(verb: Verb, path: &'static str, words: &'static str) -> Route {
    Route { scope: Scope::Lifecycle, ..later(verb, path, words) }
}

impl Route {
    const fn body(self, schema: &'static str) -> Self {
        Self { body: Some(schema), ..self }
    }

    const fn query(self, query: &'static [(&'static str, &'static str)]) -> Self {
        Self { query, ..self }
    }

    const fn auth(self, auth: Auth) -> Self {
        Self { auth, ..self }
    }
}

const SUSPEND: &str = "suspend and resume come in a later release; terminate the sandbox, or let it run";
const COPY: &str = "live copies come in a later release; create sandboxes one by one";
const SNAPSHOT: &str = "snapshots come in a later release; copy the files that you need out of the sandbox";
const POOL: &str = "pools come in a later release; create sandboxes one by one";
const MOUNT: &str = "file systems come in a later release; copy files in and out of the sandbox";
const BUILD: &str = "image builds over the API come in a later release; use `belljar image build` on the node";
const SSH: &str = "SSH comes in a later release; use `belljar shell`";
const SECRET: &str = "secrets come in a later release; pass environment variables to the process";
const ORGANIZATION: &str = "organizations come in a later release; there is one, with one project";

const PAGE: &[(&str, &str)] =
    &[("limit", "Most rows, 1 to 1000."), ("cursor", "Begin where an earlier answer's cursor says.")];
const PATH: &[(&str, &str)] = &[("path", "Path in the guest; `..` is refused.")];
const NO_CONTENT: Answers = &[(204, "", "Done.")];

/// Every route.
pub(crate) static ROUTES: &[Route] = &[
    // Sandboxes.
    lifecycle(
        Verb::Post,
        "/sandboxes",
        Op::CreateSandbox,
        "Create a sandbox",
        &[
            (200, "CreatedSandbox", "It is running."),
            (202, "AcceptedSandbox", "Answer to `wait:false`."),
            (409, "ErrorBody", "The name is in use."),
            (422, "CreatedSandbox", "It failed; `reason` and `error_details` say why."),
            (504, "CreatedSandbox", "Still pending at the deadline; it goes on."),
        ],
    )
    .body("CreateSandbox"),
    lifecycle(
        Verb::Get,
        "/sandboxes",
        Op::ListSandboxes,
        "List live sandboxes, oldest first",
        &[(200, "SandboxList", "All of them, or one page when `limit` is given.")],
    )
    .query(&[
        ("status", "Only those with this status."),
        ("limit", "Most rows, 1 to 1000."),
        ("cursor", "Begin where an earlier answer's cursor says."),
    ]),
    lifecycle(
        Verb::Get,
        "/sandboxes/{ref}",
        Op::GetSandbox,
        "Show a sandbox by id, or a live one by name",
        &[(200, "SandboxInfo", "The sandbox, also when it has ended.")],
    ),
    lifecycle(
        Verb::Patch,
        "/sandboxes/{ref}",
        Op::PatchSandbox,
        "Change a live sandbox",
        &[(200, "SandboxInfo", "As it is now."), (409, "ErrorBody", "The name is in use, or the sandbox has ended.")],
    )
    .body("PatchSandbox"),
    lifecycle(
        Verb::Delete,
        "/sandboxes/{ref}",
        Op::DeleteSandbox,
        "Terminate a sandbox; again is no error",
        &[(200, "", "It is terminated.")],
    ),
    lifecycle(
        Verb::Get,
        "/archived-sandboxes",
        Op::ListArchived,
        "List terminated sandboxes, last ended first",
        &[(200, "ArchivedList", "One page.")],
    )
    .query(&[
        ("limit", "Most rows, 1 to 1000; default 100."),
        ("cursor", "Begin where an earlier answer's cursor says."),
        ("direction", "`forward` (older) or `backward` (newer)."),
    ]),
    lifecycle(
        Verb::Get,
        "/archived-sandboxes/{id}",
        Op::GetArchived,
        "Show a terminated sandbox",
        &[(200, "SandboxInfo", "The sandbox.")],
    ),
    lifecycle(
        Verb::Get,
        "/sandboxes/{ref}/logs",
        Op::GetLogs,
        "Read a sandbox's log",
        &[(200, "LogPage", "One page.")],
    )
    .query(&[
        ("level", "Only this level, 1 to 6; may repeat."),
        ("processId", "Only this process; may repeat."),
        ("nextToken", "Go on where an earlier page ended."),
        ("head", "Only the first so many lines."),
        ("tail", "Only the last so many lines."),
        ("body", "Only lines that contain this text."),
    ]),
    lifecycle(
        Verb::Get,
        "/sandboxes/{ref}/processes",
        Op::GetLogProcesses,
        "List the processes in a log",
        &[(200, "LogProcessList", "In order of their first line.")],
    ),
    // Keys, images, the server itself.
    route(
        Verb::Post,
        "/platform/v1/keys/introspect",
        Op::IntrospectKey,
        "Say whose key this is",
        &[(200, "Introspection", "The key's id and scope.")],
    ),
    route(Verb::Get, "/platform/v1/keys", Op::ListKeys, "List API keys", &[(200, "KeyList", "Without their secrets.")]),
    route(
        Verb::Post,
        "/platform/v1/keys",
        Op::CreateKey,
        "Make an API key",
        &[(201, "CreatedKey", "The only answer that ever shows the secret.")],
    )
    .body("CreateKey"),
    route(
        Verb::Delete,
        "/platform/v1/keys/{id}",
        Op::DeleteKey,
        "Remove an API key; it is refused at once",
        &[(200, "", "It is removed."), (409, "ErrorBody", "It is the only one.")],
    ),
    route(Verb::Get, "/images/v4/images", Op::ListImages, "List images", &[(200, "ImageList", "By name.")]),
    route(
        Verb::Get,
        "/images/v4/images/name/{name}",
        Op::GetImage,
        "Show an image by name; slashes as they are",
        &[(200, "ImageInfo", "The image.")],
    ),
    route(Verb::Get, HEALTH_PATH, Op::Health, "Say that the server answers", &[(200, "Health", "It does.")])
        .auth(Auth::Nobody),
    route(
        Verb::Post,
        belljar_api::node::CONNECT_PATH,
        Op::ConnectNode,
        "Connect a node (HTTP upgrade)",
        &[(101, "", "The connection is the node protocol's.")],
    )
    .auth(Auth::Node),
    // The guest agent.
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
    guest(Verb::Get, "/api/v1/tunnels/tcp", "Reach a TCP port of the guest (WebSocket)", &[(101, "", "Connected.")])
        .query(&[("port", "Port on 127.0.0.1 of the guest.")]),
    // What a later release brings.
    later_lifecycle(Verb::Post, "/sandboxes/{ref}/suspend", SUSPEND),
    later_lifecycle(Verb::Post, "/sandboxes/{ref}/resume", SUSPEND),
    later_lifecycle(Verb::Post, "/sandboxes/{ref}/copy", COPY),
    later_lifecycle(Verb::Post, "/sandboxes/{ref}/snapshot", SNAPSHOT),
    later_lifecycle(Verb::Get, "/sandboxes/{ref}/snapshots", SNAPSHOT),
    later_lifecycle(Verb::Post, "/sandboxes/{ref}/file_systems", MOUNT),
    later_lifecycle(Verb::Delete, "/sandboxes/{ref}/file_systems", MOUNT),
    later_lifecycle(Verb::Get, "/snapshots", SNAPSHOT).query(PAGE),
    later_lifecycle(Verb::Get, "/snapshots/{id}", SNAPSHOT),
    later_lifecycle(Verb::Delete, "/snapshots/{id}", SNAPSHOT),
    later_lifecycle(Verb::Post, "/sandbox-pools", POOL),
    later_lifecycle(Verb::Get, "/sandbox-pools", POOL),
    later_lifecycle(Verb::Get, "/sandbox-pools/{id}", POOL),
    later_lifecycle(Verb::Put, "/sandbox-pools/{id}", POOL),
    later_lifecycle(Verb::Delete, "/sandbox-pools/{id}", POOL),
    later_lifecycle(Verb::Post, "/sandbox-pools/{id}/sandboxes", POOL),
    later(Verb::Delete, "/images/v4/images/name/{name}", BUILD),
    later(Verb::Post, "/images/v4/images/from-snapshot", BUILD),
    later(Verb::Post, "/images/v4/builds", BUILD),
    later(Verb::Post, "/images/v4/builds/cancel", BUILD),
    later(Verb::Get, "/images/v4/builds/{id}", BUILD),
    later(Verb::Post, "/images/v4/builds/{id}/context/seal", BUILD),
    later(Verb::Get, "/platform/v1/sandbox-templates", BUILD),
    later(Verb::Post, "/platform/v1/sandbox-templates", BUILD),
    later(Verb::Post, "/platform/v1/sandbox-template-builds", BUILD),
    later(Verb::Post, "/platform/v1/sandbox-template-builds/{id}/complete", BUILD),
    later(Verb::Get, "/platform/v1/users/me/ssh-keys", SSH),
    later(Verb::Post, "/platform/v1/users/me/ssh-keys", SSH),
    later(Verb::Delete, "/platform/v1/users/me/ssh-keys/{id}", SSH),
    later(Verb::Get, "/platform/v1/secrets", SECRET),
    later(Verb::Put, "/platform/v1/secrets", SECRET),
    later(Verb::Get, "/platform/v1/secrets/{id}", SECRET),
    later(Verb::Delete, "/platform/v1/secrets/{id}", SECRET),
    later(Verb::Get, "/platform/v1/organizations", ORGANIZATION),
    later(Verb::Get, "/platform/v1/organizations/{org}/projects/{project}", ORGANIZATION),
    later(Verb::Post, "/artifact-storage/v1/token", MOUNT),
];
