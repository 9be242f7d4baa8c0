//! What is answered, what is refused, and what the firewall hears of it.

use super::*;

const NAMES: &[(&str, &[&str])] = &[
    ("a.example", &["a.example 300 A 1.1.1.1", "a.example 100 A 1.1.1.2"]),
    ("deep.sub.example", &["deep.sub.example 5 A 2.2.2.2"]),
    ("long.example", &["long.example 1000000 A 3.3.3.3"]),
    ("cdn.example", &["cdn.example 60 CNAME e.cdn.net", "e.cdn.net 20 CNAME f.cdn.net", "f.cdn.net 30 A 4.4.4.4"]),
    ("to.evil.example", &["to.evil.example 60 CNAME x.evil.net", "x.evil.net 60 A 6.6.6.6"]),
    ("rebind.example", &["rebind.example 60 A 169.254.169.254"]),
    ("mixed.example", &["mixed.example 60 A 127.0.0.1", "mixed.example 60 A 5.5.5.5", "mixed.example 60 A 10.0.0.1"]),
    ("opened.example", &["opened.example 60 A 10.1.2.3"]),
    ("listed.example", &["listed.example 60 A 9.9.9.9"]),
    ("six.example", &["six.example 60 AAAA 2001:db8::1"]),
    ("stray.example", &["stray.example 60 A 1.2.3.4", "other.example 60 A 7.7.7.7"]),
];

/// Under a policy, a query gets an answer, and the firewall hears this before.
#[track_caller]
fn check<'a>(
    scene: &'a Scene,
    query: &'a str,
    expected: &'a str,
    told: &'a [&'a str],
) -> impl Future<Output = ()> + 'a {
    let at = std::panic::Location::caller();
    async move {
        scene.firewall.told();
        assert_eq!(scene.ask(query).await, expected, "{query}, {at}");
        assert_eq!(scene.firewall.told(), told, "{query}, {at}");
    }
}

#[tokio::test]
async fn a_list_of_names_answers_and_opens_only_what_it_names() {
    let allow = ["*.example", "9.9.9.0/24"];
    let scene = Scene::new(NAMES, policy(true, &allow, &["*.evil.net", "listed.example"])).await;
    let both = "NOERROR; a.example A 1.1.1.1; a.example A 1.1.1.2";
    check(&scene, "a.example A", both, &["+1.1.1.1 130", "+1.1.1.2 130"]).await;
    check(&scene, "A.EXAMPLE A", &both.replace("a.example", "A.EXAMPLE"), &[]).await;
    check(&scene, "deep.sub.example A", "NOERROR; deep.sub.example A 2.2.2.2", &["+2.2.2.2 90"]).await;
    check(&scene, "long.example A", "NOERROR; long.example A 3.3.3.3", &["+3.3.3.3 3630"]).await;
    let chain = "NOERROR; cdn.example CNAME e.cdn.net.; e.cdn.net CNAME f.cdn.net.; f.cdn.net A 4.4.4.4";
    check(&scene, "cdn.example A", chain, &["+4.4.4.4 90"]).await;
    check(&scene, "to.evil.example A", "REFUSED", &["-6.6.6.6 3600"]).await;
    check(&scene, "rebind.example A", "REFUSED", &[]).await;
    check(&scene, "mixed.example A", "NOERROR; mixed.example A 5.5.5.5", &["+5.5.5.5 90"]).await;
    check(&scene, "opened.example A", "NOERROR; opened.example A 10.1.2.3", &["+10.1.2.3 90"]).await;
    check(&scene, "stray.example A", "NOERROR; stray.example A 1.2.3.4", &["+1.2.3.4 90"]).await;
    check(&scene, "six.example A", "NOERROR", &[]).await;
    check(&scene, "nothing.example A", "NXDOMAIN", &[]).await;
    let asked = scene.world.asked();
    for query in ["example A", "a.example.org A", "f.cdn.net A", "listed.example A", "x.evil.net A", "a.notexample A"] {
        check(&scene, query, "REFUSED", &[]).await;
    }
    for kind in ["TXT", "MX", "NULL", "ANY", "AXFR", "PTR", "SRV"] {
        check(&scene, &format!("a.example {kind}"), "REFUSED", &[]).await;
    }
    for kind in ["AAAA", "HTTPS", "SVCB", "CNAME"] {
        check(&scene, &format!("a.example {kind}"), "NOERROR", &[]).await;
        check(&scene, &format!("a.example.org {kind}"), "REFUSED", &[]).await;
    }
    assert_eq!(scene.world.asked(), asked, "a name that is not permitted left the node");
    let refusals: Vec<_> = scene.resolver.take_refusals().iter().map(ToString::to_string).collect();
    assert_eq!(
        refusals[..3],
        [
            "blocked: dns to.evil.example, in deny_out",
            "blocked: dns rebind.example, metadata address",
            "blocked: dns example, not in allow_out"
        ]
    );
    assert_eq!(scene.resolver.take_refusals(), []);
    scene.end().await;
}

