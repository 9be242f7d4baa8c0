//! What every store must do about sleep, snapshots, copies and pools.

use belljar_api::{
    node::{NodeState, Op, Origin, SnapshotReport, SnapshotState},
    snapshot::SnapshotType,
};

use super::*;
use crate::{
    life::{Asked, Membership, Wish},
    limits::COPY_REQUEST_TTL,
    pool::PoolRow,
    snapshot::Standing,
};

impl Fixture {
    /// One that runs.
    async fn running(&self, name: Option<&str>) -> Arc<SandboxRow> {
        let made = self.store.create_sandbox(row(name, 1), Start::Place(on(99999))).await.expect("created");
        self.says(&made, NodeState::Running).await
    }

    async fn says(&self, row: &SandboxRow, state: NodeState) -> Arc<SandboxRow> {
        let now = self.get(&row.id).await;
        self.store.report("n", report(&row.id, now.generation, state), 5).await.expect("reported");
        self.get(&row.id).await
    }

    async fn get(&self, id: &str) -> Arc<SandboxRow> {
        self.store.sandbox(id).await.expect("found").expect("row")
    }

    async fn take(&self, row: &SandboxRow, at: i64) -> Result<Option<SnapshotRow>, StoreError> {
        let new = NewSnapshot { id: new_id(), sandbox_id: row.id.clone(), kind: SnapshotType::Memory, at };
        self.store.take_snapshot(new).await
    }

    async fn snapshot_says(&self, id: &str, state: SnapshotState) {
        let told = SnapshotReport { snapshot_id: id.into(), state };
        self.store.report_snapshot("n", told).await.expect("reported");
    }

    async fn forget_outbox(&self) {
        for command in self.outbox().await {
            self.store.acknowledge("n", command.seq).await.expect("acknowledged");
        }
    }
}

fn completed() -> SnapshotState {
    SnapshotState::Completed { size_bytes: 5, rootfs_disk_bytes: 9 }
}

fn copies(source: &SandboxRow, count: usize, key: Option<&str>, at: i64) -> NewCopies {
    NewCopies {
        source_id: source.id.clone(),
        ids: (0..count).map(|_| new_id()).collect(),
        at,
        capacity_mb: Some(4096),
        key: key.map(str::to_owned),
    }
}

fn pool(warm: u32, max: Option<u32>) -> PoolRow {
    PoolRow {
        id: new_id(),
        namespace: "default".into(),
        spec: rows::spec(),
        max_containers: max,
        warm_containers: Some(warm),
        created_at: 1,
        updated_at: 1,
    }
}

fn member(pool: &PoolRow, claimed: bool, at: i64) -> SandboxRow {
    let mut row = row(None, at);
    row.spec = pool.warm_spec();
    row.pool = Some(Membership { pool_id: pool.id.clone(), claimed });
    row
}

