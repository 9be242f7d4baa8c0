//! API keys: who a request comes from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `POST /platform/v1/keys/introspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Introspection {
    /// The key's id; never the key.
    pub id: String,
    /// The organization it belongs to.
    pub organization_id: String,
    /// The project it is scoped to.
    pub project_id: String,
}

/// Body of `POST /platform/v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateKey {
    /// A label for people.
    pub name: String,
}

/// A key as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyInfo {
    /// The key's id.
    pub id: String,
    /// Its label.
    pub name: String,
    /// Milliseconds since the epoch.
    pub created_at: i64,
}

/// Answer of `POST /platform/v1/keys`: the only time that the secret is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedKey {
    /// The key's id.
    pub id: String,
    /// Its label.
    pub name: String,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// The bearer token, `belljar_<43 characters>`; kept only as a hash.
    pub key: String,
}

/// Answer of `GET /platform/v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyList {
    /// All of them, oldest first.
    pub items: Vec<KeyInfo>,
}
