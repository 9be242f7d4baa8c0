//! What comes in from outside, checked in form: bodies, queries, namespaces, cursors, deadlines.

use std::time::Duration;

use axum::body::Body;
use belljar_api::{
    error::code,
    id::is_id,
    limits::{JSON_BODY_MAX, NAME_MAX_LEN},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::{
    error::ApiError,
    limits::{CREATE_WAIT_DEFAULT, CREATE_WAIT_MAX, DRAIN_MAX, IDEMPOTENCY_KEY_MAX, PAGE_MAX, STATE_WAIT_MAX},
    store::Place,
};

/// The whole body of a request to the server itself. It is read before anything is decided: a client that is still
/// sending when it is refused would see a broken connection instead of the answer. `None` when it is too large.
pub(super) async fn whole(mut body: Incoming) -> Result<Option<Bytes>, ApiError> {
    match Limited::new(&mut body, JSON_BODY_MAX).collect().await {
        Ok(whole) => return Ok(Some(whole.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => {}
        Err(error) => return Err(ApiError::invalid(format!("the body broke off: {error}"))),
    }
    let mut left = DRAIN_MAX;
    while let Some(Ok(frame)) = body.frame().await
        && left > 0
    {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
    }
    Ok(None)
}

/// What a body that is too large gets.
pub(super) fn too_large() -> ApiError {
    let words = format!("the body is over {JSON_BODY_MAX} bytes; files go to /api/v1/files");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, code::PAYLOAD_TOO_LARGE, words)
}

/// Reads a JSON body, which [`whole`] has capped. An empty one counts as `{}`, so that a request whose fields are all
/// optional needs none.
pub(super) async fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, ApiError> {
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Err(ApiError::invalid(format!("the body broke off: {error}"))),
    };
    if bytes.is_empty() {
        return parse(b"{}");
    }
    let kind = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let is_json = |kind: &str| {
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        kind == "application/json" || kind.ends_with("+json")
    };
    if let Some(kind) = kind
        && !is_json(kind)
    {
        let words = format!("the body is {kind:?}; send JSON with `Content-Type: application/json`");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code::UNSUPPORTED_MEDIA_TYPE, words));
    }
    parse(&bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data if path != "." => ApiError::invalid(format!("{path}: {inner}")),
            serde_json::error::Category::Data => ApiError::invalid(inner.to_string()),
            _ => ApiError::invalid(format!("the body is not JSON: {inner}")),
        }
    })?;
    reader.end().map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// The namespace in a path.
pub(super) fn check_namespace(namespace: &str) -> Result<String, ApiError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if namespace.is_empty() || namespace.len() > NAME_MAX_LEN || !namespace.bytes().all(allowed) {
        let shown: String = namespace.chars().take(80).collect();
        let rule = format!("use 1 to {NAME_MAX_LEN} of a-z, 0-9, - and _");
        return Err(ApiError::invalid(format!("namespace {shown:?} is not allowed; {rule}")));
    }
    Ok(namespace.to_owned())
}

/// A query string: keys may repeat, `+` is a space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        Self(url::form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The last value of a key; an empty one counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// Every value of a key.
    pub(crate) fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// A number in a range.
    pub(crate) fn number(&self, key: &str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let shown: String = text.chars().take(80).collect();
                let rule = format!("use a number from {} to {}", range.start(), range.end());
                Err(ApiError::invalid(format!("{key}: {shown:?} is not possible; {rule}")))
            }
        }
    }

    /// Whether something is wanted.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, ApiError> {
        match self.get(key) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::invalid(format!("{key}: use true or false"))),
        }
    }

    /// Most rows of a page.
    pub(crate) fn limit(&self) -> Result<Option<usize>, ApiError> {
        self.number("limit", 1..=PAGE_MAX)
    }

    /// Where a page begins.
    pub(crate) fn cursor(&self) -> Result<Option<Place>, ApiError> {
        let Some(text) = self.get("cursor") else { return Ok(None) };
        let place = text.split_once('-').and_then(|(at, id)| {
            let id = is_id(id).then(|| id.to_owned())?;
            Some(Place { at: at.parse().ok()?, id })
        });
        place.map(Some).ok_or_else(|| ApiError::invalid("cursor: use one from an earlier answer, unchanged"))
    }
}

/// A place as a client carries it around.
pub(super) fn cursor(place: &Place) -> String {
    format!("{}-{}", place.at, place.id)
}

/// The key under which a repeated request is the same one.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let allowed = |b: u8| b.is_ascii_graphic() || b == b' ';
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_MAX && key.bytes().all(allowed) => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(ApiError::invalid(format!("Idempotency-Key: use 1 to {IDEMPOTENCY_KEY_MAX} printable characters"))),
    }
}

