//! What takes space on the nodes, and its removal.

use belljar_api::snapshot::{Collected, StorageUse};
use futures_util::future::try_join_all;

use super::App;
use crate::error::ApiError;

impl App {
    /// What takes space, one for each connected node.
    pub(crate) async fn storage(&self) -> Result<Vec<StorageUse>, ApiError> {
        let links = self.live.nodes.connected();
        Ok(try_join_all(links.iter().map(|link| link.storage())).await?)
    }

    /// Lets every connected node remove what nothing needs.
    pub(crate) async fn collect_garbage(&self) -> Result<Vec<Collected>, ApiError> {
        let links = self.live.nodes.connected();
        Ok(try_join_all(links.iter().map(|link| link.collect_garbage())).await?)
    }
}
