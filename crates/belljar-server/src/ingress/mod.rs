//! The data plane: requests that belong to a sandbox and not to us.
//!
//! [`target`] says which request goes to which sandbox and port, [`headers`] what a guest may see of it, [`proxy`] does
//! it. A proxied byte never waits for the store: the route is read from memory.

mod body;
mod headers;
mod pool;
mod proxy;
mod target;

pub(crate) use self::{
    pool::Pool,
    proxy::{Outside, allow_origin, forward, open},
    target::{Target, find},
};
