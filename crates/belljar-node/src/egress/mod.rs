//! What may leave a sandbox: the policy, the firewall's rules that hold it, and the resolver that answers the guest.
//!
//! ```text
//! NetworkConfig + Operator -> Policy --compile--> nftables script of the sandbox's network namespace
//!                               |                                ^ addresses of permitted names, of denied names
//! guest's DNS query -> Resolver + -> upstream -> Firewall -------/      (in force before the answer goes out)
//! ```
//!
//! - [`policy`] decides about names and addresses, without I/O.
//! - [`ruleset`] turns a policy into rules and those into text. A test evaluates the same rules and compares them with a
//!   model of the policy that knows nothing of rules.
//! - [`resolver`] answers the guest, on sockets that it is given.
//!
//! It is not the network itself: namespaces, devices, sockets and the running of `nft` are [`crate::network`]'s.

mod limits;
#[cfg(test)]
mod model;
pub(crate) mod policy;
pub(crate) mod resolver;
pub(crate) mod ruleset;
