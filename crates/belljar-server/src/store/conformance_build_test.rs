//! What every store must do about image builds.

use belljar_api::build::{BuildKind, BuildPhase, BuildStatus};

use super::*;
use crate::{
    build::{
        BuildCache, Standing,
        tests::{build, done},
    },
    limits::{BUILD_TTL, BUILDS_KEPT_MAX, BUILDS_MAX},
};

const DAY_MS: i64 = 24 * 3600 * 1000;

impl Fixture {
    async fn begin(&self, row: &BuildRow) -> Admission {
        self.store.create_build(row.clone()).await.expect("decided")
    }

    async fn happens(&self, id: &str, event: Event, at: i64) -> BuildRow {
        self.store.change_build(id, event, at).await.expect("changed").expect("row")
    }

    fn rings(&self) -> usize {
        self.log.lock().expect("log").iter().filter(|change| matches!(change, Committed::Builds)).count()
    }
}

#[tokio::test]
async fn a_build_comes_back_as_it_went_in() {
    for fixture in stores() {
        let row = build(1, "alp");
        assert_eq!(fixture.begin(&row).await, Admission::New);
        for (at, event) in [
            (10, Event::Step(BuildPhase::Executing)),
            (11, Event::Step(BuildPhase::Snapshotting)),
            (12, Event::Step(BuildPhase::Publishing)),
            (13, done()),
        ] {
            let expect = fixture.store.build(&row.id).await.expect("read").expect("row").after(event.clone(), at);
            assert_eq!(Some(fixture.happens(&row.id, event, at).await), expect);
            assert_eq!(fixture.store.build(&row.id).await, Ok(expect.clone()));
            assert_eq!(fixture.store.build_requested("key 1").await, Ok(expect));
        }
        assert_eq!(fixture.rings(), 5);
        for (number, event) in [(2, Event::Stopped), (3, Event::Failed("words".into()))] {
            let row = BuildRow { request_id: None, ..build(number, "alp") };
            assert_eq!(fixture.begin(&row).await, Admission::New, "the name is free again");
            let after = fixture.happens(&row.id, event, 20).await;
            assert_eq!(fixture.store.build(&row.id).await, Ok(Some(after.clone())));
            // What is over stays so.
            assert_eq!(fixture.happens(&row.id, done(), 30).await, after);
        }
        assert_eq!(fixture.rings(), 9);
        assert_eq!(fixture.store.build("no").await, Ok(None));
        assert_eq!(fixture.store.build_requested("no").await, Ok(None));
        assert_eq!(fixture.store.change_build("no", Event::Stopped, 1).await, Ok(None));
    }
}

#[tokio::test]
async fn a_key_and_a_name_have_one_build() {
    for fixture in stores() {
        let row = build(1, "alp");
        fixture.begin(&row).await;
        let again = BuildRow { id: "build_9".into(), created_at: 9, ..row.clone() };
        assert_eq!(fixture.begin(&again).await, Admission::Same(row.clone()));
        assert_eq!(fixture.begin(&BuildRow { fingerprint: [9; 32], ..again.clone() }).await, Admission::Mismatch);
        assert_eq!(fixture.begin(&build(2, "alp")).await, Admission::InProgress(row.clone()));
        assert_eq!(fixture.begin(&build(3, "other")).await, Admission::New);
        let over = fixture.happens(&row.id, Event::Stopped, 5).await;
        assert_eq!(fixture.begin(&again).await, Admission::Same(over), "also when it is over");
        assert_eq!(fixture.begin(&build(2, "alp")).await, Admission::New);
        assert_eq!(fixture.store.build("build_9").await, Ok(None));
    }
}

