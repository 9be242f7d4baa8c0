//! The control plane, continued: sleep, wake, roll back, copy.

use std::time::Instant;

use belljar_api::{
    sandbox::SandboxInfo,
    snapshot::{CopiedSandboxes, Rollback},
};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::{
    Client, Error,
    client::sandbox_path,
    limits::{REQUEST_TIMEOUT, STATE_WAIT},
    transport::{Call, Plane, read_json},
};

impl Client {
    /// Puts a named sandbox to sleep and waits until it sleeps, at most about [`REQUEST_TIMEOUT`]; the answer's `status`
    /// tells how far it is. Memory and files are kept, and it takes no memory of the node meanwhile.
    pub async fn suspend(&self, reference: &str) -> Result<SandboxInfo, Error> {
        self.reach(Call::new(Plane::Control, Method::POST, state_path(reference, "suspend", true))).await
    }

    /// Begins to put a named sandbox to sleep.
    pub async fn suspend_without_waiting(&self, reference: &str) -> Result<SandboxInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::POST, state_path(reference, "suspend", false))).await
    }

    /// Wakes a sandbox and waits until it runs, as [`Client::suspend`] does. Any request to it does the same, unless it
    /// was told not to.
    pub async fn resume(&self, reference: &str) -> Result<SandboxInfo, Error> {
        self.reach(Call::new(Plane::Control, Method::POST, state_path(reference, "resume", true))).await
    }

    /// Begins to wake a sandbox.
    pub async fn resume_without_waiting(&self, reference: &str) -> Result<SandboxInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::POST, state_path(reference, "resume", false))).await
    }

    /// Puts a sandbox back to one of its own memory snapshots and waits until it runs, at most [`STATE_WAIT`]; the
    /// answer's `status` tells how far it is. What happened since the snapshot is lost.
    pub async fn rollback(&self, reference: &str, snapshot_id: &str) -> Result<SandboxInfo, Error> {
        let body = Rollback { snapshot_id: snapshot_id.to_owned() };
        let call = Call::new(Plane::Control, Method::POST, state_path(reference, "rollback", true)).json(&body)?;
        self.transport.json(call).await
    }

    /// Makes running copies of a running sandbox, memory and all, and waits for them as [`Client::create`] does. The same
    /// `key` with the same request within 24 hours gives the same copies: ask again when an answer was lost.
    pub async fn copy(&self, reference: &str, times: usize, key: Option<&str>) -> Result<CopiedSandboxes, Error> {
        let path = format!("{}/copy?times={times}", sandbox_path(reference));
        let mut call = Call::new(Plane::Control, Method::POST, path);
        if let Some(key) = key {
            let value = HeaderValue::from_str(key).map_err(|_| {
                Error::protocol(call.what(), "the idempotency key has characters that no header can carry")
            })?;
            call = call.header(HeaderName::from_static("idempotency-key"), value);
        }
        self.started(call).await
    }

    /// Sends a call that may be repeated until the state that it asks for is there.
    async fn reach(&self, call: Call<'_>) -> Result<SandboxInfo, Error> {
        let started = Instant::now();
        loop {
            let answer = self.transport.send(&call, |_| false).await?;
            let reached = answer.status() != StatusCode::ACCEPTED;
            let info = read_json(answer, call.what()).await?;
            if reached || started.elapsed() + STATE_WAIT > REQUEST_TIMEOUT {
                return Ok(info);
            }
        }
    }
}

fn state_path(reference: &str, what: &str, wait: bool) -> String {
    let wait_ms = if wait { STATE_WAIT.as_millis() } else { 0 };
    format!("{}/{what}?wait_ms={wait_ms}", sandbox_path(reference))
}
