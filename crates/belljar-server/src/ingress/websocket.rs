//! WebSockets that come over HTTP/2 (RFC 8441): the guest sees the HTTP/1.1 handshake that it knows.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use hyper::ext::Protocol;

/// Whether a request asks for a WebSocket by an extended `CONNECT`.
pub(crate) fn is_extended<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT
        && request.extensions().get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Makes the handshake of HTTP/1.1 of it.
pub(super) fn to_http1<B>(request: &mut Request<B>) {
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    // It proves to a client that the server knows the protocol; here we are the client, and the guest may lie anyway.
    if let Ok(key) = HeaderValue::from_str(&STANDARD.encode(rand::random::<[u8; 16]>())) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
}

/// Takes from the answer what only belongs to that handshake.
pub(super) fn to_http2(headers: &mut HeaderMap) {
    headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    headers.remove(header::CONNECTION);
    headers.remove(header::UPGRADE);
}
