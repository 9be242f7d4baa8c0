//! Every environment variable that the program reads, and nothing else reads one.

/// Address of the server, like `http://127.0.0.1:8900`.
pub const API_URL: &str = "BELLJAR_API_URL";
/// API key.
pub const API_KEY: &str = "BELLJAR_API_KEY";
/// Certificates, PEM, that are trusted beside the system's when the server is reached over HTTPS.
pub const CA: &str = "BELLJAR_CA";
/// Configuration file; default `$XDG_CONFIG_HOME/belljar/config.toml` or `~/.config/belljar/config.toml`.
pub const CONFIG_FILE: &str = "BELLJAR_CONFIG_FILE";
/// Directory that holds everything of `belljar up`; default `/var/lib/belljar` for root, else
/// `~/.local/share/belljar`.
pub const DATA_DIR: &str = "BELLJAR_DATA_DIR";
/// Addresses that `belljar up` listens on, separated by commas.
pub const LISTEN: &str = "BELLJAR_LISTEN";
/// Address that `belljar up` listens on for SSH, or `none`.
pub const SSH_LISTEN: &str = "BELLJAR_SSH_LISTEN";
/// Kernel of the sandboxes, an ELF `vmlinux`.
pub const KERNEL: &str = "BELLJAR_KERNEL";
/// Initramfs of the sandboxes, which holds the guest agent.
pub const INITRD: &str = "BELLJAR_INITRD";
/// Where `cargo xtask` puts what it builds; default `~/.cache/belljar`.
pub const CACHE: &str = "BELLJAR_CACHE";
/// Directory in which `docker login` stores who asks a registry; default `~/.docker`.
pub const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
/// Directory of the images; default `~/.cache/belljar/store`.
pub const IMAGE_STORE: &str = "BELLJAR_IMAGE_STORE";
/// What runs the sandboxes: `auto`, the name of a driver, or `process:AGENT` in builds with that test driver.
pub const DRIVER: &str = "BELLJAR_DRIVER";
/// Directory where VM programs are looked for before `PATH`.
pub const VMM_DIR: &str = "BELLJAR_VMM_DIR";
/// Whether VM processes are jailed: `auto`, `on` or `off`.
pub const JAIL: &str = "BELLJAR_JAIL";
/// Address under which clients reach the data plane; default the first that `belljar up` listens on.
pub const PUBLIC_URL: &str = "BELLJAR_PUBLIC_URL";
/// DNS name under which `{id}.` and `{port}-{id}.` lead to the server.
pub const INGRESS_DOMAIN: &str = "BELLJAR_INGRESS_DOMAIN";
/// Certificate that `belljar up` shows on its HTTPS addresses: PEM, its issuers behind it.
pub const TLS_CERT: &str = "BELLJAR_TLS_CERT";
/// Private key of that certificate, PEM.
pub const TLS_KEY: &str = "BELLJAR_TLS_KEY";
/// Addresses on which `belljar up` speaks HTTPS, separated by commas.
pub const TLS_LISTEN: &str = "BELLJAR_TLS_LISTEN";
/// Whether `belljar up` gets its certificates from an ACME server: `true` or `false`.
pub const ACME: &str = "BELLJAR_ACME";
/// Mail address that the ACME server may write to.
pub const ACME_CONTACT: &str = "BELLJAR_ACME_CONTACT";
/// Directory of the ACME server, `https://…`; default Let's Encrypt's.
pub const ACME_SERVER: &str = "BELLJAR_ACME_SERVER";
/// Root certificates, PEM, that are trusted for the ACME server beside the system's.
pub const ACME_CA: &str = "BELLJAR_ACME_CA";
/// Program that adds and removes the DNS records with which ACME proves a wildcard.
pub const ACME_DNS_HOOK: &str = "BELLJAR_ACME_DNS_HOOK";
/// Proxies in front of `belljar up` whose `X-Forwarded-*` are believed, separated by commas.
pub const TRUSTED_PROXY: &str = "BELLJAR_TRUSTED_PROXY";
/// VMs that `belljar up` keeps ready for each golden snapshot; `0` is none.
pub const SPARES: &str = "BELLJAR_SPARES";
/// What sandboxes' networks are made of: `auto`, `namespaces` or `user`.
pub const NETWORK: &str = "BELLJAR_NETWORK";
/// Networks that are not public and that sandboxes may reach, separated by commas.
pub const ALLOW_PRIVATE: &str = "BELLJAR_ALLOW_PRIVATE";
/// DNS servers of sandboxes, separated by commas.
pub const RESOLVERS: &str = "BELLJAR_RESOLVERS";
/// Megabits per second of each sandbox, in each direction.
pub const NETWORK_BANDWIDTH_MBIT: &str = "BELLJAR_NETWORK_BANDWIDTH_MBIT";
/// Connections that each sandbox may begin in a second.
pub const NETWORK_NEW_CONNECTIONS: &str = "BELLJAR_NETWORK_NEW_CONNECTIONS";
/// Connections that each sandbox may have at once.
pub const NETWORK_CONNECTIONS: &str = "BELLJAR_NETWORK_CONNECTIONS";
/// Mebibytes per second that each sandbox may read from and write to its disk.
pub const DISK_BANDWIDTH_MIB: &str = "BELLJAR_DISK_BANDWIDTH_MIB";
/// Requests per second that each sandbox may send to its disk.
pub const DISK_IOPS: &str = "BELLJAR_DISK_IOPS";
/// Processor features that sandboxes are not told of, separated by commas.
pub const HIDE_CPU_FEATURES: &str = "BELLJAR_HIDE_CPU_FEATURES";
/// GPUs that sandboxes can have, `MODEL@ADDRESS` each, separated by commas.
pub const GPU: &str = "BELLJAR_GPU";
/// Whether sandboxes begin from golden snapshots: `true` or `false`.
pub const TEMPLATES: &str = "BELLJAR_TEMPLATES";
/// Seconds that the memory of a sleeping sandbox is held for a quick wake.
pub const RESIDENT_SECS: &str = "BELLJAR_RESIDENT_SECS";
/// MiB of memory that sandboxes may have, all together.
pub const MEMORY_MB: &str = "BELLJAR_MEMORY_MB";
/// File of the volume that is made where the data directory cannot reflink.
pub const VOLUME_FILE: &str = "BELLJAR_VOLUME_FILE";
/// Size of that volume, MiB.
pub const VOLUME_SIZE_MB: &str = "BELLJAR_VOLUME_SIZE_MB";
/// What `belljar up` logs, as `tracing-subscriber` filters: `info`, `belljar_node=debug`.
pub const LOG: &str = "BELLJAR_LOG";
/// Where the configuration file is looked for.
pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// Home directory.
pub const HOME: &str = "HOME";
/// Kind of terminal, passed on by `belljar shell`.
pub const TERM: &str = "TERM";
