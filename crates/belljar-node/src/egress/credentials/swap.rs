//! What becomes of the head of one request. No I/O.
//!
//! A placeholder is swapped where its secret is bound to the host and to the header. One that is left after that, in any
//! header or in the target, refuses the request: whoever sent it expects a secret there, and must not believe that it
//! went out.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use belljar_api::secret::PLACEHOLDER_PREFIX;
use http::{HeaderName, HeaderValue, header, request::Parts};

use super::Bound;
use crate::egress::limits;

/// A placeholder where none may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stray {
    /// In this header.
    Header(HeaderName),
    /// In path or query.
    Target,
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "a secret's placeholder in the header {name}, to which it is not bound"),
            Self::Target => f.write_str("a secret's placeholder in the URL, where no secret may be"),
        }
    }
}

/// Puts secrets in the place of their placeholders. On error the request must not be sent.
pub(super) fn swap(head: &mut Parts, secrets: &[&Bound]) -> Result<(), Stray> {
    if head.uri.path_and_query().is_some_and(|target| contains(target.as_str().as_bytes())) {
        return Err(Stray::Target);
    }
    for (name, value) in &mut head.headers {
        for secret in secrets.iter().filter(|secret| secret.headers.contains(name)) {
            if let Some(swapped) = swapped(name, value, secret) {
                *value = swapped;
            }
        }
        if contains(value.as_bytes()) || basic(name, value).is_some_and(|text| contains(&text)) {
            return Err(Stray::Header(name.clone()));
        }
    }
    Ok(())
}

fn swapped(name: &HeaderName, value: &HeaderValue, secret: &Bound) -> Option<HeaderValue> {
    let text = match basic(name, value) {
        Some(text) => format!("Basic {}", BASE64_STANDARD.encode(replaced(&text, secret)?)),
        None => replaced(value.as_bytes(), secret)?,
    };
    let mut swapped = HeaderValue::from_bytes(text.as_bytes()).ok()?;
    swapped.set_sensitive(true);
    Some(swapped)
}

/// The user and password of `Authorization: Basic` (RFC 7617).
fn basic(name: &HeaderName, value: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, rest) = value.as_bytes().split_at_checked("basic ".len())?;
    let is_basic = *name == header::AUTHORIZATION && scheme.eq_ignore_ascii_case(b"basic ");
    if is_basic { BASE64_STANDARD.decode(rest.trim_ascii()).ok() } else { None }
}

/// The text with the secret in it; `None` leaves the placeholder, which then refuses the request.
fn replaced(text: &[u8], secret: &Bound) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let count = text.matches(&secret.placeholder).count();
    // A short header must not become one that takes all memory.
    if count == 0 || text.len() + count * secret.value.reveal().len() > limits::SWAPPED_HEADER_MAX {
        return None;
    }
    Some(text.replace(&secret.placeholder, secret.value.reveal()))
}

fn contains(text: &[u8]) -> bool {
    find(text, PLACEHOLDER_PREFIX.as_bytes())
}

fn find(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use belljar_api::{node::Secret, secret::SecretValue};
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn bound(name: &str, value: &str, headers: &[&str]) -> Bound {
        Bound::new(Secret {
            name: name.into(),
            placeholder: format!("{PLACEHOLDER_PREFIX}{name}"),
            value: SecretValue::new(value.into()),
            hosts: vec!["api.example".into()],
            headers: headers.iter().map(|header| (*header).to_owned()).collect(),
        })
        .expect("a secret")
    }

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = headers.iter().fold(Request::get(uri), |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    /// What goes out: the header's value, or why nothing does.
    #[track_caller]
    fn check(uri: &str, headers: &[(&str, &str)], expected: Result<&str, &str>) {
        let secrets = [bound("aaa", "hunter2", &["authorization"]), bound("bbb", "s3cret", &["x-api-key"])];
        let mut parts = head(uri, headers);
        let result = swap(&mut parts, &secrets.iter().collect::<Vec<_>>());
        match (result, expected) {
            (Ok(()), Ok(value)) => assert_eq!(parts.headers[headers[0].0], value),
            (Err(stray), Err(words)) => assert!(stray.to_string().contains(words), "{stray}"),
            (got, expected) => panic!("{headers:?}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_placeholder_is_swapped_in_its_header() {
        check("/", &[("authorization", "belljar-secret-aaa")], Ok("hunter2"));
        check("/", &[("authorization", "Bearer belljar-secret-aaa")], Ok("Bearer hunter2"));
        check("/", &[("authorization", "k=belljar-secret-aaa,belljar-secret-aaa")], Ok("k=hunter2,hunter2"));
        check("/", &[("x-api-key", "belljar-secret-bbb")], Ok("s3cret"));
        check("/", &[("authorization", "Bearer something else")], Ok("Bearer something else"));
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        check("/", &[("authorization", &basic("me:belljar-secret-aaa"))], Ok(&basic("me:hunter2")));
    }

    #[test]
    fn a_placeholder_anywhere_else_refuses_the_request() {
        check("/", &[("x-api-key", "belljar-secret-aaa")], Err("in the header x-api-key"));
        check("/", &[("cookie", "a=belljar-secret-bbb")], Err("in the header cookie"));
        check("/", &[("authorization", "belljar-secret-ccc")], Err("in the header authorization"));
        check("/", &[("authorization", "belljar-secret-aaa belljar-secret-bbb")], Err("authorization"));
        check("/", &[("authorization", &"belljar-secret-aaa".repeat(5000))], Err("authorization"));
        check("/?key=belljar-secret-aaa", &[("accept", "*/*")], Err("in the URL"));
        check("/belljar-secret-aaa", &[("accept", "*/*")], Err("in the URL"));
        let basic = format!("Basic {}", BASE64_STANDARD.encode("me:belljar-secret-bbb"));
        check("/", &[("authorization", &basic)], Err("authorization"));
    }

    proptest! {
        /// Whatever a guest writes: no placeholder goes out, and a secret only in a header that it is bound to.
        #[test]
        fn nothing_strays(values in prop::collection::vec("[ -~]{0,6}(belljar-secret-(aaa|bbb|zzz))?[ -~]{0,6}", 1..4)) {
            let names = ["authorization", "x-api-key", "accept"];
            let headers: Vec<_> = names.iter().copied().zip(values.iter().map(String::as_str)).collect();
            let secrets = [bound("aaa", "hunter2", &["authorization"]), bound("bbb", "s3cret", &["x-api-key"])];
            let mut parts = head("/", &headers);
            if swap(&mut parts, &secrets.iter().collect::<Vec<_>>()).is_ok() {
                for (name, value) in &parts.headers {
                    prop_assert!(!contains(value.as_bytes()));
                    let has = |word: &str| find(value.as_bytes(), word.as_bytes());
                    prop_assert!(!has("hunter2") || name == "authorization");
                    prop_assert!(!has("s3cret") || name == "x-api-key");
                }
            }
        }
    }
}
