//! Questions to the resolvers upstream: UDP, and TCP for what does not fit.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::op::{Message, Query, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::egress::limits;

/// The resolvers of the node's host. Their sockets are made wherever the node runs, not in a sandbox's namespace.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    servers: Vec<SocketAddr>,
    timeout: Duration,
}

/// A question that nobody upstream answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("no upstream resolver is known; give the node one, or name one in /etc/resolv.conf")]
    None,
    #[error("upstream resolver {server} does not answer")]
    Silent { server: SocketAddr },
    #[error("cannot ask upstream resolver {server}")]
    Io { server: SocketAddr, source: io::Error },
    #[error("upstream resolver {server} answers {code}")]
    Refused { server: SocketAddr, code: ResponseCode },
    #[error("cannot write the question")]
    Question,
}

impl Upstream {
    /// These resolvers, the first of them preferred.
    pub(crate) fn new(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        let servers = servers.into_iter().take(limits::UPSTREAMS_MAX).collect();
        Self { servers, timeout: limits::UPSTREAM_TIMEOUT }
    }

    /// The resolvers that a `resolv.conf` names.
    pub(crate) fn from_resolv_conf(text: &str) -> Self {
        Self::new(text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
            // A zone (`fe80::1%eth0`) is left out: no address without it is reachable.
            address.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53))
        }))
    }

    #[cfg(test)]
    pub(super) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Asks until one of them says something definite.
    pub(super) async fn ask(&self, question: &Query) -> Result<Message, UpstreamError> {
        let mut last = UpstreamError::None;
        for _ in 0..limits::UPSTREAM_ATTEMPTS {
            for server in &self.servers {
                match timeout(self.timeout, exchange(*server, question)).await {
                    Ok(Ok(answer)) => match answer.metadata.response_code {
                        ResponseCode::NoError | ResponseCode::NXDomain => return Ok(answer),
                        code => last = UpstreamError::Refused { server: *server, code },
                    },
                    Ok(Err(error)) => last = error,
                    Err(_) => last = UpstreamError::Silent { server: *server },
                }
            }
        }
        Err(last)
    }
}

async fn exchange(server: SocketAddr, question: &Query) -> Result<Message, UpstreamError> {
    // The id is random, and so is the port that the kernel picks: both make a forged answer improbable.
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(question.clone());
    let mut edns = hickory_proto::op::Edns::new();
    edns.set_max_payload(limits::UDP_ANSWER_MAX);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(|_| UpstreamError::Question)?;
    let failed = |source| UpstreamError::Io { server, source };
    let answer = over_udp(server, &bytes, message.metadata.id, question).await.map_err(failed)?;
    if answer.metadata.truncation {
        return over_tcp(server, &bytes, message.metadata.id, question).await.map_err(failed);
    }
    Ok(answer)
}

async fn over_udp(server: SocketAddr, bytes: &[u8], id: u16, question: &Query) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not fit is somebody's guess at our question; the true answer may yet come.
        if let Some(answer) = buffer.get(..length).and_then(|bytes| fitting(bytes, id, question)) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8], id: u16, question: &Query) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    fitting(&buffer, id, question)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer does not fit the question"))
}

/// The message, if it answers this question.
fn fitting(bytes: &[u8], id: u16, question: &Query) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let asked = |query: &Query| {
        query.name == question.name
            && query.query_type == question.query_type
            && query.query_class == question.query_class
    };
    let is_answer = answer.metadata.message_type == hickory_proto::op::MessageType::Response;
    let fits = is_answer && answer.metadata.id == id && answer.queries.len() == 1 && answer.queries.iter().all(asked);
    fits.then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.0.2\nnameserver\t2001:db8::1\nnameserver fe80::1%eth0\n\
                    nameserver\nnameserver x\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        let expected: Vec<SocketAddr> = ["10.0.0.2:53", "[2001:db8::1]:53", "1.1.1.1:53"]
            .map(|server| server.parse().expect("an address"))
            .to_vec();
        assert_eq!(Upstream::from_resolv_conf(text).servers, expected);
    }
}
