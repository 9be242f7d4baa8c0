//! What the ACME server looks at to see that a name is ours: a TLS handshake of its own kind (TLS-ALPN-01, RFC 8737), or a
//! TXT record (DNS-01).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    AcmeError,
    records::{Record, Records},
};
use instant_acme::{ChallengeType, KeyAuthorization};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::ClientHello,
    sign::CertifiedKey,
};

/// What a client of TLS-ALPN-01 speaks, and nobody else.
pub(crate) const ALPN: &[u8] = b"acme-tls/1";

/// Whether this handshake comes from an ACME server that looks for a proof.
pub(crate) fn is_validation(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.next() == Some(ALPN) && protocols.next().is_none())
}

/// How names are proved.
#[derive(Debug)]
pub(super) enum Prover {
    /// In handshakes on our own listeners.
    Handshake(Handshakes),
    /// By records.
    Dns(Records),
}

/// A proof that can be seen, until it is withdrawn.
#[derive(Debug)]
pub(super) enum Proof {
    Handshake { name: String },
    Record(Record),
}

impl Prover {
    pub(super) fn kind(&self) -> (ChallengeType, &'static str) {
        match self {
            Self::Handshake(_) => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
            Self::Dns(_) => (ChallengeType::Dns01, "dns-01"),
        }
    }

    /// What to look at when the ACME server does not see it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::Handshake(_) => {
                "see that the name's address is this machine's and that its port 443 leads to --tls-listen, without a proxy \
                 that ends TLS"
            }
            Self::Dns(_) => {
                "see that the program of --acme-dns-hook adds the record to the zone that the world sees, and returns only \
                 when it is there"
            }
        }
    }

    /// Lets a proof be seen. A wildcard is proved under the name without its star.
    pub(super) async fn show(&self, name: &str, value: &KeyAuthorization) -> Result<Proof, AcmeError> {
        match self {
            Self::Handshake(handshakes) => {
                handshakes.show(name, value)?;
                Ok(Proof::Handshake { name: name.to_owned() })
            }
            Self::Dns(records) => {
                let record = Record { name: format!("_acme-challenge.{name}"), value: value.dns_value() };
                records.add(&record).await?;
                Ok(Proof::Record(record))
            }
        }
    }

    /// Takes a proof back.
    pub(super) async fn withdraw(&self, proof: Proof) {
        match (self, proof) {
            (Self::Handshake(handshakes), Proof::Handshake { name }) => drop(handshakes.lock().remove(&name)),
            (Self::Dns(records), Proof::Record(record)) => records.remove(&record).await,
            (Self::Handshake(_), Proof::Record(_)) | (Self::Dns(_), Proof::Handshake { .. }) => {}
        }
    }

    /// Takes back what an earlier server was stopped in the middle of.
    pub(super) async fn tidy(&self) {
        if let Self::Dns(records) = self {
            records.remove_left().await;
        }
    }
}

/// Certificates that are shown to ACME servers, by name.
#[derive(Debug, Default)]
pub(super) struct Handshakes(Mutex<HashMap<String, Arc<CertifiedKey>>>);

impl Handshakes {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.lock().get(name).cloned()
    }

    fn show(&self, name: &str, value: &KeyAuthorization) -> Result<(), AcmeError> {
        let digest = value.digest();
        let certified = certificate(name, digest.as_ref()).map_err(|error| AcmeError::Unusable(error.to_string()))?;
        self.lock().insert(name.to_owned(), Arc::new(certified));
        Ok(())
    }
}

/// Signed by itself, with the proof in an extension.
fn certificate(name: &str, digest: &[u8]) -> Result<CertifiedKey, Box<dyn std::error::Error>> {
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Not `from_der`, which takes no certificate with a critical extension that it does not know.
    let key = ring::default_provider().key_provider.load_private_key(key)?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}
