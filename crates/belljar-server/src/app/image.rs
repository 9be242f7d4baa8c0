//! Images: find, list, delete. They lie on the nodes, which are asked anew each time; the server keeps none of it.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

use belljar_api::{
    error::code,
    image::{ImageFromSnapshot, ImageInfo},
    node::NewImage,
    snapshot::SnapshotType,
};
use futures_util::future::try_join_all;
use http::StatusCode;

use super::{App, restore};
use crate::{
    error::ApiError,
    node_link::{ImageRef, NodeError},
    store::StoreError,
};

/// Every image by its name; of those that several nodes have, the first one's.
pub(crate) type Catalogue = BTreeMap<String, ImageInfo>;

/// One page of a catalogue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImagePage {
    /// By name.
    pub(crate) items: Vec<ImageInfo>,
    /// Name after which the next one begins; `None` on the last.
    pub(crate) next: Option<String>,
}

impl App {
    /// The images of all connected nodes.
    pub(crate) async fn images(&self) -> Result<Catalogue, ApiError> {
        let links = self.live.nodes.connected();
        let mut images = Catalogue::new();
        for image in try_join_all(links.iter().map(|link| link.images())).await?.into_iter().flatten() {
            images.entry(image.name.clone()).or_insert(image);
        }
        Ok(images)
    }

    /// One image; of those that several nodes have, the first one's.
    pub(crate) async fn find_image(&self, which: ImageRef<'_>) -> Result<ImageInfo, ApiError> {
        let mut absent = no_node(which);
        for link in self.live.nodes.connected() {
            match link.image(which).await {
                Ok(image) => return Ok(image),
                Err(error) => absent = absence(error)?,
            }
        }
        Err(absent)
    }

    /// Makes an image of a snapshot, on the node where that lies.
    pub(crate) async fn image_from_snapshot(
        &self,
        namespace: &str,
        new: ImageFromSnapshot,
    ) -> Result<ImageInfo, ApiError> {
        let snapshot = self.find_snapshot(namespace, &new.snapshot_id).await?;
        restore::check_completed(&snapshot)?;
        if snapshot.kind != SnapshotType::Filesystem {
            let words = "snapshot_id: a memory snapshot's disk lacks what the guest had not written yet; take a filesystem \
                         snapshot";
            return Err(ApiError::invalid(words));
        }
        let link = self.live.nodes.get(&snapshot.node_id);
        let link = link.ok_or_else(|| StoreError::NodeAway(snapshot.node_id.clone()))?;
        let wanted = NewImage { name: new.name, snapshot_id: snapshot.id, public: new.public };
        let image = link.image_from_snapshot(&wanted).await?;
        tracing::info!(node = link.id(), snapshot = wanted.snapshot_id, image = image.name, "an image was made");
        Ok(image)
    }

    /// Removes an image from every connected node that has it. Sandboxes of it keep what they have.
    pub(crate) async fn delete_image(&self, which: ImageRef<'_>) -> Result<(), ApiError> {
        let (mut absent, mut found) = (no_node(which), false);
        for link in self.live.nodes.connected() {
            match link.delete_image(which).await {
                Ok(deleted) => {
                    tracing::info!(node = link.id(), names = deleted.names.join(", "), "an image was deleted");
                    found = true;
                }
                Err(error) => absent = absence(error)?,
            }
        }
        if found { Ok(()) } else { Err(absent) }
    }
}

/// What a node says that has no such image; every other error is one.
fn absence(error: NodeError) -> Result<ApiError, ApiError> {
    match error {
        NodeError::Answer { status: StatusCode::NOT_FOUND, body } => {
            Ok(ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, body.error))
        }
        error => Err(error.into()),
    }
}

fn no_node(which: ImageRef<'_>) -> ApiError {
    let shown: String = which.text().chars().take(80).collect();
    let words = format!("there is no image {shown:?}: no node is connected that could have it");
    ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words)
}

/// The part of a catalogue behind `after`, at most `size` images of it. A name that is no more is a place all the same.
pub(crate) fn page(images: &Catalogue, after: Option<&str>, size: usize) -> ImagePage {
    let from = after.map_or(Unbounded, Excluded);
    let mut rest = images.range::<str, _>((from, Unbounded)).map(|(_, image)| image);
    let items: Vec<ImageInfo> = rest.by_ref().take(size).cloned().collect();
    let next = if rest.next().is_some() { items.last().map(|image| image.name.clone()) } else { None };
    ImagePage { items, next }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::node_state::image;

    proptest! {
        #[test]
        fn pages_together_are_all_of_it(
            names in prop::collection::btree_set("[a-c/]{1,3}", 0..30),
            size in 1usize..8,
            removed in 0usize..30,
        ) {
            let mut images: Catalogue = names.iter().map(|name| (name.clone(), image(name))).collect();
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = page(&images, after.as_deref(), size);
                prop_assert!(page.items.len() <= size && (page.next.is_none() || page.items.len() == size));
                seen.extend(page.items.into_iter().map(|image| image.name));
                after = page.next;
                let Some(last) = &after else { break };
                // Also when the one at the border goes in between.
                if seen.len() > removed {
                    images.remove(last);
                }
            }
            prop_assert_eq!(seen, names.into_iter().collect::<Vec<_>>());
        }
    }
}
