//! Secrets: credentials that a sandbox uses and never has.
//!
//! A secret is bound to hosts and headers. A sandbox that names it finds a **placeholder** in its environment, under the
//! secret's name; where a request to one of the hosts carries the placeholder in one of the headers, the node puts the
//! secret in its place. The value is taken once and never shown again.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{limits, network::Target, sandbox::Invalid};

/// What every placeholder begins with: by that a stray one is known.
pub const PLACEHOLDER_PREFIX: &str = "belljar-secret-";
/// Where a secret goes that names no header.
pub const DEFAULT_HEADER: &str = "authorization";
/// Headers that say how a message is carried, or to whom: no secret goes there.
const RESERVED_HEADERS: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A value that no log, no error and no debugger's line shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct SecretValue(String);

impl SecretValue {
    /// Hides a text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text. Whoever takes it must not write it anywhere.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// One secret of the body of `PUT /platform/v1/secrets`. What is left out stays as it is; a new one needs a value.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PutSecret {
    /// Name: that of an environment variable.
    pub name: String,
    /// The credential itself, as it stands in the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<SecretValue>,
    /// Host names and `*.suffix`es to which it may go, over HTTPS. Without any no sandbox can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Headers in which it may stand; `authorization` when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<String>>,
}

/// Body of `PUT /platform/v1/secrets`: one, or several, all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PutSecrets {
    /// Several.
    Many(Vec<PutSecret>),
    /// One.
    One(PutSecret),
}

/// A secret as lists show it: without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretInfo {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it may go.
    pub hosts: Vec<String>,
    /// In which headers.
    pub headers: Vec<String>,
    /// When it was first put, RFC 3339.
    pub created_at: String,
    /// When it last changed, RFC 3339.
    pub updated_at: String,
}

/// Answer of `GET /platform/v1/secrets`, and of a `PUT` of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretList {
    /// By name.
    pub items: Vec<SecretInfo>,
    /// There is one page.
    pub pagination: SecretPage,
}

/// Where the next page of secrets begins: there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct SecretPage {
    /// Always null.
    pub next: Option<String>,
}

/// A secret as a sandbox knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Name of the secret, and of the environment variable.
    pub name: String,
    /// Value of the variable.
    pub placeholder: String,
}

impl PutSecret {
    /// Checks everything that needs no look at the world, and gives names and headers their only spelling.
    pub fn check(&mut self) -> Result<(), Invalid> {
        check_name(&self.name)?;
        if let Some(value) = &self.value {
            check_value(value.reveal())?;
        }
        if let Some(hosts) = &mut self.hosts {
            at_most("hosts", hosts.len(), limits::SECRET_HOSTS_MAX)?;
            for host in hosts.iter_mut() {
                *host = check_host(host)?;
            }
            hosts.sort_unstable();
            hosts.dedup();
        }
        if let Some(headers) = &mut self.headers {
            at_most("headers", headers.len(), limits::SECRET_HEADERS_MAX)?;
            if headers.is_empty() {
                headers.push(DEFAULT_HEADER.to_owned());
            }
            for header in headers.iter_mut() {
                *header = check_header(header)?;
            }
            headers.sort_unstable();
            headers.dedup();
        }
        Ok(())
    }
}

fn refuse<T>(field: &'static str, message: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { field, message: message.into() })
}

fn at_most(field: &'static str, count: usize, max: usize) -> Result<(), Invalid> {
    if count > max { refuse(field, format!("{count} entries; a secret has at most {max}")) } else { Ok(()) }
}

/// Refuses what is not the name of an environment variable.
fn check_name(name: &str) -> Result<(), Invalid> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !starts || !is_word || name.len() > limits::SECRET_NAME_MAX {
        let shown: String = name.chars().take(limits::ENTRY_QUOTE).collect();
        let rule = "is not the name of an environment variable; use letters, digits and _";
        return refuse("name", format!("{shown:?} {rule}, at most {} of them", limits::SECRET_NAME_MAX));
    }
    Ok(())
}

/// The words never hold the value.
fn check_value(value: &str) -> Result<(), Invalid> {
    if value.is_empty() || value.len() > limits::SECRET_VALUE_MAX {
        return refuse("value", format!("it has {} bytes; give 1 to {}", value.len(), limits::SECRET_VALUE_MAX));
    }
    if value.chars().any(char::is_control) {
        return refuse(
            "value",
            "it has line breaks or control characters, which no HTTP header can carry; leave them out",
        );
    }
    if value.starts_with(' ') || value.ends_with(' ') {
        return refuse("value", "it begins or ends with a space, which no HTTP header keeps; leave that out");
    }
    if value.contains(PLACEHOLDER_PREFIX) {
        return refuse("value", format!("it has {PLACEHOLDER_PREFIX:?} in it: that is a placeholder, not a secret"));
    }
    Ok(())
}

