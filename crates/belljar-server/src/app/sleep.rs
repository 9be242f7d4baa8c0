//! Suspend, resume and roll back: asks for the state, then waits for it as long as the caller wants.

use std::{sync::Arc, time::Duration};

use belljar_api::error::code;
use http::StatusCode;

use super::App;
use crate::{
    error::ApiError,
    life::{Order, Refusal, Reported, SandboxRow},
    store::StoreError,
};

/// How an order went.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// It is so.
    Reached(Arc<SandboxRow>),
    /// Its node is at it.
    UnderWay(Arc<SandboxRow>),
}

/// What a row says about an order; `None` while its node is at it.
pub(crate) fn verdict(row: &SandboxRow, order: &Order) -> Option<Result<(), ApiError>> {
    let goal = match order {
        Order::Suspend => Reported::Suspended,
        Order::Resume | Order::Rollback { .. } => Reported::Running,
    };
    let on_the_way = match order {
        Order::Suspend => Reported::Suspending,
        Order::Resume | Order::Rollback { .. } => Reported::Resuming,
    };
    match row.stage() {
        // A rollback that did not happen leaves it running, or wakes it, all the same.
        Some(stage) if stage == goal => match (&row.trouble, order) {
            (Some(words), Order::Rollback { .. }) => Some(Err(conflict(words.clone()))),
            (_, Order::Suspend | Order::Resume | Order::Rollback { .. }) => Some(Ok(())),
        },
        Some(stage) if stage == on_the_way => None,
        Some(_) => {
            let words = row.trouble.clone().unwrap_or_else(|| "something else was asked of it meanwhile".to_owned());
            Some(Err(conflict(words)))
        }
        None => Some(Err(StoreError::Refused(Refusal::Ended).into())),
    }
}

fn conflict(words: String) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, code::CONFLICT, words)
}

impl App {
    /// Asks for another state of a sandbox and waits for it.
    pub(crate) async fn order(&self, row: &SandboxRow, order: Order, wait: Duration) -> Result<Outcome, ApiError> {
        let ordered = self.store.order(&row.id, order.clone()).await?;
        let row = ordered.ok_or_else(|| ApiError::sandbox_not_found(&row.id))?;
        if let Some(verdict) = verdict(&row, &order) {
            return verdict.map(|()| Outcome::Reached(row));
        }
        let Some(mut seen) = self.live.table.get(&row.id) else {
            return Err(StoreError::Refused(Refusal::Ended).into());
        };
        // What decided counts, also when the row has gone on since.
        let decided =
            async { seen.wait_for(|row| verdict(row, &order).is_some()).await.ok().map(|row| Arc::clone(&row)) };
        let decided = tokio::time::timeout(wait, decided).await.ok().flatten();
        let row = decided.unwrap_or_else(|| Arc::clone(&seen.borrow()));
        match verdict(&row, &order) {
            Some(verdict) => verdict.map(|()| Outcome::Reached(row)),
            None => Ok(Outcome::UnderWay(row)),
        }
    }
}
