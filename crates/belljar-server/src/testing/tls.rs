//! TLS: which certificate is shown, which HTTP is spoken over it, and what happens when the files change.

use std::{fs, path::Path, sync::Arc};

use axum::body::Body;
use http::{Request, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Harness, config, node::FakeNode};
use crate::{TlsError, TlsFiles, TlsSource, prepare};

fn files(dir: &Path) -> TlsFiles {
    TlsFiles { certificate: dir.join("cert.pem"), key: dir.join("key.pem") }
}

/// A certificate of its own making for a name, and its key.
fn issue(name: &str) -> (String, String) {
    let issued = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
    (issued.cert.pem(), issued.signing_key.serialize_pem())
}

async fn start(certificate: &str, key: &str) -> (Harness, FakeNode) {
    let dir = tempfile::tempdir().expect("directory");
    let files = files(dir.path());
    fs::write(&files.certificate, certificate).expect("certificate");
    fs::write(&files.key, key).expect("key");
    let config = crate::ServerConfig { tls: Some(TlsSource::Files(files)), ..config(dir.path()) };
    let (harness, node) = (Harness::on(dir, config, None).await, FakeNode::new());
    node.connect(&harness).await;
    (harness, node)
}

/// Connects as a client that trusts one certificate only.
pub(super) async fn dial(
    harness: &Harness,
    trusted: &str,
    name: &str,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).expect("PEM")).expect("root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(harness.tls_addr).await?;
    let name = ServerName::try_from(name.to_owned()).expect("name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn a_wildcard_serves_every_sandbox_in_the_protocol_that_the_client_chose() {
    let (certificate, key) = issue("*.sb.test");
    let (harness, _node) = start(&certificate, &key).await;
    let id = harness.create(r#"{"name":"web","exposed_ports":[8080]}"#).await;
    let authority = "8080-web.sb.test";
    for (alpn, version) in
        [(&["h2", "http/1.1"][..], Version::HTTP_2), (&["http/1.1"], Version::HTTP_11), (&[], Version::HTTP_11)]
    {
        let stream = dial(&harness, &certificate, authority, alpn).await.expect("handshake");
        let request = Request::get(format!("https://{authority}/x?y=1"))
            .header(header::AUTHORIZATION, format!("Bearer {}", harness.key))
            .version(version);
        let response = if version == Version::HTTP_2 {
            let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (mut send, connection) = client.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
            tokio::spawn(connection);
            send.send_request(request.body(Body::empty()).expect("request")).await
        } else {
            let (mut send, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
            tokio::spawn(connection);
            let request = request.uri("/x?y=1").header(header::HOST, authority);
            send.send_request(request.body(Body::empty()).expect("request")).await
        };
        let response = response.expect("answer");
        assert_eq!((response.status(), response.version()), (StatusCode::OK, version));
        let body = response.into_body().collect().await.expect("body").to_bytes();
        let seen: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((&seen["port"], &seen["uri"]), (&8080.into(), &"/x?y=1".into()));
        assert_eq!(seen["headers"]["x-forwarded-proto"], "https");
    }
    // Plain HTTP goes on where it was.
    assert_eq!(harness.get(&format!("/sandboxes/{id}")).await.status, 200);
}

#[tokio::test]
async fn changed_files_are_taken_over_once_they_fit() {
    let (first, first_key) = issue("sb.test");
    let (harness, _node) = start(&first, &first_key).await;
    let shows = async |certificate: &str| dial(&harness, certificate, "sb.test", &[]).await.is_ok();
    let files = files(harness.dir.path());
    let mut certificate = first.clone();
    for round in 0..3 {
        let (next, next_key) = issue("sb.test");
        // As tools do it: in place, or by a rename, the certificate first; in between the two do not fit.
        fs::write(harness.dir.path().join("new"), &next).expect("certificate");
        fs::rename(harness.dir.path().join("new"), &files.certificate).expect("rename");
        assert!(shows(&certificate).await, "round {round}");
        fs::write(&files.key, &next_key).expect("key");
        while !shows(&next).await {}
        certificate = next;
    }
}

#[tokio::test]
async fn who_speaks_no_tls_or_says_nothing_is_let_go() {
    let (certificate, key) = issue("sb.test");
    let (harness, _node) = start(&certificate, &key).await;
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x00\x05hello", b""] {
        let mut stream = TcpStream::connect(harness.tls_addr).await.expect("connect");
        stream.write_all(bytes).await.expect("write");
        let mut seen = Vec::new();
        let _ = stream.read_to_end(&mut seen).await;
        assert!(!String::from_utf8_lossy(&seen).contains("HTTP"), "{seen:?}");
    }
    assert!(dial(&harness, &certificate, "sb.test", &[]).await.is_ok());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_at_the_start() {
    let (certificate, key) = issue("sb.test");
    let (_, other_key) = issue("sb.test");
    for (certificate, key, words) in [
        (None, Some(&key), "cannot read certificate"),
        (Some("junk".to_owned()), Some(&key), "cannot read certificate"),
        (Some(certificate.clone()), None, "cannot read private key"),
        (Some(certificate.clone()), Some(&certificate), "cannot read private key"),
        (Some(certificate.clone()), Some(&other_key), "give the key that it was issued for"),
    ] {
        let dir = tempfile::tempdir().expect("directory");
        let files = files(dir.path());
        certificate.iter().for_each(|text| fs::write(&files.certificate, text).expect("certificate"));
        key.iter().for_each(|text| fs::write(&files.key, text).expect("key"));
        let error = prepare(crate::ServerConfig { tls: Some(TlsSource::Files(files)), ..config(dir.path()) })
            .await
            .expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
        assert!(matches!(error, crate::ServerError::Tls(TlsError::Read { .. } | TlsError::Unusable { .. })));
    }
}
