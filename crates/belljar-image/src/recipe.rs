//! What is in an image: packages, users, environment. The one place to change it.
//!
//! `npm` is left out on purpose: Debian's is made of 350 packages and adds 27 000 files and 167 MB to an image of
//! 342 MB (measured on bookworm), and no other package of the suite brings it. `corepack` is not in bookworm at all.

use std::collections::BTreeMap;

use crate::record::{INIT_LABEL, INIT_SYSTEMD, RuntimeConfig};

/// What an image is for: which packages it has, and what is done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Sandboxes.
    Sandbox,
    /// Sandboxes that boot systemd.
    Systemd,
    /// Building Dockerfiles.
    Builder,
}

impl Purpose {
    /// Packages beside Debian's essential and required ones.
    pub(crate) fn packages(self) -> Vec<&'static str> {
        match self {
            Self::Sandbox => PACKAGES.to_vec(),
            Self::Systemd => [&PACKAGES[..], &SYSTEMD_PACKAGES[..]].concat(),
            Self::Builder => BUILDER_PACKAGES.to_vec(),
        }
    }

    /// Shell commands that complete the tree at `$1`, with the user there.
    pub(crate) fn hooks(self) -> Vec<String> {
        match self {
            Self::Sandbox | Self::Builder => Vec::new(),
            // The sandbox's user is root when it wants to be; so Docker and the journal may as well be its own.
            Self::Systemd => vec![format!("chroot \"$1\" usermod --append --groups docker,systemd-journal {USER}")],
        }
    }

    /// Files that it has beside those of every image.
    pub(crate) fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Sandbox | Self::Builder => &[],
            // As systemd leaves them where everything is done that an update of the packages asks for, which they did themselves.
            Self::Systemd => &[("etc/.updated", ""), ("var/.updated", "")],
        }
    }

    fn labels(self) -> BTreeMap<String, String> {
        match self {
            Self::Sandbox | Self::Builder => BTreeMap::new(),
            Self::Systemd => BTreeMap::from([(INIT_LABEL.to_owned(), INIT_SYSTEMD.to_owned())]),
        }
    }
}

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
/// The first suite whose `buildah` knows here-documents, and whose Compose is version 2.
pub(crate) const NEWER_SUITE: &str = "trixie";

/// Packages that the systemd image has beside [`PACKAGES`]: the init system with its bus, and Docker. Its Docker and its Compose, which
/// is the plug-in of `docker compose`, are newer than bookworm's, where Compose is version 1 and no plug-in.
pub(crate) const SYSTEMD_PACKAGES: [&str; 6] =
    ["dbus", "docker-cli", "docker-compose", "docker.io", "systemd", "systemd-sysv"];

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
pub(crate) fn runtime_config(purpose: Purpose, own_certificates: bool) -> RuntimeConfig {
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
        labels: purpose.labels(),
        ..RuntimeConfig::default()
    }
}
