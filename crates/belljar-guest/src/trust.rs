//! The authority that the programs of a sandbox with secrets trust: hosts that a secret is bound to prove themselves by it.
//!
//! Programs look in different places, so it is put where Debian's `update-ca-certificates` would put it, into the bundles
//! that other systems have, and named in the variables that libraries with bundles of their own obey. Files of the image
//! are only added to.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::identity::write_file;

/// Where `update-ca-certificates` takes it from, so that it stays when that is run.
const OWN: &str = "/usr/local/share/ca-certificates/belljar.crt";
/// The bundle of Debian, Alpine and others; made where there is none.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Bundles of other systems, as far as they are there.
const OTHER_BUNDLES: [&str; 3] = ["/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// What programs are told that do not look there by themselves.
const VARIABLES: [(&str, &str); 6] = [
    ("SSL_CERT_FILE", BUNDLE),
    ("REQUESTS_CA_BUNDLE", BUNDLE),
    ("CURL_CA_BUNDLE", BUNDLE),
    ("GIT_SSL_CAINFO", BUNDLE),
    ("AWS_CA_BUNDLE", BUNDLE),
    // In addition to those that Node.js has built in.
    ("NODE_EXTRA_CA_CERTS", OWN),
];

/// Makes the machine's programs trust a certificate (PEM).
pub(crate) fn install(certificate: &str) -> io::Result<()> {
    install_below(Path::new("/"), certificate)
}

/// Adds the variables that are not set.
pub(crate) fn name(environment: &mut BTreeMap<String, String>) {
    for (name, value) in VARIABLES {
        environment.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
}

fn install_below(root: &Path, certificate: &str) -> io::Result<()> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    write_file(below(OWN), certificate)?;
    add(&below(BUNDLE), certificate)?;
    for bundle in OTHER_BUNDLES.map(below).iter().filter(|bundle| bundle.exists()) {
        add(bundle, certificate)?;
    }
    Ok(())
}

/// Adds a certificate to a bundle, once. Whoever reads meanwhile sees the one before, or this one.
fn add(bundle: &Path, certificate: &str) -> io::Result<()> {
    let present = match fs::read_to_string(bundle) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    if present.contains(certificate.trim()) {
        return Ok(());
    }
    // A bundle may be a link to another one.
    let target: PathBuf = fs::canonicalize(bundle).unwrap_or_else(|_| bundle.to_owned());
    let gap = if present.is_empty() || present.ends_with('\n') { "" } else { "\n" };
    let new = target.with_extension("belljar-new");
    write_file(&new, &format!("{present}{gap}{}\n", certificate.trim()))?;
    fs::rename(new, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_certificate_is_in_every_bundle_once() {
        let root = tempfile::tempdir().expect("directory");
        let at = |path: &str| root.path().join(path.trim_start_matches('/'));
        let other = at(OTHER_BUNDLES[0]);
        fs::create_dir_all(other.parent().expect("parent")).expect("directory");
        fs::write(&other, "# others").expect("bundle");
        fs::create_dir_all(at("/etc/ssl/certs")).expect("directory");
        std::os::unix::fs::symlink("certs/ca-certificates.crt", at("/etc/ssl/cert.pem")).expect("link");
        for _ in 0..2 {
            install_below(root.path(), CERTIFICATE).expect("installed");
        }
        assert_eq!(fs::read_to_string(&other).expect("bundle"), format!("# others\n{CERTIFICATE}"));
        assert_eq!(fs::read_to_string(at(BUNDLE)).expect("bundle"), CERTIFICATE);
        assert_eq!(fs::read_to_string(at(OWN)).expect("file"), CERTIFICATE);
        assert!(at("/etc/ssl/cert.pem").is_symlink() && !at(OTHER_BUNDLES[1]).exists());
    }

    #[test]
    fn variables_of_the_image_stay() {
        let mut environment = BTreeMap::from([("SSL_CERT_FILE".to_owned(), "/mine".to_owned())]);
        name(&mut environment);
        assert_eq!(environment["SSL_CERT_FILE"], "/mine");
        assert_eq!(environment["NODE_EXTRA_CA_CERTS"], OWN);
    }
}
