//! Tests of [`super`].

use belljar_api::sandbox::{Resources, TerminationReason};
use proptest::prelude::*;

use super::*;
use crate::life::{Ending, Reported, Spec};

fn row(id: &str, name: Option<&str>, created_at: i64, phase: Phase) -> Arc<SandboxRow> {
    let resources = Resources { cpus: 1.0, memory_mb: 1024, disk_mb: 10240, ephemeral_disk_mb: 10240 };
    let spec = Spec {
        image: "i".into(),
        resources,
        entrypoint: None,
        timeout_secs: 600,
        network: None,
        allow_unauthenticated_access: false,
        exposed_ports: Vec::new(),
        auto_resume: true,
        max_pending_secs: None,
    };
    let (id, namespace, name) = (id.into(), "default".into(), name.map(str::to_owned));
    Arc::new(SandboxRow { id, namespace, name, spec, generation: 0, phase, created_at, started_at: None })
}

fn placed(reported: Reported) -> Phase {
    Phase::Placed { node_id: "n".into(), reported }
}

fn ended(held: bool) -> Phase {
    let ending = Ending { reason: TerminationReason::User, detail: String::new(), at: 1 };
    Phase::Ended { node_id: Some("n".into()), held, ending }
}

#[test]
fn names_and_memory_follow_the_rows() {
    let table = Table::default();
    assert_eq!(table.apply(&row("a", Some("x"), 1, Phase::Waiting)), None);
    assert!(table.named("default", "x").is_some() && table.used_mb("n") == 0);
    table.apply(&row("a", Some("y"), 1, placed(Reported::Running)));
    assert!(table.named("default", "x").is_none() && table.named("default", "y").is_some());
    assert_eq!(table.used_mb("n"), 1024);

    // The name is free at once, the memory when the node says so.
    assert_eq!(table.apply(&row("a", Some("y"), 1, ended(true))), None);
    assert!(table.named("default", "y").is_none() && table.get("a").is_some());
    assert_eq!(table.used_mb("n"), 1024);
    table.apply(&row("b", Some("y"), 2, placed(Reported::Running)));
    assert_eq!(table.apply(&row("a", Some("y"), 1, ended(false))), Some("n".into()));
    assert!(table.get("a").is_none() && table.used_mb("n") == 1024);
    assert_eq!(table.named("default", "y").map(|row| row.borrow().id.clone()), Some("b".into()));
}

#[test]
fn the_pending_come_in_order() {
    let table = Table::default();
    for (id, at, phase) in [
        ("late", 3, Phase::Waiting),
        ("running", 0, placed(Reported::Running)),
        ("booting", 2, placed(Reported::Starting)),
        ("early", 1, Phase::Waiting),
        ("gone", 0, ended(true)),
    ] {
        table.apply(&row(id, None, at, phase));
    }
    let ids: Vec<_> = table.pending().iter().map(|row| row.id.clone()).collect();
    assert_eq!(ids, ["early", "booting", "late"]);
}

#[tokio::test]
async fn a_waiter_sees_the_end_of_what_it_watches() {
    let table = Table::default();
    table.apply(&row("a", None, 1, placed(Reported::Starting)));
    let mut watched = table.get("a").expect("row");
    table.apply(&row("a", None, 1, ended(false)));
    let seen = watched.wait_for(|row| row.ending().is_some()).await.expect("the last value stays");
    assert_eq!(seen.id, "a");
}

proptest! {
    #[test]
    fn memory_is_the_sum_of_what_is_held(events in prop::collection::vec((0usize..5, 0u8..5), 0..60)) {
        let table = Table::default();
        let mut model: HashMap<usize, bool> = HashMap::new();
        for (which, phase) in events {
            let phase = match phase {
                0 => Phase::Waiting,
                1 => placed(Reported::Unreported),
                2 => placed(Reported::Running),
                3 => ended(true),
                _ => ended(false),
            };
            let row = row(&which.to_string(), None, 1, phase);
            model.insert(which, row.held_by().is_some());
            table.apply(&row);
            let held = model.values().filter(|held| **held).count();
            prop_assert_eq!(table.used_mb("n"), 1024 * u64::try_from(held).unwrap());
        }
    }
}
