//! Sandboxes: make, find, list, change, end.

use std::{sync::Arc, time::Duration};

use belljar_api::{
    id::{is_id, new_id},
    limits,
    sandbox::{CreateSandbox, NetworkConfig, PatchSandbox, SandboxInfo, SandboxStatus, TerminationReason},
};
use http::StatusCode;
use tokio::sync::watch;

use super::{App, place};
use crate::{
    clock::now_ms,
    error::ApiError,
    life::{Change, Ending, Phase, SandboxRow, Spec},
    limits::PAGE_MAX,
    placement::Decision,
    store::{Page, Place, Reservation, Start},
    visible::{self, World},
};

impl App {
    /// Makes a sandbox and gives it to a node, or lets it wait, or ends it at once with the reason.
    pub(crate) async fn create(&self, namespace: &str, request: CreateSandbox) -> Result<Arc<SandboxRow>, ApiError> {
        let resources = request.check().map_err(|error| ApiError::invalid(error.to_string()))?;
        let spec = Spec {
            image: request.image.unwrap_or_else(|| self.default_image.clone()),
            resources,
            entrypoint: request.entrypoint.filter(|words| !words.is_empty()),
            timeout_secs: request.timeout_secs.unwrap_or(limits::TIMEOUT_DEFAULT_SECS),
            network: request.network,
            allow_unauthenticated_access: request.allow_unauthenticated_access.unwrap_or(false),
            exposed_ports: sorted(request.exposed_ports.unwrap_or_default()),
            auto_resume: request.auto_resume.unwrap_or(true),
            max_pending_secs: request.max_pending_secs,
        };
        check_image(&spec.image)?;
        let at = now_ms();
        let start = match place::decision(self, &spec).await {
            Decision::Place { node_id, capacity_mb } => Start::Place(Reservation { node_id, capacity_mb }),
            Decision::Wait(_) => Start::Wait,
            Decision::Never(reason, detail) => Start::End(Ending { reason, detail, at }),
        };
        let row = SandboxRow {
            id: new_id(),
            namespace: namespace.to_owned(),
            name: request.name,
            spec,
            generation: 0,
            phase: Phase::Waiting,
            created_at: at,
            started_at: None,
        };
        let row = self.store.create_sandbox(row, start).await?;
        if row.phase == Phase::Waiting {
            // A node may have come, or a place become free, between the decision and the commit.
            self.live.retry.notify_one();
        }
        Ok(row)
    }

    /// Waits until a sandbox is running or has ended; whether it did in time.
    pub(crate) async fn settled(
        &self,
        row: Arc<SandboxRow>,
        wait: Duration,
    ) -> Result<(Arc<SandboxRow>, bool), ApiError> {
        let is_settled = |row: &Arc<SandboxRow>| row.is_running() || row.ending().is_some();
        if is_settled(&row) {
            return Ok((row, true));
        }
        let Some(mut seen) = self.live.table.get(&row.id) else {
            // It has come and gone meanwhile.
            return Ok((self.store.sandbox(&row.id).await?.unwrap_or(row), true));
        };
        let in_time = tokio::time::timeout(wait, seen.wait_for(is_settled)).await.is_ok();
        let row = Arc::clone(&seen.borrow());
        Ok((row, in_time))
    }

    /// The sandbox with this id, ended or not, or the live one with this name.
    pub(crate) async fn find(&self, namespace: &str, reference: &str) -> Result<Arc<SandboxRow>, ApiError> {
        let found = if is_id(reference) {
            self.store.sandbox(reference).await?.filter(|row| row.namespace == namespace)
        } else {
            self.store.sandbox_named(namespace, reference).await?
        };
        found.ok_or_else(|| ApiError::sandbox_not_found(reference))
    }

    /// A row as the API shows it.
    pub(crate) fn info(&self, row: &SandboxRow) -> SandboxInfo {
        let nodes = &self.live.nodes;
        let world = World { any_node: nodes.any(), driver: row.node_id().and_then(|id| nodes.driver(id)) };
        visible::info(row, world, &self.urls)
    }

