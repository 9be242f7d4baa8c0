//! SSH keys: what opens a sandbox to `ssh`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /platform/v1/users/me/ssh-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddSshKey {
    /// A label for people; the key's own comment when it is empty or absent.
    #[serde(default)]
    pub name: String,
    /// One line as `ssh-keygen` writes it: `ssh-ed25519 AAAA… comment`.
    pub public_key: String,
}

/// An SSH key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshKeyInfo {
    /// Its id.
    pub id: String,
    /// Its label.
    pub name: String,
    /// `ssh-ed25519`, `ecdsa-sha2-nistp256`, `ssh-rsa`, …
    pub key_type: String,
    /// `SHA256:…`, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// When it was added, RFC 3339.
    pub created_at: String,
    /// When it last opened a connection, RFC 3339, to the minute; null when it never has.
    pub last_used_at: Option<String>,
}

/// Answer of `GET /platform/v1/ssh-gateway`: where `ssh` finds the sandboxes. The host is that of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshGateway {
    /// TCP port.
    pub port: u16,
    /// The host key, as `known_hosts` has it: `ssh-ed25519 AAAA…`.
    pub host_key: String,
    /// `SHA256:…`, as `ssh` shows it.
    pub fingerprint: String,
}

/// Answer of `GET /platform/v1/users/me/ssh-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshKeyList {
    /// All of them, oldest first.
    pub items: Vec<SshKeyInfo>,
}
