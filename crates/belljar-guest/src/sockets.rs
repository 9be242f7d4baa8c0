//! Ends the TCP connections of a former life: `sock_diag(7)`.
//!
//! The other end of a connection does not live in the snapshot. Its owner in the guest would wait for minutes until the
//! kernel gives up; destroyed, it is told at once (`ECONNABORTED`) and connects again. Left alone are listeners, what
//! connects this machine with itself, and UDP: a datagram socket has no peer that could be gone, the next datagram
//! finds its way, and destroying it would take its address from a program that never looks for errors.
//!
//! Connections within network namespaces that the sandbox made itself are not seen from here.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};

use crate::limits::{NETLINK_BUFFER, NETLINK_PATIENCE_SECS};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// Types of the answers that are no sockets, of `linux/netlink.h`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The address families, as they stand in a message.
const V4: u8 = 2;
const V6: u8 = 10;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct inet_diag_sockid`.
const ID: usize = 48;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 8 + ID;
/// Where the kernel says how many sockets there are, of this thread's network.
const COUNTS: &str = "/proc/thread-self/net";
/// States to look for: all but closed, TIME_WAIT and listening ones, which have no owner or no peer.
const STATES: u32 = !(1 << TIME_WAIT | 1 << CLOSE | 1 << LISTEN);
const TIME_WAIT: u32 = 6;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;

/// `struct inet_diag_sockid`, as the kernel wrote it: ports, addresses, device, cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SocketId([u8; ID]);

/// What the kernel answers.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    Socket {
        family: u8,
        id: SocketId,
    },
    Done,
    /// An error number; 0 acknowledges.
    Error(i32),
}

/// Destroys all TCP connections to elsewhere; says how many there were. Blocking.
pub(crate) fn end_connections() -> io::Result<usize> {
    let families: Vec<u8> = [(V4, "sockstat"), (V6, "sockstat6")]
        .into_iter()
        .filter(|(_, name)| match fs::read_to_string(format!("{COUNTS}/{name}")) {
            Ok(counts) => !is_unused(&counts),
            // The kernel has no such family.
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        })
        .map(|(family, _)| family)
        .collect();
    if families.is_empty() {
        return Ok(0);
    }
    let kernel =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&kernel, ReceiveTimeout, &TimeVal::new(NETLINK_PATIENCE_SECS, 0))?;
    let mut ended = 0;
    for family in families {
        for id in connections(&kernel, family)? {
            match destroy(&kernel, family, id) {
                Ok(()) => ended += 1,
                // It ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ended)
}

/// Whether no TCP socket is connected or listens. To have them listed the kernel goes through its whole table, which is most of
/// what a restored guest would do before it goes on. Format: `proc_pid_net(5)`, `TCP: inuse 4 orphan 0 ..`.
fn is_unused(counts: &str) -> bool {
    let in_use = counts.lines().find_map(|line| line.strip_prefix("TCP: inuse ").or(line.strip_prefix("TCP6: inuse ")));
    in_use.and_then(|rest| rest.split_whitespace().next()) == Some("0")
}

fn connections(kernel: &OwnedFd, family: u8) -> io::Result<Vec<SocketId>> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    ask(kernel, &request(BY_FAMILY, flags, family, SocketId([0; ID])))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; NETLINK_BUFFER];
    loop {
        let count = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for message in parse(&buffer[..count]) {
            match message {
                Message::Socket { family: of, id } if of == family && id.is_elsewhere(family) => found.push(id),
                Message::Socket { .. } => {}
                Message::Done | Message::Error(0) => return Ok(found),
                Message::Error(number) => return Err(io::Error::from_raw_os_error(number)),
            }
        }
    }
}

fn destroy(kernel: &OwnedFd, family: u8, id: SocketId) -> io::Result<()> {
    ask(kernel, &request(DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, family, id))?;
    let mut buffer = [0; 512];
    loop {
        let count = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for message in parse(&buffer[..count]) {
            match message {
                Message::Error(0) => return Ok(()),
                Message::Error(number) => return Err(io::Error::from_raw_os_error(number)),
                Message::Socket { .. } | Message::Done => {}
            }
        }
    }
}

fn ask(kernel: &OwnedFd, request: &[u8]) -> io::Result<()> {
    send(kernel.as_raw_fd(), request, MsgFlags::empty())?;
    Ok(())
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn request(kind: u16, flags: libc::c_int, family: u8, id: SocketId) -> [u8; HEADER + REQUEST] {
    const TCP: u8 = 6;
    const LENGTH: u32 = 72;
    const { assert!(LENGTH as usize == HEADER + REQUEST) };
    let mut bytes = [0; HEADER + REQUEST];
    bytes[0..4].copy_from_slice(&LENGTH.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    bytes[16] = family;
    bytes[17] = TCP;
    bytes[20..24].copy_from_slice(&STATES.to_ne_bytes());
    bytes[24..].copy_from_slice(&id.0);
    bytes
}

/// The messages of one datagram, up to the first that is cut.
fn parse(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((length, kind)) = header(bytes) {
        let Some(body) = bytes.get(HEADER..length) else { break };
        match kind {
            DONE => messages.push(Message::Done),
            ERROR => {
                let Some(number) = body.first_chunk() else { break };
                messages.push(Message::Error(i32::from_ne_bytes(*number).saturating_neg()));
            }
            BY_FAMILY => {
                let (Some(&family), Some(id)) = (body.first(), body.get(4..).and_then(<[u8]>::first_chunk)) else {
                    break;
                };
                messages.push(Message::Socket { family, id: SocketId(*id) });
            }
            _ => {}
        }
        // Each begins at a multiple of four.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// Length, header included, and type of the first message.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    (length >= HEADER).then_some((length, kind))
}

impl SocketId {
    fn address(&self, family: u8, at: usize) -> IpAddr {
        let bytes: [u8; 16] = self.0[at..].first_chunk().copied().unwrap_or_default();
        match family {
            V6 => Ipv6Addr::from(bytes).to_canonical(),
            _ => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        }
    }

    /// Whether the other end is not on this machine.
    fn is_elsewhere(&self, family: u8) -> bool {
        let (own, other) = (self.address(family, 4), self.address(family, 20));
        !other.is_loopback() && !other.is_unspecified() && own != other
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
    };

    use nix::sys::socket::{SockaddrIn, bind, connect};
    use proptest::prelude::*;

    use super::*;

    /// A connection from a certain address, which std does not make.
    fn connect_from(own: &str, other: SocketAddr) -> TcpStream {
        let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let own = SocketAddr::new(own.parse().expect("an address"), 0);
        for (address, call) in [(own, bind as fn(_, &_) -> _), (other, connect)] {
            let SocketAddr::V4(address) = address else { panic!("v4") };
            call(stream.as_raw_fd(), &SockaddrIn::from(address)).expect("bound and connected");
        }
        TcpStream::from(stream)
    }

    fn id(own: IpAddr, other: IpAddr) -> (u8, SocketId) {
        let mut id = [7; ID];
        id[4..36].fill(0);
        for (at, address) in [(4, own), (20, other)] {
            match address {
                IpAddr::V4(address) => id[at..at + 4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => id[at..at + 16].copy_from_slice(&address.octets()),
            }
        }
        (if own.is_ipv4() { V4 } else { V6 }, SocketId(id))
    }

    /// As the kernel writes it.
    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = HEADER + body.len();
        let mut bytes = u32::try_from(length).expect("short").to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    fn shown(family: u8, id: SocketId) -> Vec<u8> {
        let mut body = vec![family, 1, 0, 0];
        body.extend(id.0);
        body.resize(72, 0);
        message(BY_FAMILY, &body)
    }

    #[track_caller]
    fn check(own: &str, other: &str, elsewhere: bool) {
        let (family, id) = id(own.parse().expect(own), other.parse().expect(other));
        assert_eq!(id.is_elsewhere(family), elsewhere, "{own} {other}");
    }

    #[test]
    fn what_connects_the_machine_with_itself_is_left_alone() {
        check("10.0.2.15", "93.184.216.34", true);
        check("10.0.2.15", "10.0.2.15", false);
        check("127.0.0.1", "127.0.0.1", false);
        check("10.0.2.15", "127.0.0.53", false);
        check("0.0.0.0", "0.0.0.0", false);
        check("fe80::1", "2606:2800::1", true);
        check("::1", "::1", false);
        check("::ffff:127.0.0.1", "::ffff:127.0.0.1", false);
        check("::ffff:10.0.2.15", "::ffff:1.1.1.1", true);
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let (family, id) = id("10.0.2.15".parse().expect("v4"), "1.1.1.1".parse().expect("v4"));
        let bytes = request(DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, family, id);
        assert_eq!(header(&bytes), Some((72, DESTROY)));
        assert_eq!(bytes[6..8], 5_u16.to_ne_bytes());
        assert_eq!(bytes[16..20], [V4, 6, 0, 0]);
        assert_eq!(bytes[24..], id.0);
        for (state, wanted) in [(1, true), (2, true), (8, true), (6, false), (7, false), (10, false)] {
            assert_eq!(STATES >> state & 1 == 1, wanted, "{state}");
        }
    }

    #[test]
    fn it_is_seen_whether_there_is_anything_to_list() {
        let text = "sockets: used 7\nTCP: inuse 0 orphan 0 tw 3 alloc 0 mem 0\nUDP: inuse 2 mem 0\n";
        assert!(is_unused(text));
        assert!(is_unused("TCP6: inuse 0\nUDP6: inuse 5\n"));
        // Unknown is not none.
        for text in ["", "TCP: inuse 10 orphan 0", "TCP6: inuse 1\n", "UDP6: inuse 0\n", "TCP: inuse"] {
            assert!(!is_unused(text), "{text}");
        }
    }

    /// In a network of its own, where the kernel and our rights allow one.
    #[test]
    fn a_connection_to_elsewhere_is_ended_and_a_local_one_is_not() {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
            return;
        }
        // All of 10/8 is this machine; what matters is that the two ends have different addresses.
        crate::ioctl::address_loopback(Ipv4Addr::new(10, 0, 0, 1)).expect("an address");
        let connect = |own: &str, other: &str| {
            let listener = TcpListener::bind(format!("{other}:0")).expect("a listener");
            let near = connect_from(own, listener.local_addr().expect("an address"));
            (near, listener.accept().expect("a connection").0, listener)
        };
        let (mut far_away, _other_end, _listener) = connect("10.0.0.1", "10.0.0.2");
        let (mut at_home, mut home_end, listener) = connect("10.0.0.1", "10.0.0.1");
        match end_connections() {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            // Both ends of the one are here; the second may have heard of it from the first.
            ended => assert_ne!(ended.expect("ended"), 0),
        }
        let error = far_away.read(&mut [0]).expect_err("an error at once");
        // Its own end, or the word of the other one, which the kernel may have listed first.
        let at_once = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset];
        assert!(at_once.contains(&error.kind()), "{error}");
        home_end.write_all(b"x").expect("written");
        at_home.read_exact(&mut [0]).expect("read");
        assert_eq!(end_connections().expect("nothing is left"), 0);
        TcpStream::connect(listener.local_addr().expect("an address")).expect("it still listens");
    }

    proptest! {
        #[test]
        fn what_the_kernel_lists_is_found(ids in proptest::collection::vec((any::<bool>(), any::<[u8; ID]>().no_shrink()), 0..20), errno in 0_i32..200) {
            let ids: Vec<_> = ids.into_iter().map(|(is_v4, id)| (if is_v4 { V4 } else { V6 }, SocketId(id))).collect();
            let mut bytes: Vec<u8> = ids.iter().flat_map(|(family, id)| shown(*family, *id)).collect();
            bytes.extend(message(1, &[1, 2, 3]));
            bytes.extend(message(ERROR, &(-errno).to_ne_bytes()));
            bytes.extend(message(DONE, &[]));
            let mut expected: Vec<_> = ids.into_iter().map(|(family, id)| Message::Socket { family, id }).collect();
            expected.extend([Message::Error(errno), Message::Done]);
            prop_assert_eq!(parse(&bytes), expected);
        }

        #[test]
        fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..100_usize) {
            let count = parse(&bytes).len();
            prop_assert!(count <= bytes.len() / HEADER);
            let (family, id) = id("10.0.2.15".parse().expect("v4"), "1.1.1.1".parse().expect("v4"));
            let mut whole = shown(family, id);
            whole.truncate(whole.len() - 1 - cut.min(whole.len() - 1));
            prop_assert!(parse(&whole).is_empty());
        }
    }
}
