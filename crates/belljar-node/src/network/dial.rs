//! How the proxy of a sandbox reaches hosts: by the sandbox's resolver and policy, and from the sandbox's namespace, so that
//! what the host keeps from sandboxes is kept from it too.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
};

use async_trait::async_trait;
use belljar_api::network::HostName;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{NetworkError, slot};
use crate::{
    blocking, chain,
    egress::{
        credentials::{Dial, DialError},
        resolver::{Resolver, Unreachable},
    },
    limits::DIAL_TIMEOUT,
};

/// The way out of one network.
pub(super) struct Dialer {
    pub(super) number: u32,
    pub(super) resolver: Resolver,
}

#[async_trait]
impl Dial for Dialer {
    async fn dial(&self, host: &HostName, port: u16) -> Result<TcpStream, DialError> {
        let addresses = self.resolver.reach(host).await.map_err(|why| match why {
            Unreachable::Policy(reason) => DialError::Forbidden(format!("{host}: {reason}")),
            Unreachable::Name(_) => DialError::Unreachable(format!("{host}: {why}")),
        })?;
        let mut last = "it has no IPv4 address".to_owned();
        for address in addresses {
            match self.connect(address, port).await {
                Ok(stream) => return Ok(stream),
                Err(why) => last = format!("{address}: {why}"),
            }
        }
        Err(DialError::Unreachable(format!("{host}: {last}")))
    }
}

impl Dialer {
    async fn connect(&self, address: Ipv4Addr, port: u16) -> Result<TcpStream, String> {
        let number = self.number;
        // A socket stays in the network in which it was made.
        let socket = blocking(move || slot::enter(number, open)).await.map_err(|error| chain(&error))?;
        let socket = TcpSocket::from_std_stream(socket.into());
        let at = SocketAddr::V4(SocketAddrV4::new(address, port));
        match timeout(DIAL_TIMEOUT, socket.connect(at)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {DIAL_TIMEOUT:?}")),
        }
    }
}

fn open() -> Result<OwnedFd, NetworkError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Stream, flags, None)
        .map_err(|error| NetworkError::io("open a socket of the proxy")(error.into()))
}
