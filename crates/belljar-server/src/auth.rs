//! API keys and the node token: how they are made and recognized.
//!
//! A secret is shown once, when it is made; kept is its SHA-256 hash. 256 random bits need no slow hash, and a lookup by
//! hash gives no timing away that would help to guess the secret. The cache is fed by the store's commits, so that a
//! removed key is refused at once.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use belljar_api::{error::code, secret::PLACEHOLDER_PREFIX};
use http::{HeaderMap, StatusCode, header};
use rand::{TryRng, rngs::SysRng};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{error::ApiError, store::KeyRow};

/// What every API key begins with, so that a leaked one is recognized.
pub(crate) const KEY_PREFIX: &str = "belljar_";
/// What every node token that we make begins with.
const NODE_PREFIX: &str = "belljar_node_";

/// A fresh secret: a prefix and 43 characters of base64url.
fn secret(prefix: &str) -> Result<String, rand::rngs::SysError> {
    let mut bytes = [0; 32];
    SysRng.try_fill_bytes(&mut bytes)?;
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// A fresh API key.
pub(crate) fn new_key() -> Result<String, rand::rngs::SysError> {
    secret(KEY_PREFIX)
}

/// A fresh id of a key.
pub(crate) fn new_key_id() -> String {
    format!("key_{}", belljar_api::id::new_id())
}

/// A fresh node token.
pub(crate) fn new_node_token() -> Result<String, rand::rngs::SysError> {
    secret(NODE_PREFIX)
}

/// A fresh placeholder: nobody comes by one by chance, or guesses that of another secret.
pub(crate) fn new_placeholder() -> Result<String, rand::rngs::SysError> {
    secret(PLACEHOLDER_PREFIX)
}

/// What is kept of a secret.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// The token of an `Authorization: Bearer` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The keys that are valid now.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    by_hash: RwLock<HashMap<[u8; 32], KeyRow>>,
}

impl Keys {
    pub(crate) fn add(&self, key: KeyRow) {
        self.by_hash.write().unwrap_or_else(PoisonError::into_inner).insert(key.hash, key);
    }

    pub(crate) fn remove(&self, id: &str) {
        self.by_hash.write().unwrap_or_else(PoisonError::into_inner).retain(|_, key| key.id != id);
    }

    /// The id of the key that a request carries.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<String, ApiError> {
        let refuse = |words: &str| ApiError::new(StatusCode::UNAUTHORIZED, code::UNAUTHENTICATED, words);
        let Some(token) = bearer(headers) else {
            return Err(refuse(
                "this needs an API key: send `Authorization: Bearer <key>` \
                 (clients read it from TENSORLAKE_API_KEY or BELLJAR_API_KEY)",
            ));
        };
        let keys = self.by_hash.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&hash(token))
            .map(|key| key.id.clone())
            .ok_or_else(|| refuse("this API key is not known here, or was removed; make one with `belljar key create`"))
    }
}

/// Recognizes nodes.
#[derive(Debug)]
pub(crate) struct NodeToken {
    hash: [u8; 32],
}

impl NodeToken {
    pub(crate) fn new(token: &str) -> Self {
        Self { hash: hash(token) }
    }

    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let given = bearer(headers).map(hash).unwrap_or_default();
        if bool::from(given.ct_eq(&self.hash)) {
            return Ok(());
        }
        let words = "a node joins with `Authorization: Bearer <node token>`; an API key does not do";
        Err(ApiError::new(StatusCode::UNAUTHORIZED, code::UNAUTHENTICATED, words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().expect("header"))])
    }

    #[test]
    fn keys_are_recognized_until_they_are_removed() {
        let (keys, key) = (Keys::default(), new_key().expect("key"));
        assert_eq!((key.len(), key.starts_with(KEY_PREFIX)), (KEY_PREFIX.len() + 43, true));
        keys.add(KeyRow { id: "k1".into(), name: "n".into(), hash: hash(&key), created_at: 0 });
        for (value, known) in [
            (format!("Bearer {key}"), true),
            (format!("bearer  {key}"), true),
            (format!("Basic {key}"), false),
            (key.clone(), false),
            ("Bearer ".into(), false),
            (format!("Bearer {key}x"), false),
        ] {
            assert_eq!(keys.check(&headers(&value)).is_ok(), known, "{value}");
        }
        keys.remove("k1");
        assert!(keys.check(&headers(&format!("Bearer {key}"))).is_err());
        assert!(keys.check(&HeaderMap::new()).is_err());
    }

    #[test]
    fn only_the_token_makes_a_node() {
        let token = NodeToken::new("secret");
        assert!(token.check(&headers("Bearer secret")).is_ok());
        assert!(token.check(&headers("Bearer secre")).is_err());
        assert!(token.check(&HeaderMap::new()).is_err());
    }
}
