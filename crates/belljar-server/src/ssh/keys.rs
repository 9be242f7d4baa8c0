//! Public keys: which are taken, and which open a connection now.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
};

use russh::keys::ssh_key::{self, Algorithm, HashAlg, public::KeyData};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{SSH_KEY_BYTES_MAX, SSH_RSA_BITS_MAX, SSH_RSA_BITS_MIN, SSH_TOUCH},
    store::SshKeyRow,
};

/// What stands in every form of a private key.
const PRIVATE: &str = "PRIVATE KEY";
/// What follows the type of a certificate.
const CERTIFICATE: &str = "-cert-v01@openssh.com";
/// What the types of keys begin with.
const TYPES: [&str; 5] = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-", "rsa-"];

/// Why a public key is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublicKeyError {
    #[error("this is a private key, which nobody else may see: make a new pair, and send the file that ends in .pub")]
    Private,
    #[error("send one key, on one line")]
    Lines,
    #[error("the line has more than {SSH_KEY_BYTES_MAX} bytes, which no key has")]
    Long,
    #[error("options before a key (`command=`, `from=`) have no effect here; send the key without them")]
    Options,
    #[error("certificates are not supported; send the key that was certified")]
    Certificate,
    #[error("not a public key in OpenSSH's form, `ssh-ed25519 AAAA… comment`: {0}")]
    Malformed(String),
    #[error("DSA keys are not safe any more; make one with `ssh-keygen -t ed25519`")]
    Dsa,
    #[error(
        "an RSA key of {0} bits; the least is {SSH_RSA_BITS_MIN} and the most {SSH_RSA_BITS_MAX}: \
         make one with `ssh-keygen -t ed25519`"
    )]
    RsaSize(u32),
    #[error("keys of type {0} are not supported; make one with `ssh-keygen -t ed25519`")]
    Type(String),
}

/// A public key that can be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    /// As OpenSSH names it.
    pub(crate) key_type: String,
    /// `SHA256:…`
    pub(crate) fingerprint: String,
    /// Type and base64.
    pub(crate) line: String,
    /// What stood behind them.
    pub(crate) comment: String,
}

impl PublicKey {
    /// Reads a line of a `.pub` file.
    pub(crate) fn parse(text: &str) -> Result<Self, PublicKeyError> {
        let line = text.trim();
        if line.contains(PRIVATE) {
            return Err(PublicKeyError::Private);
        }
        if line.contains(['\n', '\r']) {
            return Err(PublicKeyError::Lines);
        }
        if line.len() > SSH_KEY_BYTES_MAX {
            return Err(PublicKeyError::Long);
        }
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let is_type = |word: &str| TYPES.iter().any(|start| word.starts_with(start));
        if first.contains(CERTIFICATE) {
            return Err(PublicKeyError::Certificate);
        }
        if !is_type(first) && line.split_ascii_whitespace().skip(1).any(is_type) {
            return Err(PublicKeyError::Options);
        }
        if first == "ssh-dss" {
            return Err(PublicKeyError::Dsa);
        }
        let comment = words.skip(1).collect::<Vec<_>>().join(" ");
        // Whatever stands between the words in a line that somebody pasted.
        let line: Vec<&str> = line.split_ascii_whitespace().take(2).collect();
        let key = ssh_key::PublicKey::from_openssh(&line.join(" "))
            .map_err(|error| PublicKeyError::Malformed(error.to_string()))?;
        check(key.key_data())?;
        let line = key.to_openssh().map_err(|error| PublicKeyError::Malformed(error.to_string()))?;
        Ok(Self {
            key_type: key.algorithm().as_str().to_owned(),
            fingerprint: fingerprint(&key),
            line: line.trim_end().to_owned(),
            comment,
        })
    }
}

fn check(key: &KeyData) -> Result<(), PublicKeyError> {
    match key.algorithm() {
        Algorithm::Dsa => Err(PublicKeyError::Dsa),
        Algorithm::Rsa { .. } => {
            let bits = key.rsa().map_or(0, |key| key.key_size());
            let fits = (SSH_RSA_BITS_MIN..=SSH_RSA_BITS_MAX).contains(&bits);
            fits.then_some(()).ok_or(PublicKeyError::RsaSize(bits))
        }
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => Ok(()),
        other => Err(PublicKeyError::Type(other.to_string())),
    }
}

/// `SHA256:…` of a key.
pub(super) fn fingerprint(key: &ssh_key::PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// A key that opens connections, until it is removed.
#[derive(Debug)]
pub(crate) struct KnownKey {
    /// Its id.
    pub(super) id: String,
    /// Cancelled when it is removed.
    pub(super) removed: CancellationToken,
    last_used_at: AtomicI64,
}

impl KnownKey {
    /// Whether its use at this time is to be noted.
    pub(super) fn touch(&self, now: i64) -> bool {
        let pause = i64::try_from(SSH_TOUCH.as_millis()).unwrap_or(i64::MAX);
        let noted =
            self.last_used_at.try_update(Ordering::Relaxed, Ordering::Relaxed, |at| (now >= at + pause).then_some(now));
        noted.is_ok()
    }
}

/// The keys that are valid now, by fingerprint. Fed by the store's commits.
#[derive(Debug, Default)]
pub(crate) struct SshKeys {
    by_fingerprint: RwLock<HashMap<String, Arc<KnownKey>>>,
}

impl SshKeys {
    pub(crate) fn add(&self, row: SshKeyRow) {
        let last_used_at = AtomicI64::new(row.last_used_at.unwrap_or(0));
        let key = KnownKey { id: row.id, removed: CancellationToken::new(), last_used_at };
        self.by_fingerprint.write().unwrap_or_else(PoisonError::into_inner).insert(row.fingerprint, Arc::new(key));
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut keys = self.by_fingerprint.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|_, key| {
            let stays = key.id != id;
            if !stays {
                key.removed.cancel();
            }
            stays
        });
    }

    pub(super) fn find(&self, key: &ssh_key::PublicKey) -> Option<Arc<KnownKey>> {
        self.by_fingerprint.read().unwrap_or_else(PoisonError::into_inner).get(&fingerprint(key)).cloned()
    }
}

#[cfg(test)]
#[path = "keys_test.rs"]
mod tests;
