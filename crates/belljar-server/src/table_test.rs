//! Tests of [`super`].

use proptest::prelude::*;

use super::*;
use crate::{
    life::Reported,
    testing::rows::{self, ended, placed},
};

fn row(id: &str, name: Option<&str>, created_at: i64, phase: Phase) -> Arc<SandboxRow> {
    Arc::new(SandboxRow { name: name.map(str::to_owned), created_at, ..rows::row(id, phase) })
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
    // One that sleeps keeps its name and takes no memory.
    assert_eq!(table.apply(&row("b", Some("y"), 2, placed(Reported::Suspended))), Some("n".into()));
    assert!(table.named("default", "y").is_some() && table.used_mb("n") == 0);
}

#[test]
fn a_pool_knows_its_own() {
    let table = Table::default();
    let member = |id: &str, created_at, phase| {
        let pool = Some(crate::life::Membership { pool_id: "p".into(), claimed: false });
        Arc::new(SandboxRow { pool, ..SandboxRow::clone(&row(id, None, created_at, phase)) })
    };
    table.apply(&member("b", 2, placed(Reported::Running)));
    table.apply(&member("a", 1, placed(Reported::Starting)));
    table.apply(&row("c", None, 3, placed(Reported::Running)));
    let ids = || table.in_pool("p").iter().map(|row| row.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(), ["a", "b"]);
    table.apply(&member("a", 1, ended(true)));
    assert_eq!(ids(), ["b"]);
    table.apply(&member("b", 2, ended(false)));
    assert!(ids().is_empty() && table.in_pool("q").is_empty());
}

#[test]
fn the_pending_come_in_order() {
    let table = Table::default();
    for (id, at, phase) in [
        ("late", 3, Phase::Waiting),
        ("running", 0, placed(Reported::Running)),
        ("asleep", 0, placed(Reported::Suspended)),
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
    fn memory_is_the_sum_of_what_is_held(events in prop::collection::vec((0usize..5, 0u8..6), 0..60)) {
        let table = Table::default();
        let mut model: HashMap<usize, bool> = HashMap::new();
        for (which, phase) in events {
            let phase = match phase {
                0 => Phase::Waiting,
                1 => placed(Reported::Unreported),
                2 => placed(Reported::Running),
                3 => placed(Reported::Suspended),
                4 => ended(true),
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
