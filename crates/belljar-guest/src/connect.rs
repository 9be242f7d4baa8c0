//! Connections to the guest's own TCP ports: for the link's other ports and for health checks.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::TcpStream,
    time::timeout,
};

use crate::limits::{CONNECT_TIMEOUT, SPLICE_BUFFER};

/// Connects to 127.0.0.1, or to `[::1]` when nobody listens there.
pub(crate) async fn connect_local(port: u16) -> io::Result<TcpStream> {
    let connect = async {
        match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
            Ok(stream) => Ok(stream),
            // The first error is the one to tell: a guest may have no IPv6 at all.
            Err(error) => TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await.map_err(|_| error),
        }
    };
    let stream = timeout(CONNECT_TIMEOUT, connect).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Carries bytes both ways until both directions have ended. When the link breaks off, or this is dropped, the local
/// program sees a reset; when the program does, the link's end is the caller's to drop.
pub(crate) async fn splice(link: &mut (impl AsyncRead + AsyncWrite + Unpin), mut tcp: TcpStream) -> io::Result<()> {
    tcp.set_zero_linger()?;
    copy_bidirectional_with_sizes(link, &mut tcp, SPLICE_BUFFER, SPLICE_BUFFER).await?;
    // What was written last may still be on its way.
    SockRef::from(&tcp).set_linger(None)
}
