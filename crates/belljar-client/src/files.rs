//! Files and whole directories of a sandbox, streamed both ways: memory use does not depend on their size.

use std::io;

use belljar_api::file::DirectoryList;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::{HeaderValue, Method, Response, header};
use http_body_util::{BodyDataStream, BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::{
    Error, Sandbox,
    limits::{CHUNK, ERROR_ANSWER_MAX},
    transport::query_value,
};

/// Bytes that are on their way here.
#[derive(Debug)]
pub struct Download {
    length: Option<u64>,
    body: Incoming,
}

impl Download {
    fn new(answer: Response<Incoming>) -> Self {
        let length = answer.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { length, body: answer.into_body() }
    }

    /// How many bytes there will be, when the server knows.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The bytes as they come. A body that is shorter than announced ends in an error.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin {
        BodyDataStream::new(self.body).map_err(io::Error::other)
    }

    /// The bytes as a reader.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin {
        StreamReader::new(self.into_stream())
    }
}

impl Sandbox {
    /// Reads a file.
    pub async fn read_file(&self, path: &str) -> Result<Download, Error> {
        let call = self.call(Method::GET, format!("/api/v1/files?path={}", query_value(path)));
        Ok(Download::new(self.transport.send(&call, |_| false).await?))
    }

    /// Writes a file of `length` bytes, or of unknown length, replacing what was there; makes its directories.
    pub async fn write_file(
        &self,
        path: &str,
        content: impl AsyncRead + Send + 'static,
        length: Option<u64>,
    ) -> Result<(), Error> {
        let stream = ReaderStream::with_capacity(content, CHUNK);
        self.put(format!("/api/v1/files?path={}", query_value(path)), stream, length, None).await
    }

    /// Removes a file.
    pub async fn delete_file(&self, path: &str) -> Result<(), Error> {
        let call = self.call(Method::DELETE, format!("/api/v1/files?path={}", query_value(path)));
        self.transport.nothing(call).await
    }

    /// What is in a directory.
    pub async fn list_files(&self, path: &str) -> Result<DirectoryList, Error> {
        self.transport.json(self.call(Method::GET, format!("/api/v1/files/list?path={}", query_value(path)))).await
    }

    /// A directory, or a file, as a tar stream. The stream is the guest's: unpack it with care.
    pub async fn read_archive(&self, path: &str) -> Result<Download, Error> {
        let call = self.call(Method::GET, format!("/api/v1/archive?path={}", query_value(path)));
        Ok(Download::new(self.transport.send(&call, |_| false).await?))
    }

    /// Unpacks a tar stream into a directory of the sandbox, making it where it is not there.
    pub async fn write_archive(
        &self,
        path: &str,
        tar: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Error> {
        let kind = HeaderValue::from_static("application/x-tar");
        self.put(format!("/api/v1/archive?path={}", query_value(path)), tar, None, Some(kind)).await
    }

    async fn put(
        &self,
        path: String,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        length: Option<u64>,
        kind: Option<HeaderValue>,
    ) -> Result<(), Error> {
        let mut headers = Vec::new();
        headers.extend(length.map(|length| (header::CONTENT_LENGTH, HeaderValue::from(length))));
        headers.extend(kind.map(|kind| (header::CONTENT_TYPE, kind)));
        let body = StreamBody::new(content.map_ok(Frame::data)).boxed_unsync();
        let answer = self.transport.send_stream(self.plane(), Method::PUT, &path, headers, body).await?;
        // Read to the end, so that the connection goes back to the pool.
        let _ = Limited::new(answer.into_body(), ERROR_ANSWER_MAX).collect().await;
        Ok(())
    }
}
