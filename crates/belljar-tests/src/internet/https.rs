//! HTTPS on the small internet: a server that notes what it was told, and an authority of its own.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

use super::Seen;

/// Names for which the server can prove itself.
const NAMES: [&str; 3] = ["one.example", "two.example", "*.wild.example"];

/// Makes the authority, writes its certificate where hosts can trust it, and issues one for every name.
pub(super) fn make(certificate: &Path) -> Arc<ServerConfig> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).expect("a certificate");
    std::fs::write(certificate, own.pem()).expect("the certificate is written");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let issued = CertificateParams::new(NAMES.map(str::to_owned)).and_then(|params| params.signed_by(&key, &issuer));
    let chain = vec![CertificateDer::from(issued.expect("a certificate")), own.der().clone()];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    Arc::new(config.with_single_cert(chain, key).expect("a server"))
}

/// Serves until the process ends.
pub(super) fn serve(config: &Arc<ServerConfig>, seen: &Seen) {
    let listener = TcpListener::bind("0.0.0.0:443").expect("port 443");
    let (config, seen) = (config.clone(), seen.clone());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, seen) = (config.clone(), seen.clone());
            thread::spawn(move || answer(stream, config, &seen));
        }
    });
}

/// One request to a connection. The answer says only whether there was a credential, never which.
fn answer(stream: TcpStream, config: Arc<ServerConfig>, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    let head = lower_names(&String::from_utf8_lossy(&head));
    let body = if head.contains("\r\nauthorization:") { "with a credential" } else { "without a credential" };
    seen.lock().expect("what came").push(head);
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// Names of headers compare without case; what is in them does not.
fn lower_names(head: &str) -> String {
    let lower = |line: &str| match line.split_once(": ") {
        Some((name, value)) => format!("{}: {value}", name.to_lowercase()),
        None => line.to_owned(),
    };
    head.split("\r\n").map(lower).collect::<Vec<_>>().join("\r\n")
}
