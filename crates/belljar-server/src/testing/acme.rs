//! Certificates from a real ACME server: who gets one, what stays over a restart, and what happens when none is to be had.

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path};

use axum::body::Body;
use http::{Request, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{
    Harness, config,
    node::FakeNode,
    pebble::{Hook, Pebble},
    tls::dial,
};
use crate::{AcmeConfig, ServerError, TlsError, TlsSource, prepare};

/// Seconds for which an ordinary certificate holds.
const LONG: u32 = 90 * 24 * 3600;
/// The same for one that is due in a moment and yet good for the rest of the test.
const DUE_SOON: u32 = 300;

/// A server that gets its certificates from `pebble`.
async fn start(pebble: &Pebble, hook: Option<&Hook>) -> Harness {
    let dir = tempfile::tempdir().expect("directory");
    let acme = AcmeConfig { dns_hook: hook.map(|hook| hook.path.clone()), ..pebble.config(dir.path()) };
    on(dir, acme, None, &pebble.tls()).await
}

async fn on(dir: tempfile::TempDir, acme: AcmeConfig, key: Option<String>, tls: &str) -> Harness {
    let config = crate::ServerConfig { tls: Some(TlsSource::Acme(acme)), ..config(dir.path()) };
    Harness::at(dir, config, key, tls).await
}

/// Waits until so many searches for a certificate have ended; how the last one failed.
async fn ended(harness: &Harness, count: usize) -> Option<String> {
    let mut ended = harness.issuer.as_ref().expect("issuer").ended.subscribe();
    let ended = ended.wait_for(|ended| ended.0 >= count).await.expect("running");
    ended.1.clone()
}

/// Waits until the last search for a certificate found one.
async fn got(harness: &Harness) {
    let mut ended = harness.issuer.as_ref().expect("issuer").ended.subscribe();
    ended.wait_for(|ended| ended.0 > 0 && ended.1.is_none()).await.expect("running");
}

fn count(harness: &Harness) -> usize {
    harness.issuer.as_ref().expect("issuer").ended.borrow().0
}

/// Connects, again where the first certificate takes longer than a handshake may.
async fn connect(harness: &Harness, pebble: &Pebble, name: &str) -> TlsStream<TcpStream> {
    loop {
        match dial(harness, &pebble.root, name, &["http/1.1"]).await {
            Ok(stream) => return stream,
            Err(error) => {
                let hung_up = matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
                assert!(hung_up, "{name}: {error}");
            }
        }
    }
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().expect("certificate")[0].clone().into_owned()
}

type Sender = hyper::client::conn::http1::SendRequest<Body>;

async fn http1(stream: TlsStream<TcpStream>) -> Sender {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    sender
}

async fn get(sender: &mut Sender, harness: &Harness, host: &str, path: &str) -> u16 {
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::AUTHORIZATION, format!("Bearer {}", harness.key))
        .body(Body::empty())
        .expect("request");
    let response = sender.send_request(request).await.expect("answer");
    let status = response.status().as_u16();
    http_body_util::BodyExt::collect(response.into_body()).await.expect("body");
    status
}

