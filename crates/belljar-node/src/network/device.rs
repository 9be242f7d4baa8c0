//! The ioctls of a network's tap: those which make it, and that which tells the kernel who is behind it.
//!
//! `ip` can do both, but a process takes longer than all the rest of a network's way into a sandbox.

use std::{
    fs::OpenOptions,
    io, mem,
    net::{SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::SockaddrIn;

use super::{GUEST, NetworkError, TAP};

/// `TUNSETIFF` of `linux/if_tun.h`: `_IOW('T', 202, int)`.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
/// `TUNSETPERSIST` of `linux/if_tun.h`: `_IOW('T', 203, int)`.
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
/// `ATF_COM` and `ATF_PERM` of `linux/if_arp.h`: the address is known, and stays.
const KNOWN_FOR_EVER: libc::c_int = 0x02 | 0x04;

/// A device's name as the kernel takes it.
fn name() -> [libc::c_char; libc::IFNAMSIZ] {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(TAP.bytes()) {
        *to = from.cast_signed();
    }
    name
}

/// Makes the tap of the namespace that the thread is in. It is gone when nobody has this open any more.
#[expect(unsafe_code, reason = "no safe wrapper has this ioctl")]
pub(super) fn open_tap() -> Result<OwnedFd, NetworkError> {
    let operation = "open /dev/net/tun";
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(NetworkError::io(operation))?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let request = libc::ifreq {
        ifr_name: name(),
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags.to_le_bytes().first_chunk().map_or(0, |bytes| i16::from_le_bytes(*bytes)),
        },
    };
    // SAFETY: the kernel reads and writes a `struct ifreq`, which `request` is.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw const request) };
    if made < 0 {
        return Err(NetworkError::io("make a tap")(io::Error::last_os_error()));
    }
    Ok(tun.into())
}

/// Lets a tap stay when nobody has it open: it goes with its namespace.
#[expect(unsafe_code, reason = "no safe wrapper has this ioctl")]
pub(super) fn keep_tap(tap: &OwnedFd) -> Result<(), NetworkError> {
    // SAFETY: the kernel takes the number itself.
    let kept = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong) };
    if kept < 0 { Err(NetworkError::io("keep a tap")(io::Error::last_os_error())) } else { Ok(()) }
}

/// Tells the kernel the guest's hardware address, for ever, in the namespace of a socket. Then it never asks who the guest
/// is, so it cannot be told wrong, nor remember what a rehearsal left.
#[expect(unsafe_code, reason = "no safe wrapper has this ioctl")]
pub(super) fn introduce(socket: &UdpSocket, mac: [u8; 6]) -> Result<(), NetworkError> {
    // SAFETY: all-zero is a valid `arpreq`: numbers and names.
    let mut request: libc::arpreq = unsafe { mem::zeroed() };
    let guest = SockaddrIn::from(SocketAddrV4::new(GUEST, 0));
    // SAFETY: `sockaddr_in` and `sockaddr` have the same size, and both are plain bytes after the family.
    request.arp_pa = unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(*guest.as_ref()) };
    request.arp_ha.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in request.arp_ha.sa_data.iter_mut().zip(mac) {
        *to = from.cast_signed();
    }
    request.arp_flags = KNOWN_FOR_EVER;
    request.arp_dev = name();
    // SAFETY: the kernel reads a `struct arpreq`, which `request` is.
    let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSARP as libc::Ioctl, &raw const request) };
    if set < 0 {
        return Err(NetworkError::io("introduce the guest to its network")(io::Error::last_os_error()));
    }
    Ok(())
}
