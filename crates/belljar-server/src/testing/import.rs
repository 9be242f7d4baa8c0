//! Imports on the test double of a node: each goes as far as the test says.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::body::Body;
use belljar_api::{
    error::{ErrorBody, code},
    node::{ImportImage, ImportReport, StoppedImport},
};
use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode};
use tokio::sync::{mpsc, watch};

/// What it does when it is told to stop an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum OnStop {
    /// It stops it.
    #[default]
    Stop,
    /// It says that it is too late.
    TooLate,
    /// It does not know it: its last report is on the way.
    Over,
    /// It fails this time, and stops it the next.
    Fail,
}

/// The imports of a node.
#[derive(Clone)]
pub(super) struct Imports {
    inner: Arc<Mutex<Inner>>,
    /// Those that began.
    begun: watch::Sender<Vec<ImportImage>>,
    /// Builds whose answers were dropped.
    dropped: watch::Sender<Vec<String>>,
}

#[derive(Default)]
struct Inner {
    tell: HashMap<String, mpsc::UnboundedSender<ImportReport>>,
    on_stop: OnStop,
    refuse: bool,
}

/// Goes with the answer for a build.
struct Gone {
    id: String,
    dropped: watch::Sender<Vec<String>>,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.dropped.send_modify(|all| all.push(std::mem::take(&mut self.id)));
    }
}

impl Imports {
    pub(super) fn new() -> Self {
        Self { inner: Arc::default(), begun: watch::Sender::new(Vec::new()), dropped: watch::Sender::new(Vec::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("imports")
    }

    pub(super) fn set_on_stop(&self, on_stop: OnStop) {
        self.lock().on_stop = on_stop;
    }

    /// Takes no more of them.
    pub(super) fn set_refuse(&self) {
        self.lock().refuse = true;
    }

    /// Waits until the import for this build has begun.
    pub(super) async fn begun(&self, build_id: &str) -> ImportImage {
        let mut begun = self.begun.subscribe();
        let found = begun.wait_for(|all| all.iter().any(|new| new.build_id == build_id)).await.expect("imports");
        found.iter().find(|new| new.build_id == build_id).cloned().expect("import")
    }

    /// How many have begun.
    pub(super) fn count(&self) -> usize {
        self.begun.borrow().len()
    }

    /// Waits until nobody listens to it any more.
    pub(super) async fn dropped(&self, build_id: &str) {
        let mut dropped = self.dropped.subscribe();
        dropped.wait_for(|all| all.iter().any(|id| id == build_id)).await.expect("imports");
    }

    /// Tells what becomes of it.
    pub(super) fn tell(&self, build_id: &str, report: ImportReport) {
        let _ = self.lock().tell.get(build_id).expect("it has begun").send(report);
    }

    /// Says no more of it.
    pub(super) fn hush(&self, build_id: &str) {
        self.lock().tell.remove(build_id);
    }

    pub(super) fn begin(&self, new: ImportImage) -> Response<Body> {
        if self.lock().refuse {
            let body = ErrorBody::new(code::TOO_MANY, "too many imports wait on this node");
            return crate::error::json(StatusCode::TOO_MANY_REQUESTS, &body);
        }
        let (tell, told) = mpsc::unbounded_channel();
        let gone = Gone { id: new.build_id.clone(), dropped: self.dropped.clone() };
        self.lock().tell.insert(new.build_id.clone(), tell);
        self.begun.send_modify(|all| all.push(new));
        let lines = stream::unfold((told, gone), |(mut told, gone)| async {
            let mut line = serde_json::to_vec(&told.recv().await?).expect("report");
            line.push(b'\n');
            Some((Ok::<_, Infallible>(Bytes::from(line)), (told, gone)))
        });
        Response::new(Body::from_stream(lines))
    }

    pub(super) fn stop(&self, build_id: &str) -> Response<Body> {
        let mut inner = self.lock();
        let known = inner.tell.contains_key(build_id);
        match inner.on_stop {
            OnStop::Stop if known => {
                inner.tell.remove(build_id);
                crate::error::json(StatusCode::OK, &StoppedImport { stopped: true })
            }
            OnStop::Fail => {
                inner.on_stop = OnStop::Stop;
                let body = ErrorBody::new(code::INTERNAL_ERROR, "a test made it fail");
                crate::error::json(StatusCode::INTERNAL_SERVER_ERROR, &body)
            }
            OnStop::TooLate if known => crate::error::json(StatusCode::OK, &StoppedImport { stopped: false }),
            OnStop::Stop | OnStop::TooLate | OnStop::Over => {
                let body = ErrorBody::new(code::NOT_FOUND, "no such import is under way");
                crate::error::json(StatusCode::NOT_FOUND, &body)
            }
        }
    }
}