/// How long a create may block: the client's own limit, less the grace in which it wants its answer.
pub(super) fn create_wait(headers: &HeaderMap) -> Result<Duration, ApiError> {
    Ok(patience(headers)?.unwrap_or(CREATE_WAIT_DEFAULT).min(CREATE_WAIT_MAX))
}

/// How long to wait for another state: what `wait_ms` asks for, no longer than the client waits for its answer.
pub(super) fn state_wait(query: &Query, headers: &HeaderMap) -> Result<Duration, ApiError> {
    let patience = patience(headers)?.unwrap_or(STATE_WAIT_MAX);
    let Some(text) = query.get("wait_ms") else { return Ok(Duration::ZERO) };
    let wait = text.parse().map(Duration::from_millis).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        ApiError::invalid(format!("wait_ms: {shown:?} is not possible; give milliseconds as a number"))
    })?;
    Ok(wait.min(patience).min(STATE_WAIT_MAX))
}

/// How long the client itself waits, less the grace in which it wants its answer.
fn patience(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let ms = |name: &'static str| match headers.get(name) {
        None => Ok(None),
        Some(value) => {
            let number = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
            number.map(Some).ok_or_else(|| ApiError::invalid(format!("{name}: give milliseconds as a number")))
        }
    };
    let (limit, grace) = (ms("x-tensorlake-request-timeout-ms")?, ms("x-tensorlake-request-timeout-grace-ms")?);
    Ok(limit.map(|limit| Duration::from_millis(limit.saturating_sub(grace.unwrap_or(0)))))
}

#[cfg(test)]
mod tests {
    use belljar_api::sandbox::CreateSandbox;

    use super::*;

    #[track_caller]
    fn check(body: &str, expected: &str) {
        match (parse::<CreateSandbox>(body.as_bytes()), expected) {
            (Ok(_), "") => {}
            (Ok(_), expected) => panic!("{body} was taken, not {expected}"),
            (Err(error), expected) => {
                assert!(!expected.is_empty() && error.message.contains(expected), "{body}: {}", error.message);
            }
        }
    }

    #[test]
    fn bad_json_names_the_place() {
        check("{}", "");
        check(r#"{"unknown":[1]}"#, "");
        check("{", "not JSON: EOF while parsing an object at line 1 column 1");
        check("{} x", "not JSON: trailing characters");
        check(r#"{"timeout_secs":"10"}"#, "timeout_secs: invalid type: string \"10\"");
        check(r#"{"timeout_secs":-1}"#, "timeout_secs: invalid value");
        check(r#"{"resources":{"cpus":"two"}}"#, "resources.cpus: invalid type");
        check(r#"{"exposed_ports":[80,70000]}"#, "exposed_ports[1]: invalid value");
        check(r#"[1]"#, "invalid type");
        check("7", "invalid type");
    }

    #[test]
    fn queries_repeat_and_decode() {
        let query = Query::parse("level=3&level=5&path=a+b%2Fc&limit=7&cursor=12-5gm9wex8dm6ko1ed441ya&empty=");
        assert_eq!(query.all("level").collect::<Vec<_>>(), ["3", "5"]);
        assert_eq!((query.get("path"), query.get("empty")), (Some("a b/c"), None));
        assert_eq!(query.limit(), Ok(Some(7)));
        let place = query.cursor().expect("cursor").expect("place");
        assert_eq!(cursor(&place), "12-5gm9wex8dm6ko1ed441ya");
        for bad in ["limit=0", "limit=x", "limit=5000"] {
            assert!(Query::parse(bad).limit().is_err(), "{bad}");
        }
        for bad in ["cursor=x", "cursor=1-x", "cursor=x-5gm9wex8dm6ko1ed441ya"] {
            assert!(Query::parse(bad).cursor().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_wait_is_the_clients_less_its_grace() {
        for (limit, grace, expected) in [
            (None, None, Some(300_000)),
            (Some("10000"), None, Some(10_000)),
            (Some("10000"), Some("2500"), Some(7_500)),
            (Some("100"), Some("2500"), Some(0)),
            (Some("99999999999"), None, Some(600_000)),
            (Some("soon"), None, None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in
                [("x-tensorlake-request-timeout-ms", limit), ("x-tensorlake-request-timeout-grace-ms", grace)]
            {
                value.map(|value| headers.insert(name, value.parse().unwrap()));
            }
            assert_eq!(create_wait(&headers).ok(), expected.map(Duration::from_millis));
        }
    }

    #[test]
    fn namespaces_are_checked() {
        assert!(check_namespace("default").is_ok());
        for bad in ["", "A", "a/b", "a.b", &"x".repeat(64)] {
            assert!(check_namespace(bad).is_err(), "{bad}");
        }
    }
}
