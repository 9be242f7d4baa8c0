//! What an error says to a person: its message, its causes once, and hints on what to do.

use anyhow::Error;
use belljar_api::error::code;

use crate::{
    exit::ExitStatus,
    printer::{OutputError, Printer},
    releases::{FetchError, InstallError},
    settings::SettingsError,
    up::data_dir::DataDirError,
};

/// An error of our own with remedies; causes are attached with [`Failure::because`].
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    hints: Vec<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Failure {
    /// A failure in one line.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), source: None }
    }

    /// With something that a person can do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// With what brought it about.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// Prints an error; says how the program ends.
pub fn report(printer: Printer, error: &Error, status: ExitStatus) -> ExitStatus {
    // The reader of our stdout went away: it has what it wanted.
    let gone = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<OutputError>().is_some_and(|OutputError(io)| io.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(gone) {
        return ExitStatus::Success;
    }
    let mut words: Vec<String> = error.chain().map(ToString::to_string).collect();
    words.dedup();
    let message = words.remove(0);
    let mut hints = Vec::new();
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            hints.extend(failure.hints.iter().cloned());
        }
        if let Some(error) = cause.downcast_ref::<belljar_client::Error>() {
            hints.extend(client_hints(error).map(str::to_owned));
        }
        if let Some(error) = cause.downcast_ref::<DataDirError>() {
            hints.push(data_dir_hint(error).to_owned());
        }
        if let Some(InstallError::Fetch(error)) = cause.downcast_ref::<InstallError>() {
            hints.extend(fetch_hint(error).map(str::to_owned));
        }
        if let Some(error) = cause.downcast_ref::<SettingsError>() {
            hints.extend(settings_hint(error).map(str::to_owned));
        }
    }
    hints.dedup();
    printer.error(&message, &words, &hints);
    status
}

fn client_hints(error: &belljar_client::Error) -> Option<&'static str> {
    use belljar_client::Error as E;
    match error {
        E::Connect { .. } => Some("start it with `belljar up`, or name another server with --api-url"),
        E::Untrusted { .. } => Some("name the issuer's certificate with --ca or BELLJAR_CA"),
        E::Api { code, .. } => match code.as_str() {
            code::UNAUTHENTICATED => Some("give a key of this server with --api-key or BELLJAR_API_KEY"),
            code::SANDBOX_NOT_FOUND => Some("`belljar ls` lists the sandboxes"),
            code::SANDBOX_NOT_RUNNING => Some("`belljar show` says why it ended"),
            code::SANDBOX_UNREACHABLE => Some("the server's log says why its node is away"),
            code::SNAPSHOT_NOT_FOUND => Some("`belljar snapshot ls` lists the snapshots"),
            code::POOL_NOT_FOUND => Some("`belljar pool ls` lists the pools"),
            code::SANDBOX_AUTO_RESUME_DISABLED => Some("`belljar resume` wakes it"),
            code::NO_RESOURCES => {
                Some("end some sandboxes with `belljar rm`, or let them sleep with `belljar suspend`")
            }
            code::NAME_IN_USE => Some("choose another name, or end the other one with `belljar rm`"),
            _ => None,
        },
        _ => None,
    }
}

fn fetch_hint(error: &FetchError) -> Option<&'static str> {
    match error {
        FetchError::Connection { .. } => {
            Some("the same command goes on where it ended; without a network, `--from DIR` takes the file from there")
        }
        FetchError::Refused { .. } => Some("`--from DIR` takes the file from a directory"),
        FetchError::WrongSum { .. } => Some("do not use that file; something between here and the project changed it"),
        FetchError::TooLarge { .. } | FetchError::Busy { .. } | FetchError::Io { .. } => None,
    }
}

fn settings_hint(error: &SettingsError) -> Option<&'static str> {
    match error {
        SettingsError::NoKey { .. } => {
            Some("start the server with `belljar up`, or give a key with --api-key or BELLJAR_API_KEY")
        }
        SettingsError::NoRemoteKey { .. } => Some("give a key of that server with --api-key or BELLJAR_API_KEY"),
        SettingsError::Config { .. } => Some(
            "keys: api_url, api_key, ca, data_dir, listen, ssh_listen, kernel, initrd, image_store, public_url, \
                 ingress_domain, tls_cert, tls_key, tls_listen, acme, acme_contact, acme_server, acme_ca, acme_dns_hook, \
                 trusted_proxy, spares, network, allow_private, resolvers, network_bandwidth_mbit, \
                 network_new_connections, network_connections, disk_bandwidth_mib, disk_iops, hide_cpu_features, gpu, templates, \
                 resident_secs, volume_file, volume_size_mb, \
                 driver, vmm_dir, jail",
        ),
        SettingsError::Read { .. }
        | SettingsError::Current { .. }
        | SettingsError::HalfTls(_)
        | SettingsError::TwoSources
        | SettingsError::NoAcme(_)
        | SettingsError::OutOfRange { .. } => None,
    }
}

fn data_dir_hint(error: &DataDirError) -> &'static str {
    match error {
        DataDirError::Locked { .. } => "`belljar down` ends it; --data-dir starts another beside it",
        DataDirError::Newer { .. } => "use the version of Belljar that wrote it, or another --data-dir",
        DataDirError::Foreign { .. } => "choose an empty or a new directory with --data-dir",
        DataDirError::Io { .. } => "choose another directory with --data-dir",
    }
}
