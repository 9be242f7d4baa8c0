//! A registry, as far as an import needs it: manifests and layers by HTTP(S), with the proof of who asks that it wants.
//!
//! ```text
//! request ─► 401, WWW-Authenticate ─► Basic:  the same again with name and password
//!                                  └► Bearer: a token from the realm ─► the same again with it
//! ```
//!
//! It blocks, and everything that is read has a bound in bytes and in time. The crate `oci-client` was not taken because it
//! reads manifests, tokens and errors whole, however long a hostile registry makes them, and needs an async runtime; types
//! and references are those of `oci-spec`.

use std::{io::Read, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use oci_spec::distribution::Reference;
use serde::Deserialize;
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{Request, Response, StatusCode, header},
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{Caps, challenge::Challenge, credentials::Credentials, error::OciError, manifest::Documents};
use crate::limits::{ANSWER_LIMIT, MAX_ANSWER_BYTES, MAX_DOCUMENT_BYTES};

/// What a manifest or an index may be.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// What a configuration may be; most registries do not know what it is.
const CONFIGURATIONS: &str = "application/vnd.oci.image.config.v1+json, \
                              application/vnd.docker.container.image.v1+json, */*;q=0.1";

/// Characters of a registry's message that an error shows.
const SHOWN: usize = 300;

/// A repository of a registry.
pub(super) struct Registry {
    agent: Agent,
    /// `https://HOST`, or `http://HOST` where that was allowed and nothing else answers.
    base: String,
    pub(super) host: String,
    reference: Reference,
    credentials: Credentials,
    /// Value of the header that the registry wants to see.
    authorization: Option<String>,
    insecure: bool,
    /// For a manifest, a configuration or a token, from the question to the last byte.
    document_limit: Duration,
}

/// Why a request brought no answer.
pub(super) enum Failure {
    /// It may go better next time.
    BrokenOff(ureq::Error),
    /// It will not.
    Final(OciError),
}

impl From<OciError> for Failure {
    fn from(error: OciError) -> Self {
        Self::Final(error)
    }
}

impl Registry {
    /// Makes nothing known to the registry yet; with `insecure`, finds out how it can be spoken to.
    pub(super) fn new(reference: Reference, credentials: Credentials, insecure: bool, caps: &Caps) -> Self {
        let host = match reference.registry() {
            // The name that people write has no registry of its own.
            "docker.io" => "registry-1.docker.io".to_owned(),
            other => other.to_owned(),
        };
        let agent = agent(insecure, caps.stall);
        let mut base = format!("https://{host}");
        if insecure && agent.get(format!("{base}/v2/")).call().is_err() {
            base = format!("http://{host}");
        }
        let document_limit = caps.document;
        Self { agent, base, host, reference, credentials, authorization: None, insecure, document_limit }
    }

    /// A layer, from the byte `from` on.
    pub(super) fn blob(&mut self, digest: &str, from: u64) -> Result<Response<Body>, Failure> {
        let path = format!("blobs/{digest}");
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let headers: Vec<(header::HeaderName, String)> =
            range.into_iter().map(|range| (header::RANGE, range)).collect();
        let response = self.get(&path, &headers, None)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => Ok(response),
            _ => Err(self.refused(&path, response).into()),
        }
    }

    fn document(&mut self, path: &str, accept: &str) -> Result<Vec<u8>, OciError> {
        let headers = [(header::ACCEPT, accept.to_owned())];
        let response =
            self.get(path, &headers, Some(self.document_limit)).map_err(|failure| self.unreachable(failure))?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(path, response));
        }
        self.read(response, path, MAX_DOCUMENT_BYTES)
    }

    /// Asks, if need be a second time with proof of who we are.
    fn get(
        &mut self,
        path: &str,
        headers: &[(header::HeaderName, String)],
        limit: Option<Duration>,
    ) -> Result<Response<Body>, Failure> {
        let first = self.send(path, headers, limit)?;
        if first.status() != StatusCode::UNAUTHORIZED {
            return Ok(first);
        }
        let values = first.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = Challenge::parse(values.iter().filter_map(|value| value.to_str().ok()));
        // What was sent before was not enough, or is too old.
        self.authorization = None;
        match (challenge, &self.credentials) {
            (_, Credentials::Bearer(token)) => self.authorization = Some(format!("Bearer {token}")),
            (Some(Challenge::Basic), Credentials::Login(login)) => {
                self.authorization = Some(basic(&login.username, &login.password));
            }
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let token = self.token(&realm, service.as_deref(), scope)?;
                self.authorization = Some(format!("Bearer {token}"));
            }
            _ => return Err(self.denied().into()),
        }
        let second = self.send(path, headers, limit)?;
        match second.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied().into()),
            _ => Ok(second),
        }
    }

    fn send(
        &self,
        path: &str,
        headers: &[(header::HeaderName, String)],
        limit: Option<Duration>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = Request::get(format!("{}/v2/{}/{path}", self.base, self.reference.repository()));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let built = request.body(()).map_err(|error| Failure::BrokenOff(error.into()))?;
        let request = self.agent.configure_request(built).timeout_global(limit).build();
        let response = self.agent.run(request).map_err(Failure::BrokenOff)?;
        match response.status() {
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(Failure::BrokenOff(ureq::Error::StatusCode(status.as_u16())))
            }
            _ => Ok(response),
        }
    }

    /// Asks who hands out tokens for one.
    fn token(&self, realm: &str, service: Option<&str>, scope: Option<String>) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let safe = realm.starts_with("https://") || (self.insecure && realm.starts_with("http://"));
        // Over plain HTTP anybody on the way could read the password.
        if !safe {
            let message = format!("it sends us to {:?} for a token, which is not HTTPS", shortened(realm));
            return Err(OciError::Refused {
                registry: self.host.clone(),
                what: "a token".into(),
                status: 401,
                message,
            }
            .into());
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository()));
        let response = if let Credentials::Refresh(token) = &self.credentials {
            let service = service.unwrap_or_default();
            let form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
                ("client_id", "belljar"),
                ("service", service),
                ("scope", &scope),
            ];
            self.agent.post(realm).config().timeout_global(Some(self.document_limit)).build().send_form(form)
        } else {
            let mut request = self.agent.get(realm).query("scope", &scope);
            if let Some(service) = service {
                request = request.query("service", service);
            }
            if let Credentials::Login(login) = &self.credentials {
                request = request.header(header::AUTHORIZATION, basic(&login.username, &login.password));
            }
            request.config().timeout_global(Some(self.document_limit)).build().call()
        };
        let response = response.map_err(Failure::BrokenOff)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied().into()),
            _ => return Err(self.refused("a token", response).into()),
        }
        let bytes = self.read(response, "a token", MAX_ANSWER_BYTES)?;
        let parsed: Option<Token> = serde_json::from_slice(&bytes).ok();
        let token = parsed.and_then(|answer| answer.token.or(answer.access_token)).filter(|token| is_token(token));
        let what = format!("the token of {}", self.host);
        token.ok_or_else(|| OciError::BadDocument { what, reason: "the answer has none".to_owned() }.into())
    }

    fn read(&self, response: Response<Body>, what: &str, limit: u64) -> Result<Vec<u8>, OciError> {
        let mut bytes = Vec::new();
        let read = response.into_body().into_reader().take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.unreachable(Failure::BrokenOff(ureq::Error::Io(error))))?;
        if bytes.len() as u64 > limit {
            return Err(OciError::TooLarge { what: format!("the answer of {} for {what}", self.host), limit });
        }
        Ok(bytes)
    }

    pub(super) fn unreachable(&self, failure: Failure) -> OciError {
        match failure {
            Failure::Final(error) => error,
            Failure::BrokenOff(source) => {
                OciError::Unreachable { registry: self.host.clone(), source: Box::new(source) }
            }
        }
    }

    fn denied(&self) -> OciError {
        OciError::Denied {
            registry: self.reference.registry().to_owned(),
            repository: self.reference.repository().to_owned(),
            who: self.credentials.who(),
        }
    }

    fn refused(&self, what: &str, response: Response<Body>) -> OciError {
        let status = response.status();
        match status {
            StatusCode::NOT_FOUND => {
                let place = format!("the registry {}", self.host);
                return OciError::NotFound {
                    image: format!("{} ({what})", self.reference),
                    place,
                    available: Vec::new(),
                };
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return self.denied(),
            _ => {}
        }
        let mut text = String::new();
        // What cannot be read is left out.
        let _ = response.into_body().into_reader().take(MAX_ANSWER_BYTES).read_to_string(&mut text);
        OciError::Refused {
            registry: self.host.clone(),
            what: what.to_owned(),
            status: status.as_u16(),
            message: shortened(text.trim()),
        }
    }
}

