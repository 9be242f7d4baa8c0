//! The link over vsock, for the VMMs that have it: the agent listens, the host connects. The agent rings on the next port
//! once it listens, so that the host need not try again and again.

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen, socket},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};
use tokio_util::task::AbortOnDropHandle;

use crate::serve::Service;

/// Serves one link at a time on a vsock port; a new one takes over. Returns only on failure.
pub(crate) async fn serve(port: u32, service: Service) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    listen(&listener, Backlog::new(1)?)?;
    ring(port + 1);
    let listener = watched(listener)?;
    let mut current: Option<AbortOnDropHandle<()>> = None;
    loop {
        let connection = listener.async_io(Interest::READABLE, accept).await?;
        let service = service.clone();
        drop(current.take());
        current = Some(AbortOnDropHandle::new(tokio::spawn(async move { service.serve_link(connection).await })));
    }
}

/// Nobody need be there, and nobody waits for an answer.
fn ring(port: u32) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let rung = socket(AddressFamily::Vsock, SockType::Stream, flags, None)
        .and_then(|bell| connect(bell.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, port)).map(|()| bell));
    match rung {
        Ok(_) | Err(Errno::EINPROGRESS) => {}
        Err(error) => tracing::debug!("nobody hears the bell: {error}"),
    }
}

#[expect(unsafe_code, reason = "tokio takes any type for a descriptor, so it wants to be told that ours is one")]
fn watched(listener: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor, the same for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?)
}

/// A connected stream socket reads, writes and shuts down the same in every address family: std's and tokio's Unix
/// stream is the one that asks for nothing else.
#[expect(unsafe_code, reason = "nix gives the accepted socket as a number")]
fn accept(listener: &OwnedFd) -> io::Result<UnixStream> {
    let number = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    UnixStream::from_std(StdUnixStream::from(owned))
}
