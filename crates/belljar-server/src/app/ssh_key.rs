//! SSH keys: add, list. What a good one is, [`crate::ssh`] knows.

use belljar_api::{
    ssh_key::{AddSshKey, SshKeyInfo},
    time::rfc3339,
};

use super::App;
use crate::{clock::now_ms, error::ApiError, limits::KEY_NAME_MAX, ssh::PublicKey, store::SshKeyRow};

impl App {
    /// Adds a key for the holder of an API key.
    pub(crate) async fn add_ssh_key(&self, api_key_id: String, request: AddSshKey) -> Result<SshKeyInfo, ApiError> {
        let key =
            PublicKey::parse(&request.public_key).map_err(|error| ApiError::invalid(format!("publicKey: {error}")))?;
        let name = match request.name.trim() {
            "" if key.comment.is_empty() => key.fingerprint.clone(),
            "" => key.comment.chars().filter(|c| !c.is_control()).take(KEY_NAME_MAX).collect(),
            name => name.to_owned(),
        };
        if name.is_empty() || name.chars().count() > KEY_NAME_MAX || name.chars().any(char::is_control) {
            return Err(ApiError::invalid(format!("name: give the key a label of 1 to {KEY_NAME_MAX} characters")));
        }
        let row = SshKeyRow {
            id: format!("sshkey_{}", belljar_api::id::new_id()),
            api_key_id,
            name,
            key_type: key.key_type,
            fingerprint: key.fingerprint,
            public_key: key.line,
            created_at: now_ms(),
            last_used_at: None,
        };
        self.store.create_ssh_key(row.clone()).await?;
        tracing::info!(id = row.id, api_key = row.api_key_id, fingerprint = row.fingerprint, "an SSH key was added");
        Ok(info(row))
    }

    /// Every key.
    pub(crate) async fn ssh_keys(&self) -> Result<Vec<SshKeyInfo>, ApiError> {
        Ok(self.store.ssh_keys().await?.into_iter().map(info).collect())
    }

    /// Removes a key; whether there was one.
    pub(crate) async fn delete_ssh_key(&self, id: &str) -> Result<bool, ApiError> {
        let found = self.store.delete_ssh_key(id).await?;
        if found {
            tracing::info!(id, "an SSH key was removed");
        }
        Ok(found)
    }
}

fn info(row: SshKeyRow) -> SshKeyInfo {
    SshKeyInfo {
        id: row.id,
        name: row.name,
        key_type: row.key_type,
        fingerprint: row.fingerprint,
        created_at: rfc3339(row.created_at),
        last_used_at: row.last_used_at.map(rfc3339),
    }
}
