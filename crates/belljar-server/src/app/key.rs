//! API keys: make, list, remove.

use belljar_api::key::{CreateKey, CreatedKey};

use super::App;
use crate::{auth, clock::now_ms, error::ApiError, limits::KEY_NAME_MAX, store::KeyRow};

impl App {
    /// Makes a key; the answer is the only place where its secret ever is.
    pub(crate) async fn create_key(&self, request: CreateKey) -> Result<CreatedKey, ApiError> {
        let name = request.name.trim().to_owned();
        if name.is_empty() || name.chars().count() > KEY_NAME_MAX || name.chars().any(char::is_control) {
            return Err(ApiError::invalid(format!("name: give the key a label of 1 to {KEY_NAME_MAX} characters")));
        }
        let key = auth::new_key().map_err(|error| ApiError::internal(format!("no randomness: {error}")))?;
        let id = auth::new_key_id();
        let created_at = now_ms();
        let row = KeyRow { id: id.clone(), name: name.clone(), hash: auth::hash(&key), created_at };
        self.store.create_key(row).await?;
        Ok(CreatedKey { id, name, created_at, key })
    }
}
