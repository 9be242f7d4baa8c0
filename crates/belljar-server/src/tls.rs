//! TLS: the certificate that listeners show, and how it is replaced while they run.
//!
//! ```text
//! files --load--> Certificates <-- every handshake asks for the present one
//!   \--the kernel tells of a change--> load again --ok--> replaces it
//!                                                 \-----> refused: the old one stays, and the log says why
//! ACME: the handshake waits after its first message until [`Issuer`] has what the client asks for, or has not
//! ```
//! From files: one certificate for all names, a wildcard (`*.example.com`) or one that lists them. Who issues it is not
//! looked at.

use std::{
    collections::BTreeSet,
    io,
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
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Notify};
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor, server::TlsStream};
use tokio_util::sync::DropGuard;

use crate::acme::{self, AcmeConfig, AcmeError, Issuer};

/// Where the certificates of HTTPS come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSource {
    /// The operator gives one.
    Files(TlsFiles),
    /// They are ordered from an ACME server.
    Acme(AcmeConfig),
}

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
    /// An ACME server.
    #[error(transparent)]
    Acme(#[from] AcmeError),
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
pub(crate) enum Tls {
    Files(Given),
    Acme { acceptor: Arc<OnDemand>, _stop: DropGuard },
}

impl Tls {
    /// Reads the files and watches them from now on.
    pub(crate) fn of_files(files: TlsFiles) -> Result<Self, TlsError> {
        Given::open(files).map(Self::Files)
    }

    /// Shows what the issuer has.
    pub(crate) fn of_issuer(issuer: Issuer) -> Result<Self, TlsError> {
        let issuer = Arc::new(issuer);
        let shown = rustls_config(Arc::<Issuer>::clone(&issuer), &HTTP)?;
        let proofs = rustls_config(Arc::new(Proofs(Arc::clone(&issuer))), &[acme::ALPN])?;
        let _stop = issuer.stop().clone().drop_guard();
        Ok(Self::Acme {
            acceptor: Arc::new(OnDemand { issuer, shown: Arc::new(shown), proofs: Arc::new(proofs) }),
            _stop,
        })
    }

    /// What makes the handshakes.
    pub(crate) fn acceptor(&self) -> Acceptor {
        match self {
            Self::Files(given) => Acceptor::Files(given.acceptor.clone()),
            Self::Acme { acceptor, .. } => Acceptor::Acme(Arc::clone(acceptor)),
        }
    }

    /// Keeps the certificates fresh, for as long as it is polled.
    pub(crate) async fn follow(&self) {
        match self {
            Self::Files(given) => given.follow().await,
            Self::Acme { acceptor, .. } => acceptor.issuer.run().await,
        }
    }

    #[cfg(test)]
    pub(crate) fn issuer(&self) -> Option<Arc<Issuer>> {
        match self {
            Self::Files(_) => None,
            Self::Acme { acceptor, .. } => Some(Arc::clone(&acceptor.issuer)),
        }
    }
}

/// The protocols that we speak, the better one first.
const HTTP: [&[u8]; 2] = [b"h2", b"http/1.1"];

fn rustls_config(certificates: Arc<dyn ResolvesServerCert>, protocols: &[&[u8]]) -> Result<Rustls, TlsError> {
    let mut config = Rustls::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// Makes handshakes.
#[derive(Clone)]
pub(crate) enum Acceptor {
    Files(TlsAcceptor),
    Acme(Arc<OnDemand>),
}

impl Acceptor {
    /// `None` where an ACME server had its look and there is nothing to be served.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<Option<TlsStream<TcpStream>>> {
        match self {
            Self::Files(acceptor) => acceptor.accept(stream).await.map(Some),
            Self::Acme(on_demand) => on_demand.accept(stream).await,
        }
    }
}

/// Looks at the first message of a handshake before it answers.
pub(crate) struct OnDemand {
    issuer: Arc<Issuer>,
    shown: Arc<Rustls>,
    proofs: Arc<Rustls>,
}

impl OnDemand {
    async fn accept(&self, stream: TcpStream) -> io::Result<Option<TlsStream<TcpStream>>> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let hello = start.client_hello();
        if acme::is_validation(&hello) {
            start.into_stream(Arc::clone(&self.proofs)).await?.shutdown().await?;
            return Ok(None);
        }
        let host = hello.server_name().map(str::to_owned);
        self.issuer.prepare(host.as_deref()).await;
        start.into_stream(Arc::clone(&self.shown)).await.map(Some)
    }
}

/// What ACME servers are shown.
#[derive(Debug)]
struct Proofs(Arc<Issuer>);

impl ResolvesServerCert for Proofs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.proof(hello.server_name()?)
    }
}

/// A certificate in files.
pub(crate) struct Given {
    files: TlsFiles,
    certificates: Arc<Certificates>,
    acceptor: TlsAcceptor,
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl Given {
    fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let certificates = Arc::new(Certificates { present: RwLock::new(Arc::new(load(&files)?)) });
        let config = rustls_config(Arc::<Certificates>::clone(&certificates), &HTTP)?;
        let changed = Arc::new(Notify::new());
        let watcher = watch(&files, Arc::clone(&changed))?;
        Ok(Self { files, certificates, acceptor: TlsAcceptor::from(Arc::new(config)), changed, _watcher: watcher })
    }

    /// Reads the files whenever they change, for as long as it is polled.
    async fn follow(&self) {
        loop {
            self.follow_one().await;
        }
    }

    /// Waits for a change and reads the files.
    async fn follow_one(&self) {
        self.changed.notified().await;
        while tokio::time::timeout(SETTLE, self.changed.notified()).await.is_ok() {}
        let files = self.files.clone();
        match tokio::task::spawn_blocking(move || load(&files)).await {
            Ok(Ok(fresh)) => self.replace(fresh),
            Ok(Err(error)) => tracing::warn!(%error, "the changed certificate is not used; the old one stays"),
            Err(error) => tracing::error!(%error, "reading the certificate"),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn what_is_no_certificate_changes_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let files = TlsFiles { certificate: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        let issue = || {
            let issued = rcgen::generate_simple_self_signed(["sb.test".to_owned()]).expect("certificate");
            fs::write(&files.certificate, issued.cert.pem()).expect("certificate");
            fs::write(&files.key, issued.signing_key.serialize_pem()).expect("key");
        };
        issue();
        let tls = Given::open(files.clone()).expect("certificate");
        let present = || Arc::clone(&tls.certificates.present.read().expect("certificate"));
        let first = present();
        fs::write(&files.certificate, "no certificate").expect("certificate");
        tls.follow_one().await;
        assert!(Arc::ptr_eq(&first, &present()));
        issue();
        tls.follow_one().await;
        assert_ne!(first.cert, present().cert, "and the next that is one is taken");
    }
}