fn check_host(host: &str) -> Result<String, Invalid> {
    let shown: String = host.chars().take(limits::ENTRY_QUOTE).collect();
    match host.parse::<Target>() {
        Ok(target @ (Target::Host(_) | Target::Below(_))) => Ok(target.to_string()),
        Ok(Target::Net(_)) => {
            refuse("hosts", format!("{shown:?} is an address; a secret is bound to names, which HTTPS can prove"))
        }
        Err(error) => refuse("hosts", format!("{shown:?}: {error}")),
    }
}

fn check_header(header: &str) -> Result<String, Invalid> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let shown: String = header.chars().take(limits::ENTRY_QUOTE).collect();
    let name = header.to_ascii_lowercase();
    if name.is_empty() || name.len() > limits::SECRET_NAME_MAX || !name.bytes().all(is_token) {
        return refuse("headers", format!("{shown:?} is not the name of an HTTP header; write it like x-api-key"));
    }
    if RESERVED_HEADERS.contains(&name.as_str()) {
        return refuse("headers", format!("{shown:?} says how a request travels; a secret cannot stand there"));
    }
    Ok(name)
}

/// Checks the secrets that a sandbox asks for: their form, not whether they exist.
pub fn check_names(names: &[String]) -> Result<(), Invalid> {
    if names.len() > limits::SECRETS_PER_SANDBOX_MAX {
        let message = format!("{} names; a sandbox uses at most {}", names.len(), limits::SECRETS_PER_SANDBOX_MAX);
        return refuse("secret_names", message);
    }
    let check =
        |name: &String| check_name(name).map_err(|error| Invalid { field: "secret_names", message: error.message });
    names.iter().try_for_each(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(value: &str, hosts: &[&str], headers: &[&str]) -> PutSecret {
        let all = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
        let value = Some(SecretValue::new(value.to_owned()));
        PutSecret { name: "API_KEY".into(), value, hosts: all(hosts), headers: all(headers) }
    }

    /// Hosts and headers as they are kept, or a piece of what is said about them.
    #[track_caller]
    fn check(mut given: PutSecret, expected: Result<(&[&str], &[&str]), &str>) {
        let checked = given.check();
        match (checked, expected) {
            (Ok(()), Ok((hosts, headers))) => {
                assert_eq!(given.hosts.unwrap_or_default(), hosts);
                assert_eq!(given.headers.unwrap_or_default(), headers);
            }
            (Err(error), Err(words)) => {
                let text = error.to_string();
                assert!(text.contains(words), "{text}");
                assert!(!text.contains("hunter2"), "the value is in the error: {text}");
            }
            (got, expected) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_secret_has_one_spelling() {
        check(
            secret("hunter2", &["API.example.com.", "*.Example.org", "api.example.com"], &["X-Api-Key"]),
            Ok((&["*.example.org", "api.example.com"], &["x-api-key"])),
        );
        check(secret("hunter2", &[], &[]), Ok((&[], &["authorization"])));
    }

    #[test]
    fn what_cannot_be_one_is_refused_and_never_quoted() {
        check(secret("", &[], &[]), Err("value: it has 0 bytes"));
        check(secret("hunter2\r\nx: y", &[], &[]), Err("line breaks"));
        check(secret("hunter2 ", &[], &[]), Err("a space"));
        check(secret(&"hunter2".repeat(9999), &[], &[]), Err("give 1 to"));
        check(secret("belljar-secret-abc", &[], &[]), Err("is a placeholder"));
        check(secret("hunter2", &["1.2.3.4"], &[]), Err("bound to names"));
        check(secret("hunter2", &["https://x.example"], &[]), Err("without scheme"));
        check(secret("hunter2", &["*"], &[]), Err("first labels"));
        check(secret("hunter2", &vec!["a.example"; 65], &[]), Err("at most 64"));
        check(secret("hunter2", &[], &["Host"]), Err("how a request travels"));
        check(secret("hunter2", &[], &["a b"]), Err("not the name of an HTTP header"));
        check(PutSecret { name: "A-B".into(), ..secret("hunter2", &[], &[]) }, Err("environment variable"));
        check(PutSecret { name: "1".into(), ..secret("hunter2", &[], &[]) }, Err("environment variable"));
    }

    #[test]
    fn a_value_is_not_shown() {
        let shown = format!("{:?}", secret("hunter2", &[], &[]));
        assert!(shown.contains("[secret]") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn one_and_several_are_told_apart() {
        let one: PutSecrets = serde_json::from_str(r#"{"name":"A","value":"b"}"#).expect("one");
        let many: PutSecrets = serde_json::from_str(r#"[{"name":"A","value":"b"}]"#).expect("several");
        assert!(matches!(one, PutSecrets::One(secret) if secret.hosts.is_none()));
        assert!(matches!(many, PutSecrets::Many(list) if list.len() == 1));
    }
}
