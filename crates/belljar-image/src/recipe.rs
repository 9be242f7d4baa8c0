//! What is in an image: packages, users, environment. The one place to change it.
//!
//! `npm` is left out on purpose: Debian's is made of 350 packages and adds 27 000 files and 167 MB to an image of
//! 342 MB (measured on bookworm), and no other package of the suite brings it. `corepack` is not in bookworm at all.

use std::collections::BTreeMap;

use crate::record::RuntimeConfig;

/// Part of every build's key. Raise it with every change here, in `tree.rs` or in `ext4.rs` that changes an image.
pub(crate) const VERSION: u32 = 1;

/// Packages beside Debian's essential and required ones, which have `bash`, `tar` and `gzip` already.
pub(crate) const PACKAGES: [&str; 11] = [
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "less",
    "nodejs",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "sudo",
];

/// Packages of the image that Dockerfiles are built in: `buildah`, what runs its steps (`crun`) and what it will not start
/// without (`netavark`), `git` for `ADD` of a repository, and what every sandbox's agent relies on.
pub(crate) const BUILDER_PACKAGES: [&str; 7] =
    ["buildah", "ca-certificates", "crun", "git", "iproute2", "netavark", "sudo"];
/// The first suite whose `buildah` knows here-documents.
pub(crate) const BUILDER_SUITE: &str = "trixie";

/// The user of every process that names none.
pub(crate) const USER: &str = "tl-user";
/// Its user and group id.
pub(crate) const USER_ID: u32 = 1000;

/// Files that packages bring and a sandbox does not need: dpkg leaves them out, at later installations too.
pub(crate) const DPKG_OPTIONS: [&str; 7] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/bug/*",
];

/// Directory of certificates that an administrator adds, on the host and in the image.
pub(crate) const OWN_CERTIFICATES: &str = "/usr/local/share/ca-certificates";

/// What a sandbox takes over from the image.
pub(crate) fn runtime_config(own_certificates: bool) -> RuntimeConfig {
    /// All certificates the image trusts, as `update-ca-certificates` writes them.
    const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
    let mut env = BTreeMap::from([
        ("LANG", "C.UTF-8"),
        // Debian's pip refuses to install outside a virtual environment; a sandbox is one already.
        ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        // The sandbox's user may install for itself; pip says so at every call otherwise.
        ("PIP_ROOT_USER_ACTION", "ignore"),
    ]);
    if own_certificates {
        // Programs that bring their own list of authorities: node, Python's requests (and pip), and its httpx.
        env.extend([("NODE_EXTRA_CA_CERTS", BUNDLE), ("REQUESTS_CA_BUNDLE", BUNDLE), ("SSL_CERT_FILE", BUNDLE)]);
    }
    RuntimeConfig {
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        ..RuntimeConfig::default()
    }
}
