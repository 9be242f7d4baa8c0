//! Finds a node for sandboxes that wait, and gives up those that waited too long.
//!
//! One task, woken by a freed place, a connected node, a new deadline, or the next deadline itself. It goes over the
//! pending sandboxes in the order of their creation.

use std::{sync::Arc, time::Duration};

use belljar_api::sandbox::TerminationReason;

use super::App;
use crate::{
    clock::now_ms,
    life::{Ending, Phase, SandboxRow, Spec},
    placement::{Decision, ImagePresence, NodeView, Wanted, decide},
    store::Reservation,
};

/// Decides for one sandbox, asking the connected nodes about its image. One that begins as a snapshot can only go where
/// that lies, and needs no image there.
pub(crate) async fn decision(app: &App, spec: &Spec, home: Option<&str>) -> Decision {
    let mut views = Vec::new();
    for link in app.live.nodes.connected() {
        let presence = match home {
            Some(home) if home != link.id() => continue,
            Some(_) => Ok(ImagePresence::Present),
            None => link.image_presence(&spec.image).await,
        };
        match presence {
            Ok(image) => views.push(NodeView {
                id: link.id().to_owned(),
                capacity: link.hello().capacity.clone(),
                used_memory_mb: app.live.table.used_mb(link.id()),
                used_gpus: app.live.table.used_gpus(link.id()),
                egress_rules: link.hello().egress_rules,
                driver: link.hello().driver.clone(),
                image,
            }),
            // A node that cannot be asked counts as away; its connection is about to end.
            Err(error) => tracing::warn!(node = link.id(), %error, "a node did not say whether it has an image"),
        }
    }
    let wanted = Wanted {
        resources: &spec.resources,
        egress_rules: spec.needs_egress_rules(),
        runtime: spec.runtime.as_deref(),
    };
    decide(&views, wanted)
}

/// Runs until it is dropped.
pub(crate) async fn run(app: Arc<App>) {
    loop {
        let deadline = pass(&app).await;
        let expired = async {
            match deadline {
                Some(at) => tokio::time::sleep(until(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = app.live.retry.notified() => {}
            () = expired => {}
        }
    }
}

fn until(at_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(at_ms - now_ms()).unwrap_or(0))
}

/// One look at every pending sandbox; returns the next deadline.
async fn pass(app: &App) -> Option<i64> {
    let mut next: Option<i64> = None;
    for row in app.live.table.pending() {
        let deadline = deadline(&row);
        if deadline.is_some_and(|at| at <= now_ms()) {
            let secs = row.spec.max_pending_secs.unwrap_or(0);
            let detail = format!("it was not running after max_pending_secs ({secs} s)");
            end(app, &row, TerminationReason::Cancelled, detail).await;
            continue;
        }
        next = [next, deadline].into_iter().flatten().min();
        if row.phase == Phase::Waiting {
            retry(app, &row).await;
        }
    }
    next
}

/// When a pending sandbox is given up, milliseconds since the epoch.
fn deadline(row: &SandboxRow) -> Option<i64> {
    let ms = i64::try_from(row.spec.max_pending_secs?.saturating_mul(1000)).unwrap_or(i64::MAX);
    Some(row.created_at.saturating_add(ms))
}

async fn retry(app: &App, row: &SandboxRow) {
    match decision(app, &row.spec, row.home.as_deref()).await {
        Decision::Place { node_id, capacity } => {
            let on = Reservation { node_id, capacity };
            if let Err(error) = app.store.place_sandbox(&row.id, on).await {
                tracing::error!(sandbox = row.id, %error, "cannot place a sandbox");
            }
        }
        Decision::Wait(_) => {}
        Decision::Never(reason, detail) => end(app, row, reason, detail).await,
    }
}

async fn end(app: &App, row: &SandboxRow, reason: TerminationReason, detail: String) {
    let ending = Ending { reason, detail, at: now_ms() };
    if let Err(error) = app.store.terminate_sandbox(&row.id, ending).await {
        tracing::error!(sandbox = row.id, %error, "cannot end a sandbox");
    }
}
