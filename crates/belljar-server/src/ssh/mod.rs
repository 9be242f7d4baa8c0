//! The SSH gateway: `ssh <id|name>@host` is a program in a sandbox, `ssh <port>-<id|name>@host` a TCP port of it.
//!
//! ```text
//! listener -> connection -> key known? -> channel -+- shell, exec, sftp -> program -> guest agent (`/api/v1/exec`)
//!    |            |                                +- session on a port user -+
//!    |            +- no key in time: closed        +- direct-tcpip (-L, -D) --+-> bridge -> guest port
//!    +- too many without a key: closed     `-R`: forwarded-tcpip <- bridge <- reverse tunnel <- port of the guest
//! ```
//!
//! russh speaks the protocol; this decides who may do what and carries the bytes. Everything goes the way of a proxied
//! request ([`crate::ingress::open`]): it wakes a sandbox and keeps it awake while a channel is open. A connection
//! without channels holds nothing awake.
//!
//! Who has a key of the project reaches every sandbox of it, as who has an API key does. Which sandbox a client names is
//! looked at when it opens a channel, so that a stranger learns no names. A key that is removed, or whose API key is,
//! closes the connections that it opened.
//!
//! Flow control is end to end: a channel's client may send [`SSH_WINDOW`](crate::limits::SSH_WINDOW) bytes and is let
//! send more as the sandbox takes them, and output is read from the sandbox as the client's own window opens.
//!
//! Not here: X11 and agent forwarding, and certificates.

mod bridge;
mod channel;
mod host_key;
mod inbox;
mod keys;
mod listen;
mod program;
mod reverse;
mod session;
mod user;

use std::{io, path::PathBuf};

pub use self::host_key::host_key_fingerprint;
pub(crate) use self::{
    keys::{PublicKey, SshKeys},
    listen::Gateway,
};

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The host key cannot be read or made.
    #[error("cannot {operation} the SSH host key {path}: {source}")]
    HostKeyFile {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{path} is not an SSH host key ({why}); restore it, or remove it to get a new one, which clients will \
         warn about"
    )]
    HostKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The operating system gives no random bytes.
    #[error("no randomness for an SSH host key: {0}")]
    Randomness(String),
    /// The listener is of no use.
    #[error("the SSH listener: {0}")]
    Listener(io::Error),
    /// A server has one gateway.
    #[error("the server listens for SSH already")]
    Twice,
}