#[tokio::test]
async fn without_a_list_everything_public_is_answered_and_nothing_opened() {
    let scene = Scene::new(NAMES, policy(true, &[], &["9.9.9.9"])).await;
    scene.world.has(
        "mail.example",
        &["mail.example 60 MX a.example", "mail.example 60 AAAA 2001:db8::1", "mail.example 60 A 10.0.0.1"],
    );
    check(&scene, "deep.sub.example A", "NOERROR; deep.sub.example A 2.2.2.2", &[]).await;
    check(&scene, "mail.example MX", "NOERROR; mail.example MX 10 a.example.", &[]).await;
    check(&scene, "mail.example AAAA", "NOERROR", &[]).await;
    check(&scene, "none.example TXT", "NXDOMAIN", &[]).await;
    check(&scene, "rebind.example A", "REFUSED", &[]).await;
    check(&scene, "listed.example A", "REFUSED", &[]).await;
    scene.end().await;
}

#[tokio::test]
async fn with_only_denials_other_names_are_answered_and_other_types_refused() {
    let scene = Scene::new(NAMES, policy(true, &[], &["*.sub.example", "a.example"])).await;
    check(&scene, "deep.sub.example A", "REFUSED", &[]).await;
    check(&scene, "a.example A", "REFUSED", &[]).await;
    check(&scene, "stray.example A", "NOERROR; stray.example A 1.2.3.4", &[]).await;
    check(&scene, "stray.example TXT", "REFUSED", &[]).await;
    scene.end().await;
}

#[tokio::test]
async fn with_the_internet_off_nothing_is_answered() {
    let scene = Scene::new(NAMES, policy(false, &[], &[])).await;
    for query in ["a.example A", "a.example AAAA", "a.example TXT", "localhost A"] {
        check(&scene, query, "REFUSED", &[]).await;
    }
    assert_eq!(scene.world.asked(), 0);
    scene.end().await;
}

#[tokio::test]
async fn no_answer_goes_out_that_the_firewall_does_not_know() {
    let scene = Scene::new(NAMES, policy(true, &["*.example"], &[])).await;
    scene.firewall.break_down(true);
    check(&scene, "a.example A", "SERVFAIL", &[]).await;
    check(&scene, "a.example A", "SERVFAIL", &[]).await;
    scene.firewall.break_down(false);
    check(
        &scene,
        "a.example A",
        "NOERROR; a.example A 1.1.1.1; a.example A 1.1.1.2",
        &["+1.1.1.1 130", "+1.1.1.2 130"],
    )
    .await;
    scene.end().await;
}

#[tokio::test]
async fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    let scene = Scene::new(&[], policy(true, &["*.example"], &[])).await;
    let records: Vec<_> = (0..40).map(|i| format!("many.example 60 A 1.1.1.{i}")).collect();
    scene.world.says("many.example", Says::OverTcp(records));
    assert_eq!(scene.ask("many.example A").await, "NOERROR TRUNCATED");
    let mut message = question("many.example A");
    let mut edns = hickory_proto::op::Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let answer = scene.exchange(&message).await.unwrap();
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (32, false));
    let answers = scene.ask_tcp(&["many.example A", "none.example A", "many.org A"]).await;
    assert!(answers[0].ends_with("A 1.1.1.31"), "{}", answers[0]);
    assert_eq!(answers[1..], ["NXDOMAIN", "REFUSED"]);
    scene.end().await;
}
