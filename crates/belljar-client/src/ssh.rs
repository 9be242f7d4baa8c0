//! SSH keys, and where `ssh` finds the sandboxes.

use belljar_api::ssh_key::{AddSshKey, SshGateway, SshKeyInfo, SshKeyList};
use http::Method;

use crate::{
    Client, Error,
    transport::{Call, Plane, segment},
};

const KEYS: &str = "/platform/v1/users/me/ssh-keys";

impl Client {
    /// The SSH keys of the project.
    pub async fn ssh_keys(&self) -> Result<SshKeyList, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, KEYS)).await
    }

    /// Adds a public SSH key.
    pub async fn add_ssh_key(&self, key: &AddSshKey) -> Result<SshKeyInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::POST, KEYS).json(key)?).await
    }

    /// Removes an SSH key by its id; connections that it opened are closed.
    pub async fn delete_ssh_key(&self, id: &str) -> Result<(), Error> {
        let path = format!("{KEYS}/{}", segment(id));
        self.transport.nothing(Call::new(Plane::Control, Method::DELETE, path)).await
    }

    /// Port and host key of the server's SSH gateway.
    pub async fn ssh_gateway(&self) -> Result<SshGateway, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, "/platform/v1/ssh-gateway")).await
    }
}
