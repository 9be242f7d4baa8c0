//! Secrets at rest: how a value is sealed before the store gets it, and the authority that guests trust.
//!
//! ```text
//! PUT secret --seal--> store          node connects, secret changes --open--> credentials --> node's memory
//! first start: key file, authority --seal--> store
//! ```
//! One key, in a file of its own that only its owner reads, seals every value and the authority's private key: who has the
//! database and not the file has nothing. It is not the policy of who may use a secret ([`crate::app::secret`]), and puts
//! none into a request: nodes do.

mod authority;
mod seal;

use belljar_api::{
    node::{Credentials, Secret},
    secret::SecretValue,
};

pub use self::seal::SealError;
use self::{authority::Authority, seal::Sealer};
use crate::store::{SecretRow, Store, StoreError};

/// What the authority's key is sealed as; no secret can have that name.
const AUTHORITY: &str = "authority key";

/// Why there are no secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key, or what it sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// The authority could not be made.
    #[error("cannot make the authority that sandboxes trust: {0}")]
    Authority(#[from] rcgen::Error),
}

/// Seals and opens.
pub(crate) struct Secrets {
    sealer: Sealer,
    authority: Authority,
    /// One delivery at a time, so that no node is left with an older state.
    pub(crate) delivery: tokio::sync::Mutex<()>,
}

impl Secrets {
    /// Reads the key and the authority, or makes them at the first start.
    pub(crate) async fn open(key_file: &std::path::Path, store: &dyn Store) -> Result<Self, SecretError> {
        let kept = store.authority().await?;
        // A new key next to values that another one has sealed would lose them without a word.
        let sealer = match kept {
            Some(_) => Sealer::read(key_file)?,
            None => Sealer::read_or_make(key_file)?,
        };
        let row = match kept {
            Some(row) => row,
            None => {
                let (certificate, key) = authority::make()?;
                let sealed_key = sealer.seal(AUTHORITY, &key)?;
                store.save_authority(crate::store::AuthorityRow { certificate, sealed_key }).await?;
                store.authority().await?.ok_or(StoreError::Closed)?
            }
        };
        let key = sealer.open(AUTHORITY, &row.sealed_key)?;
        Ok(Self { sealer, authority: Authority { certificate: row.certificate, key }, delivery: Default::default() })
    }

    /// A value as the store keeps it.
    pub(crate) fn seal(&self, name: &str, value: &SecretValue) -> Result<Vec<u8>, SealError> {
        self.sealer.seal(name, value)
    }

    /// What nodes need.
    pub(crate) fn credentials(&self, rows: Vec<SecretRow>) -> Result<Credentials, SealError> {
        let open = |row: SecretRow| {
            let value = self.sealer.open(&row.name, &row.sealed)?;
            Ok(Secret { name: row.name, placeholder: row.placeholder, value, hosts: row.hosts, headers: row.headers })
        };
        Ok(Credentials {
            ca_certificate: self.authority.certificate.clone(),
            ca_key: self.authority.key.clone(),
            secrets: rows.into_iter().map(open).collect::<Result<_, SealError>>()?,
        })
    }
}
