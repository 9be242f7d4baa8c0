//! What is kept of a builder for the next build: a snapshot of its disk, with the layers of all builds before.
//!
//! ```text
//! build ends well, with something new ─► tidied ─► filesystem snapshot ─► the cache; the one before it is deleted
//! next build ─► sandbox from the snapshot, as many at once as are wanted; the last one that ends well is kept
//! ```
//! It is a snapshot like any other, so what it holds is stored once, is counted, and lies on the node. Without it, or with
//! a newer builder image, a build begins with nothing. Called by [`super::dockerfile`] and [`super::builder`].

use std::sync::Arc;

use belljar_api::snapshot::SnapshotType;

use super::{builder::DIRECTORY, guest::Guest};
use crate::{
    app::App,
    build::BuildCache,
    error::ApiError,
    http::DEFAULT_NAMESPACE,
    life::SandboxRow,
    limits::{BUILD_CACHE_FULL_PERCENT, BUILD_CACHE_WAIT, BUILDER_LINGER},
    node_link::{ImageRef, NodeLink},
    snapshot::{SnapshotRow, Standing},
};

/// The cache, if it can be used with this builder image.
pub(super) async fn find(app: &App, link: &NodeLink, builder_image: &str) -> Result<Option<SnapshotRow>, ApiError> {
    let Some(cache) = app.store.build_cache(DEFAULT_NAMESPACE).await? else { return Ok(None) };
    let row = app.store.snapshot(&cache.snapshot_id).await?;
    let usable = row.filter(|row| {
        let is_complete = matches!(row.standing, Standing::Completed { .. });
        is_complete && row.node_id == link.id() && cache.builder_image == builder_image
    });
    Ok(usable)
}

/// What becomes of a builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is ended at once.
    Ended,
    /// Clients have time to read its log.
    Lingers,
    /// The same, and what it has is kept.
    Kept,
}

/// Sees to the end of a builder, in the background.
pub(super) async fn retire(app: &Arc<App>, link: &NodeLink, row: Arc<SandboxRow>, fate: Fate) {
    // Of the image that it began as, which is still there: it is the node's own.
    let image = match fate {
        Fate::Kept => link.image(ImageRef::Name(&row.spec.image)).await.ok().map(|image| image.id),
        Fate::Ended | Fate::Lingers => None,
    };
    let app_too = Arc::clone(app);
    app.sessions.spawn(async move {
        let app = app_too;
        let work = async {
            let linger = tokio::time::sleep(BUILDER_LINGER);
            if let Some(image) = image
                && let Err(error) = take(&app, &row, image).await
            {
                tracing::warn!(error, sandbox = row.id, "what an image build has made cannot be kept for the next one");
            }
            linger.await;
        };
        if fate != Fate::Ended {
            tokio::select! {
                () = work => {}
                () = app.stopping.cancelled() => {}
            }
        }
        if let Err(error) = app.terminate(&row).await {
            // The next start of the server finds it.
            tracing::error!(error = error.message, sandbox = row.id, "cannot end the builder of an image build");
        }
    });
}

async fn take(app: &App, row: &SandboxRow, builder_image: String) -> Result<(), String> {
    let told = |error: ApiError| error.message;
    let guest = Guest::new(app, &row.id);
    // Blocks of files that are gone would be kept, too, were the disk not told.
    let line = format!("rm -rf {DIRECTORY} && fstrim / && df --output=pcent / | tail -n 1");
    let tidied = guest.sh(&line).await.map_err(|error| error.to_string())?;
    let percent: u32 = tidied.output.trim().trim_end_matches('%').parse().unwrap_or(100);
    let new = if !tidied.ok || percent > BUILD_CACHE_FULL_PERCENT {
        tracing::info!(percent, "the layers of image builds take too much; the next build begins with none");
        None
    } else {
        let taken = app.take_snapshot(row, SnapshotType::Filesystem).await.map_err(told)?;
        let taken = app.settled_snapshot(&row.namespace, &taken.id, BUILD_CACHE_WAIT).await.map_err(told)?;
        if !matches!(taken.standing, Standing::Completed { .. }) {
            let _ = app.delete_snapshot(&row.namespace, &taken.id).await;
            return Err(format!("its snapshot is not completed: {:?}", taken.standing));
        }
        Some(BuildCache { snapshot_id: taken.id, builder_image })
    };
    let before = app.store.set_build_cache(DEFAULT_NAMESPACE, new).await.map_err(|error| error.to_string())?;
    if let Some(before) = before {
        // It may have been removed by hand.
        if let Err(error) = app.delete_snapshot(DEFAULT_NAMESPACE, &before.snapshot_id).await {
            tracing::info!(error = error.message, "the former cache of image builds was gone already");
        }
    }
    Ok(())
}
