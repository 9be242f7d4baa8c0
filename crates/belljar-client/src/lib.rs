//! Rust SDK over Belljar's public HTTP API.
//!
//! [`Client`] is the control plane: sandboxes, their sleep, snapshots and copies, pools, keys, images, logs. [`Sandbox`] is the data plane of one sandbox:
//! processes, files, archives, terminals, tunnels. Both share one pool of HTTP/1.1 connections and are cheap to clone.
//!
//! It is not privileged: whatever it does, any other client of the API can do. Whom an `https://`
//! server has to convince are the system's root certificates and those that the caller adds ([`Client::with_ca`]). Apart from
//! the system's it reads no environment and no files: the caller says where the server is and which key to use.
//!
//! ```no_run
//! # async fn example() -> Result<(), belljar_client::Error> {
//! use belljar_api::{process::RunProcess, sandbox::CreateSandbox};
//! let client = belljar_client::Client::new("http://127.0.0.1:8900", Some("belljar_..."))?;
//! let created = client.create(&CreateSandbox::default()).await?;
//! let sandbox = client.sandbox(&created.sandbox_id);
//! let request = RunProcess { command: "uname".into(), args: vec!["-a".into()], ..RunProcess::default() };
//! let mut events = sandbox.run(&request).await?;
//! while let Some(event) = events.next().await? {
//!     println!("{event:?}");
//! }
//! client.delete(&created.sandbox_id).await
//! # }
//! ```

mod builds;
mod client;
mod error;
mod events;
mod files;
mod images;
pub mod limits;
mod pools;
mod pty;
mod reverse;
mod sandbox;
mod secret;
mod snapshots;
pub mod sse;
mod ssh;
mod states;
mod tls;
mod transport;
mod tunnel;
mod websocket;

#[cfg(test)]
mod wire_test;

pub use client::{Client, LogFilter, Scope};
pub use error::Error;
pub use events::EventStream;
pub use files::Download;
pub use pty::{Terminal, TerminalEvent, TerminalInput, TerminalOutput};
pub use reverse::ReverseTunnel;
pub use sandbox::{OutputKind, Sandbox};
pub use tunnel::Tunnel;
