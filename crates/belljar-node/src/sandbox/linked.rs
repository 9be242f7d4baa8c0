//! The way to the agent of a VM: the handshake, and the first thing that is done over the link.
//!
//! Not the agent's API ([`crate::guest`]). Called by [`super::boot`] and the templates.

use std::{future::Future, time::Duration};

use belljar_link::{ConnectOptions, Connector, LinkError, Session};
use belljar_vmm::Vm;
use tokio_util::task::AbortOnDropHandle;

use super::boot::BootError;
use crate::limits::{CONSOLE_QUOTE, LINK_RETRIES, LINK_RETRY_FIRST};

/// A link to an agent, and the task that moves its bytes.
pub(crate) type Linked = (Connector, AbortOnDropHandle<LinkError>);

/// Connects to the agent of a VM, unless that has kept a link, and does the first thing with it, within `timeout` in all. A
/// guest that ends, or does not answer, is an error with its last words.
pub(crate) async fn linked<F, Fut>(
    vm: &dyn Vm,
    kept: Option<Linked>,
    timeout: Duration,
    first: F,
) -> Result<Linked, BootError>
where
    F: FnOnce(Connector) -> Fut + Send,
    Fut: Future<Output = Result<Connector, BootError>> + Send,
{
    let connect = async {
        let (link, session) = match kept {
            Some(kept) => kept,
            None => {
                let (link, session) = shake_hands(vm, timeout).await?;
                (link, AbortOnDropHandle::new(tokio::spawn(session)))
            }
        };
        Ok::<_, BootError>((first(link).await?, session))
    };
    tokio::select! {
        biased;
        exit = vm.wait() => Err(BootError::Exited { exit, console: console(vm).await }),
        result = tokio::time::timeout(timeout, connect) => match result {
            Err(_) => Err(BootError::Timeout { after: timeout, console: console(vm).await }),
            Ok(result) => result,
        },
    }
}

/// Connects to the agent. A guest that wakes is told to cut off what it had open before, and may take a new connection for
/// that: one that breaks at once is made again, a few times.
async fn shake_hands(vm: &dyn Vm, timeout: Duration) -> Result<(Connector, Session), BootError> {
    let mut pauses = (0..LINK_RETRIES).map(|n| LINK_RETRY_FIRST * 2_u32.pow(n));
    loop {
        let source = match belljar_link::connect(vm.connect_link().await?, ConnectOptions { timeout }).await {
            Ok(linked) => return Ok(linked),
            Err(source) => source,
        };
        match (&source, pauses.next()) {
            (LinkError::Eof | LinkError::Io(_), Some(pause)) => {
                tracing::debug!(%source, "a new link broke at once");
                tokio::time::sleep(pause).await;
            }
            _ => return Err(BootError::Link { source, console: console(vm).await }),
        }
    }
}

/// The end of the guest's console, for an error message; control characters are shown as spaces.
async fn console(vm: &dyn Vm) -> String {
    let bytes = vm.console().await.unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(CONSOLE_QUOTE)..];
    let text: String = String::from_utf8_lossy(tail).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match text.trim() {
        "" => "(empty)".to_owned(),
        text => text.to_owned(),
    }
}
