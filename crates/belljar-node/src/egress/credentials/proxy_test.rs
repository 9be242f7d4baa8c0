//! The proxy between a client that trusts the installation's authority and a host that does not know of it.

use std::{net::SocketAddr, sync::Arc};

use belljar_api::{
    node::{Credentials, Secret},
    secret::SecretValue,
};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::*;

const HOST: &str = "api.example";
const VALUE: &str = "hunter2";
const PLACEHOLDER: &str = "belljar-secret-aaa";

fn authority() -> (String, KeyPair, CertificateParams) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).expect("certificate").pem(), key, params)
}

fn roots_with(certificate: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")).expect("root");
    roots
}

/// Refuses some names, and leads the others to one server.
struct Straight(SocketAddr);

#[async_trait::async_trait]
impl Dial for Straight {
    async fn dial(&self, host: &HostName, port: u16) -> Result<tokio::net::TcpStream, DialError> {
        assert_eq!(port, 443);
        match host.as_str() {
            "closed.example" => Err(DialError::Forbidden("closed.example: in deny_out".into())),
            "away.example" => Err(DialError::Unreachable("away.example: no answer".into())),
            _ => {
                tokio::net::TcpStream::connect(self.0).await.map_err(|error| DialError::Unreachable(error.to_string()))
            }
        }
    }
}

/// A host for every name, and the proxy in front of it.
struct World {
    safe: Arc<Safe>,
    proxy: Proxy,
    at: SocketAddr,
    trusted: String,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

fn credentials(certificate: &str, key: &KeyPair, value: &str) -> Credentials {
    let hosts = ["api.example", "*.wild.example", "closed.example", "away.example", "other.example"];
    Credentials {
        ca_certificate: certificate.to_owned(),
        ca_key: SecretValue::new(key.serialize_pem()),
        secrets: vec![Secret {
            name: "KEY".into(),
            placeholder: PLACEHOLDER.into(),
            value: SecretValue::new(value.into()),
            hosts: hosts.map(str::to_owned).to_vec(),
            headers: vec!["authorization".into()],
        }],
    }
}

/// Answers what it was sent, and becomes an echo when it is asked to.
async fn host(mut request: Request<hyper::body::Incoming>) -> hyper::Result<Response<Full<bytes::Bytes>>> {
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.expect("upgraded")));
            tokio::io::copy(&mut read, &mut write).await
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        let response = response.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "echo");
        return Ok(response.body(Full::default()).expect("response"));
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let header = |name| head.headers.get(name).map_or("-", |value| value.to_str().expect("text"));
    let text = format!(
        "{:?} {} {} host={} authorization={} te={} {}",
        head.version,
        head.method,
        head.uri.path(),
        header("host"),
        header("authorization"),
        header("te"),
        String::from_utf8_lossy(&body),
    );
    Ok(Response::builder().header(header::ALT_SVC, "h3=\":443\"").body(Full::from(text)).expect("response"))
}

async fn serve_host(
    certificate: &str,
    key: KeyPair,
    params: &CertificateParams,
    alpn: &[&str],
) -> (SocketAddr, AbortOnDropHandle<()>) {
    let own = KeyPair::generate().expect("key");
    let names = ["api.example", "a.wild.example", "other.example"].map(str::to_owned);
    let issued = CertificateParams::new(names).expect("names");
    let issued = issued.signed_by(&own, &Issuer::from_params(params, key)).expect("certificate");
    let own = PrivateKeyDer::from_pem_slice(own.serialize_pem().as_bytes()).expect("key");
    let versions = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let versions = versions.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    let chain = vec![issued.der().clone(), CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
    let mut tls = versions.with_single_cert(chain, own).expect("TLS");
    tls.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let at = listener.local_addr().expect("address");
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service_fn(host)).await;
            });
        }
    });
    (at, AbortOnDropHandle::new(task))
}

impl World {
    async fn start(alpn: &[&str]) -> Self {
        let (outer, outer_key, outer_params) = authority();
        let (host, host_task) = serve_host(&outer, outer_key, &outer_params, alpn).await;
        let (trusted, key, _) = authority();
        let safe = Arc::new(Safe::default());
        safe.replace(credentials(&trusted, &key, VALUE)).expect("credentials");
        let secrets = vec![SecretRef { name: "KEY".into(), placeholder: PLACEHOLDER.into() }];
        let allowance = Allowance::new(safe.clone(), secrets);
        let proxy = Proxy::new(allowance, Arc::new(Straight(host)), roots_with(&outer)).expect("proxy");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        let at = listener.local_addr().expect("address");
        let serving = proxy.clone();
        let task = tokio::spawn(async move {
            serving.serve(listener, tokio_util::sync::CancellationToken::new()).await.expect("serves");
        });
        Self { safe, proxy, at, trusted, _tasks: vec![host_task, AbortOnDropHandle::new(task)] }
    }

