//! The control plane: sandboxes, keys, logs.

use belljar_api::{
    key::{CreateKey, CreatedKey, Introspection, KeyList},
    log::{LogPage, LogProcessList},
    sandbox::{AcceptedSandbox, ArchivedList, CreateSandbox, CreatedSandbox, PatchSandbox, SandboxInfo, SandboxList},
};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::de::DeserializeOwned;

use crate::{
    Error, Sandbox,
    limits::{REQUEST_GRACE, REQUEST_TIMEOUT},
    transport::{Call, Plane, Transport, query_value, read_json, segment},
};

/// Namespace of everything: there is one.
pub(crate) const NAMESPACE: &str = "/v1/namespaces/default";

/// A server and a key. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) transport: Transport,
}

/// Which sandboxes and snapshots a list has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those that clients made.
    #[default]
    Clients,
    /// Those that the server made for itself to build images, too.
    All,
}

impl Scope {
    /// The value of the query's `internal`.
    pub(crate) fn internal(self) -> bool {
        self == Self::All
    }
}

/// Which lines [`Client::logs`] returns; the default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Only these levels, 1 (trace) to 6 (fatal); empty is all.
    pub levels: Vec<u8>,
    /// Only these process ids as [`Client::log_processes`] lists them; empty is all.
    pub process_ids: Vec<String>,
    /// From the token of an earlier page.
    pub next_token: Option<String>,
    /// Only the first so many.
    pub head: Option<usize>,
    /// Only the last so many.
    pub tail: Option<usize>,
    /// Only lines that contain this text.
    pub body: Option<String>,
}

impl LogFilter {
    fn query(&self) -> String {
        let mut pairs: Vec<String> = self.levels.iter().map(|level| format!("level={level}")).collect();
        pairs.extend(self.process_ids.iter().map(|id| format!("processId={}", query_value(id))));
        pairs.extend(self.next_token.iter().map(|token| format!("nextToken={}", query_value(token))));
        pairs.extend(self.head.iter().map(|head| format!("head={head}")));
        pairs.extend(self.tail.iter().map(|tail| format!("tail={tail}")));
        pairs.extend(self.body.iter().map(|body| format!("body={}", query_value(body))));
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }
}

impl Client {
    /// A client of the server at `base_url` (`http[s]://host[:port][/path]`). Without a key every call but those
    /// that need none answers 401. Connects lazily: the first call finds out whether anybody is there.
    pub fn new(base_url: &str, key: Option<&str>) -> Result<Self, Error> {
        Ok(Self { transport: Transport::new(base_url, key, None)? })
    }

    /// The same, and trusts these certificates (PEM) beside the system's.
    pub fn with_ca(base_url: &str, key: Option<&str>, ca: &[u8]) -> Result<Self, Error> {
        Ok(Self { transport: Transport::new(base_url, key, Some(ca))? })
    }

    /// The server's address, without a trailing slash.
    pub fn url(&self) -> &str {
        self.transport.url()
    }

    /// The data plane of the sandbox with this id or name. Asks nobody: a wrong one shows at the first call.
    pub fn sandbox(&self, reference: &str) -> Sandbox {
        Sandbox::new(self.transport.clone(), reference)
    }

    /// Makes a sandbox and waits until it runs, at most about [`REQUEST_TIMEOUT`]. The answer's `status` tells how it
    /// went: `running`, or `failed` with a reason, or `timeout` when it is still pending.
    pub async fn create(&self, request: &CreateSandbox) -> Result<CreatedSandbox, Error> {
        let call = Call::new(Plane::Control, Method::POST, format!("{NAMESPACE}/sandboxes"))
            .json(&CreateSandbox { wait: None, ..request.clone() })?;
        self.started(call).await
    }

