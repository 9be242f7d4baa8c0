//! The account with an ACME server: registered once, its key in a file for its owner only. Also how the server is reached.

use std::{
    fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use http::Request;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use instant_acme::{Account, AccountCredentials, BodyWrapper, BytesResponse, HttpClient, NewAccount};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::sync::OnceCell;

use super::{AcmeConfig, AcmeError};
use crate::{limits::ACME_ANSWER_TIMEOUT, secret_file};

/// In the ACME server's directory.
const ACCOUNT_FILE: &str = "account.json";

/// See the module.
pub(super) struct Registration {
    server: String,
    contact: Option<String>,
    file: PathBuf,
    http: Http,
    account: OnceCell<Account>,
}

impl Registration {
    /// Asks nobody yet.
    pub(super) fn new(config: &AcmeConfig) -> Result<Self, AcmeError> {
        let http = Http::new(roots(config.ca.as_deref())?).map_err(|error| AcmeError::Unusable(error.to_string()))?;
        Ok(Self {
            server: config.server.clone(),
            contact: config.contact.as_ref().map(|mail| format!("mailto:{mail}")),
            file: config.home().join(ACCOUNT_FILE),
            http,
            account: OnceCell::new(),
        })
    }

    /// The account; the first call takes it from the file, or registers it.
    pub(super) async fn account(&self) -> Result<&Account, AcmeError> {
        self.account.get_or_try_init(|| self.open()).await
    }

    async fn open(&self) -> Result<Account, AcmeError> {
        let talk = |source| AcmeError::Talk { step: "cannot open the account", source };
        let contact: Vec<&str> = self.contact.as_deref().into_iter().collect();
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        if let Some(credentials) = self.read()? {
            let account = builder.from_credentials(credentials).await.map_err(talk)?;
            // It may be another one than at the registration.
            if let Err(error) = account.update_contacts(&contact).await {
                tracing::warn!(%error, "the ACME server did not take over the contact");
            }
            return Ok(account);
        }
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let talk = |source| AcmeError::Talk { step: "cannot register an account", source };
        let (account, credentials) = builder.create(&new, self.server.clone(), None).await.map_err(talk)?;
        let text = serde_json::to_vec(&credentials).map_err(|error| self.bad(&error))?;
        let failed = |source| AcmeError::File { operation: "write", path: self.file.clone(), source };
        secret_file::write(&self.file, &text).map_err(failed)?;
        tracing::info!(server = self.server, account = account.id(), "registered with the ACME server");
        Ok(account)
    }

    fn read(&self) -> Result<Option<AccountCredentials>, AcmeError> {
        match fs::read(&self.file) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| self.bad(&error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AcmeError::File { operation: "read", path: self.file.clone(), source }),
        }
    }

    fn bad(&self, why: &serde_json::Error) -> AcmeError {
        AcmeError::Account { path: self.file.clone(), why: why.to_string() }
    }
}

/// Whom we trust to be the ACME server: the system's roots and the operator's.
fn roots(ca: Option<&Path>) -> Result<RootCertStore, AcmeError> {
    let mut roots = RootCertStore::empty();
    // What is damaged among the system's is no reason not to use the rest.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        let failed = |source| AcmeError::Ca { path: path.to_owned(), source };
        let certificates = CertificateDer::pem_file_iter(path).map_err(failed)?;
        let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(failed(rustls::pki_types::pem::Error::NoItemsFound));
        }
    }
    if roots.is_empty() { Err(AcmeError::NoRoots) } else { Ok(roots) }
}

/// Connections to the ACME server.
#[derive(Clone)]
struct Http(Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>);

impl Http {
    fn new(roots: RootCertStore) -> Result<Self, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let answer = self.0.request(request);
        Box::pin(async move {
            match tokio::time::timeout(ACME_ANSWER_TIMEOUT, answer).await {
                Ok(Ok(answer)) => Ok(BytesResponse::from(answer)),
                Ok(Err(error)) => Err(instant_acme::Error::Other(innermost(&error).into())),
                Err(_) => Err(instant_acme::Error::Other("the ACME server does not answer".into())),
            }
        })
    }
}

/// The last cause of a chain, in words: those before it say only that a request failed.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}
