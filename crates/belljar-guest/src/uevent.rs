//! Waits for devices: the kernel says when one comes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket},
};

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

fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
    Ok(events)
}