    /// Sends a call that waits for sandboxes to start; one that failed or is late is an answer like another.
    pub(crate) async fn started<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let call = call
            .header(HeaderName::from_static("x-tensorlake-request-timeout-ms"), millis(REQUEST_TIMEOUT))
            .header(HeaderName::from_static("x-tensorlake-request-timeout-grace-ms"), millis(REQUEST_GRACE));
        let answered = |status| matches!(status, StatusCode::UNPROCESSABLE_ENTITY | StatusCode::GATEWAY_TIMEOUT);
        let answer = self.transport.send(&call, answered).await?;
        read_json(answer, call.what()).await
    }

    /// Makes a sandbox and returns at once; it is `pending` then.
    pub async fn create_without_waiting(&self, request: &CreateSandbox) -> Result<AcceptedSandbox, Error> {
        let call = Call::new(Plane::Control, Method::POST, format!("{NAMESPACE}/sandboxes"))
            .json(&CreateSandbox { wait: Some(false), ..request.clone() })?;
        self.transport.json(call).await
    }

    /// The sandbox with this id or name; one that ended answers by id.
    pub async fn get(&self, reference: &str) -> Result<SandboxInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, sandbox_path(reference))).await
    }

    /// Every sandbox that has not ended.
    pub async fn list(&self, scope: Scope) -> Result<Vec<SandboxInfo>, Error> {
        let mut all = Vec::new();
        let first = format!("{NAMESPACE}/sandboxes?internal={}", scope.internal());
        let mut path = first.clone();
        loop {
            let page: SandboxList = self.transport.json(Call::new(Plane::Control, Method::GET, path)).await?;
            let empty = page.sandboxes.is_empty();
            all.extend(page.sandboxes);
            match page.cursor {
                Some(cursor) if !empty => {
                    path = format!("{first}&limit=100&cursor={}", query_value(&cursor));
                }
                _ => return Ok(all),
            }
        }
    }

    /// A page of the sandboxes that have ended, newest first. `limit` is the server's default when absent.
    pub async fn archived(
        &self,
        scope: Scope,
        limit: Option<usize>,
        cursor: Option<&str>,
    ) -> Result<ArchivedList, Error> {
        let mut pairs = vec![format!("internal={}", scope.internal())];
        pairs.extend(limit.map(|limit| format!("limit={limit}")));
        pairs.extend(cursor.map(|cursor| format!("cursor={}", query_value(cursor))));
        let path = format!("{NAMESPACE}/archived-sandboxes?{}", pairs.join("&"));
        self.transport.json(Call::new(Plane::Control, Method::GET, path)).await
    }

    /// Changes what may change while a sandbox runs.
    pub async fn patch(&self, reference: &str, change: &PatchSandbox) -> Result<SandboxInfo, Error> {
        let call = Call::new(Plane::Control, Method::PATCH, sandbox_path(reference)).json(change)?;
        self.transport.json(call).await
    }

    /// Ends a sandbox. Ending one that has ended is fine.
    pub async fn delete(&self, reference: &str) -> Result<(), Error> {
        self.transport.nothing(Call::new(Plane::Control, Method::DELETE, sandbox_path(reference))).await
    }

    /// Who the key belongs to.
    pub async fn introspect(&self) -> Result<Introspection, Error> {
        self.transport.json(Call::new(Plane::Control, Method::POST, "/platform/v1/keys/introspect")).await
    }

    /// The API keys, without their secrets.
    pub async fn keys(&self) -> Result<KeyList, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, "/platform/v1/keys")).await
    }

    /// Makes an API key; the answer is the only place where its secret is ever shown.
    pub async fn create_key(&self, name: &str) -> Result<CreatedKey, Error> {
        let call =
            Call::new(Plane::Control, Method::POST, "/platform/v1/keys").json(&CreateKey { name: name.to_owned() })?;
        self.transport.json(call).await
    }

    /// Revokes an API key by its id.
    pub async fn delete_key(&self, id: &str) -> Result<(), Error> {
        let path = format!("/platform/v1/keys/{}", segment(id));
        self.transport.nothing(Call::new(Plane::Control, Method::DELETE, path)).await
    }

    /// A page of a sandbox's log, oldest line first; also of one that has ended.
    pub async fn logs(&self, reference: &str, filter: &LogFilter) -> Result<LogPage, Error> {
        let path = format!("{}/logs{}", sandbox_path(reference), filter.query());
        self.transport.json(Call::new(Plane::Control, Method::GET, path)).await
    }

    /// The processes that wrote to a sandbox's log.
    pub async fn log_processes(&self, reference: &str) -> Result<LogProcessList, Error> {
        let path = format!("{}/processes", sandbox_path(reference));
        self.transport.json(Call::new(Plane::Control, Method::GET, path)).await
    }
}

pub(crate) fn sandbox_path(reference: &str) -> String {
    format!("{NAMESPACE}/sandboxes/{}", segment(reference))
}

fn millis(duration: std::time::Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_filters_become_queries() {
        assert_eq!(LogFilter::default().query(), "");
        let filter = LogFilter {
            levels: vec![3, 5],
            process_ids: vec!["1".into()],
            tail: Some(7),
            body: Some("a b".into()),
            ..LogFilter::default()
        };
        assert_eq!(filter.query(), "?level=3&level=5&processId=1&tail=7&body=a%20b");
    }
}
