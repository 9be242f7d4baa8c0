//! A certificate that an ACME server gave, with its key: on the disk as one PEM file, so that the two always fit.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::parse_x509_certificate;

use super::AcmeError;
use crate::secret_file;

/// Part of its life after which a certificate is renewed: what the ACME servers advise. Tests do not wait so long.
const RENEW_AFTER: (i64, i64) = if cfg!(test) { (1, 100) } else { (2, 3) };

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) certified: Arc<CertifiedKey>,
    validity: Validity,
}

/// From when to when a certificate holds, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Validity {
    from: i64,
    to: i64,
}

impl Validity {
    fn due(self, (part, whole): (i64, i64)) -> i64 {
        self.from + (self.to - self.from) / whole * part
    }
}

impl Kept {
    /// Takes a key and the certificates that belong to it, PEM.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, AcmeError> {
        let bad = |why: &dyn std::fmt::Display| AcmeError::Unusable(why.to_string());
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| bad(&error))?;
        let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| bad(&error))?;
        let first = chain.first().ok_or_else(|| bad(&"there is none"))?;
        let (_, parsed) = parse_x509_certificate(first).map_err(|error| bad(&error))?;
        let ms = |time: x509_parser::time::ASN1Time| time.timestamp().saturating_mul(1000);
        let validity = Validity { from: ms(parsed.validity().not_before), to: ms(parsed.validity().not_after) };
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| bad(&error))?;
        Ok(Self { certified: Arc::new(certified), validity })
    }

    /// When to get the next one, in milliseconds since the epoch.
    pub(super) fn due(&self) -> i64 {
        self.validity.due(RENEW_AFTER)
    }

    /// When it is over, in milliseconds since the epoch.
    pub(super) fn end(&self) -> i64 {
        self.validity.to
    }

    /// Whether clients accept it at this time.
    pub(super) fn holds(&self, now: i64) -> bool {
        self.validity.from <= now && now < self.validity.to
    }
}

/// The certificates of one ACME server.
#[derive(Debug, Clone)]
pub(super) struct Shelf(PathBuf);

impl Shelf {
    /// The directory must exist.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The certificate that is filed under a key; a file that is damaged counts as none, since another can be had.
    pub(super) fn read(&self, key: &str) -> Option<Kept> {
        let path = self.path(key);
        let pem = match fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a certificate; getting another");
                return None;
            }
        };
        Kept::parse(&pem)
            .inspect_err(
                |error| tracing::warn!(path = %path.display(), %error, "a damaged certificate; getting another"),
            )
            .ok()
    }

    pub(super) fn write(&self, key: &str, pem: &[u8]) -> Result<(), AcmeError> {
        let path = self.path(key);
        secret_file::write(&path, pem).map_err(|source| AcmeError::File { operation: "write", path, source })
    }

    /// Removes what is over: certificates of sandboxes that nobody asked for again.
    pub(super) fn sweep(&self, now: i64) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = entry.path();
            let over = |pem: Vec<u8>| Kept::parse(&pem).is_ok_and(|kept| kept.validity.to <= now);
            if path.extension().is_some_and(|extension| extension == "pem") && fs::read(&path).is_ok_and(over) {
                remove(&path);
            }
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.0.join(format!("{key}.pem"))
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a certificate that is over");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pem() -> String {
        let issued = rcgen::generate_simple_self_signed(["sb.test".to_owned()]).expect("certificate");
        issued.signing_key.serialize_pem() + &issued.cert.pem()
    }

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_time_is_left() {
        assert_eq!(Validity { from: 1000, to: 91_000 }.due((2, 3)), 61_000);
        assert_eq!(Validity { from: 5, to: 5 }.due((2, 3)), 5);
    }

    #[test]
    fn certificates_come_back_from_the_disk_for_their_owner_only() {
        let dir = tempfile::tempdir().expect("directory");
        let shelf = Shelf::new(dir.path().to_owned());
        assert!(shelf.read("sb.test").is_none());
        let pem = pem();
        shelf.write("sb.test", pem.as_bytes()).expect("written");
        let kept = shelf.read("sb.test").expect("read");
        assert_eq!(kept.certified.cert, Kept::parse(pem.as_bytes()).expect("parsed").certified.cert);
        let path = dir.path().join("sb.test.pem");
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        shelf.sweep(kept.validity.to - 1);
        assert!(path.exists() && kept.holds(kept.validity.to - 1) && !kept.holds(kept.validity.to));
        shelf.sweep(kept.validity.to);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_certificate_with_its_key_is_none() {
        let dir = tempfile::tempdir().expect("directory");
        let shelf = Shelf::new(dir.path().to_owned());
        let (one, other) = (pem(), pem());
        let cut = one.find("-----BEGIN CERTIFICATE").expect("certificate");
        let of_another = format!("{}{}", &one[..cut], &other[other.find("-----BEGIN CERTIFICATE").expect("found")..]);
        for damaged in ["", "junk", &one[..cut], &one[cut..], &one[..one.len() - 100], &of_another] {
            shelf.write("sb.test", damaged.as_bytes()).expect("written");
            assert!(shelf.read("sb.test").is_none(), "{damaged}");
        }
    }
}
