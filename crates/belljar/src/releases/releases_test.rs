use super::*;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What a server does with one connection.
#[derive(Clone, Copy)]
enum Act {
    /// Sends what is asked for, the rest where a rest is.
    Serve,
    /// The same, and closes after so many bytes.
    BreakAfter(usize),
    /// Sends all, whatever is asked for.
    ServeAll,
    /// Another status, and nothing.
    Answer(u16),
    /// Sends the client on to the file's address.
    Redirect,
    /// Says nothing.
    Close,
}

/// A server on loopback that does one thing after the other; what was asked of it.
struct Server {
    url: String,
    ranges: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(content: Vec<u8>, acts: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/program.tgz", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let (acts, seen) = (acts.to_vec(), Arc::clone(&ranges));
        let thread = std::thread::spawn(move || {
            for act in acts {
                let (stream, _) = listener.accept().unwrap();
                let range = asked(&stream);
                seen.lock().unwrap().push(range.clone());
                answer(stream, act, &content, &range);
            }
        });
        Self { url, ranges, thread }
    }

    /// Everything was called for, and no more: with these ranges.
    #[track_caller]
    fn end(self, ranges: &[&str]) {
        self.thread.join().unwrap();
        assert_eq!(*self.ranges.lock().unwrap(), ranges);
    }
}

/// The range that a request asks for; empty where it asks for all.
fn asked(stream: &TcpStream) -> String {
    let lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let lines: Vec<String> = lines.collect();
    let range = lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    range.unwrap_or_default()
}

fn answer(mut stream: TcpStream, act: Act, content: &[u8], range: &str) {
    let start: usize = range.trim_end_matches('-').parse().unwrap_or(0);
    let (head, body) = match act {
        Act::Close => return,
        Act::Answer(status) => (format!("{status} no"), &content[..0]),
        Act::Redirect => ("302 Found\r\nLocation: /program.tgz".to_owned(), &content[..0]),
        Act::Serve | Act::BreakAfter(_) if start >= content.len() => ("416 no".to_owned(), &content[..0]),
        Act::Serve | Act::BreakAfter(_) if start > 0 => ("206 Partial Content".to_owned(), &content[start..]),
        Act::Serve | Act::BreakAfter(_) | Act::ServeAll => ("200 OK".to_owned(), content),
    };
    let sent = if let Act::BreakAfter(count) = act { &body[..count.min(body.len())] } else { body };
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // At once: a client that has seen enough of an answer closes the connection.
    stream.write_all(&[head.as_bytes(), sent].concat()).unwrap();
}

const MEMBER: &str = "release/firecracker-v9";

/// An archive with a program that calls itself the given version, beside larger things.
fn archive(version: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, path, content).unwrap();
    };
    // Random enough not to be packed to nothing.
    let noise: Vec<u8> = (0..200_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    add("release/LICENSE", &noise);
    add(MEMBER, format!("#!/bin/sh\necho Firecracker v{version}\n").as_bytes());
    tar.into_inner().unwrap().finish().unwrap()
}

fn release(url: &str, content: &[u8]) -> Release {
    Release {
        name: "firecracker".to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        version: "9.1.2".to_owned(),
        url: url.to_owned(),
        sha256: Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect(),
        member: Some(MEMBER.to_owned()),
    }
}

/// Installs over what `before` is of an earlier download, from a server that does `acts`; an error has `words` in it.
/// `ranges` are what was asked for. What is there at the end: the program and nothing else, or no program and `left`.
#[track_caller]
fn check(before: &[u8], acts: &[Act], words: Option<&str>, ranges: &[&str], left: &[&str]) {
    let content = archive("9.1.2");
    let server = Server::start(content.clone(), acts);
    let release = release(&server.url, &content);
    let dir = tempfile::tempdir().unwrap();
    if !before.is_empty() {
        fs::write(dir.path().join(format!("{}.part", release.sha256)), before).unwrap();
    }
    let done = release.install(dir.path(), None, &mut |_, _| ());
    let mut files: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.iter_mut().for_each(|name| *name = name.replace(&release.sha256, "SUM"));
    match words {
        None => {
            let path = done.unwrap();
            assert_eq!(release.installed(dir.path()).unwrap().unwrap(), Program { path, version: "9.1.2".into() });
            assert_eq!(files, ["firecracker"]);
        }
        Some(words) => {
            let error = anyhow::Error::from(done.unwrap_err());
            assert!(format!("{error:#}").contains(words), "{error:#}");
            assert_eq!(files, left);
        }
    }
    server.end(ranges);
}

