//! One pool of HTTP/1.1 connections, plain or in TLS: requests out, answers or [`Error`]s in.
//!
//! It knows addresses, keys, bodies and replays, and no route: those are in [`crate::client`] and [`crate::sandbox`].

use std::{io, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use url::{Host, Url};

use crate::{
    Error,
    limits::{
        CONNECT_TIMEOUT, ERROR_ANSWER_MAX, JSON_ANSWER_MAX, REPLAY_FIRST, REPLAY_MAX, REPLAY_TOTAL, REQUEST_TIMEOUT,
    },
    tls,
};

/// Body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What must not stand unescaped in a path segment.
const SEGMENT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'/').add(b'?').add(b'\\');

/// A path segment, escaped.
pub(crate) fn segment(text: &str) -> String {
    // A segment of dots would be resolved away by anything that normalizes the path.
    if text.bytes().all(|byte| byte == b'.') {
        return text.replace('.', "%2E");
    }
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A query value, escaped.
pub(crate) fn query_value(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Which plane a request goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plane<'a> {
    /// The server's own routes.
    Control,
    /// The agent of the sandbox with this id or name.
    Sandbox(&'a str),
}

/// A request that may be sent more than once.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) plane: Plane<'a>,
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) body: Option<Bytes>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(plane: Plane<'a>, method: Method, path: impl Into<String>) -> Self {
        Self { plane, method, path: path.into(), body: None, headers: Vec::new() }
    }

    /// With a JSON body.
    pub(crate) fn json<T: Serialize>(mut self, body: &T) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(body).map_err(|error| Error::protocol(self.what(), error.to_string()))?;
        self.body = Some(bytes.into());
        Ok(self.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json")))
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The request in words, for errors.
    pub(crate) fn what(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }
}

/// A server address with a key, and the connections to it.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    pool: Pool<HttpsConnector<HttpConnector>, Body>,
    base: Arc<Base>,
}

#[derive(Debug)]
struct Base {
    /// As given, without a trailing slash: for errors and for people.
    text: String,
    https: bool,
    loopback: bool,
    authorization: Option<HeaderValue>,
}

impl Transport {
    /// `ca` are certificates, PEM, that are trusted beside the system's.
    pub(crate) fn new(base_url: &str, key: Option<&str>, ca: Option<&[u8]>) -> Result<Self, Error> {
        let base = Base::parse(base_url, key)?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::config(base.https, ca)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { pool, base: Arc::new(base) })
    }

    /// The server's address, without a trailing slash.
    pub(crate) fn url(&self) -> &str {
        &self.base.text
    }

    /// Head of a request: address, key and the headers that route it to its plane.
    pub(crate) fn head(&self, plane: Plane<'_>, method: Method, path: &str) -> Result<http::request::Builder, Error> {
        let what = format!("{method} {path}");
        let uri: Uri = format!("{}{path}", self.base.text)
            .parse()
            .map_err(|error: http::uri::InvalidUri| Error::protocol(&what, error.to_string()))?;
        let mut builder = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::USER_AGENT, concat!("belljar/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.base.authorization {
            builder = builder.header(header::AUTHORIZATION, authorization);
        }
        builder = match plane {
            Plane::Sandbox(reference) if self.base.loopback => {
                builder.header(header::HOST, format!("{reference}.local"))
            }
            Plane::Sandbox(reference) => builder.header("x-tensorlake-sandbox-id", reference),
            Plane::Control => builder,
        };
        Ok(builder)
    }

    /// Sends a call, replaying it while the server says that it was not delivered. Answers that are no success become
    /// errors, unless `accept` takes their status.
    pub(crate) async fn send(
        &self,
        call: &Call<'_>,
        accept: impl Fn(StatusCode) -> bool,
    ) -> Result<Response<Incoming>, Error> {
        let (started, mut pause) = (Instant::now(), REPLAY_FIRST);
        loop {
            let mut builder = self.head(call.plane, call.method.clone(), &call.path)?;
            for (name, value) in &call.headers {
                builder = builder.header(name, value);
            }
            let body = Full::new(call.body.clone().unwrap_or_default()).map_err(|never| match never {});
            match self.once(builder, body.boxed_unsync(), call.what(), &accept).await {
                Err(error) if error.is_undelivered() && started.elapsed() + pause < REPLAY_TOTAL => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(REPLAY_MAX);
                }
                other => return other,
            }
        }
    }

    /// Sends a request whose body can be read only once, so it is never replayed. There is no time limit: the answer
    /// comes after the whole body, however long that takes.
    pub(crate) async fn send_stream(
        &self,
        plane: Plane<'_>,
        method: Method,
        path: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        let what = Call::new(plane, method.clone(), path).what();
        let mut builder = self.head(plane, method, path)?;
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let request = builder.body(body).map_err(|error| Error::protocol(&what, error.to_string()))?;
        let answer = self.pool.request(request).await.map_err(|error| self.failed(error, &what))?;
        check(answer, |_| false).await
    }

    async fn once(
        &self,
        builder: http::request::Builder,
        body: Body,
        what: String,
        accept: impl Fn(StatusCode) -> bool,
    ) -> Result<Response<Incoming>, Error> {
        let request = builder.body(body).map_err(|error| Error::protocol(&what, error.to_string()))?;
        match tokio::time::timeout(REQUEST_TIMEOUT, self.pool.request(request)).await {
            Err(_) => Err(Error::Timeout { what, seconds: REQUEST_TIMEOUT.as_secs() }),
            Ok(Err(error)) => Err(self.failed(error, &what)),
            Ok(Ok(answer)) => check(answer, accept).await,
        }
    }

    fn failed(&self, error: hyper_util::client::legacy::Error, what: &str) -> Error {
        if error.is_connect() {
            if let Some(refused) = tls::refusal(&error, &self.base.text) {
                return refused;
            }
            let url = self.base.text.clone();
            // The pool's own words ("client error (Connect)") say less than their cause.
            return match std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>()) {
                Some(cause) => Error::Connect { url, source: cause.to_string().into() },
                None => Error::Connect { url, source: innermost(&error).into() },
            };
        }
        Error::Transport { what: what.to_owned(), source: innermost(&error).into() }
    }

    /// Sends a call and reads its JSON answer.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let answer = self.send(&call, |_| false).await?;
        read_json(answer, call.what()).await
    }

    /// Sends a call whose answer has no content.
    pub(crate) async fn nothing(&self, call: Call<'_>) -> Result<(), Error> {
        let answer = self.send(&call, |_| false).await?;
        // Read to the end, so that the connection goes back to the pool.
        let _ = Limited::new(answer.into_body(), ERROR_ANSWER_MAX).collect().await;
        Ok(())
    }
}

