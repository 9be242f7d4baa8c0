//! Where every setting comes from: flags, then environment variables (clap reads both), then the configuration file,
//! then the default. The only other place that looks at the environment is `main`, through [`Surroundings`].
//!
//! Commands get a [`Settings`] and never read files or the environment for settings themselves.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use belljar_node::{
    CpuFeature, DiskLimits, DriverSetting, GpuSetting, HiddenFeatures, JailSetting, NetworkLimits, NetworkOptions,
    NetworkSetting, NodeConfig,
};
use belljar_server::{AcmeConfig, LETS_ENCRYPT, TlsFiles, TlsSource};
use belljar_vmm::DriverKind;
use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    cli::{GlobalArgs, UpArgs, value::SshListen},
    env_vars, releases,
};

/// Where `belljar up` listens and clients look when nobody says otherwise.
pub const DEFAULT_API_URL: &str = "http://127.0.0.1:8900";
/// The API, and the address where the vendor's CLI looks for the data plane.
const DEFAULT_LISTEN: [&str; 2] = ["127.0.0.1:8900", "127.0.0.1:9443"];
/// Where HTTPS is spoken once there is a certificate: where browsers look for it.
const DEFAULT_TLS_LISTEN: &str = "0.0.0.0:443";
/// Where `ssh` finds sandboxes.
const DEFAULT_SSH_LISTEN: &str = "127.0.0.1:2222";
/// Data directory of root.
const SYSTEM_DATA_DIR: &str = "/var/lib/belljar";
/// Data directory of everyone else, below the home directory.
const USER_DATA_DIR: &str = ".local/share/belljar";
/// Below the home directory: what `cargo xtask` builds.
const CACHE_DIR: &str = ".cache/belljar";
/// Below the cache directory: which of those are current.
const CURRENT_FILE: &str = "current.json";
/// Below the cache directory: what errors name where nothing was built.
const NO_KERNEL: &str = "kernel/vmlinux";
const NO_INITRD: &str = "initrd/initrd.cpio";
const IMAGE_STORE: &str = "store";
/// File in the data directory that holds the first API key.
pub const API_KEY_FILE: &str = "api-key";
/// File in the data directory that holds the host key of the SSH gateway.
pub const SSH_HOST_KEY_FILE: &str = "ssh-host-ed25519-key";
/// Largest configuration file, bytes: it has a dozen short lines.
const CONFIG_MAX: u64 = 64 * 1024;

/// What of the world outside the command line decides about defaults.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Home directory.
    pub home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// `$BELLJAR_CACHE`.
    pub cache: Option<PathBuf>,
    /// `$DOCKER_CONFIG`.
    pub docker: Option<PathBuf>,
    /// `$TERM`.
    pub term: Option<String>,
    /// `$BELLJAR_LOG`.
    pub log: Option<String>,
    /// Whether the program runs as root.
    pub root: bool,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let dir = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            home: dir(env_vars::HOME),
            config_home: dir(env_vars::XDG_CONFIG_HOME),
            cache: dir(env_vars::CACHE),
            docker: dir(env_vars::DOCKER_CONFIG),
            term: std::env::var(env_vars::TERM).ok(),
            log: std::env::var(env_vars::LOG).ok(),
            root: nix::unistd::geteuid().is_root(),
        }
    }

    fn config_dir(&self) -> Option<PathBuf> {
        let dir = self.config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")))?;
        Some(dir.join("belljar"))
    }

    fn config_file(&self) -> Option<PathBuf> {
        Some(self.config_dir()?.join("config.toml"))
    }

    fn cache_dir(&self) -> PathBuf {
        let home = || self.home.clone().unwrap_or_else(|| "/".into()).join(CACHE_DIR);
        self.cache.clone().unwrap_or_else(home)
    }

    fn docker_dir(&self) -> Option<PathBuf> {
        self.docker.clone().or_else(|| Some(self.home.as_ref()?.join(".docker")))
    }

    fn data_dir(&self) -> PathBuf {
        match &self.home {
            Some(home) if !self.root => home.join(USER_DATA_DIR),
            _ => SYSTEM_DATA_DIR.into(),
        }
    }
}

