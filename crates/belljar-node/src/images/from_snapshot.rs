//! An image made of a snapshot of a file system.
//!
//! ```text
//! vault --(unpack, or it lies in the cache)--> flat disk --clone--> draft --seal--> copy of ours --> name
//! ```
//! The disk was written by a guest, who may be hostile: it is copied and hashed, and never mounted or looked into. Whatever
//! fails, nothing is left of it. It goes on when whoever asked has gone. Called by the uplink.

use std::sync::Arc;

use belljar_api::{image::ImageInfo, node::NewImage, snapshot::SnapshotType};
use belljar_image::{About, HistoryEntry, ImageError, Named, RuntimeConfig, Store};
use tokio::sync::oneshot;

use super::{info, labels, runtime};
use crate::{
    Context, blocking,
    snapshots::{Meta, SnapshotError},
    storage::{StorageError, clone_file, dir_usage},
};

/// An image that was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NewImageError {
    /// The store refuses it, or cannot take it.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// The snapshot is not there, or cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The disk cannot be copied.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its disk alone is not whole.
    #[error(
        "snapshot {id} holds memory, too, and its disk lacks what the guest had only there; take a filesystem snapshot"
    )]
    Memory {
        /// Of the snapshot.
        id: String,
    },
    /// The node goes.
    #[error("the node is being stopped; nothing was made")]
    Stopping,
}

impl NewImageError {
    /// Whether there is no room for it.
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            Self::Store(error) => error.is_no_space(),
            Self::Snapshot(error) => error.is_no_space(),
            Self::Storage(error) => error.is_no_space(),
            Self::Memory { .. } | Self::Stopping => false,
        }
    }
}

/// Makes an image of a snapshot.
pub(crate) async fn publish(ctx: &Arc<Context>, new: NewImage) -> Result<ImageInfo, NewImageError> {
    let (tell, told) = oneshot::channel();
    let this = ctx.clone();
    ctx.spawn(async move {
        let published = make(&this, new).await;
        // Whoever asked may have gone.
        let _ = tell.send(published);
    });
    told.await.unwrap_or(Err(NewImageError::Stopping))
}

async fn make(ctx: &Arc<Context>, new: NewImage) -> Result<ImageInfo, NewImageError> {
    // What costs nothing comes first: a name that cannot be had is refused before anything is unpacked.
    let store = Store::open(&ctx.images.store)?;
    let draft = store.draft(&new.name)?;
    ctx.faults.point("image: open")?;
    let opened = ctx.snapshots.open(&new.snapshot_id).await?;
    if opened.meta.kind != SnapshotType::Filesystem {
        return Err(NewImageError::Memory { id: new.snapshot_id });
    }
    let ctx = ctx.clone();
    // Nothing in here waits for anybody, so a node that is stopped waits for the end of it.
    blocking(move || {
        let disk = opened.disk();
        ctx.faults.point("image: copy")?;
        draft.check_space(dir_usage(&disk).map_err(StorageError::io("read the size of", &disk))?)?;
        let to = draft.rootfs();
        clone_file(&disk, &to).map_err(StorageError::io("copy a snapshot's disk to", &to))?;
        ctx.faults.point("image: seal")?;
        let sealed = draft.seal(about(&store, &opened.meta, &new))?;
        ctx.faults.point("image: name")?;
        let image = ctx.images.name_ours(sealed, &disk, &ctx.storage)?;
        Ok(info(&Named { name: new.name, public: new.public, image }))
    })
    .await
}

/// What is known of the image: it is configured as the sandbox was, which is as its image was when it began.
fn about(store: &Store, meta: &Meta, new: &NewImage) -> About {
    // The image may have gone, or its name may stand for another one by now.
    let source = store.lookup(&meta.spec.image).ok().filter(|image| runtime(image) == meta.runtime);
    let (config, mut history) = source.map_or_else(
        || {
            let told = meta.runtime.clone();
            let config = RuntimeConfig {
                env: told.env,
                workdir: told.workdir,
                user: told.user,
                entrypoint: told.entrypoint,
                cmd: told.cmd,
                labels: labels(told.init),
                ..RuntimeConfig::default()
            };
            (config, Vec::new())
        },
        |image| (image.config, image.history),
    );
    let (image, sandbox, snapshot) = (&meta.spec.image, &meta.sandbox_id, &new.snapshot_id);
    history.push(HistoryEntry {
        created_by: format!("commit of sandbox {sandbox}"),
        comment: format!("from image {image}"),
        ..HistoryEntry::default()
    });
    About { config, origin: Some(format!("snapshot {snapshot} of sandbox {sandbox}")), history, public: new.public }
}
