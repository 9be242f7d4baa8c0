//! What may leave a sandbox: the policy, the firewall's rules that hold it, and the resolver that answers the guest.
//!
//! ```text
//! NetworkConfig + Operator -> Policy --compile--> nftables script of the sandbox's network namespace
//!                               |                                ^ addresses of permitted names, of denied names
//! guest's DNS query -> Resolver + -> upstream -> Firewall -------/      (in force before the answer goes out)
//!                               \-> a name that a secret is bound to: the address of the sandbox's Proxy
//! ```
//!
//! - [`policy`] decides about names and addresses, without I/O.
//! - [`ruleset`] turns a policy into rules and those into text. A test evaluates the same rules and compares them with a
//!   model of the policy that knows nothing of rules.
//! - [`resolver`] answers the guest, on sockets that it is given.
//! - [`credentials`] holds secrets, and puts them into requests to the hosts to which they are bound.
//!
//! It is not the network itself: namespaces, devices, sockets and the running of `nft` are [`crate::network`]'s.

pub(crate) mod credentials;
mod limits;
#[cfg(test)]
mod model;
pub(crate) mod policy;
pub(crate) mod resolver;
pub(crate) mod ruleset;

/// Errors of one peer, not of the socket that is accepted from.
fn is_of_peer(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable,
        PermissionDenied,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkUnreachable
            | PermissionDenied
    )
}
