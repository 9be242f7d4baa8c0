//! Waits for devices: the kernel says when one comes, and when a disk changes its size.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket},
};
use tokio::io::{Interest, unix::AsyncFd};

/// The kernel's own events, as opposed to those that a device manager passes on.
const KERNEL_EVENTS: u32 = 1;
/// Bytes of an event, the kernel's own limit.
const EVENT_MAX: usize = 4096;

/// Calls `find` until it finds, each time the kernel announces a change of devices.
pub(crate) fn wait_for<T>(what: &str, patience: Duration, find: impl Fn() -> Option<T>) -> io::Result<T> {
    if let Some(found) = find() {
        return Ok(found);
    }
    let events = listen()?;
    let deadline = Instant::now() + patience;
    loop {
        // After listening began: what came in between is found here.
        if let Some(found) = find() {
            return Ok(found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            let message = format!("{what} did not appear within {patience:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        // What it says does not matter, nor that it may be lost in an overrun: it is the reason to look.
        let _ = recv(events.as_raw_fd(), &mut [0; EVENT_MAX], MsgFlags::MSG_DONTWAIT);
    }
}

/// Calls `changed` whenever a disk has another size than before, for ever.
pub(crate) async fn watch_disks(changed: impl Fn() + Clone + Send + 'static) -> io::Result<()> {
    let events = watched(listen()?)?;
    let mut buffer = vec![0; EVENT_MAX];
    loop {
        let received = events
            .async_io(Interest::READABLE, |events| Ok(recv(events.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?));
        let is_resize = match received.await {
            Ok(count) => tells_of_resize(&buffer[..count]),
            // Events were lost: look.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => true,
            Err(error) => return Err(error),
        };
        if is_resize {
            let changed = changed.clone();
            // A panic in there says so itself.
            let _ = tokio::task::spawn_blocking(changed).await;
        }
    }
}

#[expect(unsafe_code, reason = "tokio takes any type for a descriptor, so it wants to be told that ours is one")]
fn watched(events: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor, the same for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }?)
}

/// An event is words, each ended by a zero byte.
fn tells_of_resize(event: &[u8]) -> bool {
    event.split(|&byte| byte == 0).any(|word| word == b"RESIZE=1")
}

fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_is_told_from_other_changes() {
        let event = b"change@/devices/virtio1/block/vda\0ACTION=change\0SUBSYSTEM=block\0RESIZE=1\0SEQNUM=7\0";
        assert!(tells_of_resize(event));
        assert!(!tells_of_resize(b"change@/x\0SUBSYSTEM=block\0DISK_MEDIA_CHANGE=1\0NAME=RESIZE=1\0"));
        assert!(!tells_of_resize(b""));
    }
}