/// The last cause of a chain, in words.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

async fn check(answer: Response<Incoming>, accept: impl Fn(StatusCode) -> bool) -> Result<Response<Incoming>, Error> {
    let status = answer.status();
    if status.is_success() || accept(status) {
        return Ok(answer);
    }
    let body = Limited::new(answer.into_body(), ERROR_ANSWER_MAX).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Err(Error::from_answer(status, &body))
}

/// Reads a JSON answer.
pub(crate) async fn read_json<T: DeserializeOwned>(answer: Response<Incoming>, what: String) -> Result<T, Error> {
    let body = Limited::new(answer.into_body(), JSON_ANSWER_MAX)
        .collect()
        .await
        .map_err(|source| Error::Transport { what: what.clone(), source })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| Error::protocol(what, error.to_string()))
}

impl Base {
    fn parse(base_url: &str, key: Option<&str>) -> Result<Self, Error> {
        let refuse = |problem| Error::Url { url: base_url.to_owned(), problem };
        let url =
            Url::parse(base_url).map_err(|_| refuse("is not an absolute URL; write it like http://127.0.0.1:8900"))?;
        match url.scheme() {
            "http" | "https" => {}
            _ => return Err(refuse("has an unknown scheme; write it like http://127.0.0.1:8900")),
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("has a query, a fragment or a user; leave only scheme, host, port and path"));
        }
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => return Err(refuse("names no host; write it like http://127.0.0.1:8900")),
        };
        let authorization = match key {
            None => None,
            Some(key) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| Error::Key)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let https = url.scheme() == "https";
        Ok(Self { text: url.as_str().trim_end_matches('/').to_owned(), https, loopback, authorization })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: Result<bool, &str>) {
        let got = Base::parse(url, Some("belljar_x"));
        match (&got, expected) {
            (Ok(base), Ok(loopback)) => assert_eq!(base.loopback, loopback, "{url}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{url}: {error}"),
            _ => panic!("{url}: {got:?}"),
        }
    }

    #[test]
    fn addresses_are_checked() {
        check("http://127.0.0.1:8900", Ok(true));
        check("http://localhost:8900/", Ok(true));
        check("http://[::1]:8900", Ok(true));
        check("http://10.0.0.5", Ok(false));
        check("https://belljar.example.com", Ok(false));
        check("https://localhost:8443", Ok(true));
        check("ftp://x", Err("unknown scheme"));
        check("127.0.0.1:8900", Err("not an absolute URL"));
        check("localhost:8900", Err("unknown scheme"));
        check("http://u:p@x", Err("a user"));
        check("http://x?y", Err("a query"));
    }

    #[test]
    fn a_key_with_a_line_break_is_refused_without_showing_it() {
        let error = Base::parse("http://x", Some("secret\nkey")).expect_err("key").to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn segments_and_values_are_escaped() {
        assert_eq!(segment("web server/1"), "web%20server%2F1");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(query_value("/tmp/a b&c"), "%2Ftmp%2Fa%20b%26c");
    }
}
