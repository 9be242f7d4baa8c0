//! Credentials at the edge: what a guest sends with a placeholder goes out with the secret.
//!
//! ```text
//! guest: A api.example.com? -> resolver: the proxy's address, if a secret of this sandbox is bound to that name
//! guest --TLS, certificate of the installation's authority--> Proxy --swap--> TLS, verified --> api.example.com
//!                                                               \-- placeholder where it may not be --> 403, nothing sent
//! ```
//!
//! - [`Safe`] holds the secrets and the authority, in memory only; the server brings them ([`belljar_api::node::Credentials`]).
//! - [`swap`] decides, without I/O, what becomes of one request's head.
//! - [`proxy`] carries requests, for one sandbox.
//!
//! A secret is looked up for each request, so a new value counts at once, and a removed secret is gone at once. It never
//! enters the guest, so no snapshot, copy or restored sandbox holds it.
//!
//! Only names that a secret is bound to go through the proxy, on port 443. Whoever reaches such a host otherwise (by its
//! address, on another port) sends a placeholder that is worth nothing there. Who may reach what is not decided here: the
//! proxy asks the policy as the guest's own connections do.

mod authority;
mod proxy;
#[cfg(test)]
mod proxy_test;
mod swap;

use std::sync::{Arc, PoisonError, RwLock};

use belljar_api::{
    network::{HostName, Target, TargetError},
    node::Credentials,
    secret::{SecretRef, SecretValue},
};
use http::{HeaderName, header::InvalidHeaderName};
use rustls::RootCertStore;

use self::authority::Authority;
pub(crate) use self::proxy::{Dial, DialError, Proxy};

/// Credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("the authority cannot be used")]
    Authority(#[from] rcgen::Error),
    #[error("the authority's certificate cannot be read")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("secret {secret:?}: host {host:?}: {source}")]
    Host { secret: String, host: String, source: TargetError },
    #[error("secret {secret:?}: header {header:?}: {source}")]
    Header { secret: String, header: String, source: InvalidHeaderName },
}

/// Everything that the server has told about secrets.
#[derive(Default)]
pub(crate) struct Safe {
    contents: RwLock<Option<Arc<Contents>>>,
}

/// What is in it at one moment.
pub(crate) struct Contents {
    authority: Authority,
    /// What guests trust, PEM.
    certificate: String,
    secrets: Vec<Bound>,
}

/// A secret and what it is bound to.
struct Bound {
    name: String,
    placeholder: String,
    value: SecretValue,
    hosts: Vec<Target>,
    headers: Vec<HeaderName>,
}

impl Safe {
    /// Takes over what the server says, instead of what it said before.
    pub(crate) fn replace(&self, credentials: Credentials) -> Result<(), CredentialsError> {
        let present = self.contents();
        let same = present.as_ref().filter(|contents| contents.certificate == credentials.ca_certificate);
        let authority = match same {
            // With it go the certificates that it has issued.
            Some(contents) => contents.authority.clone(),
            None => Authority::new(&credentials.ca_certificate, credentials.ca_key.reveal())?,
        };
        let secrets = credentials.secrets.into_iter().map(Bound::new).collect::<Result<_, _>>()?;
        let contents = Contents { authority, certificate: credentials.ca_certificate, secrets };
        *self.contents.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(contents));
        Ok(())
    }

    fn contents(&self) -> Option<Arc<Contents>> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificate that guests with secrets trust, PEM; `None` before the server has said anything.
    pub(crate) fn certificate(&self) -> Option<String> {
        self.contents().map(|contents| contents.certificate.clone())
    }
}

/// The secrets of one sandbox.
#[derive(Clone)]
pub(crate) struct Allowance {
    safe: Arc<Safe>,
    secrets: Vec<SecretRef>,
}

impl Allowance {
    /// What a sandbox may use of a safe.
    pub(crate) fn new(safe: Arc<Safe>, secrets: Vec<SecretRef>) -> Self {
        Self { safe, secrets }
    }

    /// Whether one of them may go to a host.
    pub(crate) fn covers(&self, host: &HostName) -> bool {
        self.safe.contents().is_some_and(|contents| contents.bound_to(&self.secrets, host).next().is_some())
    }
}

/// The authorities that this host trusts: what hosts have to prove themselves by. Blocking.
pub(crate) fn roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "certificates that this host trusts");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!("this host trusts no authority, so no secret can be sent; install ca-certificates");
    }
    roots
}

impl Contents {
    /// Those of a sandbox's secrets that may go to a host.
    fn bound_to<'a>(&'a self, secrets: &'a [SecretRef], host: &'a HostName) -> impl Iterator<Item = &'a Bound> {
        self.secrets.iter().filter(move |bound| bound.is_one_of(secrets) && bound.goes_to(host))
    }
}

impl Bound {
    fn new(secret: belljar_api::node::Secret) -> Result<Self, CredentialsError> {
        let name = secret.name;
        let host = |host: String| match host.parse() {
            Ok(target) => Ok(target),
            Err(source) => Err(CredentialsError::Host { secret: name.clone(), host, source }),
        };
        let hosts = secret.hosts.into_iter().map(host).collect::<Result<_, _>>()?;
        let header = |header: String| match header.parse() {
            Ok(parsed) => Ok(parsed),
            Err(source) => Err(CredentialsError::Header { secret: name.clone(), header, source }),
        };
        let headers = secret.headers.into_iter().map(header).collect::<Result<_, _>>()?;
        Ok(Self { placeholder: secret.placeholder, value: secret.value, hosts, headers, name })
    }

    /// A secret that was removed, and put again under the same name, is another one: sandboxes of before do not have it.
    fn is_one_of(&self, secrets: &[SecretRef]) -> bool {
        secrets.iter().any(|secret| secret.name == self.name && secret.placeholder == self.placeholder)
    }

    fn goes_to(&self, host: &HostName) -> bool {
        self.hosts.iter().any(|target| match target {
            Target::Host(name) => name == host,
            Target::Below(suffix) => host.and_above().skip(1).any(|above| above == suffix.as_str()),
            Target::Net(_) => false,
        })
    }
}
