//! One policy after the other.

use super::*;

const NAMES: &[(&str, &[&str])] = &[
    ("a.example", &["a.example 300 A 1.1.1.1"]),
    ("b.example", &["b.example 300 A 2.2.2.2"]),
    ("inside.example", &["inside.example 60 A 192.168.1.1"]),
    ("meta.example", &["meta.example 60 A 169.254.169.254"]),
    ("six.example", &["six.example 60 AAAA 2001:db8::1"]),
    ("both.example", &["both.example 60 A 1.1.1.1", "both.example 60 A 10.0.0.1"]),
];

#[tokio::test]
async fn names_that_do_not_resolve_refuse_the_policy_and_the_old_one_stays() {
    let scene = Scene::new(NAMES, policy(true, &["a.example"], &[])).await;
    scene.world.says("silent.example", Says::Nothing);
    for (name, words) in [
        (
            "none.example",
            "network.allow_out: \"none.example\" does not resolve; correct it, or try again later: there is no such name",
        ),
        ("silent.example", "\"silent.example\" does not resolve"),
        ("six.example", "\"six.example\" has no IPv4 address"),
        ("inside.example", "\"inside.example\" resolves to 192.168.1.1, which stays closed (private range)"),
        ("meta.example", "169.254.169.254, which stays closed (metadata address)"),
    ] {
        let error = scene.refused(policy(true, &["b.example", name], &[])).await;
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(scene.ask("a.example A").await, "NOERROR; a.example A 1.1.1.1");
    assert_eq!(scene.ask("b.example A").await, "REFUSED");
    // A denied name need not resolve, and one that is denied too is not needed.
    scene.apply(policy(true, &["b.example", "none.example"], &["none.example", "silent.example"])).await.unwrap();
    assert_eq!(scene.ask("b.example A").await, "NOERROR; b.example A 2.2.2.2");
    scene.end().await;
}

#[tokio::test]
async fn the_firewall_starts_with_the_names_of_the_policy() {
    let scene = Scene::new(NAMES, policy(false, &[], &[])).await;
    let applied = scene.apply(policy(true, &["a.example", "both.example"], &["b.example"])).await.unwrap();
    assert_eq!(applied, "+1.1.1.1 330, -2.2.2.2 3600");
    // It need not be told again.
    assert_eq!(scene.ask("a.example A").await, "NOERROR; a.example A 1.1.1.1");
    assert_eq!(scene.firewall.told(), Vec::<String>::new());
    scene.end().await;
}

#[tokio::test]
async fn addresses_that_were_handed_out_go_over_to_the_next_policy() {
    let scene = Scene::new(NAMES, policy(true, &["*.example"], &[])).await;
    scene.ask("a.example A").await;
    scene.ask("b.example A").await;
    assert_eq!(scene.apply(policy(true, &["*.example", "9.9.9.9"], &[])).await.unwrap(), "+1.1.1.1 330, +2.2.2.2 330");
    // One name of them, under another kind of policy before.
    scene.apply(policy(true, &[], &[])).await.unwrap();
    assert_eq!(scene.apply(policy(true, &["*.example"], &["b.example"])).await.unwrap(), "+1.1.1.1 330, -2.2.2.2 3600");
    // A wildcard that denies knows what was handed out under it.
    assert_eq!(scene.apply(policy(true, &[], &["*.example"])).await.unwrap(), "-1.1.1.1 3600, -2.2.2.2 3600");
    assert_eq!(scene.apply(policy(false, &[], &[])).await.unwrap(), "");
    scene.end().await;
}

#[tokio::test]
async fn a_query_that_is_under_way_is_judged_by_the_policy_at_its_end() {
    let scene = Scene::new(NAMES, policy(true, &["*.example"], &[])).await;
    scene.firewall.slow_down(Duration::from_millis(200));
    // The swap waits for what the firewall is being told, and knows of it.
    let applied = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        scene.apply(policy(true, &["*.example"], &["9.9.9.9"])).await.unwrap()
    };
    let (answer, applied) = tokio::join!(scene.ask("a.example A"), applied);
    assert_eq!((answer.as_str(), applied.as_str()), ("NOERROR; a.example A 1.1.1.1", "+1.1.1.1 330"));
    // A query that comes while a swap is under way waits for its end.
    let swap = scene.resolver.swap(Arc::new(policy(false, &[], &[])), super::super::Names::default()).await;
    let end = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        swap.commit().await;
    };
    let (answer, ()) = tokio::join!(scene.ask("b.example A"), end);
    assert_eq!(answer, "REFUSED");
    scene.end().await;
}

#[tokio::test]
async fn a_swap_that_is_given_up_changes_nothing() {
    let scene = Scene::new(NAMES, policy(true, &["a.example"], &[])).await;
    drop(scene.resolver.swap(Arc::new(policy(false, &[], &[])), super::super::Names::default()).await);
    assert_eq!(scene.ask("a.example A").await, "NOERROR; a.example A 1.1.1.1");
    scene.end().await;
}

#[tokio::test]
async fn a_denied_name_that_moves_is_followed() {
    let scene = Scene::new(&[("evil.example", &["evil.example 1 A 6.6.6.6"])], policy(true, &[], &[])).await;
    assert_eq!(scene.apply(policy(true, &[], &["evil.example"])).await.unwrap(), "-6.6.6.6 3600");
    scene.world.has("evil.example", &["evil.example 1 A 6.6.6.7"]);
    let told = async {
        loop {
            let told = scene.firewall.told();
            if !told.is_empty() {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(timeout(SOON, told).await.expect("it is told"), ["-6.6.6.7 3600"]);
    // Both stay denied.
    assert_eq!(
        scene.apply(policy(true, &["1.1.1.1"], &["evil.example"])).await.unwrap(),
        "-6.6.6.6 3600, -6.6.6.7 3600"
    );
    scene.end().await;
}
