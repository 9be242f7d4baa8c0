use russh::keys::{
    PrivateKey,
    ssh_key::{LineEnding, Mpint, private::Ed25519Keypair, public::RsaPublicKey},
};

use super::*;

const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS me@here";

fn row(key: &PublicKey, id: &str) -> SshKeyRow {
    SshKeyRow {
        id: id.into(),
        api_key_id: "a".into(),
        name: "n".into(),
        key_type: key.key_type.clone(),
        fingerprint: key.fingerprint.clone(),
        public_key: key.line.clone(),
        created_at: 0,
        last_used_at: None,
    }
}

fn rsa(bits: usize) -> String {
    let mut number = vec![0xff; bits / 8];
    number[0] = 0x80;
    let part = |bytes: &[u8]| Mpint::from_positive_bytes(bytes);
    let key = RsaPublicKey::new(part(&[1, 0, 1]), part(&number)).expect("key");
    ssh_key::PublicKey::from(KeyData::from(key)).to_openssh().expect("text")
}

#[track_caller]
fn refused(text: &str, words: &str) {
    let error = PublicKey::parse(text).expect_err(text).to_string();
    assert!(error.contains(words), "{error:?} does not say {words:?}");
}

#[test]
fn a_good_key_comes_out_as_openssh_shows_it() {
    let key = PublicKey::parse(&format!("\n  {ED25519} and more \n")).expect("key");
    assert_eq!((key.key_type.as_str(), key.comment.as_str()), ("ssh-ed25519", "me@here and more"));
    assert_eq!(key.line, ED25519.rsplit_once(' ').expect("comment").0);
    assert!(key.fingerprint.starts_with("SHA256:") && key.fingerprint.len() == 50, "{}", key.fingerprint);
    assert_eq!(PublicKey::parse(&key.line).expect("again").fingerprint, key.fingerprint);
    assert_eq!(PublicKey::parse(&rsa(2048)).expect("rsa").key_type, "ssh-rsa");
}

#[test]
fn everything_else_is_refused_with_a_remedy() {
    let private = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32])).to_openssh(LineEnding::LF).expect("text");
    refused(&private, "this is a private key");
    refused("-----BEGIN RSA PRIVATE KEY-----\nMIIE", "this is a private key");
    refused(&format!("{ED25519}\n{ED25519}"), "one key");
    refused(&format!("command=\"x\" {ED25519}"), "options");
    refused(&format!("no-pty,from=\"10.0.0.1\" {ED25519}"), "options");
    refused("ssh-dss AAAAB3NzaC1kc3MAAACBAP", "DSA");
    refused("ssh-ed25519-cert-v01@openssh.com AAAA", "certificates");
    refused(&rsa(1024), "1024 bits");
    refused(&format!("ssh-ed25519 {}", "A".repeat(SSH_KEY_BYTES_MAX)), "more than");
    for malformed in ["", "hello", "ssh-ed25519", "ssh-ed25519 %%%", "ssh-ed25519 AAAA", "ssh-rsa AAAAC3NzaC1lZDI1NTE5"]
    {
        refused(malformed, "not a public key in OpenSSH's form");
    }
    // A type that does not fit what is behind it.
    refused(&ED25519.replacen("ssh-ed25519", "ssh-rsa", 1), "not a public key");
}

#[test]
fn a_removed_key_is_refused_and_its_connections_are_told() {
    let (keys, parsed) = (SshKeys::default(), PublicKey::parse(ED25519).expect("key"));
    let offered = ssh_key::PublicKey::from_openssh(ED25519).expect("key");
    assert!(keys.find(&offered).is_none());
    keys.add(row(&parsed, "k1"));
    let known = keys.find(&offered).expect("known");
    keys.remove("k2");
    assert!(!known.removed.is_cancelled() && keys.find(&offered).is_some());
    keys.remove("k1");
    assert!(known.removed.is_cancelled() && keys.find(&offered).is_none());
}

#[test]
fn uses_are_noted_now_and_then() {
    let (keys, parsed) = (SshKeys::default(), PublicKey::parse(ED25519).expect("key"));
    keys.add(row(&parsed, "k1"));
    let known = keys.find(&ssh_key::PublicKey::from_openssh(ED25519).expect("key")).expect("known");
    let uses: Vec<bool> = [100_000, 100_001, 159_999, 160_000].into_iter().map(|at| known.touch(at)).collect();
    assert_eq!(uses, [true, false, false, true]);
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _ = PublicKey::parse(&text);
        let _ = PublicKey::parse(&format!("ssh-ed25519 {text}"));
    }
}