/// Every file below a directory, with its mode.
fn modes(dir: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(modes(&path));
        } else {
            let mode = fs::metadata(&path).expect("file").permissions().mode() & 0o777;
            found.push((path.file_name().expect("name").display().to_string(), mode));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn hosts_of_sandboxes_that_there_are_get_certificates_when_asked_for() {
    let pebble = Pebble::start(LONG).await;
    let harness = start(&pebble, None).await;
    let node = FakeNode::new();
    node.connect(&harness).await;
    harness.create(r#"{"name":"web","exposed_ports":[8080]}"#).await;

    assert_eq!(ended(&harness, 1).await, None, "the server's own name, without being asked");
    let mut sender = http1(connect(&harness, &pebble, "sb.test").await).await;
    assert_eq!(get(&mut sender, &harness, "sb.test", "/sandboxes").await, 200);

    // At once: they share an order.
    let both =
        tokio::join!(connect(&harness, &pebble, "8080-web.sb.test"), connect(&harness, &pebble, "8080-WEB.sb.test"));
    assert_eq!((shown(&both.0), count(&harness)), (shown(&both.1), 2));
    let mut sender = http1(both.0).await;
    assert_eq!(get(&mut sender, &harness, "8080-web.sb.test", "/x").await, 200);
    drop(connect(&harness, &pebble, "web.sb.test").await);
    assert_eq!(count(&harness), 3);

    for stranger in
        ["other.sb.test", "9000-web.sb.test", "08080-web.sb.test", "a.web.sb.test", "other.test", "web.local"]
    {
        let error = dial(&harness, &pebble.root, stranger, &[]).await.expect_err(stranger);
        assert!(error.to_string().contains("alert"), "{stranger}: {error}");
    }
    // Who asks as an ACME server does, without one having been asked to.
    dial(&harness, &pebble.root, "web.sb.test", &["acme-tls/1"]).await.expect_err("no proof is pending");
    assert_eq!(count(&harness), 3, "nothing was ordered for strangers");
    let names = ["8080-web.sb.test.pem", "account.json", "sb.test.pem", "web.sb.test.pem"];
    assert_eq!(modes(&harness.dir.path().join("acme")), names.map(|name| (name.to_owned(), 0o600)));
}

#[tokio::test]
async fn a_restart_goes_on_with_what_was_kept() {
    let pebble = Pebble::start(LONG).await;
    let harness = start(&pebble, None).await;
    assert_eq!(ended(&harness, 1).await, None);
    let before = shown(&connect(&harness, &pebble, "sb.test").await);
    let (root, tls) = (pebble.root.clone(), pebble.tls());
    let (dir, key) = harness.stop().await;
    let acme = pebble.config(dir.path());
    fs::copy(acme.ca.as_ref().expect("CA"), dir.path().join("ca.pem")).expect("copied");
    let acme = AcmeConfig { ca: Some(dir.path().join("ca.pem")), ..acme };
    // Nobody can be asked for another.
    pebble.stop().await;
    let harness = on(dir, acme, Some(key), &tls).await;
    let after = shown(&dial(&harness, &root, "sb.test", &[]).await.expect("handshake"));
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let pebble = Pebble::start(DUE_SOON).await;
    let harness = start(&pebble, None).await;
    assert_eq!(ended(&harness, 1).await, None);
    let stream = connect(&harness, &pebble, "sb.test").await;
    let first = shown(&stream);
    let mut sender = http1(stream).await;
    let mut seen = 0;
    // In use all the time: one that says nothing is let go.
    loop {
        assert_eq!(get(&mut sender, &harness, "sb.test", "/sandboxes").await, 200, "the same connection");
        let so_far = count(&harness);
        if so_far > seen && shown(&connect(&harness, &pebble, "sb.test").await) != first {
            break;
        }
        seen = so_far;
    }
    assert_eq!(get(&mut sender, &harness, "sb.test", "/sandboxes").await, 200, "the same connection");
}

#[tokio::test]
async fn one_wildcard_serves_everything_with_a_dns_hook() {
    let pebble = Pebble::start(LONG).await;
    let hook = pebble.hook();
    hook.set_broken(true);
    let harness = start(&pebble, Some(&hook)).await;
    let complaint = ended(&harness, 1).await.expect("refused");
    for words in ["the provider says no", "add the TXT record _acme-challenge.sb.test", "run it by hand"] {
        assert!(complaint.contains(words), "{complaint}");
    }
    dial(&harness, &pebble.root, "sb.test", &[]).await.expect_err("there is none yet");
    assert_eq!(harness.get("/sandboxes").await.status, 200, "plain HTTP goes on");

    hook.set_broken(false);
    got(&harness).await;
    let orders = count(&harness);
    let certificate = shown(&connect(&harness, &pebble, "sb.test").await);
    for name in ["box.sb.test", "3000-other.sb.test"] {
        assert_eq!(shown(&connect(&harness, &pebble, name).await), certificate, "{name}");
    }
    dial(&harness, &pebble.root, "a.box.sb.test", &[]).await.expect_err("two labels");
    assert_eq!(count(&harness), orders);
    let record = "_acme-challenge.sb.test";
    assert_eq!(
        hook.calls(),
        [format!("add {record}"), format!("add {record}"), format!("remove {record}"), format!("remove {record}")]
    );
}

#[tokio::test]
async fn a_record_that_a_stopped_server_left_is_removed_by_the_next_one() {
    let pebble = Pebble::start(LONG).await;
    let hook = pebble.hook();
    hook.set_stuck(true);
    let first = start(&pebble, Some(&hook)).await;
    hook.told().await;
    let (dir, key) = first.stop().await;
    hook.set_stuck(false);
    let acme = AcmeConfig { dns_hook: Some(hook.path.clone()), ..pebble.config(dir.path()) };
    let second = on(dir, acme, Some(key), &pebble.tls()).await;
    got(&second).await;
    let record = "_acme-challenge.sb.test";
    let calls = hook.calls();
    assert_eq!(calls[..3], [format!("add {record}"), format!("remove {record}"), format!("add {record}")]);
    assert_eq!(calls.iter().filter(|call| call.starts_with("add")).count(), 3);
    assert_eq!(calls.iter().filter(|call| call.starts_with("remove")).count(), 3);
    let own = fs::read_dir(second.dir.path().join("acme")).expect("list").next().expect("one server").expect("entry");
    assert_eq!(fs::read_dir(own.path().join("records")).expect("list").count(), 0, "notes are left");
}

#[tokio::test]
async fn a_renewal_that_fails_leaves_the_old_certificate() {
    let pebble = Pebble::start(DUE_SOON).await;
    let hook = pebble.hook();
    let harness = start(&pebble, Some(&hook)).await;
    assert_eq!(ended(&harness, 1).await, None);
    hook.set_broken(true);
    let mut before = None;
    // Tried again after each rest.
    for _ in 0..3 {
        let mut outcomes = harness.issuer.as_ref().expect("issuer").ended.subscribe();
        let failed = outcomes.wait_for(|ended| ended.1.is_some()).await.expect("running").1.clone();
        let complaint = failed.unwrap_or_default();
        assert!(complaint.contains("the provider says no"), "{complaint}");
        let now = shown(&connect(&harness, &pebble, "sb.test").await);
        assert_eq!(before.get_or_insert_with(|| now.clone()), &now);
        outcomes.changed().await.expect("running");
    }
}

#[tokio::test]
async fn a_proof_that_cannot_be_seen_is_told_with_the_name_and_a_remedy() {
    let pebble = Pebble::start(LONG).await;
    let dir = tempfile::tempdir().expect("directory");
    let acme = pebble.config(dir.path());
    // Not where the ACME server looks.
    let harness = on(dir, acme, None, "127.0.0.1:0").await;
    let complaint = ended(&harness, 1).await.expect("refused");
    for words in ["the proof for sb.test: Failed to connect", "port 443 leads to --tls-listen"] {
        assert!(complaint.contains(words), "{complaint}");
    }
    dial(&harness, &pebble.root, "sb.test", &[]).await.expect_err("there is none");
    assert_eq!(harness.get("/sandboxes").await.status, 200, "plain HTTP goes on");
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_the_start() {
    let there = tempfile::tempdir().expect("directory");
    let (plain, junk) = (there.path().join("plain"), there.path().join("junk.pem"));
    fs::write(&plain, "").expect("file");
    fs::write(&junk, "junk").expect("file");
    type Change<'a> = &'a dyn Fn(&mut AcmeConfig);
    let missing = || Some(there.path().join("missing"));
    let cases: [(Option<&str>, Change<'_>, &str); 10] = [
        (None, &|_| {}, "give an ingress domain"),
        (Some("localhost"), &|_| {}, "at least one dot"),
        (Some("sb.test"), &|acme| acme.server = "http://127.0.0.1/dir".into(), "give the https:// address"),
        (Some("sb.test"), &|acme| acme.server = "dir".into(), "give the https:// address"),
        (Some("sb.test"), &|acme| acme.contact = Some("nobody".into()), "not a mail address"),
        (Some("sb.test"), &|acme| acme.contact = Some("a@b.test, c@d.test".into()), "not a mail address"),
        (Some("sb.test"), &|acme| acme.ca = missing(), "cannot read the ACME server's root"),
        (Some("sb.test"), &|acme| acme.ca = Some(junk.clone()), "cannot read the ACME server's root"),
        (Some("sb.test"), &|acme| acme.dns_hook = missing(), "missing cannot be run"),
        (Some("sb.test"), &|acme| acme.dns_hook = Some(plain.clone()), "not an executable file"),
    ];
    for (domain, change, words) in cases {
        let dir = tempfile::tempdir().expect("directory");
        let mut acme = AcmeConfig {
            dir: dir.path().join("acme"),
            server: crate::LETS_ENCRYPT.into(),
            contact: None,
            ca: None,
            dns_hook: None,
        };
        change(&mut acme);
        let config = crate::ServerConfig {
            ingress_domain: domain.map(str::to_owned),
            tls: Some(TlsSource::Acme(acme)),
            ..config(dir.path())
        };
        let error = prepare(config).await.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
        assert!(matches!(error, ServerError::Tls(TlsError::Acme(_))), "{error:?}");
    }
}

#[tokio::test]
async fn an_account_file_that_is_damaged_is_told_with_its_path() {
    let pebble = Pebble::start(LONG).await;
    let harness = start(&pebble, None).await;
    assert_eq!(ended(&harness, 1).await, None);
    let (dir, key) = harness.stop().await;
    let acme = pebble.config(dir.path());
    let own = fs::read_dir(&acme.dir).expect("list").next().expect("one server").expect("entry").path();
    fs::write(own.join("account.json"), "{}").expect("damaged");
    fs::remove_file(own.join("certificates/sb.test.pem")).expect("removed");
    let harness = on(dir, acme, Some(key), &pebble.tls()).await;
    let complaint = ended(&harness, 1).await.expect("refused");
    assert!(complaint.contains("account.json holds no ACME account") && complaint.contains("remove it"), "{complaint}");
    // What is no failure of the moment is tried again all the same: the operator may have removed it.
    fs::remove_file(own.join("account.json")).expect("removed");
    got(&harness).await;
    drop(connect(&harness, &pebble, "sb.test").await);
}