impl Documents for Registry {
    fn first(&mut self) -> Result<Vec<u8>, OciError> {
        let which = self.reference.digest().or(self.reference.tag()).unwrap_or("latest").to_owned();
        self.document(&format!("manifests/{which}"), MANIFESTS)
    }

    fn manifest(&mut self, digest: &str) -> Result<Vec<u8>, OciError> {
        self.document(&format!("manifests/{digest}"), MANIFESTS)
    }

    fn configuration(&mut self, digest: &str) -> Result<Vec<u8>, OciError> {
        self.document(&format!("blobs/{digest}"), CONFIGURATIONS)
    }

    fn name(&self) -> String {
        self.reference.to_string()
    }

    fn pinned(&self) -> Option<String> {
        self.reference.digest().map(str::to_owned)
    }
}

/// With the certificates that this machine trusts: the registry may be the organisation's own.
fn agent(insecure: bool, stall: Duration) -> Agent {
    let trusted = rustls_native_certs::load_native_certs().certs;
    let roots: Vec<_> = trusted.iter().map(|one| Certificate::from_der(one).to_owned()).collect();
    let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots)).disable_verification(insecure).build();
    let config = Agent::config_builder().tls_config(tls).http_status_as_error(false).https_only(!insecure);
    // Layers often lie elsewhere: who keeps them has no business with our password.
    let config = config.redirect_auth_headers(RedirectAuthHeaders::SameHost).accept_encoding("");
    let config = config.timeout_connect(Some(ANSWER_LIMIT)).timeout_recv_response(Some(ANSWER_LIMIT.min(stall)));
    config.timeout_per_read(Some(stall)).user_agent(concat!("belljar/", env!("CARGO_PKG_VERSION"))).build().into()
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// Fit to stand in a header.
fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

fn shortened(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