#[tokio::test]
async fn an_order_goes_with_its_command_and_comes_back_as_it_went_in() {
    for fixture in stores() {
        let running = fixture.running(Some("box")).await;
        let asked = fixture.store.order(&running.id, Order::Suspend).await.expect("asked").expect("row");
        let expected = Some(Asked { wish: Wish::Suspend, generation: 2 });
        assert!(matches!(&asked.phase, Phase::Placed { asked, .. } if *asked == expected));
        assert_eq!(fixture.get(&running.id).await, asked);
        assert_eq!(fixture.store.order(&running.id, Order::Suspend).await.expect("again"), Some(Arc::clone(&asked)));
        let [.., last] = &fixture.outbox().await[..] else { panic!("no command") };
        assert_eq!((&last.op, last.generation), (&Op::Suspend, 2));
        assert_eq!(
            fixture.store.order(&running.id, Order::Resume).await,
            Err(StoreError::Refused(Refusal::Suspending))
        );
        assert_eq!(fixture.store.order("nope", Order::Resume).await, Ok(None));
        // Asleep its memory is anybody's, and awake it is taken again.
        fixture.says(&running, NodeState::Suspended).await;
        let other = fixture.store.create_sandbox(row(None, 2), Start::Place(on(1024))).await.expect("made");
        assert_eq!(other.node_id(), Some("n"));
        let trouble = SandboxReport { trouble: Some("words".into()), ..report(&running.id, 2, NodeState::Suspended) };
        fixture.store.report("n", trouble, 6).await.expect("reported");
        assert_eq!(fixture.get(&running.id).await.trouble.as_deref(), Some("words"));
        let command = last.clone();
        fixture.store.order(&running.id, Order::Resume).await.expect("asked");
        let resume = Command { op: Op::Resume, generation: 3, ..command };
        fixture.store.refuse("n", resume, ending(7)).await.expect("refused");
        let row = fixture.get(&running.id).await;
        assert_eq!((&row.phase, row.trouble.as_deref()), (&placed(Reported::Suspended), Some("words")));
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn one_asleep_is_lost_like_another() {
    for fixture in stores() {
        let asleep = fixture.says(&*fixture.running(Some("box")).await, NodeState::Suspended).await;
        fixture.forget_outbox().await;
        fixture.store.sync_node(hello(), Account::default(), 9).await.expect("synced");
        assert!(fixture.get(&asleep.id).await.ending().is_some());
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn snapshots_come_and_go() {
    for fixture in stores() {
        let store = &fixture.store;
        let source = fixture.running(None).await;
        let first = fixture.take(&source, 10).await.expect("taken").expect("row");
        assert_eq!(store.snapshot(&first.id).await, Ok(Some(first.clone())));
        assert_eq!((first.parent_id.as_deref(), &first.spec), (None, &source.spec));
        assert_eq!(fixture.take(&source, 11).await, Err(StoreError::Refused(Refusal::Snapshotting)));
        assert_eq!(fixture.outbox().await.len(), 2, "a refused one sent something");
        fixture.snapshot_says(&first.id, completed()).await;
        let second = fixture.take(&source, 11).await.expect("taken").expect("row");
        assert_eq!(second.parent_id.as_deref(), Some(first.id.as_str()));
        fixture.snapshot_says(&second.id, SnapshotState::Failed { error: "no".into() }).await;
        let third = fixture.take(&source, 12).await.expect("taken").expect("row");
        assert_eq!(third.parent_id.as_deref(), Some(first.id.as_str()), "a failed one is nobody's parent");

        let page = |from| Page { from, limit: 2, ..Page::default() };
        let ids = |rows: Vec<SnapshotRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
        let newest = store.snapshots("default", None, page(None)).await.expect("list");
        let from = newest.last().map(|row| Place { at: row.created_at, id: row.id.clone() });
        assert_eq!(ids(newest), [third.id.clone(), second.id.clone()]);
        let rest = store.snapshots("default", Some(&source.id), page(from)).await.expect("list");
        assert_eq!(ids(rest), std::slice::from_ref(&first.id));
        assert_eq!(store.snapshots("n2", None, page(None)).await, Ok(Vec::new()));
        assert_eq!(store.snapshots("default", Some("nope"), page(None)).await, Ok(Vec::new()));

        for _ in 0..2 {
            let deleting = store.delete_snapshot(&first.id).await.expect("deleted").expect("row");
            assert_eq!(deleting.standing, Standing::Deleting);
        }
        let deletions = fixture.outbox().await.iter().filter(|c| c.op == Op::DeleteSnapshot).count();
        assert_eq!(deletions, 1);
        fixture.snapshot_says(&first.id, completed()).await;
        fixture.snapshot_says(&first.id, SnapshotState::Deleted).await;
        assert_eq!((store.snapshot(&first.id).await, store.delete_snapshot(&first.id).await), (Ok(None), Ok(None)));
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn a_full_account_settles_snapshots() {
    for fixture in stores() {
        let store = &fixture.store;
        let source = fixture.running(None).await;
        let lost = fixture.take(&source, 10).await.expect("taken").expect("row");
        fixture.snapshot_says(&lost.id, completed()).await;
        let deleting = fixture.take(&source, 11).await.expect("taken").expect("row");
        fixture.snapshot_says(&deleting.id, completed()).await;
        store.delete_snapshot(&deleting.id).await.expect("deleted");
        fixture.forget_outbox().await;
        let coming = fixture.take(&source, 12).await.expect("taken").expect("row");
        let sandboxes = vec![report(&source.id, 3, NodeState::Running)];
        let strange = SnapshotReport { snapshot_id: new_id(), state: completed() };
        let account = Account { sandboxes, snapshots: vec![strange.clone()] };
        store.sync_node(hello(), account, 50).await.expect("synced");
        let standing = |id: String| async move { store.snapshot(&id).await.expect("found").map(|row| row.standing) };
        assert!(matches!(standing(lost.id).await, Some(Standing::Failed { .. })));
        assert_eq!(standing(deleting.id.clone()).await, None);
        assert_eq!(standing(coming.id).await, Some(Standing::InProgress));
        let sent = fixture.outbox().await;
        assert!(sent.iter().any(|c| c.sandbox_id == strange.snapshot_id && c.op == Op::DeleteSnapshot), "{sent:?}");
    }
}

#[tokio::test]
async fn copies_are_all_or_nothing_and_remembered_for_a_day() {
    for fixture in stores() {
        let store = &fixture.store;
        let source = fixture.running(Some("box")).await;
        let before = fixture.told().len();
        let many = store.copy_sandbox(copies(&source, 4, Some("k"), 10)).await;
        assert_eq!(many, Err(StoreError::NoRoom { needed_mb: 4096, free_mb: 3072 }));
        assert_eq!((fixture.told().len(), fixture.outbox().await.len()), (before, 1));
        let made = store.copy_sandbox(copies(&source, 2, Some("k"), 10)).await.expect("made").expect("source");
        let [.., last] = &fixture.outbox().await[..] else { panic!("no command") };
        let Op::Copy { copies: sent } = &last.op else { panic!("not a copy") };
        let sent: Vec<_> = sent.iter().map(|copy| (copy.sandbox_id.clone(), copy.generation)).collect();
        let saved: Vec<_> = made.iter().map(|row| (row.id.clone(), row.generation)).collect();
        assert_eq!(sent, saved);
        for row in &made {
            assert_eq!(fixture.get(&row.id).await, *row);
            assert_eq!((&row.origin, row.held_by()), (&Origin::Copy { sandbox_id: source.id.clone() }, Some("n")));
        }
        // Neither is lost while the command is on the way.
        let account = Account { sandboxes: vec![report(&source.id, 1, NodeState::Running)], ..Account::default() };
        store.sync_node(hello(), account, 50).await.expect("synced");
        assert!(fixture.get(&made[0].id).await.ending().is_none());

        let ttl = i64::try_from(COPY_REQUEST_TTL.as_millis()).expect("ttl");
        let again = store.copy_sandbox(NewCopies { capacity_mb: None, ..copies(&source, 2, Some("k"), 9 + ttl) }).await;
        assert_eq!(again, Ok(Some(made)));
        let other = store.copy_sandbox(copies(&source, 1, Some("k"), 20)).await;
        assert_eq!(other, Err(StoreError::KeyReused));
        assert!(store.copy_sandbox(copies(&source, 1, Some("k"), 10 + ttl)).await.expect("made").is_some());
        let away = store.copy_sandbox(NewCopies { capacity_mb: None, ..copies(&source, 1, None, 20) }).await;
        assert_eq!(away, Err(StoreError::NodeAway("n".into())));
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn a_refused_copy_ends_every_one_of_them() {
    for fixture in stores() {
        let source = fixture.running(None).await;
        let made = fixture.store.copy_sandbox(copies(&source, 2, None, 10)).await.expect("made").expect("source");
        fixture.store.terminate_sandbox(&made[1].id, ending(11)).await.expect("ended");
        let command = fixture.outbox().await.into_iter().find(|c| matches!(c.op, Op::Copy { .. })).expect("command");
        fixture.store.refuse("n", command, ending(12)).await.expect("refused");
        let ends = [fixture.get(&made[0].id).await, fixture.get(&made[1].id).await];
        assert_eq!(
            ends.map(|row| (row.ending().map(|e| e.at), row.held_by().is_some())),
            [(Some(12), false), (Some(11), false)]
        );
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn a_pool_hands_out_the_oldest_that_runs() {
    for fixture in stores() {
        let store = &fixture.store;
        let pool = pool(2, Some(3));
        assert_eq!(store.claim(&pool.id).await, Err(StoreError::NoPool(pool.id.clone())));
        store.create_pool(pool.clone()).await.expect("made");
        assert_eq!(store.pools(None).await, Ok(vec![pool.clone()]));
        assert_eq!((store.pool(&pool.id).await, store.pools(Some("n2")).await), (Ok(Some(pool.clone())), Ok(vec![])));
        assert_eq!(store.claim(&pool.id).await, Ok(None));
        let mut members = Vec::new();
        for at in [1, 2, 3] {
            members.push(store.create_sandbox(member(&pool, false, at), Start::Place(on(99999))).await.expect("made"));
        }
        let full = store.create_sandbox(member(&pool, true, 4), Start::Wait).await;
        assert_eq!(full, Err(StoreError::PoolFull { id: pool.id.clone(), max: 3 }));
        assert_eq!(store.live_sandboxes("default", Page { limit: 9, ..Page::default() }).await, Ok(Vec::new()));
        fixture.says(&members[1], NodeState::Running).await;
        let claimed = store.claim(&pool.id).await.expect("claim").expect("row");
        assert_eq!((&claimed.id, claimed.suspends(), claimed.spec.timeout_secs), (&members[1].id, true, 600));
        let [.., last] = &fixture.outbox().await[..] else { panic!("no command") };
        assert!(matches!(&last.op, Op::Update { settings } if settings.suspends && settings.timeout_secs == 600));
        // Else the oldest that boots.
        assert_eq!(store.claim(&pool.id).await.expect("claim").map(|row| row.id.clone()), Some(members[0].id.clone()));
        assert_eq!(store.delete_pool(&pool.id, ending(9)).await, Err(StoreError::PoolInUse(pool.id.clone())));
        for row in &members[..2] {
            store.terminate_sandbox(&row.id, ending(9)).await.expect("ended");
        }
        assert_eq!(store.delete_pool(&pool.id, ending(10)).await, Ok(true));
        assert_eq!(store.delete_pool(&pool.id, ending(10)).await, Ok(false));
        assert!(fixture.get(&members[2].id).await.ending().is_some());
        let gone = store.create_sandbox(member(&pool, false, 5), Start::Wait).await;
        assert_eq!(gone, Err(StoreError::NoPool(pool.id.clone())));
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn a_changed_pool_keeps_its_id_and_hands_out_no_older_kind() {
    for fixture in stores() {
        let store = &fixture.store;
        let pool = pool(1, None);
        store.create_pool(pool.clone()).await.expect("made");
        let old = store.create_sandbox(member(&pool, false, 1), Start::Place(on(99999))).await.expect("made");
        fixture.says(&old, NodeState::Running).await;
        let mut spec = rows::spec();
        spec.entrypoint = Some(vec!["serve".into()]);
        let change = PoolChange { spec, max_containers: Some(5), warm_containers: None, at: 7 };
        let changed = store.change_pool(&pool.id, change.clone()).await.expect("changed").expect("pool");
        assert_eq!(store.pool(&pool.id).await, Ok(Some(changed.clone())));
        assert_eq!((&changed.id, changed.created_at, changed.updated_at), (&pool.id, 1, 7));
        assert_eq!(store.claim(&pool.id).await, Ok(None));
        assert_eq!(store.change_pool("nope", change).await, Ok(None));
    }
}

#[tokio::test]
async fn a_family_has_the_ended_ones_that_others_came_from() {
    for fixture in stores() {
        let source = fixture.running(None).await;
        let snapshot = fixture.take(&source, 10).await.expect("taken").expect("row");
        let made = fixture.store.copy_sandbox(copies(&source, 1, None, 11)).await.expect("made").expect("source");
        let unrelated = fixture.running(None).await;
        for row in [&source, &unrelated] {
            fixture.store.terminate_sandbox(&row.id, ending(12)).await.expect("ended");
        }
        let family = fixture.store.family("default", false).await.expect("family");
        let ids: Vec<_> = family.sandboxes.iter().map(|row| row.id.clone()).collect();
        assert_eq!(ids, [made[0].id.clone(), source.id.clone()]);
        assert_eq!(family.snapshots.into_iter().map(|row| row.id).collect::<Vec<_>>(), [snapshot.id]);
        assert_eq!(fixture.store.family("n2", false).await, Ok(Family::default()));
    }
}

#[tokio::test]
async fn lists_leave_out_what_the_server_made_for_itself() {
    for fixture in stores() {
        let store = &fixture.store;
        let users = fixture.running(None).await;
        let mut internal = row(None, 2);
        internal.spec.internal = true;
        let internal = store.create_sandbox(internal, Start::Place(on(99999))).await.expect("created");
        let internal = fixture.says(&internal, NodeState::Running).await;
        let of_users = fixture.take(&users, 3).await.expect("taken").expect("row");
        let of_internal = fixture.take(&internal, 4).await.expect("taken").expect("row");

        let page = |internal| Page { limit: 9, internal, ..Page::default() };
        let live = async |internal| store.live_sandboxes("default", page(internal)).await.expect("live").len();
        assert_eq!((live(false).await, live(true).await), (1, 2));
        let listed = store.snapshots("default", None, page(false)).await.expect("list");
        assert_eq!(listed.iter().map(|row| &row.id).collect::<Vec<_>>(), [&of_users.id]);
        assert_eq!(store.snapshots("default", None, page(true)).await.expect("list").len(), 2);
        let asked_for = store.snapshots("default", Some(&internal.id), page(false)).await.expect("list");
        assert_eq!(asked_for.iter().map(|row| &row.id).collect::<Vec<_>>(), [&of_internal.id]);
        let family = async |internal| {
            let family = store.family("default", internal).await.expect("family");
            (family.sandboxes.len(), family.snapshots.len())
        };
        assert_eq!((family(false).await, family(true).await), ((1, 1), (2, 2)));
        store.terminate_sandbox(&internal.id, ending(9)).await.expect("ended");
        let ended = async |internal| store.ended_sandboxes("default", page(internal)).await.expect("ended").len();
        assert_eq!((ended(false).await, ended(true).await), (0, 1));
    }
}
