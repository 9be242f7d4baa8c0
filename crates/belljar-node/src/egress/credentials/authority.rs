//! Certificates for the hosts that the proxy stands in for, issued when they are asked for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use belljar_api::network::HostName;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use super::CredentialsError;

/// How long a certificate is valid before and after it is issued: a guest's clock may be a little off.
const VALID: (Duration, Duration) = (Duration::from_secs(24 * 3600), Duration::from_secs(7 * 24 * 3600));
/// After how long another one is issued.
const RENEWED: Duration = Duration::from_secs(24 * 3600);
/// Certificates that are remembered; with more hosts all are forgotten, and issued again as they are asked for.
const REMEMBERED_MAX: usize = 1024;

/// Issues certificates. Clones share what they have issued.
#[derive(Clone)]
pub(super) struct Authority {
    shared: Arc<Shared>,
}

struct Shared {
    issuer: Issuer<'static, KeyPair>,
    own: CertificateDer<'static>,
    /// The key of every certificate that is issued: it never leaves this process.
    key: KeyPair,
    issued: Mutex<HashMap<HostName, (Arc<CertifiedKey>, Instant)>>,
}

impl Authority {
    /// From certificate and private key, both PEM.
    pub(super) fn new(certificate: &str, key: &str) -> Result<Self, CredentialsError> {
        let own = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        let issuer = Issuer::from_ca_cert_der(&own, KeyPair::from_pem(key)?)?;
        let shared = Shared { issuer, own, key: KeyPair::generate()?, issued: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A certificate for a host, with its key.
    pub(super) fn certificate(&self, host: &HostName) -> Result<Arc<CertifiedKey>, rcgen::Error> {
        let mut issued = self.shared.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((certificate, at)) = issued.get(host)
            && at.elapsed() < RENEWED
        {
            return Ok(certificate.clone());
        }
        if issued.len() >= REMEMBERED_MAX {
            issued.clear();
        }
        let certificate = Arc::new(self.shared.issue(host)?);
        issued.insert(host.clone(), (certificate.clone(), Instant::now()));
        Ok(certificate)
    }
}

impl Shared {
    fn issue(&self, host: &HostName) -> Result<CertifiedKey, rcgen::Error> {
        let mut params = CertificateParams::new([host.as_str().to_owned()])?;
        // A common name has at most 64 characters, and nobody looks at it.
        params.distinguished_name.push(DnType::OrganizationName, "Belljar");
        params.serial_number = Some(SerialNumber::from(rand::random::<u64>() >> 1));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Strict verifiers (Python 3.13) want it.
        params.use_authority_key_identifier_extension = true;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = date_time_ymd(1970, 1, 1) + now;
        (params.not_before, params.not_after) = (now - VALID.0, now + VALID.1);
        let certificate = params.signed_by(&self.key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let key = any_supported_type(&key).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone(), self.own.clone()], key))
    }
}