    async fn dial(
        &self,
        name: &str,
        alpn: &str,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let versions = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let versions = versions.with_safe_default_protocol_versions().expect("versions");
        let mut tls = versions.with_root_certificates(roots_with(&self.trusted)).with_no_client_auth();
        tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let stream = tokio::net::TcpStream::connect(self.at).await?;
        TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(name.to_owned()).expect("name"), stream).await
    }

    /// Status and text of the answer to a request in HTTP/1.1.
    async fn ask(&self, name: &str, request: Request<Full<bytes::Bytes>>) -> (u16, String) {
        let stream = TokioIo::new(self.dial(name, "http/1.1").await.expect("TLS"));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("handshake");
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        read(sender.send_request(request).await.expect("answer")).await
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> (u16, String) {
    assert!(!response.headers().contains_key(header::ALT_SVC), "the guest is led past the proxy");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn request(host: &str, authorization: &str) -> Request<Full<bytes::Bytes>> {
    let request = Request::post("/v1/chat?x=1").header(header::HOST, host);
    request.header(header::AUTHORIZATION, authorization).body(Full::from("question")).expect("request")
}

fn bearer(text: &str) -> String {
    format!("Bearer {text}")
}

/// What the host sees of a request to it, and what the guest is answered.
#[track_caller]
fn check((status, text): (u16, String), expected: u16, words: &str) {
    assert_eq!(status, expected, "{text}");
    assert!(text.contains(words), "{text:?} does not say {words:?}");
}

#[tokio::test]
async fn the_host_gets_the_secret_and_the_guest_never_had_it() {
    let world = World::start(&["http/1.1"]).await;
    let expected = "HTTP/1.1 POST /v1/chat host=api.example authorization=Bearer hunter2 te=- question";
    check(world.ask(HOST, request(HOST, &bearer(PLACEHOLDER))).await, 200, expected);
    check(world.ask(HOST, request("api.example:443", "Bearer mine")).await, 200, "authorization=Bearer mine");
    let wild = world.ask("a.wild.example", request("a.wild.example", &bearer(PLACEHOLDER))).await;
    check(wild, 200, "host=a.wild.example authorization=Bearer hunter2");
    assert_eq!(world.proxy.take_refusals(), Vec::<String>::new());
}

#[tokio::test]
async fn http_2_is_spoken_on_both_sides() {
    let world = World::start(&["h2", "http/1.1"]).await;
    let stream = TokioIo::new(world.dial(HOST, "h2").await.expect("TLS"));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("handshake");
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    for _ in 0..3 {
        let request = Request::post("https://api.example/grpc").header(header::TE, "trailers");
        let request = request.header(header::AUTHORIZATION, PLACEHOLDER).body(Full::<bytes::Bytes>::from("frame"));
        let request = request.expect("request");
        let answer = read(sender.send_request(request).await.expect("answer")).await;
        check(answer, 200, "HTTP/2.0 POST /grpc host=- authorization=hunter2 te=trailers frame");
    }
    let stray = Request::get("https://evil.example/").body(Full::<bytes::Bytes>::default()).expect("request");
    check(read(sender.send_request(stray).await.expect("answer")).await, 421, "another host");
}

#[tokio::test]
async fn what_may_not_go_out_is_refused_and_noted() {
    let world = World::start(&["http/1.1"]).await;
    let stray = Request::get("/").header(header::HOST, HOST).header("x-other", PLACEHOLDER);
    let stray = stray.body(Full::default()).expect("request");
    check(world.ask(HOST, stray).await, 403, "header x-other, to which it is not bound");
    let in_url = Request::get(format!("/?key={PLACEHOLDER}")).header(header::HOST, HOST);
    check(world.ask(HOST, in_url.body(Full::default()).expect("request")).await, 403, "in the URL");
    // One name in the handshake and another in the request: of two hosts behind the same address.
    check(world.ask(HOST, request("other.example", &bearer(PLACEHOLDER))).await, 421, "another host");
    check(world.ask("closed.example", request("closed.example", "x")).await, 403, "in deny_out");
    check(world.ask("away.example", request("away.example", "x")).await, 502, "no answer");
    let notes = world.proxy.take_refusals();
    assert_eq!(notes.len(), 4, "{notes:?}");
    assert!(notes[0].starts_with("blocked: https api.example, a secret's placeholder in the URL"), "{notes:?}");
    assert!(world.dial("evil.example", "http/1.1").await.is_err(), "a certificate for any name");
}

#[tokio::test]
async fn a_host_that_cannot_prove_its_name_gets_nothing() {
    let world = World::start(&["http/1.1"]).await;
    // Its certificate is for other names.
    let answer = world.ask("b.wild.example", request("b.wild.example", &bearer(PLACEHOLDER))).await;
    check(answer, 502, "certificate");
}

#[tokio::test]
async fn a_new_value_counts_at_once_and_a_removed_secret_is_gone() {
    let world = World::start(&["http/1.1"]).await;
    let key = KeyPair::generate().expect("key");
    world.safe.replace(credentials(&world.trusted, &key, "second")).expect("credentials");
    check(world.ask(HOST, request(HOST, &bearer(PLACEHOLDER))).await, 200, "authorization=Bearer second");
    let stream = TokioIo::new(world.dial(HOST, "http/1.1").await.expect("TLS"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("handshake");
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    world.safe.replace(Credentials { secrets: Vec::new(), ..credentials(&world.trusted, &key, "x") }).expect("none");
    let answer = sender.send_request(request(HOST, &bearer(PLACEHOLDER))).await.expect("answer");
    check(read(answer).await, 403, "a secret's placeholder in the header authorization");
    assert!(world.dial(HOST, "http/1.1").await.is_err(), "a certificate for a name without a secret");
}

#[tokio::test]
async fn a_connection_can_become_something_else() {
    let world = World::start(&["h2", "http/1.1"]).await;
    let mut stream = world.dial(HOST, "http/1.1").await.expect("TLS");
    let head = format!(
        "GET /socket HTTP/1.1\r\nhost: {HOST}\r\nauthorization: {PLACEHOLDER}\r\nconnection: keep-alive, Upgrade\r\nupgrade: echo\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("answer"));
    }
    let text = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(text.starts_with("http/1.1 101") && text.contains("upgrade: echo"), "{text}");
    stream.write_all(b"hello").await.expect("sent");
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.expect("echo");
    assert_eq!(&echo, b"hello");
}
