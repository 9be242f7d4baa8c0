use proptest::prelude::*;

use super::*;
use crate::testing::node_state::image;

/// A build that was asked for just now.
pub(crate) fn build(number: u8, name: &str) -> BuildRow {
    BuildRow {
        id: format!("build_{number}"),
        kind: BuildKind::Import,
        request_id: Some(format!("key {number}")),
        fingerprint: [number; 32],
        name: name.into(),
        image_ref: format!("registry.example/{name}"),
        node_id: "n".into(),
        standing: Standing::Pending,
        builder_sandbox_id: None,
        deadline: None,
        created_at: number.into(),
        updated_at: number.into(),
    }
}

/// Its image is there.
pub(crate) fn done() -> Event {
    Event::Done(Box::new(image("alp")))
}

fn phases() -> impl Strategy<Value = BuildPhase> {
    prop_oneof![Just(BuildPhase::Executing), Just(BuildPhase::Snapshotting), Just(BuildPhase::Publishing)]
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => phases().prop_map(Event::Step),
        1 => Just(done()),
        1 => "[a-z]{1,5}".prop_map(Event::Failed),
        1 => Just(Event::Stopped),
    ]
}

proptest! {
    #[test]
    fn a_build_goes_forward_and_ends_once(events in prop::collection::vec(events(), 0..20)) {
        let mut row = build(1, "alp");
        for (event, at) in events.into_iter().zip(10..) {
            let (before, over) = (row.info(), row.status().is_over());
            let Some(next) = row.after(event.clone(), at) else {
                let backward = matches!(event, Event::Step(phase) if phase <= before.phase);
                prop_assert!(over || backward, "{event:?} changed nothing of {before:?}");
                continue;
            };
            row = next;
            let info = row.info();
            prop_assert!(!over, "{event:?} changed what was over");
            prop_assert!(info.phase > before.phase || info.status.is_over());
            prop_assert_eq!(info.phase == BuildPhase::Finished, info.status.is_over());
            prop_assert_eq!(info.result.is_some(), info.status == BuildStatus::Succeeded);
            prop_assert_eq!(info.error.is_some(), info.status == BuildStatus::Failed);
            prop_assert_eq!(row.cancel_outcome(true).is_some(), info.status.is_over());
            prop_assert_eq!((info.created_at_ms, info.updated_at_ms, info.attempt_no), (1, at, 1));
        }
    }

    #[test]
    fn one_key_has_one_build_and_one_name_has_one_at_a_time(
        same_key in prop::option::of(any::<bool>()),
        name_is_taken in any::<bool>(),
    ) {
        let new = build(1, "alp");
        let before = same_key.map(|same| BuildRow { fingerprint: [u8::from(same); 32], ..build(2, "alp") });
        let active = name_is_taken.then(|| build(3, "alp"));
        let expect = match (same_key, name_is_taken) {
            (Some(true), _) => Admission::Same(before.clone().expect("one")),
            (Some(false), _) => Admission::Mismatch,
            (None, true) => Admission::InProgress(build(3, "alp")),
            (None, false) => Admission::New,
        };
        prop_assert_eq!(admit(&new, before, active), expect);
    }
}

#[test]
fn what_a_cancellation_comes_to() {
    let of = |event: Event, is_ours| build(1, "alp").after(event, 2).expect("it changes").cancel_outcome(is_ours);
    let check = |event: Event, ours, others| {
        assert_eq!((of(event.clone(), true), of(event, false)), (Some(ours), Some(others)));
    };
    check(Event::Stopped, CancelOutcome::Cancelled, CancelOutcome::AlreadyCancelled);
    check(Event::Failed(String::new()), CancelOutcome::AlreadyFailed, CancelOutcome::AlreadyFailed);
    check(done(), CancelOutcome::AlreadyCompleted, CancelOutcome::AlreadyCompleted);
    assert_eq!(of(Event::Step(BuildPhase::Executing), true), None);
}
