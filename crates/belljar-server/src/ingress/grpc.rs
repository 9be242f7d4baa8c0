//! What is different for a gRPC call: which requests are one, and how it is told that it was refused here.
//!
//! A client of gRPC reads neither our status nor our JSON. The form of an answer that is nothing but a status, and what the
//! codes mean: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::error::ApiError;

/// The media type of a gRPC call; a `+proto` may follow.
const GRPC: &[u8] = b"application/grpc";

/// What `grpc-message` may not have as it is.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Whether a request has to reach the guest as HTTP/2.
pub(super) fn is_grpc(version: Version, headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    // Not gRPC-Web, which is made for HTTP/1.1.
    let is_whole = matches!(kind.get(GRPC.len()), None | Some(b'+' | b';' | b' '));
    version == Version::HTTP_2
        && is_whole
        && kind.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
}

/// The refusal of a call.
pub(super) fn refusal(error: ApiError) -> Response {
    if error.internal.is_some() {
        // The edge makes an answer of it that names the entry in the log.
        return error.into_response();
    }
    let message = utf8_percent_encode(&error.message, ESCAPED).to_string();
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(status(error.status)));
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", message);
    }
    response
}

/// The code of gRPC for a status of ours.
fn status(status: StatusCode) -> u16 {
    const UNKNOWN: u16 = 2;
    const INVALID_ARGUMENT: u16 = 3;
    const DEADLINE_EXCEEDED: u16 = 4;
    const NOT_FOUND: u16 = 5;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match status {
        StatusCode::BAD_REQUEST => INVALID_ARGUMENT,
        StatusCode::UNAUTHORIZED => UNAUTHENTICATED,
        StatusCode::FORBIDDEN => PERMISSION_DENIED,
        StatusCode::NOT_FOUND => NOT_FOUND,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => DEADLINE_EXCEEDED,
        StatusCode::TOO_MANY_REQUESTS => RESOURCE_EXHAUSTED,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_over_http2_goes_on_as_http2() {
        for (version, kind, expected) in [
            (Version::HTTP_2, "application/grpc", true),
            (Version::HTTP_2, "Application/gRPC+proto", true),
            (Version::HTTP_2, "application/grpc-web", false),
            (Version::HTTP_2, "application/json", false),
            (Version::HTTP_2, "application/grp", false),
            (Version::HTTP_11, "application/grpc", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().expect("value"))]);
            assert_eq!(is_grpc(version, &headers), expected, "{version:?} {kind}");
        }
        assert!(!is_grpc(Version::HTTP_2, &HeaderMap::new()));
    }
}
