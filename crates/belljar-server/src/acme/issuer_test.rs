//! Limits of the issuer, without an ACME server that answers.

use tokio::net::TcpListener;

use super::*;

#[test]
fn rests_get_longer_up_to_a_limit() {
    assert_eq!(rest_after(0), ACME_RETRY_FIRST);
    assert_eq!(rest_after(1), ACME_RETRY_FIRST * 2);
    assert_eq!(
        (rest_after(31), rest_after(32), rest_after(u32::MAX)),
        (ACME_RETRY_MAX, ACME_RETRY_MAX, ACME_RETRY_MAX)
    );
}

/// An issuer for every name below `sb.test`, and what it needs.
struct Scene {
    issuer: Arc<Issuer>,
    /// Takes connections, and says nothing.
    _server: TcpListener,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let ca = dir.path().join("ca.pem");
        let issued = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).expect("certificate");
        fs::write(&ca, issued.cert.pem()).expect("written");
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let config = AcmeConfig {
            dir: dir.path().join("acme"),
            server: format!("https://{}/directory", server.local_addr().expect("address")),
            contact: None,
            ca: Some(ca),
            dns_hook: None,
        };
        let names = Names::of_urls(Some("sb.test"), None, &config).expect("names");
        let issuer = Arc::new(Issuer::open(&config, names, |_| true).expect("opened"));
        Self { issuer, _server: server, _dir: dir }
    }

    fn begin(&self, host: &str) -> Found {
        self.issuer.begin(&self.issuer.subject(Some(host)).expect("one of ours"))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.issuer.stop.cancel();
    }
}

#[tokio::test]
async fn more_names_than_may_wait_get_none_for_now_but_our_own_does() {
    let scene = Scene::new().await;
    for i in 0..ACME_WAITING_MAX {
        assert!(scene.begin(&format!("box{i}.sb.test")).getting.is_some(), "{i}");
    }
    assert!(scene.begin("one-more.sb.test").getting.is_none());
    assert!(scene.begin("box0.sb.test").getting.is_some(), "who waits already goes on waiting");
    assert!(scene.begin("sb.test").getting.is_some());
}

#[tokio::test]
async fn what_was_used_least_recently_is_forgotten_first_and_our_own_never() {
    let scene = Scene::new().await;
    let known = |host: &str| scene.issuer.lock().entries.contains_key(host);
    scene.begin("sb.test");
    // With our own as many as may be ordered for; nobody orders for those that come after them.
    for i in 1..ACME_WAITING_MAX {
        scene.begin(&format!("waits{i}.sb.test"));
    }
    let fill = ACME_CERTIFICATES_MAX - ACME_WAITING_MAX;
    for i in 0..fill {
        scene.begin(&format!("box{i}.sb.test"));
    }
    assert_eq!(scene.issuer.lock().entries.len(), ACME_CERTIFICATES_MAX);
    scene.begin("box0.sb.test");
    scene.begin("one-more.sb.test");
    assert_eq!(scene.issuer.lock().entries.len(), ACME_CERTIFICATES_MAX);
    assert!(known("box0.sb.test") && !known("box1.sb.test") && known("one-more.sb.test"));
    assert!(known("sb.test") && known("waits1.sb.test"), "who waits is not forgotten");
}
