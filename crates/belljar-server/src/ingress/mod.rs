//! The data plane: requests that belong to a sandbox and not to us.
//!
//! [`target`] says which request goes to which sandbox and port, [`proxy`] whether it may, [`exchange`] takes it there
//! over a connection of [`guest`]. [`headers`] and [`forwarded`] say what a guest may see of it. A proxied byte never
//! waits for the store: the route is read from memory.

mod body;
mod exchange;
mod forwarded;
mod grpc;
mod guest;
mod headers;
mod pool;
mod proxy;
mod reverse;
mod target;
mod tunnel;
mod websocket;

pub(crate) use self::{
    forwarded::Peer,
    guest::GrpcConnections,
    pool::Pool,
    proxy::{Hold, Outside, allow_origin, forward, listen, open},
    reverse::{GuestConnection, GuestListener, Offered},
    target::{Target, below, find, host},
    websocket::is_extended as is_websocket,
};
