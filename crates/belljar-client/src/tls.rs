//! Whom an `https://` server has to convince, and what to say when it does not.

use std::{error::Error as StdError, io, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::Error;

/// Trusts the given certificates (PEM) and, where they are needed at all, the system's.
pub(crate) fn config(is_https: bool, extra: Option<&[u8]>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    if is_https {
        // What is damaged among the system's is no reason not to use the rest.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if let Some(pem) = extra {
        let refused = |problem: String| Error::Ca { problem };
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| refused(error.to_string()))?;
        if certificates.is_empty() {
            return Err(refused("there is no certificate in it".to_owned()));
        }
        certificates.into_iter().try_for_each(|one| roots.add(one)).map_err(|error| refused(error.to_string()))?;
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Ca { problem: error.to_string() })?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

/// The error of a handshake that failed, when that is among the causes.
pub(crate) fn refusal(error: &(dyn StdError + 'static), url: &str) -> Option<Error> {
    let url = url.to_owned();
    Some(match find(error)? {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => Error::Untrusted { url },
        other => Error::Tls { url, problem: words(other) },
    })
}

/// I/O errors hide what they wrap from those who ask for causes.
fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

fn words(error: &rustls::Error) -> String {
    use CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(C::NotValidForNameContext { presented, .. }) => {
            let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            format!("its certificate is for other names ({}); use one of these as the host", names.join(", "))
        }
        rustls::Error::InvalidCertificate(C::NotValidForName) => {
            "its certificate is for other names; use one of these as the host".to_owned()
        }
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            "its certificate has expired; renew it, or set the clock of this machine".to_owned()
        }
        rustls::Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            "its certificate is not valid yet; set the clock of this machine".to_owned()
        }
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS at this port; use http:// or another port".to_owned()
        }
        rustls::Error::AlertReceived(
            AlertDescription::AccessDenied | AlertDescription::UnrecognisedName | AlertDescription::HandshakeFailure,
        ) => "it has no certificate for this host; use a host that it has one for".to_owned(),
        other => other.to_string(),
    }
}

/// The name in `DnsName("example.com")`.
fn bare(presented: &str) -> &str {
    let inner = presented.split_once('(').map_or(presented, |(_, rest)| rest);
    inner.trim_end_matches(')').trim_matches('"')
}
