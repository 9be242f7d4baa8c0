//! What every build ends with: a node imports an image, from a registry or out of the builder, and names it.
//!
//! Called by [`super`] and [`super::dockerfile`].

use belljar_api::node::{ImportImage, ImportReport};
use http::StatusCode;

use super::Spoken;
use crate::{
    build::Event,
    clock::now_ms,
    limits::COMMAND_RETRY,
    node_link::{NodeError, NodeLink},
};

/// Has the node do it, and gives the end of it; `None` where the node needs to be told where the image lies.
pub(super) async fn follow(spoken: &Spoken, link: &NodeLink, wanted: ImportImage) -> Option<Event> {
    let (app, id) = (&spoken.app, &spoken.id);
    let mut reports = match link.import_image(&wanted).await {
        Ok(reports) => reports,
        Err(NodeError::Answer { body, .. }) => return Some(Event::Failed(body.error)),
        Err(error @ NodeError::Transport(_)) => {
            return Some(Event::Failed(format!("{error}; start the build again")));
        }
    };
    let mut asked = false;
    loop {
        let report = tokio::select! {
            // First: what is over need not be stopped.
            biased;
            report = reports.next() => report,
            () = spoken.cancel.cancelled(), if !asked => match stop(link, id).await {
                Stopping::Done => return Some(Event::Stopped),
                Stopping::TooLate => {
                    asked = true;
                    continue;
                }
                // If it cannot be reached any more, its reports end, too.
                Stopping::Unknown => continue,
            },
        };
        match report {
            Ok(ImportReport::Step { phase }) => {
                // Only told on the way: the next one says more, and the end is what counts.
                if let Err(error) = app.store.change_build(id, Event::Step(phase), now_ms()).await {
                    tracing::warn!(build = id, %error, "cannot note how far an image build is");
                }
            }
            Ok(ImportReport::Done { image }) => return Some(Event::Done(Box::new(image))),
            Ok(ImportReport::Failed { error }) => return Some(Event::Failed(error)),
            Ok(ImportReport::Stopped) => return Some(Event::Stopped),
            Ok(ImportReport::Absent) => return None,
            Err(error) => {
                return Some(Event::Failed(format!(
                    "node {} went, or was lost, while it built this ({error}); start the build again, unless GET \
                     /images/v4/images shows that the image was made in the last moment",
                    link.id()
                )));
            }
        }
    }
}

/// What a node says to a cancellation.
enum Stopping {
    /// There will be no image.
    Done,
    /// It is being named, or over: its last report says what came of it.
    TooLate,
    /// Nothing that helps; it has to be asked again.
    Unknown,
}

async fn stop(link: &NodeLink, id: &str) -> Stopping {
    match link.stop_import(id).await {
        Ok(answer) if answer.stopped => Stopping::Done,
        Ok(_) | Err(NodeError::Answer { status: StatusCode::NOT_FOUND, .. }) => Stopping::TooLate,
        Err(error) => {
            tracing::warn!(build = id, node = link.id(), %error, "cannot cancel an image build yet");
            tokio::time::sleep(COMMAND_RETRY).await;
            Stopping::Unknown
        }
    }
}

/// What nodes say only of what was built in a sandbox.
pub(super) fn absent() -> Event {
    Event::Failed("the node does not find what it was told to import; start the build again".to_owned())
}
