//! What takes space on the node, and how it is got back: `belljar df` and `belljar gc`.

use belljar_api::snapshot::{Collected, StorageUse};

use crate::{
    Context,
    storage::{StorageError, dir_usage},
    vault::{Compaction, VaultError},
};

/// An account that could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// Adds it all up. Blocking; a fraction of a second for thousands of files.
pub(crate) fn usage(ctx: &Context) -> Result<StorageUse, AccountError> {
    let storage = &ctx.storage;
    let of = |dir: std::path::PathBuf| dir_usage(&dir).map_err(StorageError::io("add up", &dir));
    let (total_bytes, free_bytes) = storage.space()?;
    let vault = ctx.snapshots.vault.usage()?;
    Ok(StorageUse {
        node_id: ctx.node_id.clone(),
        total_bytes,
        free_bytes,
        clone_method: storage.clone_method().to_owned(),
        images_bytes: of(storage.images())?,
        templates_bytes: of(storage.templates())? + of(storage.spares())?,
        sandboxes_bytes: of(storage.sandboxes())? + of(storage.passing())?,
        snapshots_bytes: vault.snapshots_bytes,
        garbage_bytes: vault.garbage_bytes,
        cache_bytes: vault.cache_bytes,
        logs_bytes: of(storage.logs())?,
    })
}

/// Frees what nobody needs: chunks without a snapshot, image copies without an image, logs past their time. Blocking.
pub(crate) fn collect(ctx: &Context) -> Result<Collected, AccountError> {
    let (_, before) = ctx.storage.space()?;
    let vault = ctx.snapshots.vault.compact(Compaction::Full)?;
    let alive = |id: &str| ctx.registry.get(id).is_some();
    let root = ctx.storage.root();
    crate::logs::file::sweep(&ctx.storage.logs(), alive)
        .and_then(|()| ctx.images.sweep(&ctx.storage))
        .map_err(StorageError::io("clean up", root))?;
    let (_, after) = ctx.storage.space()?;
    let freed = after.saturating_sub(before);
    Ok(Collected {
        node_id: ctx.node_id.clone(),
        freed_bytes: freed.max(vault.freed_bytes),
        removed_files: vault.removed_files,
    })
}