/// The configuration file. Every key may be left out; unknown ones are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// Address of the server.
    pub api_url: Option<String>,
    /// API key.
    pub api_key: Option<String>,
    /// Certificates that are trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// Directory of `belljar up`.
    pub data_dir: Option<PathBuf>,
    /// Addresses that `belljar up` listens on.
    pub listen: Option<Vec<SocketAddr>>,
    /// Address that `belljar up` listens on for SSH, or `none`.
    pub ssh_listen: Option<SshListen>,
    /// Kernel of the sandboxes.
    pub kernel: Option<PathBuf>,
    /// Initramfs of the sandboxes.
    pub initrd: Option<PathBuf>,
    /// Directory of the images.
    pub image_store: Option<PathBuf>,
    /// Address under which clients reach the data plane.
    pub public_url: Option<String>,
    /// DNS name under which sandboxes are reached.
    pub ingress_domain: Option<String>,
    /// Certificate for HTTPS.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// Addresses that speak HTTPS.
    pub tls_listen: Option<Vec<SocketAddr>>,
    /// Whether certificates come from an ACME server.
    pub acme: Option<bool>,
    /// Mail address for it.
    pub acme_contact: Option<String>,
    /// Its directory.
    pub acme_server: Option<String>,
    /// Root certificates for it.
    pub acme_ca: Option<PathBuf>,
    /// Program that changes DNS records.
    pub acme_dns_hook: Option<PathBuf>,
    /// Proxies that are believed.
    pub trusted_proxy: Option<Vec<IpNet>>,
    /// VMs kept ready for each golden snapshot.
    pub spares: Option<usize>,
    /// What sandboxes' networks are made of.
    pub network: Option<NetworkSetting>,
    /// Networks that are not public and that sandboxes may reach.
    pub allow_private: Option<Vec<IpNet>>,
    /// DNS servers of sandboxes.
    pub resolvers: Option<Vec<IpAddr>>,
    /// Megabits per second of each sandbox, in each direction.
    pub network_bandwidth_mbit: Option<u32>,
    /// Connections that each sandbox may begin in a second.
    pub network_new_connections: Option<u32>,
    /// Connections that each sandbox may have at once.
    pub network_connections: Option<u32>,
    /// Mebibytes per second of each sandbox's disk.
    pub disk_bandwidth_mib: Option<u32>,
    /// Requests per second of each sandbox's disk.
    pub disk_iops: Option<u32>,
    /// Processor features that sandboxes are not told of.
    pub hide_cpu_features: Option<Vec<CpuFeature>>,
    /// GPUs that sandboxes can have.
    pub gpu: Option<Vec<GpuSetting>>,
    /// Whether sandboxes begin from golden snapshots.
    pub templates: Option<bool>,
    /// Seconds that the memory of a sleeping sandbox is held.
    pub resident_secs: Option<u64>,
    /// Memory that sandboxes may have, all together, MiB.
    pub memory_mb: Option<u32>,
    /// File of the reflink volume.
    pub volume_file: Option<PathBuf>,
    /// Size of the reflink volume when it is made, MiB.
    pub volume_size_mb: Option<u64>,
    /// What runs the sandboxes.
    pub driver: Option<DriverSetting>,
    /// Directory of the VM programs.
    pub vmm_dir: Option<PathBuf>,
    /// Whether VM processes are jailed.
    pub jail: Option<JailSetting>,
}

/// What every command needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address of the server.
    pub api_url: String,
    /// API key, when one was given. See [`Settings::key`].
    pub api_key: Option<String>,
    /// Certificates, PEM, that are trusted beside the system's for HTTPS.
    pub ca: Option<PathBuf>,
    /// Directory of `belljar up`.
    pub data_dir: PathBuf,
    /// Where `cargo xtask` puts what it builds.
    pub cache_dir: PathBuf,
    /// Where `belljar ssh` keeps its key; `None` for a user without a home directory.
    pub ssh_dir: Option<PathBuf>,
    /// Where `docker login` stores who asks a registry.
    pub docker_dir: Option<PathBuf>,
    /// Kind of our terminal.
    pub term: Option<String>,
    /// What `belljar up` logs.
    pub log: Option<String>,
    file: ConfigFile,
}

