//! Arguments of the commands that are about this machine: the server and keys.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, FromArgMatches, Subcommand};

use belljar_node::{CpuFeature, DriverSetting, GpuSetting, JailSetting, NetworkSetting};
use ipnet::IpNet;

use super::value::SshListen;
use crate::env_vars;

/// `belljar up`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Ctrl-C (SIGINT) ends every sandbox, then the server. SIGTERM ends the server only: its virtual machines go on, and \
the next `belljar up` takes them over. `belljar down` and `belljar down --keep` do the same from outside.")]
pub struct UpArgs {
    /// Return once it is ready; it goes on in the background and logs to DIR/log/belljar.log
    #[arg(short, long)]
    pub detach: bool,
    /// Address to listen on; may be repeated [default: 127.0.0.1:8900 and 127.0.0.1:9443]
    #[arg(long, value_name = "ADDRESS", env = env_vars::LISTEN, hide_env_values = true, value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
    /// Address to listen on for SSH, or `none` [default: 127.0.0.1:2222]
    #[arg(long, value_name = "ADDRESS", env = env_vars::SSH_LISTEN, hide_env_values = true)]
    pub ssh_listen: Option<SshListen>,
    /// Kernel of the sandboxes [default: the one that `cargo xtask kernel` built]
    #[arg(long, value_name = "FILE", env = env_vars::KERNEL, hide_env_values = true)]
    pub kernel: Option<PathBuf>,
    /// Initramfs with the guest agent [default: the one that `cargo xtask guest` built]
    #[arg(long, value_name = "FILE", env = env_vars::INITRD, hide_env_values = true)]
    pub initrd: Option<PathBuf>,
    /// Directory of the images [default: ~/.cache/belljar/store]
    #[arg(long, value_name = "DIR", env = env_vars::IMAGE_STORE, hide_env_values = true)]
    pub image_store: Option<PathBuf>,
    /// Address under which clients reach sandboxes [default: the first of --listen]
    #[arg(long, value_name = "URL", env = env_vars::PUBLIC_URL, hide_env_values = true)]
    pub public_url: Option<String>,
    /// DNS name under which {id} and {port}-{id} lead here, for sandbox URLs that other machines can use
    #[arg(long, value_name = "NAME", env = env_vars::INGRESS_DOMAIN, hide_env_values = true)]
    pub ingress_domain: Option<String>,
    /// Certificate for HTTPS, PEM, its issuers behind it; a change of the file is taken over at once
    #[arg(long, value_name = "FILE", env = env_vars::TLS_CERT, hide_env_values = true)]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "FILE", env = env_vars::TLS_KEY, hide_env_values = true)]
    pub tls_key: Option<PathBuf>,
    /// Address to speak HTTPS on; may be repeated. The addresses of --listen stay plain HTTP [default: 0.0.0.0:443]
    #[arg(long, value_name = "ADDRESS", env = env_vars::TLS_LISTEN, hide_env_values = true, value_delimiter = ',')]
    pub tls_listen: Vec<SocketAddr>,
    /// Get the certificates for HTTPS from an ACME server, whose terms this agrees to: one for --ingress-domain, and one for
    /// each sandbox's host when it is first asked for. Port 443 of these names has to lead to --tls-listen
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        env = env_vars::ACME, hide_env_values = true
    )]
    pub acme: Option<bool>,
    /// Mail address that the ACME server may write to
    #[arg(long, value_name = "MAIL", env = env_vars::ACME_CONTACT, hide_env_values = true)]
    pub acme_contact: Option<String>,
    /// Directory of the ACME server [default: https://acme-v02.api.letsencrypt.org/directory]
    #[arg(long, value_name = "URL", env = env_vars::ACME_SERVER, hide_env_values = true)]
    pub acme_server: Option<String>,
    /// Root certificates (PEM) that are trusted for the ACME server, beside the system's
    #[arg(long, value_name = "FILE", env = env_vars::ACME_CA, hide_env_values = true)]
    pub acme_ca: Option<PathBuf>,
    /// Program with which one wildcard certificate serves everything. It is called with `add` or `remove`, the name of a TXT
    /// record and its value, and returns once the record can be seen; a name may have two records at a time
    #[arg(long, value_name = "PROGRAM", env = env_vars::ACME_DNS_HOOK, hide_env_values = true)]
    pub acme_dns_hook: Option<PathBuf>,
    /// Range (CIDR) of the proxies in front, whose X-Forwarded-* headers are believed; may be repeated [default: none]
    #[arg(long, value_name = "CIDR", env = env_vars::TRUSTED_PROXY, hide_env_values = true, value_delimiter = ',')]
    pub trusted_proxy: Vec<IpNet>,
    /// Virtual machines kept ready for each kind of sandbox; each takes about 40 MiB [default: 2]
    #[arg(long, value_name = "N", env = env_vars::SPARES, hide_env_values = true)]
    pub spares: Option<usize>,
    /// What sandboxes' networks are made of: `namespaces`, in which egress rules hold (needs root, nftables and iproute2);
    /// `user`, QEMU's own, in which they do not; `auto`: namespaces where they can be had [default: auto]
    #[arg(long, value_name = "KIND", env = env_vars::NETWORK, hide_env_values = true)]
    pub network: Option<NetworkSetting>,
    /// Networks that are not public and that sandboxes may reach all the same, such as 10.1.0.0/16; separated by commas
    #[arg(long, value_name = "CIDR", value_delimiter = ',', env = env_vars::ALLOW_PRIVATE, hide_env_values = true)]
    pub allow_private: Option<Vec<IpNet>>,
    /// DNS servers that the questions of sandboxes go to, separated by commas [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', env = env_vars::RESOLVERS, hide_env_values = true)]
    pub resolvers: Option<Vec<IpAddr>>,
    /// Megabits per second that each sandbox may send to the network, and as many that it may receive, 1 to 100000
    /// [default: as many as there are]
    #[arg(long, value_name = "MBIT", env = env_vars::NETWORK_BANDWIDTH_MBIT, hide_env_values = true)]
    pub network_bandwidth_mbit: Option<u32>,
    /// Connections that each sandbox may begin in a second, 1 to 1000000 [default: 500]
    #[arg(long, value_name = "N", env = env_vars::NETWORK_NEW_CONNECTIONS, hide_env_values = true)]
    pub network_new_connections: Option<u32>,
    /// Connections that each sandbox may have at once, 1 to 1000000 [default: 8192]
    #[arg(long, value_name = "N", env = env_vars::NETWORK_CONNECTIONS, hide_env_values = true)]
    pub network_connections: Option<u32>,
    /// Mebibytes per second that each sandbox may read from and write to its disk together, 1 to 1000000
    /// [default: as many as there are]
    #[arg(long, value_name = "MIB", env = env_vars::DISK_BANDWIDTH_MIB, hide_env_values = true)]
    pub disk_bandwidth_mib: Option<u32>,
    /// Requests per second that each sandbox may send to its disk, 1 to 10000000 [default: as many as there are]
    #[arg(long, value_name = "N", env = env_vars::DISK_IOPS, hide_env_values = true)]
    pub disk_iops: Option<u32>,
    /// Processor features that sandboxes are not told of, separated by commas, such as avx512f: what is left has to be there on
    /// every host where a snapshot is to go on [default: none]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', env = env_vars::HIDE_CPU_FEATURES, hide_env_values = true)]
    pub hide_cpu_features: Option<Vec<CpuFeature>>,
    /// GPU that sandboxes can have, and its PCI address, such as H100@0000:01:00.0; may be repeated. It has to be vfio-pci's; without
    /// a --driver it means cloud-hypervisor [default: none]
    #[arg(long, value_name = "MODEL@ADDRESS", value_delimiter = ',', env = env_vars::GPU, hide_env_values = true)]
    pub gpu: Vec<GpuSetting>,
    /// Whether sandboxes begin from golden snapshots; without them each one boots [default: true]
    #[arg(long, value_name = "BOOL", env = env_vars::TEMPLATES, hide_env_values = true)]
    pub templates: Option<bool>,
    /// How long the memory of a sleeping sandbox is held for a quick wake [default: 30]
    #[arg(long, value_name = "SECONDS", env = env_vars::RESIDENT_SECS, hide_env_values = true)]
    pub resident_secs: Option<u64>,
    /// MiB of memory that sandboxes may have, all together, 1024 to 100000000. More than there is may be given: each takes what it uses,
    /// and what those of one golden snapshot have in common is there once [default: the machine's, less 1024]
    #[arg(long, value_name = "MIB", env = env_vars::MEMORY_MB, hide_env_values = true)]
    pub memory_mb: Option<u32>,
    /// File of the volume that is made where the data directory cannot reflink [default: DIR/volume.xfs]
    #[arg(long, value_name = "FILE", env = env_vars::VOLUME_FILE, hide_env_values = true)]
    pub volume_file: Option<PathBuf>,
    /// Size of that volume when it is made, MiB; sparse [default: 80 % of what is free]
    #[arg(long, value_name = "MIB", env = env_vars::VOLUME_SIZE_MB, hide_env_values = true)]
    pub volume_size_mb: Option<u64>,
    /// What runs the sandboxes: `firecracker`, `cloud-hypervisor`, `qemu-kvm`, `qemu-tcg` (in software), or `auto`, the best
    /// that works here; see `belljar doctor` [default: auto]
    #[arg(long, value_name = "DRIVER", env = env_vars::DRIVER, hide_env_values = true)]
    pub driver: Option<DriverSetting>,
    /// Whether VM processes are jailed: `on`, `off`, or `auto`: as root they are, as another user they cannot be
    /// [default: auto]
    #[arg(long, value_name = "JAIL", env = env_vars::JAIL, hide_env_values = true)]
    pub jail: Option<JailSetting>,
    /// Directory where the programs of Firecracker, Cloud Hypervisor and QEMU are looked for before PATH
    /// [default: DIR/vmm, where `belljar vmm install` puts them]
    #[arg(long, value_name = "DIR", env = env_vars::VMM_DIR, hide_env_values = true)]
    pub vmm_dir: Option<PathBuf>,
    /// Set by `--detach` in the process that it starts.
    #[arg(long, hide = true)]
    pub detached: bool,
}

