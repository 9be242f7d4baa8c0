//! The authority of an installation: issues, on the nodes, the certificates that guests see instead of those of the hosts
//! to which a secret is bound. Guests trust it, nobody else does.

use belljar_api::secret::SecretValue;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};

/// Certificate and key, PEM.
pub(crate) struct Authority {
    pub(crate) certificate: String,
    pub(crate) key: SecretValue,
}

/// Makes one.
pub(super) fn make() -> Result<(String, SecretValue), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Belljar");
    // Two installations are told apart in a list of authorities.
    let fingerprint: String = key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("Belljar egress {fingerprint}"));
    // Nothing below it but hosts.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // It lives as long as the installation: sandboxes and snapshots that trust it do too.
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2120, 1, 1));
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), SecretValue::new(key.serialize_pem())))
}
