use std::os::unix::fs::{PermissionsExt, symlink};

use belljar_api::{file::DirectoryList, limits::AGENT_PORT};
use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::{Request, body::Frame, client::conn::http1};
use hyper_util::rt::TokioIo;

use crate::harness::{Agent, request};

fn path(of: &str) -> String {
    format!("/api/v1/files?path={of}")
}

async fn check_round_trip(agent: &Agent, name: &str, size: usize) {
    let content: Bytes = (0..size).map(|index| (index * 7 % 251).to_le_bytes()[0]).collect();
    assert_eq!(agent.ask("PUT", &path(name), content.clone()).await.0, 204);
    let answer = agent.send(AGENT_PORT, request("GET", &path(name), Bytes::new())).await;
    assert_eq!(answer.headers()["content-type"], "application/octet-stream");
    assert_eq!(crate::harness::body(answer).await, content, "{size} bytes");
}

#[tokio::test]
async fn contents_of_every_size_come_back() {
    let agent = Agent::start().await;
    for size in [0, 1, 256 * 1024, 256 * 1024 + 1, 5 * 1024 * 1024] {
        check_round_trip(&agent, "new/directory/a+b%20c", size).await;
    }
    let file = agent.home().join("new/directory/a b c");
    assert_eq!(file.metadata().expect("the file").permissions().mode() & 0o7777, 0o644);
    assert_eq!(std::fs::read_dir(agent.home().join("new/directory")).expect("read").count(), 1);
}

#[tokio::test]
async fn what_is_not_a_file_is_refused() {
    let agent = Agent::start().await;
    std::fs::create_dir(agent.home().join("dir")).expect("dir");
    std::fs::write(agent.home().join("file"), "x").expect("file");
    symlink("loop", agent.home().join("loop")).expect("loop");
    for (method, of, status, code) in [
        ("GET", "missing", 404, "NOT_FOUND"),
        ("GET", "dir", 400, "IS_DIRECTORY"),
        ("GET", "file/x", 400, "NOT_A_DIRECTORY"),
        ("GET", "loop", 400, "INVALID_ARGUMENT"),
        ("GET", "", 400, "INVALID_ARGUMENT"),
        ("GET", "a%00b", 400, "INVALID_ARGUMENT"),
        ("GET", "/etc/../etc/passwd", 403, "PATH_TRAVERSAL"),
        ("GET", "..", 403, "PATH_TRAVERSAL"),
        ("PUT", "dir", 400, "IS_DIRECTORY"),
        ("PUT", "dir/", 400, "IS_DIRECTORY"),
        ("PUT", "file/x", 400, "NOT_A_DIRECTORY"),
        ("PUT", "../x", 403, "PATH_TRAVERSAL"),
        ("PUT", &"n".repeat(300), 400, "INVALID_ARGUMENT"),
        ("DELETE", "missing", 404, "NOT_FOUND"),
        ("DELETE", "dir", 400, "IS_DIRECTORY"),
    ] {
        assert_eq!(agent.refused(method, &path(of), "").await, (status, code.to_owned()), "{method} {of}");
    }
    assert_eq!(agent.refused("GET", "/api/v1/files/list?path=file", "").await.1, "NOT_A_DIRECTORY");
    assert_eq!(agent.refused("GET", "/api/v1/files/list?path=missing", "").await.1, "NOT_FOUND");
    assert_eq!(agent.ask("DELETE", &path("file"), "").await.0, 204);
    assert!(!agent.home().join("file").exists());
}

#[tokio::test]
async fn files_that_the_kernel_makes_up_are_read_to_their_end() {
    let agent = Agent::start().await;
    let (status, content) = agent.ask("GET", &path("/proc/self/status"), "").await;
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&content).contains("belljar-guest"));
    assert_eq!(agent.ask("PUT", &path("/dev/null"), "gone").await.0, 204);
    assert!(!std::fs::metadata("/dev/null").expect("/dev/null").is_file());
}

