//! A resolver that begins with the memory of another one.

use std::path::Path;

use super::*;
use crate::egress::resolver::Since;

const NAMES: &[(&str, &[&str])] = &[
    ("a.example", &["a.example 300 A 1.1.1.1"]),
    ("b.example", &["b.example 300 CNAME b.other", "b.other 300 A 2.2.2.2"]),
];

async fn next(file: &Path, since: Since) -> Scene {
    Scene::begin(NAMES, |resolver| resolver.remember(file, since)).await
}

async fn written(file: &Path) {
    timeout(SOON, async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is written");
}

#[tokio::test]
async fn what_was_handed_out_is_known_to_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("names");
    let first = next(&file, Since::RanOn).await;
    first.apply(policy(true, &["*.example"], &[])).await.unwrap();
    first.ask("a.example A").await;
    first.ask("b.example A").await;
    written(&file).await;
    first.end().await;
    for since in [Since::RanOn, Since::StoodStill] {
        let scene = next(&file, since).await;
        let allowed = scene.apply(policy(true, &["*.example"], &["a.example"])).await.unwrap();
        // With the rest of its time.
        assert!(allowed.starts_with("+2.2.2.2 3") && allowed.ends_with(", -1.1.1.1 3600"), "{allowed}");
        // A name that it led through counts, too.
        let denied = scene.apply(policy(true, &["a.example"], &["*.other"])).await.unwrap();
        assert_eq!(denied, "+1.1.1.1 330, -2.2.2.2 3600");
        // It is not taken for an answer.
        assert_eq!(scene.ask("a.example A").await, "NOERROR; a.example A 1.1.1.1");
        scene.end().await;
    }
}

#[tokio::test]
async fn a_copy_is_told_at_once_and_a_place_that_goes_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (file, copy) = (dir.path().join("names"), dir.path().join("copy"));
    let scene = next(&file, Since::StoodStill).await;
    scene.apply(policy(true, &["*.example"], &[])).await.unwrap();
    scene.ask("a.example A").await;
    scene.resolver.tell(&copy).unwrap();
    scene.resolver.forget_place();
    scene.ask("b.example A").await;
    // Longer than it takes otherwise.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!file.exists());
    scene.end().await;
    let other = next(&copy, Since::StoodStill).await;
    assert!(other.apply(policy(true, &["*.example"], &[])).await.unwrap().starts_with("+1.1.1.1 3"));
    other.end().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("names");
    for content in ["", "{", r#"{"version": 2, "names": []}"#, r#"{"version": 1, "names": [{"name": "a..b"}]}"#] {
        std::fs::write(&file, content).unwrap();
        let scene = next(&file, Since::RanOn).await;
        assert_eq!(scene.apply(policy(true, &["*.example"], &[])).await.unwrap(), "", "{content}");
        scene.end().await;
    }
}
