//! The few ioctls of a machine's set-up: network devices, the random generator, the disk's unused blocks.

use std::{
    fs::File,
    io, mem,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const LOOPBACK: &str = "lo";
const ETHERNET: &str = "eth0";

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of `linux/random.h`, which libc does not have.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
/// `FITRIM` of `linux/fs.h`: `_IOWR('X', 121, struct fstrim_range)`.
const FITRIM: libc::Ioctl = 0xc018_5879;

/// Takes the loopback device up.
pub(crate) fn loopback_up() -> io::Result<()> {
    set_up(&control()?, LOOPBACK)
}

/// Makes a whole network of addresses the machine's own.
#[cfg(test)]
pub(crate) fn address_loopback(address: Ipv4Addr) -> io::Result<()> {
    set_address(&control()?, LOOPBACK, libc::SIOCSIFADDR, address)?;
    loopback_up()
}

/// Gives the first network device its address and the machine its way out. An error names the step.
pub(crate) fn configure(
    address: Ipv4Addr,
    prefix: u8,
    gateway: Ipv4Addr,
    old_gateway: Option<Ipv4Addr>,
) -> Result<(), (&'static str, io::Error)> {
    let socket = control().map_err(|error| ("socket", error))?;
    if let Some(old) = old_gateway {
        // It may have gone with its address.
        let _ = default_route(&socket, old, libc::SIOCDELRT);
    }
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
    set_address(&socket, ETHERNET, libc::SIOCSIFADDR, address).map_err(|error| ("address of eth0", error))?;
    set_address(&socket, ETHERNET, libc::SIOCSIFNETMASK, mask).map_err(|error| ("prefix of eth0", error))?;
    set_up(&socket, ETHERNET).map_err(|error| ("eth0 up", error))?;
    match default_route(&socket, gateway, libc::SIOCADDRT) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(("default route", error)),
        _ => Ok(()),
    }
}

fn control() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

#[expect(unsafe_code, reason = "interface requests are C structs with a union")]
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a valid `ifreq`: an empty name and a union of plain numbers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

#[expect(unsafe_code, reason = "the socket address is passed as a C union")]
fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let address = nix::sys::socket::SockaddrIn::from(SocketAddrV4::new(address, 0));
    let address: &libc::sockaddr_in = address.as_ref();
    // SAFETY: `sockaddr_in` and `sockaddr` have the same size, and both are plain bytes after the family.
    unsafe { mem::transmute(*address) }
}

#[expect(unsafe_code, reason = "nix has no interface ioctls")]
fn set_address(socket: &OwnedFd, name: &str, what: libc::c_ulong, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_addr = sockaddr(address);
    // SAFETY: the kernel reads one `ifreq`, which lives through the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), what as libc::Ioctl, &raw mut request) })
}

fn set_up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    switch(socket, name, true)
}

/// Takes a device up or down.
#[expect(unsafe_code, reason = "nix has no interface ioctls")]
fn switch(socket: &OwnedFd, name: &str, up: bool) -> io::Result<()> {
    let mut request = request(name);
    let flag = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: the kernel writes the flags into one `ifreq`, which lives through the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &raw mut request) })?;
    // SAFETY: the call above filled this field of the union; the kernel then reads the `ifreq`.
    unsafe {
        match up {
            true => request.ifr_ifru.ifru_flags |= flag,
            false => request.ifr_ifru.ifru_flags &= !flag,
        }
        checked(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw mut request))
    }
}

/// Bounds the packets of the first network device.
#[expect(unsafe_code, reason = "nix has no interface ioctls")]
pub(crate) fn set_mtu(mtu: u16) -> io::Result<()> {
    let mut request = request(ETHERNET);
    request.ifr_ifru.ifru_mtu = mtu.into();
    // SAFETY: the kernel reads one `ifreq`, which lives through the call.
    checked(unsafe { libc::ioctl(control()?.as_raw_fd(), libc::SIOCSIFMTU as libc::Ioctl, &raw const request) })
}

/// Gives the first network device another hardware address, unless it has it. True if the device had to go down for it,
/// which costs its routes.
#[expect(unsafe_code, reason = "nix has no interface ioctls")]
pub(crate) fn set_hardware_address(mac: [u8; 6]) -> io::Result<bool> {
    let socket = control()?;
    let mut request = request(ETHERNET);
    // SAFETY: the kernel writes the address into one `ifreq`, which lives through the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as libc::Ioctl, &raw mut request) })?;
    // SAFETY: the call above filled this field of the union, the address's type with it.
    let address = unsafe { &mut request.ifr_ifru.ifru_hwaddr };
    let wanted = mac.map(|byte| libc::c_char::from_ne_bytes([byte]));
    if address.sa_data[..mac.len()] == wanted {
        return Ok(false);
    }
    address.sa_data[..mac.len()].copy_from_slice(&wanted);
    // SAFETY: the kernel reads one `ifreq`, which lives through the call.
    let set =
        || checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR as libc::Ioctl, &raw const request) });
    match set() {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        result => return result.map(|()| false),
    }
    // Not every driver can do it live.
    switch(&socket, ETHERNET, false)?;
    set()?;
    switch(&socket, ETHERNET, true)?;
    Ok(true)
}

#[expect(unsafe_code, reason = "routes are set with a C struct")]
fn default_route(socket: &OwnedFd, gateway: Ipv4Addr, what: libc::c_ulong) -> io::Result<()> {
    // SAFETY: all-zero is a valid `rtentry`: null pointers and numbers.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = sockaddr(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = sockaddr(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = sockaddr(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the kernel reads one `rtentry`, which lives through the call; its device name is null, which is allowed.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), what as libc::Ioctl, &raw mut route) })
}

/// Mixes 32 bytes into the kernel's generator, counts them as good, and has it take them at once: after a restore two
/// machines have the same state, and waiting for the next reseed would give both the same numbers.
#[expect(unsafe_code, reason = "the random device takes entropy only by ioctl")]
pub(crate) fn reseed(entropy: &[u8; 32]) -> io::Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        bytes: libc::c_int,
        data: [u8; 32],
    }
    let device = File::open("/dev/urandom")?;
    let info = PoolInfo { entropy_bits: 256, bytes: 32, data: *entropy };
    // SAFETY: `info` is laid out as `struct rand_pool_info` with a buffer of `bytes` bytes and lives through the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: this request takes no argument.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) })
}

/// Tells the device which blocks of a file system are unused; gives their bytes.
#[expect(unsafe_code, reason = "a file system is trimmed by ioctl")]
pub(crate) fn trim(file_system: &File) -> io::Result<u64> {
    #[repr(C)]
    struct Range {
        start: u64,
        len: u64,
        minlen: u64,
    }
    let mut range = Range { start: 0, len: u64::MAX, minlen: 0 };
    // SAFETY: `range` is laid out as `struct fstrim_range`, and lives through the call, which writes into it.
    checked(unsafe { libc::ioctl(file_system.as_raw_fd(), FITRIM, &raw mut range) })?;
    Ok(range.len)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
