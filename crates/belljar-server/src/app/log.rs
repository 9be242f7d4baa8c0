//! Logs of a sandbox: kept by its node, also after it ended.

use std::sync::Arc;

use belljar_api::{
    log::{LogPage, LogProcessList},
    node::LogQuery,
};

use super::App;
use crate::{error::ApiError, life::SandboxRow, node_link::NodeLink};

impl App {
    /// A page of lines. One that never had a node has none.
    pub(crate) async fn logs(&self, row: &SandboxRow, query: &LogQuery) -> Result<LogPage, ApiError> {
        match self.log_node(row)? {
            Some(link) => Ok(link.logs(query).await?),
            None => Ok(LogPage::default()),
        }
    }

    /// The processes that wrote lines.
    pub(crate) async fn log_processes(&self, row: &SandboxRow) -> Result<LogProcessList, ApiError> {
        match self.log_node(row)? {
            Some(link) => Ok(link.log_processes(&row.id).await?),
            None => Ok(LogProcessList::default()),
        }
    }

    fn log_node(&self, row: &SandboxRow) -> Result<Option<Arc<NodeLink>>, ApiError> {
        let Some(node_id) = row.node_id() else { return Ok(None) };
        self.live.nodes.get(node_id).map(Some).ok_or_else(|| ApiError::unreachable(node_id))
    }
}
