//! Certificates from an ACME server (RFC 8555) such as Let's Encrypt. [`crate::tls`] asks for them in each handshake.
//!
//! ```text
//! host that a client names --subject: may it have one?--> no: the handshake fails
//!      |-- in memory ------------------------------------> shown
//!      |-- on the disk ------------------> memory -------> shown
//!      \-- neither --> order --proved----> disk, memory -> shown
//!                         \--refused-----> rests for a while; what there was stays; the log says why
//! ```
//! With a DNS hook there is one wildcard, proved by a DNS record (DNS-01). Without one, each host has a certificate of its
//! own, proved in a TLS handshake (TLS-ALPN-01): the server's own names at the start, those of sandboxes when a client first
//! asks, and only for sandboxes that there are, since anybody can ask. The server's own names and the wildcard are renewed
//! when they are due, those of sandboxes when they are due and used.
//!
//! [`subject`] decides which names share a certificate, [`order`] gets one, [`proof`] shows what the ACME server looks for
//! ([`records`]: in DNS), [`kept`] is a certificate on the disk, [`issuer`] puts them together; [`standing`] says for
//! `belljar doctor` how they stand.

mod account;
mod issuer;
mod kept;
mod order;
mod proof;
mod records;
mod standing;
mod subject;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use url::Url;

pub use self::standing::{Standing, standings};
pub(crate) use self::{
    issuer::Issuer,
    proof::{ALPN, is_validation},
    subject::Names,
};

/// Directory of Let's Encrypt's production server.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Below an ACME server's directory.
const CERTIFICATES: &str = "certificates";
const RECORDS: &str = "records";
/// Any of the bits that let a file be run.
const EXECUTABLE: u32 = 0o111;

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// Directory for the account's key and the certificates; made when it is not there.
    pub dir: PathBuf,
    /// The ACME server's directory, `https://…`.
    pub server: String,
    /// Mail address that the ACME server may write to.
    pub contact: Option<String>,
    /// Root certificates that are trusted for the ACME server, beside the system's; PEM.
    pub ca: Option<PathBuf>,
    /// Program that adds and removes DNS records; with it there is a wildcard.
    pub dns_hook: Option<PathBuf>,
}

/// Why there is no certificate from an ACME server.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The directory's address.
    #[error("ACME server {0:?} is not usable; give the https:// address of its directory, such as {LETS_ENCRYPT}")]
    Server(String),
    /// The mail address.
    #[error("ACME contact {0:?} is not a mail address; give one like admin@example.com, or leave it out")]
    Contact(String),
    /// Nothing to have a certificate for.
    #[error("ACME needs a DNS name that leads here: give an ingress domain (--ingress-domain)")]
    NoName,
    /// A name that no public server gives a certificate for.
    #[error("ACME gives no certificate for {0:?}; give a DNS name with at least one dot as ingress domain")]
    Name(String),
    /// The root certificates.
    #[error(
        "cannot read the ACME server's root certificates from {path}: {source}; give a PEM file that this user may read"
    )]
    Ca {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// Nobody is trusted.
    #[error("this system trusts no root certificates, so no ACME server either; install the package ca-certificates")]
    NoRoots,
    /// The hook.
    #[error("ACME DNS hook {path} cannot be run: {why}; give the path of a program")]
    Hook {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The account's file.
    #[error("{path} holds no ACME account ({why}); remove it to register a new one")]
    Account {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The conversation with the ACME server.
    #[error("{step}: {source}")]
    Talk {
        /// What was tried.
        step: &'static str,
        /// What it said, or why it did not.
        source: instant_acme::Error,
    },
    /// It offers no way that we know.
    #[error("the ACME server offers no {kind} for {name}")]
    NoChallenge {
        /// The name.
        name: String,
        /// What was looked for.
        kind: &'static str,
    },
    /// It looked, and did not see.
    #[error("the ACME server did not accept the proof for {name}: {why}; {remedy}")]
    Refused {
        /// The name.
        name: String,
        /// In its words.
        why: String,
        /// What to look at.
        remedy: &'static str,
    },
    /// The hook failed.
    #[error("ACME DNS hook {path} failed to {verb} the TXT record {record} ({why}); run it by hand to see more")]
    HookFailed {
        /// The program.
        path: PathBuf,
        /// `add` or `remove`.
        verb: &'static str,
        /// Name of the record.
        record: String,
        /// How it ended and what it wrote.
        why: String,
    },
    /// What came is no certificate that can be used.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
}

impl AcmeConfig {
    /// Where everything of this ACME server is: its accounts and certificates mean nothing to another, such as a staging
    /// server.
    fn home(&self) -> PathBuf {
        let rest = self.server.split_once("://").map_or(self.server.as_str(), |(_, rest)| rest);
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c.to_ascii_lowercase() } else { '_' };
        self.dir.join(rest.chars().map(|c| if c == '.' { c } else { plain(c) }).collect::<String>())
    }

    fn certificates(&self) -> PathBuf {
        self.home().join(CERTIFICATES)
    }

    fn records(&self) -> PathBuf {
        self.home().join(RECORDS)
    }

    /// Refuses what could never work.
    pub(crate) fn check(&self) -> Result<(), AcmeError> {
        let url = Url::parse(&self.server).ok();
        if !url.is_some_and(|url| url.scheme() == "https" && url.has_host()) {
            return Err(AcmeError::Server(self.server.clone()));
        }
        if let Some(mail) = &self.contact {
            let is_mail = mail.split_once('@').is_some_and(|(who, host)| !who.is_empty() && host.contains('.'));
            if !is_mail || mail.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',') {
                return Err(AcmeError::Contact(mail.clone()));
            }
        }
        self.dns_hook.as_deref().map_or(Ok(()), check_hook)
    }
}

fn check_hook(path: &Path) -> Result<(), AcmeError> {
    let failed = |why: String| AcmeError::Hook { path: path.to_owned(), why };
    let meta = fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if !meta.is_file() || meta.permissions().mode() & EXECUTABLE == 0 {
        return Err(failed("it is not an executable file".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_a_directory() {
        for (server, name) in [
            (LETS_ENCRYPT, "acme-v02.api.letsencrypt.org_directory"),
            ("https://127.0.0.1:14000/../dir", "127.0.0.1_14000_.._dir"),
        ] {
            let config =
                AcmeConfig { dir: "/a".into(), server: server.into(), contact: None, ca: None, dns_hook: None };
            assert_eq!(config.home(), Path::new("/a").join(name));
        }
    }
}
