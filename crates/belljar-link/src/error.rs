//! Why a link ends, and why a stream does not open.

use std::{io, sync::Arc, time::Duration};

use crate::core::{
    frame::{AbortCode, DecodeError, RefuseCode},
    mux::Violation,
};

/// Why a link or one session of it has ended. Cheap to clone: everybody who waits gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The other end closed the byte stream.
    #[error("link: the other end closed the connection")]
    Eof,
    /// This end dropped the [`crate::Session`].
    #[error("link: the session was dropped on this side")]
    Dropped,
    /// The byte stream failed.
    #[error("link: the connection failed")]
    Io(#[source] Arc<io::Error>),
    /// The guest did not answer in time.
    #[error("link: no answer from the guest agent within {0:?}; see the guest's console")]
    HandshakeTimeout(Duration),
    /// The two ends speak different versions.
    #[error(
        "link: the host speaks version {host} and the guest agent version {guest}; \
         use a guest agent from the same release (a snapshot keeps the agent it was taken with)"
    )]
    Version {
        /// Version of the host.
        host: u32,
        /// Version of the guest.
        guest: u32,
    },
    /// The peer sent bytes that are not a frame.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The peer sent a frame that the protocol does not allow.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The guest gave up the session.
    #[error("link: the guest agent gave up the session: {0}")]
    Aborted(AbortCode),
    /// On the guest: the host has started a new session (it reconnected, or this VM was restored).
    #[error("link: the host started a new session")]
    Superseded,
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        LinkError::Io(Arc::new(error))
    }
}

impl From<LinkError> for io::Error {
    fn from(error: LinkError) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

/// Why a stream did not open.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The guest refused.
    #[error("link: guest port {port}: {code}")]
    Refused {
        /// The port.
        port: u16,
        /// The guest's reason.
        code: RefuseCode,
    },
    /// This side has as many streams as a session can have.
    #[error("link: guest port {port}: {} streams are open already; close some", crate::limits::MAX_STREAMS)]
    TooManyStreams {
        /// The port.
        port: u16,
    },
    /// The session has ended.
    #[error("link: guest port {port}: the session has ended")]
    Ended {
        /// The port.
        port: u16,
        /// Why it ended.
        #[source]
        reason: LinkError,
    },
}
