//! The control plane, continued: pools of warm sandboxes.

use belljar_api::{
    pool::{CreatedPool, PoolInfo, PoolList, PoolRequest},
    sandbox::CreatedSandbox,
};
use http::Method;

use crate::{
    Client, Error,
    client::NAMESPACE,
    transport::{Call, Plane, segment},
};

impl Client {
    /// Makes a pool.
    pub async fn create_pool(&self, request: &PoolRequest) -> Result<CreatedPool, Error> {
        let call = Call::new(Plane::Control, Method::POST, format!("{NAMESPACE}/sandbox-pools")).json(request)?;
        self.transport.json(call).await
    }

    /// Every pool, oldest first.
    pub async fn pools(&self) -> Result<PoolList, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, format!("{NAMESPACE}/sandbox-pools"))).await
    }

    /// The pool with this id.
    pub async fn pool(&self, id: &str) -> Result<PoolInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, pool_path(id))).await
    }

    /// Replaces what a pool is; warm sandboxes that differ are replaced, claimed ones stay as they are.
    pub async fn update_pool(&self, id: &str, request: &PoolRequest) -> Result<PoolInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::PUT, pool_path(id)).json(request)?).await
    }

    /// Removes a pool with its warm sandboxes. Refused while claimed ones live.
    pub async fn delete_pool(&self, id: &str) -> Result<(), Error> {
        self.transport.nothing(Call::new(Plane::Control, Method::DELETE, pool_path(id))).await
    }

    /// Takes a sandbox out of a pool: a warm one at once, else one is made and waited for as by [`Client::create`].
    pub async fn claim(&self, id: &str) -> Result<CreatedSandbox, Error> {
        self.started(Call::new(Plane::Control, Method::POST, format!("{}/sandboxes", pool_path(id)))).await
    }
}

fn pool_path(id: &str) -> String {
    format!("{NAMESPACE}/sandbox-pools/{}", segment(id))
}
