//! Secrets: put, list, remove, and bring to the nodes.
//!
//! A change is answered when every connected node knows of it, so that whoever puts a secret and makes a sandbox has both.

use belljar_api::{
    limits::SECRETS_MAX,
    secret::{PutSecret, SecretInfo, SecretRef},
    time::rfc3339,
};

use super::App;
use crate::{
    auth,
    clock::now_ms,
    error::ApiError,
    node_link::NodeLink,
    store::{SecretChange, SecretRow},
};

impl App {
    /// Saves secrets, all or none.
    pub(crate) async fn put_secrets(&self, requests: Vec<PutSecret>) -> Result<Vec<SecretInfo>, ApiError> {
        if requests.len() > SECRETS_MAX {
            let words = format!("{} secrets at once; put at most {SECRETS_MAX}", requests.len());
            return Err(ApiError::invalid(words));
        }
        let at = now_ms();
        let changes = requests.into_iter().map(|request| self.change(request, at)).collect::<Result<_, _>>()?;
        let rows = self.store.put_secrets(changes).await?;
        for row in &rows {
            tracing::info!(id = row.id, name = row.name, "a secret was put");
        }
        self.deliver_secrets().await?;
        Ok(rows.into_iter().map(info).collect())
    }

    fn change(&self, mut request: PutSecret, at: i64) -> Result<SecretChange, ApiError> {
        request.check().map_err(|error| ApiError::invalid(error.to_string()))?;
        let seal =
            |value| self.secrets.seal(&request.name, value).map_err(|error| ApiError::internal(error.to_string()));
        Ok(SecretChange {
            new_id: format!("secret_{}", belljar_api::id::new_id()),
            new_placeholder: auth::new_placeholder()
                .map_err(|error| ApiError::internal(format!("no randomness: {error}")))?,
            sealed: request.value.as_ref().map(seal).transpose()?,
            name: request.name,
            hosts: request.hosts,
            headers: request.headers,
            at,
        })
    }

    /// Every secret, without its value.
    pub(crate) async fn secrets(&self) -> Result<Vec<SecretInfo>, ApiError> {
        Ok(self.store.secrets().await?.into_iter().map(info).collect())
    }

    /// Removes a secret by id or name; whether there was one. Sandboxes that use it have a placeholder for nothing then.
    pub(crate) async fn delete_secret(&self, reference: &str) -> Result<bool, ApiError> {
        let found = self.store.delete_secret(reference).await?;
        if found {
            tracing::info!(secret = reference, "a secret was removed");
            self.deliver_secrets().await?;
        }
        Ok(found)
    }

    /// The secrets with these names, as a sandbox knows them. One that does not exist, or can go nowhere, refuses it all.
    pub(crate) async fn secret_refs(&self, names: &[String]) -> Result<Vec<SecretRef>, ApiError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.store.secrets().await?;
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        let find = |name: String| match rows.iter().find(|row| row.name == name) {
            Some(row) if row.hosts.is_empty() => Err(ApiError::invalid(format!(
                "secret_names: {name:?} is bound to no host, so it could never be used; put its hosts first, for example \
                 with `belljar secret set {name} --host api.example.com`"
            ))),
            Some(row) => Ok(SecretRef { name, placeholder: row.placeholder.clone() }),
            None => Err(ApiError::invalid(format!(
                "secret_names: there is no secret {name:?}; put it first, or give the names without it"
            ))),
        };
        names.into_iter().map(find).collect()
    }

    /// Tells every connected node what secrets there are. One that cannot be told now is told when it is back.
    async fn deliver_secrets(&self) -> Result<(), ApiError> {
        let _in_order = self.secrets.delivery.lock().await;
        let credentials = self.credentials().await?;
        for link in self.live.nodes.connected() {
            if let Err(error) = link.credentials(&credentials).await {
                tracing::warn!(node = link.id(), %error, "a node does not know of a change of the secrets");
                link.hang_up();
            }
        }
        Ok(())
    }

    /// Tells one node, which has just come.
    pub(crate) async fn introduce_secrets(&self, link: &NodeLink) -> Result<(), ApiError> {
        let _in_order = self.secrets.delivery.lock().await;
        Ok(link.credentials(&self.credentials().await?).await?)
    }

    async fn credentials(&self) -> Result<belljar_api::node::Credentials, ApiError> {
        let rows = self.store.secrets().await?;
        self.secrets.credentials(rows).map_err(|error| ApiError::internal(error.to_string()))
    }
}

fn info(row: SecretRow) -> SecretInfo {
    SecretInfo {
        id: row.id,
        name: row.name,
        hosts: row.hosts,
        headers: row.headers,
        created_at: rfc3339(row.created_at),
        updated_at: rfc3339(row.updated_at),
    }
}
