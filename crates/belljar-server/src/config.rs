//! What the server is told when it starts, and the URLs that follow from it.

use std::path::PathBuf;

use belljar_api::sandbox::SandboxStatus;
use ipnet::IpNet;
use url::Url;

use crate::{
    acme::{AcmeConfig, AcmeError, Names},
    tls::TlsSource,
};

/// Configuration of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The SQLite file; made when it is not there. Its directory must exist.
    pub database: PathBuf,
    /// The key that seals secrets; made at the first start. Whoever backs up the database keeps it elsewhere.
    pub secrets_key: PathBuf,
    /// Where clients reach the data plane: `http://host[:port]`. Also gives scheme and port of the URLs below
    /// [`Self::ingress_domain`].
    pub sandbox_url_base: String,
    /// DNS name under which `{id}` and `{port}-{id}` resolve to this server; without it clients name the sandbox
    /// in the `Host` header or in `X-Tensorlake-Sandbox-Id`.
    pub ingress_domain: Option<String>,
    /// Proxies in front of the server, whose `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Certificates of the listeners that speak HTTPS.
    pub tls: Option<TlsSource>,
    /// Image of a create that names none.
    pub default_image: String,
    /// Token with which nodes join; `None` makes one that holds until the server stops.
    pub node_token: Option<String>,
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The base URL cannot be used.
    #[error("sandbox_url_base {0:?} is not usable; give http:// or https:// with a host name and no query")]
    BaseUrl(String),
    /// The ingress domain cannot be used.
    #[error("ingress_domain {0:?} is not a DNS name; give lowercase letters, digits, hyphens and dots only")]
    Domain(String),
    /// The node token is too weak.
    #[error("node_token has {0} characters; give at least 32 random ones, or leave it out")]
    NodeToken(usize),
}

/// Fewest characters of a node token that an operator sets.
const NODE_TOKEN_MIN: usize = 32;

/// The URLs that answers carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Urls {
    base: String,
    domain: Option<Domain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Domain {
    scheme: String,
    name: String,
    port: String,
}

impl ServerConfig {
    /// Checks every value and computes the URLs.
    pub(crate) fn check(&self) -> Result<Urls, ConfigError> {
        let bad = || ConfigError::BaseUrl(self.sandbox_url_base.clone());
        let base = Url::parse(&self.sandbox_url_base).map_err(|_| bad())?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() || base.query().is_some() {
            return Err(bad());
        }
        if let Some(token) = &self.node_token
            && token.len() < NODE_TOKEN_MIN
        {
            return Err(ConfigError::NodeToken(token.len()));
        }
        let domain = self.ingress_domain.as_ref().map(|name| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
            if name.is_empty() || !name.bytes().all(allowed) || name.starts_with('.') || name.ends_with('.') {
                return Err(ConfigError::Domain(name.clone()));
            }
            let port = base.port().map(|port| format!(":{port}")).unwrap_or_default();
            Ok(Domain { scheme: base.scheme().to_owned(), name: name.clone(), port })
        });
        let base = self.sandbox_url_base.trim_end_matches('/').to_owned();
        Ok(Urls { base, domain: domain.transpose()? })
    }

    /// The names that lead here and that an ACME server gives certificates for.
    pub(crate) fn acme_names(&self, acme: &AcmeConfig) -> Result<Names, AcmeError> {
        Names::of_urls(self.ingress_domain.as_deref(), Some(&self.sandbox_url_base), acme)
    }
}

impl Urls {
    /// Base of what is the server's own.
    pub(crate) fn own(&self) -> String {
        match &self.domain {
            Some(domain) => format!("{}://{}{}", domain.scheme, domain.name, domain.port),
            None => self.base.clone(),
        }
    }

    /// Base of the sandbox's own API. Clients refuse to talk to a sandbox without it.
    pub(crate) fn sandbox_url(&self, status: SandboxStatus, id: &str) -> Option<String> {
        match status {
            SandboxStatus::Pending | SandboxStatus::Running | SandboxStatus::Suspending | SandboxStatus::Suspended => {
                Some(match &self.domain {
                    Some(domain) => format!("{}://{id}.{}{}", domain.scheme, domain.name, domain.port),
                    None => self.base.clone(),
                })
            }
            SandboxStatus::Terminated => None,
        }
    }

    /// Base of user-port URLs: `{port}-{id}.` goes in front of its host.
    pub(crate) fn ingress_endpoint(&self, status: SandboxStatus) -> Option<String> {
        match status {
            SandboxStatus::Pending | SandboxStatus::Running | SandboxStatus::Suspending | SandboxStatus::Suspended => {
                Some(self.own())
            }
            SandboxStatus::Terminated => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(base: &str, domain: Option<&str>) -> ServerConfig {
        ServerConfig {
            database: "x".into(),
            secrets_key: "k".into(),
            sandbox_url_base: base.into(),
            ingress_domain: domain.map(str::to_owned),
            trusted_proxies: Vec::new(),
            tls: None,
            default_image: "debian-minimal".into(),
            node_token: None,
        }
    }

    #[track_caller]
    fn check(base: &str, domain: Option<&str>, expected: [&str; 2]) {
        let urls = config(base, domain).check().expect("configuration");
        let got = [urls.sandbox_url(SandboxStatus::Running, "id1"), urls.ingress_endpoint(SandboxStatus::Running)];
        assert_eq!(got.map(Option::unwrap), expected);
        assert_eq!(urls.sandbox_url(SandboxStatus::Terminated, "id1"), None);
    }

    #[test]
    fn urls_follow_from_the_configuration() {
        check("http://localhost:9443", None, ["http://localhost:9443"; 2]);
        check("http://localhost:9443/", Some("sb.test"), ["http://id1.sb.test:9443", "http://sb.test:9443"]);
        check("https://x.test", Some("sb.test"), ["https://id1.sb.test", "https://sb.test"]);
    }

    #[test]
    fn bad_values_are_named() {
        assert_eq!(config("localhost:9443", None).check(), Err(ConfigError::BaseUrl("localhost:9443".into())));
        assert_eq!(config("http://x", Some("A_b")).check(), Err(ConfigError::Domain("A_b".into())));
        let weak = ServerConfig { node_token: Some("x".into()), ..config("http://x", None) };
        assert_eq!(weak.check(), Err(ConfigError::NodeToken(1)));
    }
}