/// What `belljar up` and `belljar doctor` need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpSettings {
    /// Addresses to listen on; the first is the one that clients are told.
    pub listen: Vec<SocketAddr>,
    /// Address to listen on for SSH, if any.
    pub ssh_listen: Option<SocketAddr>,
    /// Kernel of the sandboxes.
    pub kernel: PathBuf,
    /// Initramfs of the sandboxes.
    pub initrd: PathBuf,
    /// Directory of the images.
    pub image_store: PathBuf,
    /// Address under which clients reach the data plane.
    pub public_url: Option<String>,
    /// DNS name under which sandboxes are reached.
    pub ingress_domain: Option<String>,
    /// HTTPS, where it is spoken.
    pub tls: Option<TlsSettings>,
    /// Proxies that are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// VMs kept ready for each golden snapshot.
    pub spares: usize,
    /// What sandboxes' networks are made of.
    pub network: NetworkOptions,
    /// How much of their disks' speed sandboxes may have, each.
    pub disk_limits: DiskLimits,
    /// Processor features that sandboxes are not told of.
    pub hidden_features: HiddenFeatures,
    /// GPUs that sandboxes can have.
    pub gpus: Vec<GpuSetting>,
    /// Whether sandboxes begin from golden snapshots.
    pub templates: bool,
    /// How long the memory of a sleeping sandbox is held.
    pub resident: Duration,
    /// Memory that sandboxes may have, all together, MiB, when it is not for the node to find out.
    pub memory_mb: Option<u32>,
    /// File of the reflink volume, when it is not to lie in the data directory.
    pub volume_file: Option<PathBuf>,
    /// Size of the reflink volume when it is made, MiB.
    pub volume_size_mb: Option<u64>,
    /// What runs the sandboxes.
    pub driver: DriverSetting,
    /// Where VM programs are looked for before `PATH`.
    pub vmm_dir: PathBuf,
    /// Whether VM processes are jailed.
    pub jail: JailSetting,
}

/// How HTTPS is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Where the certificates come from.
    pub source: TlsSource,
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
}

