//! Who asks a registry: what the caller says, or what `docker login` has stored.
//!
//! Of `config.json` it knows `auths`, `credHelpers` and `credsStore`; a helper is asked as Docker asks it.

use std::{
    collections::BTreeMap,
    fmt, io,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::error::OciError;
use crate::{
    limits::{HELPER_LIMIT, MAX_ANSWER_BYTES, MAX_CONFIG_BYTES},
    record::read_bounded,
};

/// Name and password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub username: String,
    /// Password or access token.
    pub password: String,
}

/// Without the password: errors and logs print this.
impl fmt::Debug for Login {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The text of a `config.json` that somebody sent. Only its `auths` count: no program is run because of it.
#[derive(Clone, PartialEq, Eq)]
pub struct DockerAuths(String);

/// Without passwords: errors and logs print this.
impl fmt::Debug for DockerAuths {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("DockerAuths")
    }
}

impl DockerAuths {
    /// Takes the text as it was sent.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// What it says of `registry`, which is its name as users write it.
    pub(super) fn of(&self, registry: &str) -> Result<Credentials, OciError> {
        let failed = |reason: String| OciError::Credentials {
            registry: registry.to_owned(),
            from: "those that were sent".to_owned(),
            reason,
        };
        // The error's own words may quote a password.
        let config: DockerConfig = serde_json::from_str(&self.0).map_err(|error| {
            failed(format!("line {} column {} is not as in a `config.json`", error.line(), error.column()))
        })?;
        find(&config, registry).map_err(failed)
    }
}

/// What `auths` say of a registry.
fn find(config: &DockerConfig, registry: &str) -> Result<Credentials, String> {
    let found = keys(registry).iter().find_map(|key| config.auths.get(key)).map(of_auth);
    found.unwrap_or(Ok(Credentials::Anonymous))
}

/// How we say who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Not at all.
    #[default]
    Anonymous,
    Login(Login),
    /// A token with which to ask for others; the identity token of `docker login`.
    Refresh(String),
    /// A token for the registry itself.
    Bearer(String),
}

impl Credentials {
    /// For messages.
    pub(super) fn who(&self) -> String {
        match self {
            Self::Anonymous => "nobody".to_owned(),
            Self::Login(login) => format!("{:?}", login.username),
            Self::Refresh(_) | Self::Bearer(_) => "the holder of the stored token".to_owned(),
        }
    }
}

/// `config.json`, as far as it is about registries.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// `user:password` in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Auth")
    }
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Looks in Docker's directory for what it knows of `registry`, which is its name as users write it.
pub(super) fn stored(registry: &str, docker_dir: &Path) -> Result<Credentials, OciError> {
    let path = docker_dir.join("config.json");
    let failed = |reason: String| OciError::Credentials {
        registry: registry.to_owned(),
        from: path.display().to_string(),
        reason,
    };
    if !path.exists() {
        return Ok(Credentials::Anonymous);
    }
    let bytes = read_bounded(&path, MAX_CONFIG_BYTES).map_err(|error| failed(error.to_string()))?;
    let config: DockerConfig = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
    let keys = keys(registry);
    let helper = keys.iter().find_map(|key| config.cred_helpers.get(key)).or(config.creds_store.as_ref());
    if let Some(helper) = helper.filter(|helper| !helper.is_empty()) {
        // Docker's own store has one address for its hub.
        return ask(helper, registry, keys.last().map_or(registry, String::as_str));
    }
    find(&config, registry).map_err(failed)
}

/// Under which names `docker login` notes a registry; the last one is what a helper knows it by.
fn keys(registry: &str) -> Vec<String> {
    match registry {
        "docker.io" => ["docker.io", "registry-1.docker.io", "index.docker.io", "https://index.docker.io/v1/"]
            .map(str::to_owned)
            .to_vec(),
        other => {
            vec![format!("https://{other}"), format!("http://{other}"), format!("https://{other}/"), other.to_owned()]
        }
    }
}

fn of_auth(auth: &Auth) -> Result<Credentials, String> {
    let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(token) = said(&auth.registrytoken) {
        return Ok(Credentials::Bearer(token));
    }
    if let Some(token) = said(&auth.identitytoken) {
        return Ok(Credentials::Refresh(token));
    }
    if let (Some(username), Some(password)) = (said(&auth.username), said(&auth.password)) {
        return Ok(Credentials::Login(Login { username, password }));
    }
    let Some(encoded) = said(&auth.auth) else { return Ok(Credentials::Anonymous) };
    let bad = || "`auth` is not `user:password` in base64".to_owned();
    let pair = STANDARD.decode(encoded.trim()).map_err(|_| bad())?;
    let pair = String::from_utf8(pair).map_err(|_| bad())?;
    let (username, password) = pair.split_once(':').ok_or_else(bad)?;
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Credentials::Login(Login { username: username.to_owned(), password }))
}

