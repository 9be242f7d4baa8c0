//! gRPC as most programs of the world speak it: `tonic` on both sides of the ingress. Its service is written by hand, so
//! that no protocol compiler is needed; messages are plain text.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut};
use futures_util::stream;
use http::uri::PathAndQuery;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::{
    Code, Request, Response, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    server::NamedService,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::service_fn;

use super::System;

const ONE: &str = "/belljar.Echo/One";
const MANY: &str = "/belljar.Echo/Many";

#[derive(Clone, Copy)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        String::from_utf8(bytes.into()).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// The program in the sandbox.
#[derive(Clone, Copy)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "belljar.Echo";
}

type HttpResponse = http::Response<tonic::body::Body>;

impl tower::Service<http::Request<tonic::body::Body>> for Echo {
    type Response = HttpResponse;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Text);
            Ok(match request.uri().path() {
                ONE => grpc.unary(service_fn(|request| ready(one(&request))), request).await,
                _ => grpc.server_streaming(service_fn(|request| ready(Ok(many(request)))), request).await,
            })
        })
    }
}

/// What was said, and what the headers said beside it.
fn one(request: &Request<String>) -> Result<Response<String>, Status> {
    let noted = request.metadata().get("x-note").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match request.get_ref().as_str() {
        "refuse" => Err(refusal()),
        text => Ok(Response::new(format!("{noted}{text}"))),
    }
}

/// Every word as a message of its own, and at `refuse` the end.
fn many(request: Request<String>) -> Response<stream::Iter<std::vec::IntoIter<Result<String, Status>>>> {
    let words = request.into_inner();
    let answer = words.split(' ').map(|word| if word == "refuse" { Err(refusal()) } else { Ok(word.to_owned()) });
    Response::new(stream::iter(answer.collect::<Vec<_>>()))
}

/// A status with all that one can have.
fn refusal() -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-why", "because".parse().unwrap());
    metadata.insert_bin("x-why-bin", tonic::metadata::MetadataValue::from_bytes(&[0, 255]));
    Status::with_details_and_metadata(Code::FailedPrecondition, "nö: 100 %", vec![1, 2, 3].into(), metadata)
}

#[track_caller]
fn check_refusal(status: &Status) {
    assert_eq!(
        (status.code(), status.message(), status.details()),
        (Code::FailedPrecondition, "nö: 100 %", &[1, 2, 3][..])
    );
    assert_eq!(status.metadata().get("x-why").unwrap(), "because");
    assert_eq!(status.metadata().get_bin("x-why-bin").unwrap().to_bytes().unwrap(), &[0, 255][..]);
}

#[track_caller]
fn check_ours(status: &Status, code: Code, words: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{status:?} does not say {words:?}");
}

/// A client of a port of a sandbox.
struct Client {
    grpc: tonic::client::Grpc<Channel>,
    key: String,
}

impl Client {
    async fn request(&mut self, text: &str) -> Request<String> {
        self.grpc.ready().await.unwrap();
        let mut request = Request::new(text.to_owned());
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.key).parse().unwrap());
        request.metadata_mut().insert("x-note", "noted: ".parse().unwrap());
        request
    }

    async fn one(&mut self, text: &str) -> Result<String, Status> {
        let request = self.request(text).await;
        let answer = self.grpc.unary(request, PathAndQuery::from_static(ONE), Text).await;
        answer.map(Response::into_inner)
    }

    /// The messages, and how it went in the end.
    async fn many(&mut self, text: &str) -> (Vec<String>, Result<(), Status>) {
        let request = self.request(text).await;
        let answer = self.grpc.server_streaming(request, PathAndQuery::from_static(MANY), Text).await;
        let (mut messages, mut seen) = (answer.unwrap().into_inner(), Vec::new());
        loop {
            match messages.message().await {
                Ok(Some(message)) => seen.push(message),
                Ok(None) => return (seen, Ok(())),
                Err(status) => return (seen, Err(status)),
            }
        }
    }
}

#[test]
fn grpc_goes_through_whole() {
    let system = System::start();
    let port = system.runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(Server::builder().add_service(Echo).serve_with_incoming(TcpIncoming::from(listener)));
        port
    });
    let id = system.create_with(&json!({"exposed_ports": [port]}));
    system.runtime.block_on(async {
        let server = Endpoint::from_shared(format!("http://{}", system.address)).unwrap();
        let server = server.origin(format!("http://{port}-{id}.localhost").parse().unwrap());
        let grpc = tonic::client::Grpc::new(server.connect().await.unwrap());
        let mut client = Client { grpc, key: system.key.clone() };

        assert_eq!(client.one("hello").await.unwrap(), "noted: hello");
        let large = "0123456789".repeat(300_000);
        assert!(client.one(&large).await.unwrap() == format!("noted: {large}"), "more than every window on the way");
        check_refusal(&client.one("refuse").await.unwrap_err());

        let (words, end) = client.many("a b c").await;
        assert_eq!(words, ["a", "b", "c"]);
        end.unwrap();
        let (words, end) = client.many("a b refuse c").await;
        assert_eq!(words, ["a", "b"]);
        check_refusal(&end.unwrap_err());

        // What the ingress refuses a client of gRPC understands, too.
        let key = std::mem::replace(&mut client.key, "no-key".into());
        check_ours(&client.one("hello").await.unwrap_err(), Code::Unauthenticated, "API key");
        client.key = key;
        assert_eq!(system.http().delete(&format!("/sandboxes/{id}")).status, 200);
        check_ours(&client.one("hello").await.unwrap_err(), Code::Unavailable, "has ended");
    });
}
