//! Upstream resolvers that lie, fail or say nothing.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn what_upstream_does_is_survived() {
    let scene = Scene::new(&[], policy(true, &["*.example"], &[])).await;
    let ok = |name: &str| vec![format!("{name} 60 A 1.1.1.1")];
    for (name, says, expected) in [
        ("x.example", Says::AfterForgeries(ok("x.example")), "NOERROR; x.example A 1.1.1.1"),
        ("tcp.example", Says::OverTcp(ok("tcp.example")), "NOERROR; tcp.example A 1.1.1.1"),
        ("silent.example", Says::Nothing, "SERVFAIL"),
        ("fails.example", Says::Fails, "SERVFAIL"),
        ("garbage.example", Says::Garbage, "SERVFAIL"),
        ("self.example", Says::Records(vec!["self.example 60 CNAME self.example".into()]), "SERVFAIL"),
        ("odd.example", Says::Records(vec!["odd.example 60 CNAME a\\.b.net".into()]), "SERVFAIL"),
    ] {
        scene.world.says(name, says);
        assert_eq!(scene.ask(&format!("{name} A")).await, expected, "{name}");
    }
    scene.end().await;
}

#[tokio::test]
async fn a_chain_is_followed_over_several_answers_and_not_forever() {
    let scene = Scene::new(&[], policy(true, &["*.example"], &[])).await;
    for i in 0..20 {
        scene.world.has(&format!("c{i}.example"), &[&format!("c{i}.example 60 CNAME c{}.example", i + 1)]);
    }
    scene.world.has("c20.example", &["c20.example 60 A 1.1.1.1"]);
    assert_eq!(scene.ask("c0.example A").await, "SERVFAIL");
    let answer = scene.ask("c12.example A").await;
    assert!(answer.ends_with("c19.example CNAME c20.example.; c20.example A 1.1.1.1"), "{answer}");
    scene.end().await;
}

#[tokio::test]
async fn the_next_resolver_is_asked_when_the_first_is_down() {
    let world = World::new().await;
    world.has("a.example", &["a.example 60 A 1.1.1.1"]);
    let closed = bound().await.1.local_addr().unwrap();
    let upstream = Upstream::new([closed, world.address]).with_timeout(Duration::from_millis(300));
    let before = Instant::now();
    resolve_names(&policy(true, &["a.example"], &[]), &upstream).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(5));
    let error = resolve_names(&policy(true, &["a.example"], &[]), &Upstream::new([])).await.expect_err("nobody to ask");
    assert!(chain(&error).contains("no upstream resolver is known"), "{}", chain(&error));
}