/// Directory in the data directory for what an ACME server gave.
const ACME_DIR: &str = "acme";

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The configuration file has a wrong key or value.
    #[error("{path} has a mistake")]
    Config {
        /// Which file.
        path: PathBuf,
        /// Names line and key.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// What `cargo xtask` wrote cannot be understood.
    #[error("{path} is damaged; remove it, and run `cargo xtask kernel`, `guest` and `images` to write it anew")]
    Current {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Half of what HTTPS needs.
    #[error("HTTPS needs a certificate and its key: give {0} too, or leave both out")]
    HalfTls(&'static str),
    /// Certificates from two places.
    #[error("HTTPS has one source of certificates: leave out --tls-cert and --tls-key, or --acme")]
    TwoSources,
    /// Words for an ACME server that is not asked.
    #[error("{0} is for certificates from an ACME server: give --acme, too, or leave it out")]
    NoAcme(&'static str),
    /// A number that makes no sense.
    #[error("{setting}: {value} is not between {} and {}", .range.start(), .range.end())]
    OutOfRange {
        /// Which.
        setting: &'static str,
        /// What it is.
        value: u32,
        /// What it may be.
        range: RangeInclusive<u32>,
    },
    /// There is no key.
    #[error("no API key: none was given, and {path} cannot be read")]
    NoKey {
        /// Where `belljar up` leaves one.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: io::Error,
    },
    /// There is no key for another machine's server.
    #[error("no API key for {url}")]
    NoRemoteKey {
        /// The server.
        url: String,
    },
}

/// What `cargo xtask` built last; written by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Current {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    image_store: Option<PathBuf>,
}

/// Mebibytes and requests per second that a disk may be limited to.
const DISK_MEBIBYTES: RangeInclusive<u32> = 1..=1_000_000;
const DISK_REQUESTS: RangeInclusive<u32> = 1..=10_000_000;
/// Mebibytes of memory that sandboxes may have together: the least that one may have, to more than any host has.
const MEMORY: RangeInclusive<u32> = 1024..=100_000_000;

fn within(setting: &'static str, value: Option<u32>, range: RangeInclusive<u32>) -> Result<Option<u32>, SettingsError> {
    match value {
        Some(value) if !range.contains(&value) => Err(SettingsError::OutOfRange { setting, value, range }),
        value => Ok(value),
    }
}

impl Settings {
    /// Reads the configuration file and combines it with the command line.
    pub fn load(args: &GlobalArgs, around: &Surroundings) -> Result<Self, SettingsError> {
        let file = match (&args.config, around.config_file()) {
            // A file that was named has to be there; the default one need not.
            (Some(path), _) => parse(path, &read(path)?)?,
            (None, Some(path)) => match read(&path) {
                Ok(text) => parse(&path, &text)?,
                Err(SettingsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    ConfigFile::default()
                }
                Err(error) => return Err(error),
            },
            (None, None) => ConfigFile::default(),
        };
        Ok(Self::combine(args, file, around))
    }

    /// Pure: flags and environment, then file, then default.
    pub(crate) fn combine(args: &GlobalArgs, file: ConfigFile, around: &Surroundings) -> Self {
        Self {
            api_url: args.api_url.clone().or(file.api_url.clone()).unwrap_or_else(|| DEFAULT_API_URL.to_owned()),
            api_key: args.api_key.clone().or(file.api_key.clone()),
            ca: args.ca.clone().or(file.ca.clone()),
            data_dir: args.data_dir.clone().or(file.data_dir.clone()).unwrap_or_else(|| around.data_dir()),
            cache_dir: around.cache_dir(),
            ssh_dir: around.config_dir().map(|dir| dir.join("ssh")),
            docker_dir: around.docker_dir(),
            term: around.term.clone(),
            log: around.log.clone(),
            file,
        }
    }

    /// The key: the given one, or else the one that `belljar up` left in the data directory. That one is for the
    /// server on this machine, so no other is ever shown it.
    pub fn key(&self) -> Result<String, SettingsError> {
        if let Some(key) = &self.api_key {
            return Ok(key.clone());
        }
        if !is_loopback(&self.api_url) {
            return Err(SettingsError::NoRemoteKey { url: self.api_url.clone() });
        }
        let path = self.data_dir.join(API_KEY_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(SettingsError::NoKey { path, source }),
        }
    }

    /// What `belljar up` runs with.
    pub fn up(&self, args: &UpArgs) -> Result<UpSettings, SettingsError> {
        let (tls, limits, disk_limits) = (self.tls(args)?, self.network_limits(args)?, self.disk_limits(args)?);
        let memory_mb = within("memory_mb", args.memory_mb.or(self.file.memory_mb), MEMORY)?;
        let mut settings = UpSettings { tls, disk_limits, memory_mb, ..self.combine_up(args, self.current()?) };
        settings.network.limits = limits;
        Ok(settings)
    }

    /// Pure: flags and environment, then file.
    fn disk_limits(&self, args: &UpArgs) -> Result<DiskLimits, SettingsError> {
        let mebibytes = args.disk_bandwidth_mib.or(self.file.disk_bandwidth_mib);
        let requests = args.disk_iops.or(self.file.disk_iops);
        let per_second = |limit: Option<u32>, unit: u64| NonZeroU64::new(u64::from(limit.unwrap_or(0)) * unit);
        Ok(DiskLimits {
            bytes: per_second(within("disk_bandwidth_mib", mebibytes, DISK_MEBIBYTES)?, 1 << 20),
            requests: per_second(within("disk_iops", requests, DISK_REQUESTS)?, 1),
        })
    }

    /// Pure: flags and environment, then file, then default.
    fn network_limits(&self, args: &UpArgs) -> Result<NetworkLimits, SettingsError> {
        let (file, default) = (&self.file, NetworkLimits::default());
        let megabits = args.network_bandwidth_mbit.or(file.network_bandwidth_mbit);
        let new = args.network_new_connections.or(file.network_new_connections);
        let connections = args.network_connections.or(file.network_connections);
        Ok(NetworkLimits {
            megabits: within("network_bandwidth_mbit", megabits, NetworkLimits::MEGABITS)?,
            new_connections: within("network_new_connections", new, NetworkLimits::NEW_CONNECTIONS)?
                .unwrap_or(default.new_connections),
            connections: within("network_connections", connections, NetworkLimits::CONNECTIONS)?
                .unwrap_or(default.connections),
        })
    }

    /// Pure: HTTPS is spoken where there is a source of certificates.
    fn tls(&self, args: &UpArgs) -> Result<Option<TlsSettings>, SettingsError> {
        let file = &self.file;
        let given = Some(&args.tls_listen).filter(|listen| !listen.is_empty()).or(file.tls_listen.as_ref());
        let certificate = args.tls_cert.as_ref().or(file.tls_cert.as_ref());
        let key = args.tls_key.as_ref().or(file.tls_key.as_ref());
        let source = match (self.acme(args)?, certificate, key) {
            (Some(acme), None, None) => TlsSource::Acme(acme),
            (Some(_), _, _) => return Err(SettingsError::TwoSources),
            (None, Some(certificate), Some(key)) => {
                TlsSource::Files(TlsFiles { certificate: certificate.clone(), key: key.clone() })
            }
            (None, None, None) if given.is_none() => return Ok(None),
            (None, None, _) => return Err(SettingsError::HalfTls("--tls-cert")),
            (None, Some(_), None) => return Err(SettingsError::HalfTls("--tls-key")),
        };
        let default = || DEFAULT_TLS_LISTEN.parse().into_iter().collect();
        Ok(Some(TlsSettings { source, listen: given.cloned().unwrap_or_else(default) }))
    }

    fn acme(&self, args: &UpArgs) -> Result<Option<AcmeConfig>, SettingsError> {
        let file = &self.file;
        let acme = AcmeConfig {
            dir: self.data_dir.join(ACME_DIR),
            server: args.acme_server.clone().or(file.acme_server.clone()).unwrap_or_else(|| LETS_ENCRYPT.to_owned()),
            contact: args.acme_contact.clone().or(file.acme_contact.clone()),
            ca: args.acme_ca.clone().or(file.acme_ca.clone()),
            dns_hook: args.acme_dns_hook.clone().or(file.acme_dns_hook.clone()),
        };
        if args.acme.or(file.acme).unwrap_or(false) {
            return Ok(Some(acme));
        }
        let given = [
            ("--acme-server", acme.server != LETS_ENCRYPT),
            ("--acme-contact", acme.contact.is_some()),
            ("--acme-ca", acme.ca.is_some()),
            ("--acme-dns-hook", acme.dns_hook.is_some()),
        ];
        // Who says "no" in so many words may leave the rest for another time.
        let is_off = args.acme.or(file.acme) == Some(false);
        match given.into_iter().find(|(_, given)| *given && !is_off) {
            Some((name, _)) => Err(SettingsError::NoAcme(name)),
            None => Ok(None),
        }
    }

    /// Pure: flags and environment, then file, then what was built last, then default.
    fn combine_up(&self, args: &UpArgs, current: Current) -> UpSettings {
        let (file, cache) = (&self.file, &self.cache_dir);
        let default_listen = || DEFAULT_LISTEN.iter().filter_map(|text| text.parse().ok()).collect();
        let given = Some(args.listen.clone()).filter(|listen| !listen.is_empty());
        let pick = |flag: &Option<PathBuf>, file: &Option<PathBuf>, current: Option<PathBuf>, default: &str| {
            flag.clone().or(file.clone()).or(current).unwrap_or_else(|| cache.join(default))
        };
        let gpus = Some(&args.gpu).filter(|gpus| !gpus.is_empty()).or(file.gpu.as_ref()).cloned().unwrap_or_default();
        let driver = match args.driver.clone().or(file.driver.clone()).unwrap_or_default() {
            DriverSetting::Auto if !gpus.is_empty() => DriverSetting::Only(DriverKind::CloudHypervisor),
            driver => driver,
        };
        UpSettings {
            listen: given.or(file.listen.clone()).unwrap_or_else(default_listen),
            ssh_listen: match args.ssh_listen.or(file.ssh_listen) {
                Some(SshListen::At(address)) => Some(address),
                Some(SshListen::None) => None,
                None => DEFAULT_SSH_LISTEN.parse().ok(),
            },
            kernel: pick(&args.kernel, &file.kernel, current.kernel, NO_KERNEL),
            initrd: pick(&args.initrd, &file.initrd, current.initrd, NO_INITRD),
            image_store: pick(&args.image_store, &file.image_store, current.image_store, IMAGE_STORE),
            public_url: args.public_url.clone().or(file.public_url.clone()),
            ingress_domain: args.ingress_domain.clone().or(file.ingress_domain.clone()),
            tls: None,
            trusted_proxies: Some(&args.trusted_proxy)
                .filter(|ranges| !ranges.is_empty())
                .or(file.trusted_proxy.as_ref())
                .cloned()
                .unwrap_or_default(),
            spares: args.spares.or(file.spares).unwrap_or(NodeConfig::SPARES),
            network: NetworkOptions {
                kind: args.network.or(file.network).unwrap_or_default(),
                allow_private: args.allow_private.clone().or(file.allow_private.clone()).unwrap_or_default(),
                resolvers: args.resolvers.clone().or(file.resolvers.clone()).unwrap_or_default(),
                limits: NetworkLimits::default(),
            },
            disk_limits: DiskLimits::default(),
            hidden_features: args
                .hide_cpu_features
                .clone()
                .or(file.hide_cpu_features.clone())
                .into_iter()
                .flatten()
                .collect(),
            gpus,
            templates: args.templates.or(file.templates).unwrap_or(true),
            resident: args.resident_secs.or(file.resident_secs).map_or(NodeConfig::RESIDENT, Duration::from_secs),
            memory_mb: None,
            volume_file: args.volume_file.clone().or(file.volume_file.clone()),
            volume_size_mb: args.volume_size_mb.or(file.volume_size_mb),
            driver,
            vmm_dir: args.vmm_dir.clone().or(file.vmm_dir.clone()).unwrap_or_else(|| self.data_dir.join(releases::DIR)),
            jail: args.jail.or(file.jail).unwrap_or_default(),
        }
    }

    /// The image store of this machine.
    pub fn image_store(&self, flag: Option<&PathBuf>) -> Result<PathBuf, SettingsError> {
        Ok(self.up(&UpArgs { image_store: flag.cloned(), ..UpArgs::default() })?.image_store)
    }

    fn current(&self) -> Result<Current, SettingsError> {
        let path = self.cache_dir.join(CURRENT_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|source| SettingsError::Current { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Current::default()),
            Err(source) => Err(SettingsError::Read { path, source }),
        }
    }
}

fn read(path: &Path) -> Result<String, SettingsError> {
    use io::Read;
    let failed = |source| SettingsError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    fs::File::open(path).and_then(|file| file.take(CONFIG_MAX).read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<ConfigFile, SettingsError> {
    toml::from_str(text).map_err(|source| SettingsError::Config { path: path.to_owned(), source: Box::new(source) })
}

/// Whether a server address is one of this machine's own.
fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // Whatever hides a host behind a user is not ours.
    if authority.contains('@') {
        return false;
    }
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[path = "settings_test.rs"]
mod tests;
