//! Connections from nodes. The wire is described in [`belljar_api::node`].
//!
//! ```text
//! upgrade --> hello --> seat taken (an older connection of this node has ended) --> every sandbox told, one transaction
//!         --> connected: outbox delivered, reports taken, guests reached --> closed, replaced or shut down
//! ```
//!
//! The outbox is only delivered after the full account was taken over: a command taken between the two would make its
//! sandbox look lost. A node counts as connected from then on. Nothing here decides where a sandbox goes.

mod lines;
mod link;
mod registry;
mod session;
mod stream;

pub(crate) use self::{
    lines::{LineError, Lines},
    link::{ImageRef, NodeError, NodeLink},
    registry::Nodes,
    session::accept,
    stream::{BodyStream, channel},
};
