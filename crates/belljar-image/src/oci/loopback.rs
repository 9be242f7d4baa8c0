//! A registry on loopback for tests, which can lie, stall and break off.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::json;

use super::testing::sha256;

/// An image in memory.
#[derive(Clone, Default)]
pub(super) struct Stored {
    /// By digest, `sha256:…`; manifests too.
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
    /// What tags lead to.
    pub(super) first: String,
}

impl Stored {
    pub(super) fn add(&mut self, bytes: Vec<u8>) -> String {
        let digest = format!("sha256:{}", sha256(&bytes));
        self.blobs.insert(digest.clone(), bytes);
        digest
    }

    /// Of layers: each as it is packed, and what is in it.
    pub(super) fn new(layers: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let mut it = Self::default();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {
                "Env": ["PATH=/bin", "A=b=c"], "User": "www", "WorkingDir": "/srv/app", "Entrypoint": ["/init"], "Cmd": ["-v"],
                "Labels": {"maker": "me"}, "ExposedPorts": {"80/tcp": {}},
            },
            "history": [
                {"created": "2025-09-06T09:51:06Z", "created_by": "COPY a /"},
                {"created_by": "CMD -v", "comment": "by hand", "empty_layer": true},
            ],
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|(_, content)| format!("sha256:{}", sha256(content))).collect::<Vec<_>>()},
        });
        let config = it.descriptor("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|(packed, _)| it.descriptor("application/vnd.oci.image.layer.v1.tar", packed.clone()))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
        });
        it.first = it.add(manifest.to_string().into_bytes());
        it
    }

    /// Lets the tag lead to an index in which the image is for this platform.
    pub(super) fn in_index(mut self, os: &str, arch: &str) -> Self {
        let manifest = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.first,
            "size": self.blobs[&self.first].len(), "platform": {"os": os, "architecture": arch},
        });
        let attestation = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{}", "0".repeat(64)),
            "size": 1, "platform": {"os": "unknown", "architecture": "unknown"},
        });
        let index = json!({"schemaVersion": 2, "manifests": [attestation, manifest]});
        self.first = self.add(index.to_string().into_bytes());
        self
    }

    fn descriptor(&mut self, kind: &str, bytes: Vec<u8>) -> serde_json::Value {
        let size = bytes.len();
        json!({"mediaType": kind, "digest": self.add(bytes), "size": size})
    }
}

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
}

/// How it is answered.
pub(super) enum Reply {
    /// As an honest registry does.
    Honest,
    /// With this status, these header lines and this body.
    With(u16, String, Vec<u8>),
    /// Honestly, and the connection ends after so many bytes of the body.
    BreakAfter(usize),
    /// Honestly, and after so many bytes nothing more comes.
    StallAfter(usize),
    /// A byte at a time.
    Drip,
    /// Without an end.
    Endless,
}

/// The registry.
pub(super) struct Loopback {
    pub(super) host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Loopback {
    /// Serves until the test ends.
    pub(super) fn start(stored: Stored, reply: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, reply) = (Arc::clone(&asked), Arc::new(reply));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (stored, seen, reply) = (stored.clone(), Arc::clone(&seen), Arc::clone(&reply));
                thread::spawn(move || {
                    let Some(asked) = read(&stream) else { return };
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(asked.clone());
                        seen.iter().filter(|one| one.path == asked.path).count()
                    };
                    // A client that has had enough closes the connection.
                    let _ = answer(&stream, &stored, &asked, reply(&asked, number));
                });
            }
        });
        Self { host, asked }
    }

    /// Everything that was asked for so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// A request; `None` for what is no HTTP.
fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let header = |line: String| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(header).collect();
    Some(Asked { path, headers })
}

fn answer(mut stream: &TcpStream, stored: &Stored, asked: &Asked, reply: Reply) -> std::io::Result<()> {
    let name = asked.path.rsplit('/').next().unwrap_or_default();
    let name = if name.starts_with("sha256:") { name } else { &stored.first };
    let body = stored.blobs.get(name);
    let start = asked.headers.get("range").and_then(|it| it.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
    let (status, body) = match (body, start) {
        (None, _) => (404, &[][..]),
        (Some(body), None) => (200, body.as_slice()),
        (Some(body), Some(start)) => body.get(start..).map_or((416, &[][..]), |rest| (206, rest)),
    };
    let head = |status: u16, more: &str, length: usize| {
        format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n").into_bytes()
    };
    match reply {
        Reply::Honest => stream.write_all(&[&head(status, "", body.len()), body].concat()),
        Reply::With(status, headers, body) => {
            stream.write_all(&[head(status, &headers, body.len()).as_slice(), &body].concat())
        }
        Reply::BreakAfter(count) => {
            stream.write_all(&[&head(status, "", body.len()), &body[..count.min(body.len())]].concat())
        }
        Reply::StallAfter(count) => {
            stream.write_all(&[&head(status, "", body.len()), &body[..count.min(body.len())]].concat())?;
            thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        Reply::Drip => {
            stream.write_all(&head(status, "", body.len()))?;
            for byte in body {
                stream.write_all(&[*byte])?;
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        Reply::Endless => {
            stream.write_all(b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 64 << 10])?;
            }
        }
    }
}
