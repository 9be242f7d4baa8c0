//! TLS: the certificate that listeners show, and how it is replaced while they run.
//!
//! ```text
//! files --load--> Certificates <-- every handshake asks for the present one
//!   \--the kernel tells of a change--> load again --ok--> replaces it
//!                                                 \-----> refused: the old one stays, and the log says why
//! ```
//! One certificate for all names: a wildcard (`*.example.com`) or one that lists them. Who issues it is not looked at.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use rustls::{
    ServerConfig as Rustls,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// Where a certificate and its key are; both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, then those of its issuers.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read, or holds no PEM.
    #[error("cannot read {what} {path}: {source}; give a PEM file that this user may read")]
    Read {
        /// Certificate or key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// The two do not fit, or are of a kind that is not supported.
    #[error("certificate {certificate} cannot be used with key {key}: {source}; give the key that it was issued for")]
    Unusable {
        /// Which file.
        certificate: PathBuf,
        /// Which file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// Changes of the files would not be noticed.
    #[error("cannot watch the files of the certificate for changes: {0}")]
    Watch(#[from] notify::Error),
    /// No protocol version is left; a fault of the build.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// How long the files must be quiet before they are read again: a certificate and its key are two files.
const SETTLE: Duration = Duration::from_millis(100);

/// The present certificate.
#[derive(Debug)]
pub(crate) struct Certificates {
    present: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.present.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// See the module.
pub(crate) struct Tls {
    files: TlsFiles,
    certificates: Arc<Certificates>,
    acceptor: TlsAcceptor,
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl Tls {
    /// Reads the files and watches them from now on.
    pub(crate) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let certificates = Arc::new(Certificates { present: RwLock::new(Arc::new(load(&files)?)) });
        let provider = Arc::new(ring::default_provider());
        let mut config = Rustls::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Certificates>::clone(&certificates));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let changed = Arc::new(Notify::new());
        let watcher = watch(&files, Arc::clone(&changed))?;
        Ok(Self { files, certificates, acceptor: TlsAcceptor::from(Arc::new(config)), changed, _watcher: watcher })
    }

    /// What makes the handshakes.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Reads the files whenever they change, for as long as it is polled.
    pub(crate) async fn follow(&self) {
        loop {
            self.changed.notified().await;
            while tokio::time::timeout(SETTLE, self.changed.notified()).await.is_ok() {}
            let files = self.files.clone();
            match tokio::task::spawn_blocking(move || load(&files)).await {
                Ok(Ok(fresh)) => self.replace(fresh),
                Ok(Err(error)) => tracing::warn!(%error, "the changed certificate is not used; the old one stays"),
                Err(error) => tracing::error!(%error, "reading the certificate"),
            }
        }
    }

    fn replace(&self, fresh: CertifiedKey) {
        let mut present = self.certificates.present.write().unwrap_or_else(PoisonError::into_inner);
        if present.cert != fresh.cert {
            *present = Arc::new(fresh);
            tracing::info!(file = %self.files.certificate.display(), "the certificate was replaced");
        }
    }
}

fn load(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let failed = |what, path: &Path, source| TlsError::Read { what, path: path.to_owned(), source };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|chain| if chain.is_empty() { Err(rustls::pki_types::pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(|source| failed("certificate", &files.certificate, source))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| failed("private key", &files.key, source))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|source| TlsError::Unusable {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    })
}

/// Watches the directories, not the files: those are replaced by a rename, or by a link that leads elsewhere.
fn watch(files: &TlsFiles, changed: Arc<Notify>) -> Result<RecommendedWatcher, TlsError> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| is_change(&event.kind)) {
            changed.notify_one();
        }
    })?;
    let mut directories = BTreeSet::new();
    for file in [&files.certificate, &files.key] {
        let real = file.canonicalize().map_err(notify::Error::io)?;
        let named = std::path::absolute(file).map_err(notify::Error::io)?;
        directories.extend([real, named].iter().filter_map(|path| path.parent()).map(Path::to_owned));
    }
    for directory in directories {
        watcher.watch(&directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Reading a file, as we do ourselves, is an event too.
fn is_change(kind: &EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}