#[tokio::test]
async fn builds_are_forgotten_by_age_and_number_but_never_under_way() {
    let ttl = i64::try_from(BUILD_TTL.as_millis()).expect("ttl");
    for fixture in stores() {
        fixture.begin(&build(1, "long")).await;
        fixture.begin(&build(2, "old")).await;
        fixture.happens("build_2", Event::Stopped, 100).await;
        for (now, kept) in [(100 + ttl - 1, true), (100 + ttl, false)] {
            let new = BuildRow { id: format!("build at {now}"), request_id: None, created_at: now, ..build(4, "x") };
            fixture.begin(&new).await;
            fixture.happens(&new.id, Event::Stopped, now).await;
            assert_eq!(fixture.store.build("build_2").await.expect("read").is_some(), kept);
        }
        let key = fixture.store.build_requested("key 2").await;
        assert_eq!(key, Ok(None), "its key is free with it");
        assert_eq!(fixture.store.build("build_1").await.expect("read").expect("row").status(), BuildStatus::Pending);

        let now = 100 + ttl + DAY_MS;
        for number in 0..i64::try_from(BUILDS_KEPT_MAX).expect("a number") + 2 {
            let id = format!("many {number}");
            let row = BuildRow { id: id.clone(), request_id: None, created_at: now, ..build(5, "many") };
            assert_eq!(fixture.begin(&row).await, Admission::New);
            fixture.happens(&id, Event::Stopped, now + number).await;
        }
        let kept = async |id: &str| fixture.store.build(id).await.expect("read").is_some();
        assert!(!kept("many 0").await && kept("many 1").await, "those that ended last are kept");
    }
}

#[tokio::test]
async fn there_are_only_so_many_under_way() {
    for fixture in stores() {
        let row = |number: u64| BuildRow {
            id: format!("build {number}"),
            request_id: None,
            ..build(1, &format!("image{number}"))
        };
        for number in 0..BUILDS_MAX {
            assert_eq!(fixture.begin(&row(number)).await, Admission::New);
        }
        let full = fixture.store.create_build(row(BUILDS_MAX)).await;
        assert_eq!(full, Err(StoreError::TooMany { what: "image builds under way", max: BUILDS_MAX }));
        fixture.happens("build 3", Event::Step(BuildPhase::Executing), 5).await;
        assert_eq!(fixture.store.fail_builds("gone", 7).await, Ok(64));
        assert_eq!(fixture.store.fail_builds("gone", 8).await, Ok(0));
        let row_3 = fixture.store.build("build 3").await.expect("read").expect("row");
        assert_eq!((row_3.standing, row_3.updated_at), (Standing::Failed("gone".into()), 7));
        assert_eq!(fixture.begin(&row(BUILDS_MAX)).await, Admission::New);
    }
}

#[tokio::test]
async fn a_builder_is_known_until_it_has_ended() {
    for fixture in stores() {
        let kind = BuildKind::Dockerfile;
        let new = BuildRow { kind, image_ref: String::new(), deadline: Some(99), ..build(1, "made") };
        fixture.begin(&new).await;
        assert_eq!(fixture.store.build(&new.id).await, Ok(Some(new.clone())));
        let sandbox = fixture.placed().await;
        for (at, event) in [
            (2, Event::Step(BuildPhase::AwaitingContext)),
            (3, Event::Step(BuildPhase::StartingBuilder)),
            (4, Event::Builder(sandbox.id.clone())),
            (5, Event::Step(BuildPhase::Executing)),
            (6, Event::Failed("words".into())),
        ] {
            let after = fixture.happens(&new.id, event, at).await;
            assert_eq!(fixture.store.build(&new.id).await, Ok(Some(after)));
        }
        assert_eq!(fixture.store.builders().await, Ok(vec![sandbox.id.clone()]));
        fixture.store.terminate_sandbox(&sandbox.id, ending(7)).await.expect("ended");
        assert_eq!(fixture.store.builders().await, Ok(Vec::new()));
    }
}

#[tokio::test]
async fn a_namespace_has_one_build_cache() {
    for fixture in stores() {
        let cache = |id: &str| BuildCache { snapshot_id: id.into(), builder_image: "image_1".into() };
        let set = async |namespace: &str, new: Option<&str>| {
            fixture
                .store
                .set_build_cache(namespace, new.map(cache))
                .await
                .expect("set")
                .map(|before| before.snapshot_id)
        };
        assert_eq!(set("default", Some("a")).await, None);
        assert_eq!(set("other", Some("b")).await, None);
        assert_eq!(set("default", Some("c")).await.as_deref(), Some("a"));
        assert_eq!(fixture.store.build_cache("default").await, Ok(Some(cache("c"))));
        assert_eq!(set("default", None).await.as_deref(), Some("c"));
        assert_eq!(fixture.store.build_cache("default").await, Ok(None));
        assert_eq!(fixture.store.build_cache("other").await, Ok(Some(cache("b"))));
    }
}