/// Asks `docker-credential-HELPER`.
fn ask(helper: &str, registry: &str, key: &str) -> Result<Credentials, OciError> {
    let program = format!("docker-credential-{helper}");
    let failed =
        |reason: String| OciError::Credentials { registry: registry.to_owned(), from: program.clone(), reason };
    if !helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(failed("it is no name of a program".to_owned()));
    }
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed("it is not installed".to_owned()),
        _ => failed(error.to_string()),
    })?;
    let answer = converse(&mut child, key);
    // It may be waiting still.
    let _ = child.kill();
    let ended = child.wait().map_err(|error| failed(error.to_string()))?;
    let text = answer.map_err(|error| failed(error.to_string()))?;
    if text.contains("credentials not found") {
        return Ok(Credentials::Anonymous);
    }
    let answer: Answer =
        serde_json::from_str(&text).map_err(|_| failed(format!("its answer makes no sense ({ended})")))?;
    Ok(match answer.username.as_str() {
        "<token>" => Credentials::Refresh(answer.secret),
        _ => Credentials::Login(Login { username: answer.username, password: answer.secret }),
    })
}

/// Says the registry's address and takes the answer, as long as that comes in time.
fn converse(child: &mut Child, key: &str) -> io::Result<String> {
    let (mut stdin, stdout) = match (child.stdin.take(), child.stdout.take()) {
        (Some(stdin), Some(stdout)) => (stdin, stdout),
        _ => return Err(io::ErrorKind::BrokenPipe.into()),
    };
    stdin.write_all(key.as_bytes())?;
    drop(stdin);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.take(MAX_ANSWER_BYTES).read_to_string(&mut text);
        // Nobody listens any more once it took too long.
        let _ = sender.send(read.map(|_| text));
    });
    receiver.recv_timeout(HELPER_LIMIT).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn check(config: &str, registry: &str, expect: &str) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        let got = stored(registry, dir.path());
        let got = got.map_or_else(
            |error| error.to_string(),
            |found| match found {
                Credentials::Login(login) => format!("{} {}", login.username, login.password),
                other => format!("{other:?}"),
            },
        );
        assert!(got.contains(expect), "expected {expect:?}, got {got:?}");
    }

    #[test]
    fn what_docker_has_stored() {
        let auths = r#"{"auths": {"r.example:5000": {"auth": "bWU6c2VjOnJldA=="}, "https://index.docker.io/v1/": {"auth": "aHViOngA"},
            "https://t.example": {"auth": "", "identitytoken": "abc"}, "b.example": {"registrytoken": "xyz"},
            "bad.example": {"auth": "!"}}}"#;
        check(auths, "r.example:5000", "me sec:ret");
        check(auths, "docker.io", "hub x");
        check(auths, "t.example", "Refresh(\"abc\")");
        check(auths, "b.example", "Bearer(\"xyz\")");
        check(auths, "other.example", "Anonymous");
        check(auths, "bad.example", "config.json: `auth` is not `user:password` in base64");
        check("{}", "r.example", "Anonymous");
        check("{", "r.example", "cannot use the credentials for r.example from");
        check(
            r#"{"credsStore": "belljar-absent"}"#,
            "r.example",
            "docker-credential-belljar-absent: it is not installed",
        );
        check(r#"{"credHelpers": {"r.example": "../x"}}"#, "r.example", "it is no name of a program");
    }

    #[test]
    fn what_was_sent_runs_nothing_and_is_never_quoted() {
        let check = |text: &str, expect: &str| {
            let got = DockerAuths::new(text.to_owned()).of("r.example");
            let got = got.map_or_else(|error| error.to_string(), |found| found.who());
            assert!(got.contains(expect) && !got.contains("hunter2"), "expected {expect:?}, got {got:?}");
        };
        check(r#"{"auths": {"r.example": {"username": "me", "password": "hunter2"}}, "credsStore": "x"}"#, "\"me\"");
        check(r#"{"credHelpers": {"r.example": "belljar-absent"}, "credsStore": "x"}"#, "nobody");
        check(r#"{"auths": "hunter2"}"#, "those that were sent: line 1 column 19 is not as in a `config.json`");
        check(r#"{"auths": {"r.example": {"auth": "hunter2!"}}}"#, "`auth` is not `user:password` in base64");
        check("hunter2", "line 1 column 1");
        assert_eq!(format!("{:?}", DockerAuths::new("hunter2".to_owned())), "DockerAuths");
    }

    #[test]
    fn a_helper_answers() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-test");
        let script = "#!/bin/sh\nread -r key\nprintf '{\"ServerURL\":\"%s\",\"Username\":\"%s\",\"Secret\":\"s\"}' \"$key\" \"$key\"\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answer = converse(&mut child, "r.example").unwrap();
        child.wait().unwrap();
        assert_eq!(answer, r#"{"ServerURL":"r.example","Username":"r.example","Secret":"s"}"#);
    }
}
