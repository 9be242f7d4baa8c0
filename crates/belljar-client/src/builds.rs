//! The control plane, continued: builds of images.

use std::{io, path::Path};

use belljar_api::build::{
    BuildInfo, CancelBuild, CancelledBuild, ContextUpload, SealContext, StartBuild, StartedBuild,
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderName, HeaderValue, Method, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use crate::{
    Client, Error,
    transport::{Call, Plane, segment},
};

const BUILDS: &str = "/images/v4/builds";
const CHUNK: usize = 256 * 1024;

impl Client {
    /// Starts a build. The same key again finds the same build.
    pub async fn start_build(&self, start: &StartBuild, key: &str) -> Result<StartedBuild, Error> {
        let call = Call::new(Plane::Control, Method::POST, BUILDS).json(start)?;
        let value = HeaderValue::from_str(key).map_err(|error| Error::protocol(call.what(), error.to_string()))?;
        self.transport.json(call.header(HeaderName::from_static("idempotency-key"), value)).await
    }

    /// Uploads the context of a build, a tar archive. `sent` is told of every part that was.
    pub async fn upload_context(
        &self,
        to: &ContextUpload,
        archive: &Path,
        mut sent: impl FnMut(u64) + Send + 'static,
    ) -> Result<(), Error> {
        // The server's own name for itself need not be ours for it: only what comes after that counts.
        let path = match url::Url::parse(&to.url) {
            Ok(url) => format!("{}?{}", url.path(), url.query().unwrap_or_default()),
            Err(error) => return Err(Error::protocol(&to.url, error.to_string())),
        };
        let opened = async {
            let file = tokio::fs::File::open(archive).await?;
            let length = file.metadata().await?.len();
            Ok::<_, io::Error>((file, length))
        };
        let (file, length) = opened.await.map_err(|error| Error::protocol(BUILDS, error.to_string()))?;
        let frames = ReaderStream::with_capacity(file, CHUNK).map(move |bytes: io::Result<Bytes>| {
            bytes.map(|bytes| {
                sent(bytes.len() as u64);
                Frame::data(bytes)
            })
        });
        let headers = vec![(header::CONTENT_LENGTH, HeaderValue::from(length))];
        let body = BodyExt::boxed_unsync(StreamBody::new(frames));
        self.transport.send_stream(Plane::Control, Method::PUT, &path, headers, body).await.map(drop)
    }

    /// Says that the context of a build is complete.
    pub async fn seal_context(&self, build_id: &str, digest: &str) -> Result<BuildInfo, Error> {
        let path = format!("{BUILDS}/{}/context/seal", segment(build_id));
        let seal = SealContext { digest: digest.to_owned() };
        self.transport.json(Call::new(Plane::Control, Method::POST, path).json(&seal)?).await
    }

    /// How far a build is.
    pub async fn build(&self, build_id: &str) -> Result<BuildInfo, Error> {
        let path = format!("{BUILDS}/{}", segment(build_id));
        self.transport.json(Call::new(Plane::Control, Method::GET, path)).await
    }

    /// Cancels a build, and says what came of that.
    pub async fn cancel_build(&self, build_id: &str) -> Result<CancelledBuild, Error> {
        let which = CancelBuild { build_id: Some(build_id.to_owned()), client_request_id: None };
        let path = format!("{BUILDS}/cancel");
        self.transport.json(Call::new(Plane::Control, Method::POST, path).json(&which)?).await
    }
}