#[test]
fn a_release_is_fetched_and_goes_on_where_it_broke_off() {
    let content = archive("9.1.2");
    check(b"", &[Act::Serve], None, &[""], &[]);
    check(b"", &[Act::Redirect, Act::Serve], None, &["", ""], &[]);
    check(b"", &[Act::BreakAfter(1000), Act::BreakAfter(500), Act::Serve], None, &["", "1000-", "1500-"], &[]);
    check(&content[..3000], &[Act::Serve], None, &["3000-"], &[]);
    check(&content[..3000], &[Act::ServeAll], None, &["3000-"], &[]);
    check(&content, &[Act::Serve], None, &[&format!("{}-", content.len())], &[]);
    check(b"", &[Act::Answer(503), Act::Close, Act::Serve], None, &["", "", ""], &[]);
    // The beginning of something else, or more than there is of it.
    check(&[7; 3000], &[Act::Serve, Act::Serve], None, &["3000-", ""], &[]);
    let more = [&content[..], &[7; 3000]].concat();
    check(&more, &[Act::Serve, Act::Serve], None, &[&format!("{}-", more.len()), ""], &[]);
}

#[test]
fn what_cannot_be_had_says_why_and_what_arrived_stays() {
    check(b"", &[Act::Answer(404)], Some("the server answered 404"), &[""], &["SUM.part"]);
    check(b"", &[Act::Close; 4], Some("cannot fetch http://127.0.0.1"), &[""; 4], &["SUM.part"]);
    check(b"", &[Act::Answer(500); 4], Some("500"), &[""; 4], &["SUM.part"]);
    let broken = [[Act::BreakAfter(1000)].as_slice(), &[Act::Close; 4]].concat();
    check(b"", &broken, Some("cannot fetch"), &["", "1000-", "1000-", "1000-", "1000-"], &["SUM.part"]);
}

#[test]
fn what_is_not_as_pinned_is_not_installed() {
    let content = archive("9.1.2");
    let dir = tempfile::tempdir().unwrap();
    let check = |release: &Release, content: &[u8], words: &str| {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("program.tgz"), content).unwrap();
        let error = release.install(dir.path(), Some(from.path()), &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let server = Server::start(content.to_vec(), &[Act::Serve]);
        let release = Release { url: server.url.clone(), ..release.clone() };
        let error = release.install(dir.path(), None, &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(!dir.path().join("firecracker").exists() && !dir.path().join("firecracker.new").exists());
        server.end(&[""]);
        fs::remove_dir_all(dir.path()).unwrap();
        fs::create_dir(dir.path()).unwrap();
    };
    let good = release("https://example.com/program.tgz", &content);
    check(&good, &archive("9.1.3"), "is not what this version of Belljar takes: its SHA-256 is");
    let other = archive("9.1.3");
    check(&release(&good.url, &other), &other, "it is version 9.1.3, not 9.1.2");
    let member = Some("release/other".to_owned());
    check(&Release { member, ..good.clone() }, &content, "there is no release/other in");
    let member = Some("release/LICENSE".to_owned());
    check(&Release { member, ..good.clone() }, &content, "does not work here");

    let nowhere = tempfile::tempdir().unwrap();
    let error = good.install(dir.path(), Some(nowhere.path()), &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("firecracker 9.1.2 is that file of https://example.com/program.tgz"), "{error}");
}

#[test]
fn a_release_is_taken_from_a_directory_and_takes_the_place_of_another() {
    let (dir, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("firecracker"), "#!/bin/sh\necho Firecracker v1.14.0\n").unwrap();
    let content = archive("9.1.2");
    fs::write(from.path().join("program.tgz"), &content).unwrap();
    let release = release("https://example.com/program.tgz", &content);
    release.install(dir.path(), Some(from.path()), &mut |_, _| ()).unwrap();
    assert_eq!(release.installed(dir.path()).unwrap().unwrap().version, "9.1.2");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(from.path().join("program.tgz").exists(), "what belongs to somebody else stays");
}

#[test]
fn one_at_a_time_fetches() {
    let content = archive("9.1.2");
    let release = release("http://127.0.0.1:9/program.tgz", &content);
    let dir = tempfile::tempdir().unwrap();
    let part = File::create(dir.path().join(format!("{}.part", release.sha256))).unwrap();
    part.lock().unwrap();
    let error = release.install(dir.path(), None, &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("another `belljar vmm install`"), "{error}");
}

#[test]
fn the_manifest_can_be_used() {
    let manifest: Manifest = toml::from_str(MANIFEST).unwrap();
    for release in &manifest.program {
        assert!(release.url.starts_with("https://"), "{release:?}");
        assert!(release.url.contains(&format!("/v{}/", release.version)), "{release:?}");
        assert!(release.sha256.len() == 64 && release.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(["firecracker", "cloud-hypervisor"].contains(&release.name.as_str()), "{release:?}");
        assert_eq!(release.member.is_some(), release.url.ends_with(".tgz"), "{release:?}");
    }
    let names = |asked: &[&str]| {
        let asked: Vec<String> = asked.iter().map(ToString::to_string).collect();
        named(&asked).map(|found| found.into_iter().map(|release| release.name).collect::<Vec<_>>())
    };
    assert_eq!(names(&[]).unwrap(), ["firecracker", "cloud-hypervisor"]);
    assert_eq!(names(&["cloud-hypervisor"]).unwrap(), ["cloud-hypervisor"]);
    let error = names(&["qemu"]).unwrap_err().to_string();
    assert!(error.contains("no release of qemu") && error.contains("firecracker, cloud-hypervisor"), "{error}");
}
