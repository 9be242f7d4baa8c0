//! Live copies of a running sandbox.

use std::sync::Arc;

use belljar_api::id::new_id;

use super::App;
use crate::{clock::now_ms, error::ApiError, life::SandboxRow, store::NewCopies};

impl App {
    /// Makes copies, all or none. The same request under the same key gives the same copies again.
    pub(crate) async fn copy(
        &self,
        source: &SandboxRow,
        times: usize,
        key: Option<String>,
    ) -> Result<Vec<Arc<SandboxRow>>, ApiError> {
        let node = source.node_id().and_then(|id| self.live.nodes.get(id));
        let new = NewCopies {
            source_id: source.id.clone(),
            ids: (0..times).map(|_| new_id()).collect(),
            at: now_ms(),
            capacity_mb: node.map(|link| link.hello().capacity.memory_mb),
            key,
        };
        self.store.copy_sandbox(new).await?.ok_or_else(|| ApiError::sandbox_not_found(&source.id))
    }
}