#[tokio::test]
async fn a_write_keeps_mode_and_link_and_is_whole_or_nothing() {
    let agent = Agent::start().await;
    let (file, link) = (agent.home().join("script"), agent.home().join("link"));
    std::fs::write(&file, "old").expect("file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o751)).expect("mode");
    symlink("script", &link).expect("link");
    assert_eq!(agent.ask("PUT", &path("link"), "new").await.0, 204);
    assert_eq!(std::fs::read_to_string(&file).expect("file"), "new");
    assert_eq!(file.metadata().expect("file").permissions().mode() & 0o7777, 0o751);
    assert!(link.symlink_metadata().expect("link").is_symlink());

    let stream = agent.link.open(AGENT_PORT).await.expect("the port answers");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("http");
    let connection = tokio::spawn(connection);
    let half = futures_util::stream::iter([
        Ok(Frame::data(Bytes::from(vec![b'x'; 600 * 1024]))),
        Err(std::io::Error::other("the client goes away")),
    ]);
    let upload = Request::builder().method("PUT").uri(path("script")).header("content-length", 1 << 20);
    assert!(sender.send_request(upload.body(StreamBody::new(half)).expect("a request")).await.is_err());
    let _ = connection.await;
    // The agent sees the end of the connection on its own time: the temporary file is gone when it has.
    while std::fs::read_dir(agent.home()).expect("read").count() > 2 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(std::fs::read_to_string(&file).expect("file"), "new");
}

#[tokio::test]
async fn a_directory_is_listed_with_directories_first() {
    let agent = Agent::start().await;
    for name in ["b", "a"] {
        std::fs::create_dir(agent.home().join(name)).expect("directory");
        std::fs::write(agent.home().join(format!("file-{name}")), name).expect("file");
    }
    symlink("nowhere", agent.home().join("c")).expect("link");
    let list: DirectoryList = agent.get("GET", "/api/v1/files/list?path=.", (), 200).await;
    let shown: Vec<_> = list.entries.iter().map(|entry| (entry.name.as_str(), entry.is_dir, entry.size)).collect();
    let file = Some(1);
    assert_eq!(shown[..2], [("a", true, None), ("b", true, None)]);
    assert_eq!((shown[2].0, shown[2].1), ("c", false));
    assert_eq!(shown[3..], [("file-a", false, file), ("file-b", false, file)]);
    assert_eq!(list.path, ".");
    assert!(list.entries.iter().all(|entry| entry.modified_at.is_some()));
}

#[tokio::test]
async fn a_directory_goes_through_an_archive_and_back() {
    let agent = Agent::start().await;
    let script = "mkdir -p from/sub/empty && cd from && echo a > a && printf '#!/bin/sh\\n' > sub/run && chmod 750 sub/run \
                  && ln -s ../a sub/link && mkfifo pipe && head -c 700000 /dev/zero > big";
    assert_eq!(crate::harness::summary(&agent.sh(script).await), ["exited 0"]);
    let (status, tar) = agent.ask("GET", "/api/v1/archive?path=from", "").await;
    assert_eq!(status, 200);
    assert_eq!(agent.ask("PUT", "/api/v1/archive?path=deep/to", tar.clone()).await.0, 204);
    let compare = "rm from/pipe; diff -r --no-dereference from deep/to && stat -c %a deep/to/sub/run && readlink deep/to/sub/link; ls deep/to/sub";
    let compared = crate::harness::summary(&agent.sh(compare).await);
    assert_eq!(compared, ["o:750", "o:../a", "o:empty", "o:link", "o:run", "exited 0"]);
    let (_, one) = agent.ask("GET", "/api/v1/archive?path=from/a", "").await;
    assert_eq!(agent.ask("PUT", "/api/v1/archive?path=single", one).await.0, 204);
    assert_eq!(std::fs::read_to_string(agent.home().join("single/a")).expect("a"), "a\n");
    let cut = tar.slice(..tar.len() / 2);
    assert_eq!(agent.refused("PUT", "/api/v1/archive?path=cut", cut).await.0, 400);
    assert_eq!(agent.refused("GET", "/api/v1/archive?path=missing", "").await.0, 404);
}

#[tokio::test]
async fn an_archive_cannot_leave_its_directory() {
    let agent = Agent::start().await;
    let archive = |name: &str, link: Option<&str>| {
        let mut tar = tar::Builder::new(Vec::new());
        if let Some(target) = link {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, "link", target).expect("link");
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, &b"evil"[..]).expect("file");
        Bytes::from(tar.into_inner().expect("tar"))
    };
    for (name, link) in [("../evil", None), ("/evil", None), ("link/evil", Some("/tmp")), ("link/evil", Some(".."))] {
        let refused = agent.refused("PUT", "/api/v1/archive?path=into", archive(name, link)).await;
        assert_eq!(refused, (403, "PATH_TRAVERSAL".to_owned()), "{name}");
    }
    assert!(!agent.home().join("evil").exists());
    assert_eq!(agent.ask("PUT", "/api/v1/archive?path=into", archive("fine", Some("/tmp"))).await.0, 204);
}
