//! The one table of routes: the router is built from it and the OpenAPI document is written from it, so that neither
//! has what the other lacks. The entries stand in files by area.

mod guest;
mod host;
mod later;
mod lifecycle;

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
    SuspendSandbox,
    ResumeSandbox,
    RollbackSandbox,
    CopySandbox,
    TakeSnapshot,
    ListSnapshots,
    ListSandboxSnapshots,
    GetSnapshot,
    DeleteSnapshot,
    DiffSnapshots,
    ShowTree,
    GetNetworkUse,
    CreatePool,
    ListPools,
    GetPool,
    ReplacePool,
    DeletePool,
    ClaimSandbox,
    ShowStorage,
    CollectGarbage,
    ListArchived,
    GetArchived,
    GetLogs,
    GetLogProcesses,
    IntrospectKey,
    ListKeys,
    CreateKey,
    DeleteKey,
    ListSshKeys,
    AddSshKey,
    DeleteSshKey,
    ShowSshGateway,
    ListSecrets,
    PutSecrets,
    GetSecret,
    DeleteSecret,
    ListImages,
    GetImage,
    GetImageById,
    ImageFromSnapshot,
    DeleteImage,
    DeleteImageById,
    StartBuild,
    GetBuild,
    CancelBuild,
    PutContext,
    SealContext,
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

const PAGE: &[(&str, &str)] =
    &[("limit", "Most rows, 1 to 1000."), ("cursor", "Begin where an earlier answer's cursor says.")];

/// Every route.
pub(crate) fn routes() -> impl Iterator<Item = &'static Route> {
    [lifecycle::ROUTES, host::ROUTES, guest::ROUTES, later::ROUTES].into_iter().flatten()
}
