//! Secrets.

use belljar_api::secret::{PutSecret, SecretInfo, SecretList};
use http::Method;

use crate::{
    Client, Error,
    transport::{Call, Plane, segment},
};

const SECRETS: &str = "/platform/v1/secrets";

impl Client {
    /// The secrets of the project, without their values.
    pub async fn secrets(&self) -> Result<SecretList, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, SECRETS)).await
    }

    /// Puts a secret: a new one, or what changes of the one with that name.
    pub async fn put_secret(&self, secret: &PutSecret) -> Result<SecretInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::PUT, SECRETS).json(secret)?).await
    }

    /// Removes a secret by its id or name.
    pub async fn delete_secret(&self, reference: &str) -> Result<(), Error> {
        let path = format!("{SECRETS}/{}", segment(reference));
        self.transport.nothing(Call::new(Plane::Control, Method::DELETE, path)).await
    }
}
