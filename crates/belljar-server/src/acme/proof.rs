//! What the ACME server looks at to see that a name is ours: a TLS handshake of its own kind (TLS-ALPN-01, RFC 8737), or a
//! TXT record that the operator's program adds (DNS-01).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use instant_acme::{ChallengeType, KeyAuthorization};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::ClientHello,
    sign::CertifiedKey,
};
use tokio::process::Command;

use super::AcmeError;
use crate::limits::{ACME_HOOK_TIMEOUT, ACME_HOOK_WORDS_MAX};

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
    /// By this program.
    Dns(PathBuf),
}

/// A proof that can be seen, until it is withdrawn.
#[derive(Debug)]
pub(super) enum Proof {
    Handshake { name: String },
    Record { record: String, value: String },
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
            Self::Dns(program) => {
                let (record, value) = (format!("_acme-challenge.{name}"), value.dns_value());
                run_hook(program, "add", &record, &value).await?;
                Ok(Proof::Record { record, value })
            }
        }
    }

    /// Takes a proof back. It is of no use to anybody any more, so that a failure is only told.
    pub(super) async fn withdraw(&self, proof: Proof) {
        match (self, proof) {
            (Self::Handshake(handshakes), Proof::Handshake { name }) => drop(handshakes.lock().remove(&name)),
            (Self::Dns(program), Proof::Record { record, value }) => {
                if let Err(error) = run_hook(program, "remove", &record, &value).await {
                    tracing::warn!(%error, "a DNS record of ACME stays");
                }
            }
            (Self::Handshake(_), Proof::Record { .. }) | (Self::Dns(_), Proof::Handshake { .. }) => {}
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

/// `PROGRAM add|remove NAME VALUE`
async fn run_hook(program: &Path, verb: &'static str, record: &str, value: &str) -> Result<(), AcmeError> {
    let failed = |why: String| AcmeError::HookFailed { path: program.to_owned(), verb, record: record.to_owned(), why };
    let mut command = Command::new(program);
    command.args([verb, record, value]).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(ACME_HOOK_TIMEOUT, command.output()).await {
        Err(_) => Err(failed(format!("it did not end within {} s", ACME_HOOK_TIMEOUT.as_secs()))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(failed(last_words(&output))),
    }
}

/// How a program ended, and the end of what it wrote.
fn last_words(output: &Output) -> String {
    let text = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(ACME_HOOK_WORDS_MAX)..]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { output.status.to_string() } else { format!("{}: {text}", output.status) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// Runs a hook with this text and gives its complaint.
    async fn check(text: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("hook");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("hook");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        run_hook(&path, "add", "_acme-challenge.sb.test", "v_-1").await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_hook_is_told_what_to_do_and_its_last_words_are_kept() {
        check(r#"[ "$*" = "add _acme-challenge.sb.test v_-1" ]"#).await.expect("told");
        for (text, words) in [
            ("echo the provider >&2; echo says no >&2; exit 3", "exit status: 3: the provider says no"),
            ("echo on stdout; exit 1", "exit status: 1: on stdout"),
            ("kill -9 $$", "signal: 9"),
            ("head -c 100000 /dev/zero | tr '\\0' x; exit 1", "xxx"),
        ] {
            let complaint = check(text).await.expect_err(words);
            assert!(
                complaint.contains(words) && complaint.contains("TXT record _acme-challenge.sb.test"),
                "{complaint}"
            );
            assert!(complaint.len() < 2000, "{}", complaint.len());
        }
    }
}