    /// Live sandboxes, oldest first, and where the next page begins. Without a limit it is one page.
    pub(crate) async fn list(
        &self,
        namespace: &str,
        status: Option<SandboxStatus>,
        mut from: Option<Place>,
        limit: Option<usize>,
    ) -> Result<(Vec<Arc<SandboxRow>>, Option<Place>), ApiError> {
        let any_node = self.live.nodes.any();
        let mut found = Vec::new();
        loop {
            let page = Page { from: from.take(), backward: false, limit: PAGE_MAX };
            let rows = self.store.live_sandboxes(namespace, page).await?;
            let last = rows.len() < PAGE_MAX;
            from = rows.last().map(|row| Place { at: row.created_at, id: row.id.clone() });
            found.extend(
                rows.into_iter().filter(|row| status.is_none_or(|wanted| visible::status(row, any_node).0 == wanted)),
            );
            if let Some(limit) = limit
                && found.len() > limit
            {
                found.truncate(limit);
                let next = found.last().map(|row| Place { at: row.created_at, id: row.id.clone() });
                return Ok((found, next));
            }
            if last {
                return Ok((found, None));
            }
        }
    }

    /// Changes a live sandbox.
    pub(crate) async fn patch(&self, row: &SandboxRow, request: PatchSandbox) -> Result<Arc<SandboxRow>, ApiError> {
        request.check().map_err(|error| ApiError::invalid(error.to_string()))?;
        let named = request.name.is_some() || row.name.is_some();
        if request.auto_resume == Some(false) && !named {
            return Err(ApiError::invalid("auto_resume: false needs a name: only named sandboxes are suspended"));
        }
        let change = Change {
            name: request.name,
            timeout_secs: request.timeout_secs,
            allow_unauthenticated_access: request.allow_unauthenticated_access,
            exposed_ports: request.exposed_ports.map(sorted),
            auto_resume: request.auto_resume,
            network: request.network.map(|network| network.filter(|n| *n != NetworkConfig::default())),
        };
        let changed = self.store.change_sandbox(&row.id, change).await?;
        changed.ok_or_else(|| {
            let message = format!("sandbox {} has ended and cannot be changed; create a new one", row.id);
            ApiError::new(StatusCode::CONFLICT, belljar_api::error::code::CONFLICT, message)
        })
    }

    /// Ends a sandbox; one that has ended stays as it is.
    pub(crate) async fn terminate(&self, row: &SandboxRow) -> Result<(), ApiError> {
        let ending = Ending { reason: TerminationReason::User, detail: String::new(), at: now_ms() };
        self.store.terminate_sandbox(&row.id, ending).await?;
        Ok(())
    }

    /// The sandbox that a proxied request names: by id, or by name in the default namespace.
    pub(crate) fn routed(&self, reference: &str) -> Option<watch::Receiver<Arc<SandboxRow>>> {
        if is_id(reference) {
            self.live.table.get(reference)
        } else {
            self.live.table.named(crate::http::DEFAULT_NAMESPACE, reference)
        }
    }
}

fn sorted(mut ports: Vec<u16>) -> Vec<u16> {
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Longest image name, in characters: a reference with host, path, tag and digest.
const IMAGE_NAME_MAX: usize = 512;

fn check_image(name: &str) -> Result<(), ApiError> {
    let allowed = |b: u8| b.is_ascii_graphic();
    if name.is_empty() || name.len() > IMAGE_NAME_MAX || !name.bytes().all(allowed) {
        let shown: String = name.chars().take(80).collect();
        let rule = format!("give 1 to {IMAGE_NAME_MAX} printable ASCII characters without spaces");
        return Err(ApiError::invalid(format!("image: {shown:?} is not an image name; {rule}")));
    }
    Ok(())
}
