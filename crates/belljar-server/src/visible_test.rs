//! Tests of [`super`].

use super::*;
use crate::{
    config::ServerConfig,
    life::{Asked, Ending, Wish},
    testing::rows::{self, placed},
};

const REASONS: [TerminationReason; 13] = [
    TerminationReason::User,
    TerminationReason::Timeout,
    TerminationReason::ImageNotFound,
    TerminationReason::NoCapacity,
    TerminationReason::Cancelled,
    TerminationReason::StartupFailedInternalError,
    TerminationReason::ConfigurationError,
    TerminationReason::GuestShutdown,
    TerminationReason::VmmExited,
    TerminationReason::OutOfMemory,
    TerminationReason::GuestUnresponsive,
    TerminationReason::NodeLost,
    TerminationReason::NoSpace,
];

fn row(phase: Phase) -> SandboxRow {
    rows::row("id", phase)
}

fn urls() -> Urls {
    let config = ServerConfig {
        database: "x".into(),
        secrets_key: "k".into(),
        sandbox_url_base: "http://localhost:9443".into(),
        ingress_domain: None,
        tls: None,
        trusted_proxies: Vec::new(),
        default_image: "i".into(),
        node_token: None,
    };
    config.check().expect("configuration")
}

#[track_caller]
fn check(phase: Phase, has_node: bool, status: SandboxStatus, pending: Option<PendingReason>) {
    let row = row(phase);
    assert_eq!(super::status(&row, has_node), (status, pending));
    let info = info(&row, World { has_node, driver: None }, &urls());
    let ended = status == SandboxStatus::Terminated;
    assert_eq!(info.sandbox_url.is_none(), ended, "clients refuse a live sandbox without a URL");
    assert_eq!((info.outcome.is_some(), info.terminated_at.is_some()), (ended, ended));
    assert_eq!(info.pending_reason.is_some(), status == SandboxStatus::Pending);
}

#[test]
fn the_table_of_the_module_holds() {
    use PendingReason as Why;
    use SandboxStatus::{Pending, Running, Suspended, Suspending, Terminated};
    check(Phase::Waiting, false, Pending, Some(Why::NoExecutorsAvailable));
    check(Phase::Waiting, true, Pending, Some(Why::NoResourcesAvailable));
    for has_node in [false, true] {
        check(placed(Reported::Unreported), has_node, Pending, Some(Why::WaitingForContainer));
        check(placed(Reported::Starting), has_node, Pending, Some(Why::WaitingForContainer));
        check(placed(Reported::Running), has_node, Running, None);
        check(placed(Reported::Suspending), has_node, Suspending, None);
        check(placed(Reported::Suspended), has_node, Suspended, None);
        check(placed(Reported::Resuming), has_node, Suspended, None);
        for (reported, wish, status) in [
            (Reported::Running, Wish::Suspend, Suspending),
            (Reported::Suspended, Wish::Resume, Suspended),
            (Reported::Running, Wish::Rollback, Suspended),
        ] {
            let asked = Some(Asked { wish, generation: 2 });
            check(Phase::Placed { node_id: "n".into(), reported, asked }, has_node, status, None);
        }
        for reason in REASONS {
            let ending = Ending { reason, detail: String::new(), at: 5 };
            check(Phase::Ended { node_id: None, held: false, ending }, has_node, Terminated, None);
        }
    }
}

#[test]
fn every_failure_has_words_and_every_reason_its_spelling() {
    for reason in REASONS {
        for detail in ["", "more"] {
            let ending = Ending { reason, detail: detail.into(), at: 5 };
            let created = created(&row(Phase::Ended { node_id: None, held: false, ending }), true, &urls(), false);
            let wished = matches!(reason, TerminationReason::User | TerminationReason::Timeout);
            let words = created.error_details.map(|details| details.message).unwrap_or_default();
            assert_eq!(words.is_empty(), wished, "{reason:?}");
            assert!(wished || detail.is_empty() || words == detail);
            assert_eq!(created.status, if reason == TerminationReason::User { "terminated" } else { "failed" });
            assert!(!created.reason.unwrap_or_default().is_empty());
        }
    }
    assert_eq!(wire_word(TerminationReason::ImageNotFound), "ImageNotFound");
    assert_eq!(wire_word(TerminationReason::NoCapacity), "no_capacity");
}

#[test]
fn a_create_has_words_of_its_own() {
    for (phase, timed_out, word) in [
        (Phase::Waiting, false, "pending"),
        (placed(Reported::Starting), true, "timeout"),
        (placed(Reported::Running), true, "running"),
        (placed(Reported::Suspended), true, "running"),
    ] {
        assert_eq!(created(&row(phase), true, &urls(), timed_out).status, word);
    }
}

#[test]
fn one_that_waits_for_its_snapshots_node_says_so() {
    let row = SandboxRow { home: Some("n".into()), ..row(Phase::Waiting) };
    assert_eq!(super::status(&row, false).1, Some(PendingReason::NoExecutorForSnapshotLocation));
    assert_eq!(super::status(&row, true).1, Some(PendingReason::NoResourcesAvailable));
}
