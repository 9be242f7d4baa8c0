//! Which names may have a certificate, and which share one: pure but for the question whether there is a sandbox.

use url::Url;

use super::{AcmeConfig, AcmeError};

/// Names that share a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    /// What it is filed under: no host name begins with `_`.
    pub(super) key: String,
    /// As they stand in the certificate.
    pub(super) names: Vec<String>,
}

impl Subject {
    fn single(name: &str) -> Self {
        Self { key: name.to_owned(), names: vec![name.to_owned()] }
    }

    fn wildcard(domain: &str) -> Self {
        Self { key: format!("_wildcard.{domain}"), names: vec![domain.to_owned(), format!("*.{domain}")] }
    }
}

/// The names that lead here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    domain: Option<String>,
    /// Of the API, beside the domain itself.
    public: Option<String>,
    wildcard: bool,
}

impl Names {
    fn new(domain: Option<&str>, public: Option<&str>, wildcard: bool) -> Result<Self, AcmeError> {
        let public = public.filter(|name| Some(*name) != domain);
        if let Some(bad) = [domain, public].into_iter().flatten().find(|name| !is_public(name)) {
            return Err(AcmeError::Name(bad.to_owned()));
        }
        if domain.is_none() && public.is_none() {
            return Err(AcmeError::NoName);
        }
        Ok(Self { domain: domain.map(str::to_owned), public: public.map(str::to_owned), wildcard })
    }

    /// `base` is the URL that clients are told.
    pub(crate) fn of_urls(domain: Option<&str>, base: Option<&str>, acme: &AcmeConfig) -> Result<Self, AcmeError> {
        let base = base.and_then(|base| Url::parse(base).ok()).filter(|base| base.scheme() == "https");
        Self::new(domain, base.as_ref().and_then(Url::domain), acme.dns_hook.is_some())
    }

    /// Those that are to have a certificate at all times; what a client gets that names no host is the first.
    pub(super) fn own(&self) -> Vec<Subject> {
        let of_domain = self.domain.as_deref().map(|domain| self.of_domain(domain));
        let of_public = self.public.as_deref().filter(|name| !self.is_covered(name)).map(Subject::single);
        of_domain.into_iter().chain(of_public).collect()
    }

    /// The certificate for a host that a client named, in lower case; `shown` says whether a name below the domain leads
    /// to a sandbox that there is.
    pub(super) fn find(&self, host: &str, shown: impl FnOnce(&str, &str) -> bool) -> Option<Subject> {
        let domain = self.domain.as_deref();
        match domain {
            Some(domain) if host == domain || self.is_covered(host) => Some(self.of_domain(domain)),
            _ if self.public.as_deref() == Some(host) => Some(Subject::single(host)),
            Some(domain) if !self.wildcard && shown(host, domain) => Some(Subject::single(host)),
            _ => None,
        }
    }

    fn of_domain(&self, domain: &str) -> Subject {
        if self.wildcard { Subject::wildcard(domain) } else { Subject::single(domain) }
    }

    /// Whether the wildcard is for this name: it stands for one label.
    fn is_covered(&self, name: &str) -> bool {
        let label = || name.strip_suffix(self.domain.as_deref()?)?.strip_suffix('.');
        self.wildcard && label().is_some_and(|label| !label.is_empty() && !label.contains('.'))
    }
}

/// Whether a public server may give a certificate for it; also, whether it can be the name of a file.
fn is_public(name: &str) -> bool {
    let label = |label: &str| {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(allowed) && !label.starts_with('-')
    };
    let is_address = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.contains('.') && name.len() <= 253 && !is_address && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &Names, host: &str, expected: Option<&[&str]>) {
        let found = names.find(host, |host, domain| host == format!("box.{domain}"));
        let expected = expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(found.map(|subject| subject.names), expected, "{host}");
    }

    #[test]
    fn without_a_wildcard_each_known_host_has_its_own() {
        let names = Names::new(Some("sb.test"), Some("api.test"), false).expect("names");
        assert_eq!(names.own().len(), 2);
        check(&names, "sb.test", Some(&["sb.test"]));
        check(&names, "api.test", Some(&["api.test"]));
        check(&names, "box.sb.test", Some(&["box.sb.test"]));
        for stranger in ["other.sb.test", "a.box.sb.test", "xsb.test", "box.api.test", "test", ""] {
            check(&names, stranger, None);
        }
    }

    #[test]
    fn a_wildcard_is_for_one_label() {
        let names = Names::new(Some("sb.test"), Some("api.sb.test"), true).expect("names");
        assert_eq!(names.own().len(), 1);
        let both = Some(&["sb.test", "*.sb.test"][..]);
        for host in ["sb.test", "box.sb.test", "3000-other.sb.test", "api.sb.test"] {
            check(&names, host, both);
        }
        for stranger in ["a.box.sb.test", ".sb.test", "xsb.test", "api.test"] {
            check(&names, stranger, None);
        }
    }

    #[test]
    fn names_that_no_server_would_take_are_refused() {
        assert!(matches!(Names::new(None, None, true), Err(AcmeError::NoName)));
        for bad in ["localhost", "10.0.0.1", "a..b", "-a.test", "../x.test"] {
            assert!(matches!(Names::new(Some(bad), None, false), Err(AcmeError::Name(_))), "{bad}");
        }
    }
}