impl UpArgs {
    /// What `belljar up` without arguments takes from the environment; an error if it would refuse it.
    pub fn of_environment() -> Result<Self, clap::Error> {
        let matches = Self::augment_args(clap::Command::new("up")).try_get_matches_from(["up"])?;
        Self::from_arg_matches(&matches)
    }
}

/// `belljar down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Let the virtual machines go on: the next `belljar up` takes them over
    #[arg(long)]
    pub keep: bool,
}

/// `belljar vmm`.
#[derive(Debug, Subcommand)]
pub enum VmmCommand {
    /// List the releases that this version takes, and what is installed
    Ls,
    /// Fetch the releases of VM programs that this version takes, check them and install them
    Install(VmmInstallArgs),
}

/// `belljar vmm install`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each program is the project's own release, pinned by its SHA-256. It goes to DIR/vmm of the data directory, where `up` and \
`doctor` look first. What runs at that time goes on with the program that it has. A broken download goes on where it ended \
when the command is called again.")]
pub struct VmmInstallArgs {
    /// Which ones, as `belljar vmm ls` lists them [default: all]
    #[arg(value_name = "PROGRAM")]
    pub programs: Vec<String>,
    /// Take the files from this directory instead of the network
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
}

/// `belljar secret`.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// List the secrets, without their values
    Ls,
    /// Put a secret, its value from stdin: a new one, or what changes of the one with that name
    Set(SecretSetArgs),
    /// Remove a secret: no request carries it any more
    Rm {
        /// Its name or id
        name: String,
    },
}

/// `belljar secret set`.
#[derive(Debug, Args)]
#[command(after_help = "\
A sandbox that is made with --secret NAME finds a placeholder in the environment variable NAME. Where it sends that to one \
of the hosts over HTTPS, in one of the headers, the secret takes its place on the way out. For example: \
printf %s \"$TOKEN\" | belljar secret set API_TOKEN --host api.example.com")]
pub struct SecretSetArgs {
    /// Its name, which is that of an environment variable
    pub name: String,
    /// Host name or *.suffix to which it may go; may be repeated, and replaces those of before
    #[arg(long)]
    pub host: Vec<String>,
    /// Header in which it may stand; may be repeated, and replaces those of before [default: authorization]
    #[arg(long)]
    pub header: Vec<String>,
    /// Keep the value that it has, and read none
    #[arg(long)]
    pub keep_value: bool,
}

/// `belljar key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the keys, without their secrets
    Ls,
    /// Make a key and print it: it is never shown again
    Create {
        /// A label for people
        name: String,
    },
    /// Revoke a key
    Rm {
        /// Its id, as `ls` shows it
        id: String,
    },
}
