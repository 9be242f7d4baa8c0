//! What every store must do. Another implementation joins by one line in [`stores`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use belljar_api::{
    id::new_id,
    node::{Capacity, Command, NodeHello, NodeState, Op, SandboxReport},
    sandbox::{Gpus, TerminationReason},
};

use super::*;
use crate::{
    life::{Phase, Reported},
    testing::rows::{self, placed},
};

#[path = "conformance_build_test.rs"]
mod builds;

#[path = "conformance_state_test.rs"]
mod state;

type Log = Arc<Mutex<Vec<Committed>>>;

struct Fixture {
    store: Arc<dyn Store>,
    log: Log,
    sqlite: Option<Arc<SqliteStore>>,
    _dir: tempfile::TempDir,
}

/// A fresh one of each.
fn stores() -> Vec<Fixture> {
    let dir = tempfile::tempdir().expect("directory");
    let log = Log::default();
    let told = Arc::clone(&log);
    let observer: Observer = Arc::new(move |change| told.lock().expect("log").push(change));
    let sqlite = Arc::new(SqliteStore::open(&dir.path().join("a.db"), observer).expect("store"));
    vec![Fixture { store: Arc::<SqliteStore>::clone(&sqlite), log, sqlite: Some(sqlite), _dir: dir }]
}

fn row(name: Option<&str>, created_at: i64) -> SandboxRow {
    let mut row = SandboxRow { name: name.map(str::to_owned), created_at, ..rows::row(&new_id(), Phase::Waiting) };
    row.spec.entrypoint = Some(vec!["sleep".into(), "9".into()]);
    row.spec.exposed_ports = vec![80];
    row
}

fn on(memory_mb: u64) -> Reservation {
    Reservation { node_id: "n".into(), capacity: Capacity { cpus: 1.0, memory_mb, gpus: Vec::new() } }
}

fn hello() -> NodeHello {
    let capacity = Capacity { cpus: 1.0, memory_mb: 4096, gpus: Vec::new() };
    NodeHello {
        node_id: "n".into(),
        version: "1".into(),
        driver: "qemu".into(),
        capacity,
        egress_rules: false,
        images: Vec::new(),
    }
}

fn ending(at: i64) -> Ending {
    Ending { reason: TerminationReason::User, detail: "words".into(), at }
}

fn report(id: &str, generation: u64, state: NodeState) -> SandboxReport {
    SandboxReport { sandbox_id: id.into(), generation, state, trouble: None }
}

impl Fixture {
    async fn placed(&self) -> Arc<SandboxRow> {
        self.store.create_sandbox(row(None, 1), Start::Place(on(99999))).await.expect("created")
    }

    async fn outbox(&self) -> Vec<Command> {
        self.store.outbox("n", 100).await.expect("outbox")
    }

    /// The rows as the observer knows them.
    fn told(&self) -> HashMap<String, Arc<SandboxRow>> {
        let log = self.log.lock().expect("log");
        let rows = log.iter().filter_map(|change| match change {
            Committed::Sandbox(row) => Some((row.id.clone(), Arc::clone(row))),
            Committed::Outbox { .. }
            | Committed::Snapshots
            | Committed::Builds
            | Committed::Pool { .. }
            | Committed::KeyAdded(_)
            | Committed::KeyRemoved { .. }
            | Committed::SshKeyAdded(_)
            | Committed::SshKeyRemoved { .. } => None,
        });
        rows.collect()
    }

    /// What is stored is what was told.
    async fn check_told(&self) {
        for (id, row) in self.told() {
            assert_eq!(self.store.sandbox(&id).await.expect("row").as_deref(), Some(&*row));
        }
    }
}

#[tokio::test]
async fn a_row_comes_back_as_it_went_in() {
    for fixture in stores() {
        for start in [Start::Wait, Start::Place(on(4096)), Start::End(ending(7))] {
            let made =
                fixture.store.create_sandbox(row(Some(&format!("a{}", new_id())), 5), start).await.expect("made");
            let found = fixture.store.sandbox(&made.id).await.expect("found").expect("row");
            assert_eq!(found, made);
        }
        assert_eq!(fixture.store.sandbox("nope").await, Ok(None));
        assert_eq!(fixture.store.held_sandboxes().await.expect("held").len(), 2);
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn a_create_is_all_or_nothing() {
    for fixture in stores() {
        let placed = fixture.placed().await;
        let [command] = &fixture.outbox().await[..] else { panic!("one command") };
        assert_eq!((command.sandbox_id.as_str(), command.generation), (placed.id.as_str(), 1));
        assert!(matches!(command.op, Op::Create { .. }));
        // 1024 of 2000 MiB are taken: it waits, and nothing is sent.
        let waiting = fixture.store.create_sandbox(row(None, 2), Start::Place(on(2000))).await.expect("made");
        assert_eq!((&waiting.phase, fixture.outbox().await.len()), (&Phase::Waiting, 1));
        assert_eq!(fixture.store.place_sandbox(&waiting.id, on(2000)).await, Ok(None));
        assert!(fixture.store.place_sandbox(&waiting.id, on(2048)).await.expect("placed").is_some());
        assert_eq!(fixture.store.place_sandbox(&waiting.id, on(9999)).await, Ok(None), "placed twice");
        assert_eq!(fixture.outbox().await.len(), 2);
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn a_gpu_is_one_sandboxs_at_a_time() {
    for fixture in stores() {
        let gpus = |model: &str, count| Gpus { model: model.into(), count };
        let mut on = on(99999);
        on.capacity.gpus = vec![gpus("A10", 1), gpus("H100", 2)];
        let create = async |wanted: Vec<Gpus>| {
            let mut row = row(None, 1);
            row.spec.resources.gpu_configs = wanted;
            fixture.store.create_sandbox(row, Start::Place(on.clone())).await.expect("made")
        };
        let is_placed = |row: &Arc<SandboxRow>| row.phase != Phase::Waiting;
        let both = create(vec![gpus("A10", 1), gpus("H100", 1)]).await;
        assert!(is_placed(&both) && is_placed(&create(Vec::new()).await));
        let second = create(vec![gpus("A10", 1)]).await;
        assert!(!is_placed(&second), "the A10 is taken");
        assert!(!is_placed(&create(vec![gpus("H100", 2)]).await) && is_placed(&create(vec![gpus("H100", 1)]).await));
        fixture.store.terminate_sandbox(&both.id, ending(5)).await.expect("ended");
        assert_eq!(fixture.store.place_sandbox(&second.id, on.clone()).await, Ok(None), "the VM may still be there");
        let gone = report(
            &both.id,
            2,
            NodeState::Terminated { reason: TerminationReason::User, detail: String::new(), at: 6 },
        );
        fixture.store.report("n", gone, 7).await.expect("told");
        assert!(fixture.store.place_sandbox(&second.id, on.clone()).await.expect("placed").is_some());
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn live_names_are_unique_per_namespace() {
    for fixture in stores() {
        let store = &fixture.store;
        let first = store.create_sandbox(row(Some("box"), 1), Start::Wait).await.expect("made");
        let before = fixture.log.lock().expect("log").len();
        let again = store.create_sandbox(row(Some("box"), 2), Start::Place(on(9999))).await;
        assert_eq!(again, Err(StoreError::NameInUse("box".into())));
        assert_eq!(fixture.log.lock().expect("log").len(), before);
        assert_eq!(fixture.outbox().await.len(), 0);
        let other = SandboxRow { namespace: "n2".into(), ..row(Some("box"), 3) };
        store.create_sandbox(other, Start::Wait).await.expect("another namespace");
        assert_eq!(store.sandbox_named("default", "box").await, Ok(Some(Arc::clone(&first))));
        store.terminate_sandbox(&first.id, ending(9)).await.expect("ended");
        assert_eq!(store.sandbox_named("default", "box").await, Ok(None));
        let second = store.create_sandbox(row(None, 4), Start::Wait).await.expect("made");
        let change = Change { name: Some("box".into()), ..Change::default() };
        assert!(store.change_sandbox(&second.id, change.clone()).await.expect("changed").is_some());
        let third = store.create_sandbox(row(None, 5), Start::Wait).await.expect("made");
        assert_eq!(store.change_sandbox(&third.id, change.clone()).await, Err(StoreError::NameInUse("box".into())));
        assert_eq!(store.change_sandbox(&first.id, change).await, Ok(None), "an ended one changed");
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn a_node_is_taken_at_its_word() {
    for fixture in stores() {
        let (kept, lost, pending) = (fixture.placed().await, fixture.placed().await, fixture.placed().await);
        for command in fixture.outbox().await.iter().take(2) {
            fixture.store.acknowledge("n", command.seq).await.expect("acknowledged");
        }
        let sandboxes = vec![report(&kept.id, 1, NodeState::Running)];
        let told = Account { sandboxes, ..Account::default() };
        fixture.store.sync_node(hello(), told, 50).await.expect("synced");
        let store = &fixture.store;
        let phase = |id: String| async move { store.sandbox(&id).await.expect("found").expect("row").phase.clone() };
        assert_eq!(phase(kept.id.clone()).await, placed(Reported::Running));
        assert_eq!(phase(pending.id.clone()).await, placed(Reported::Unreported), "its command is on the way");
        let Phase::Ended { held, ending, .. } = phase(lost.id.clone()).await else { panic!("not lost") };
        assert_eq!((held, ending.reason), (false, TerminationReason::NodeLost));

        let state = NodeState::Terminated { reason: TerminationReason::VmmExited, detail: "boom".into(), at: 60 };
        fixture.store.report("n", report(&kept.id, 1, state.clone()), 61).await.expect("reported");
        fixture.store.report("n", report(&kept.id, 1, state), 62).await.expect("reported");
        let Phase::Ended { held, ending, .. } = phase(kept.id.clone()).await else { panic!("not ended") };
        assert_eq!((held, ending.detail.as_str(), ending.at), (false, "boom", 60));
        let acknowledged = fixture.outbox().await.into_iter().filter(|c| c.sandbox_id == kept.id).count();
        assert_eq!(acknowledged, 1, "one Terminate for two reports");
        assert_eq!(fixture.store.nodes().await.expect("nodes")[0].driver, "qemu");
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn the_outbox_is_in_order_and_forgets_what_is_taken() {
    for fixture in stores() {
        let made = fixture.placed().await;
        let change = Change { timeout_secs: Some(1), ..Change::default() };
        fixture.store.change_sandbox(&made.id, change).await.expect("changed");
        let ports = Change { exposed_ports: Some(vec![1]), ..Change::default() };
        fixture.store.change_sandbox(&made.id, ports).await.expect("changed");
        fixture.store.terminate_sandbox(&made.id, ending(9)).await.expect("ended");
        fixture.store.terminate_sandbox(&made.id, ending(10)).await.expect("ended again");
        let commands = fixture.outbox().await;
        let generations: Vec<_> = commands.iter().map(|c| c.generation).collect();
        assert_eq!(generations, [1, 2, 3]);
        assert!(commands.is_sorted_by_key(|c| c.seq));
        assert_eq!(fixture.store.outbox("other", 9).await, Ok(Vec::new()));
        fixture.store.acknowledge("other", commands[0].seq).await.expect("nothing of its own");
        fixture.store.acknowledge("n", commands[0].seq).await.expect("acknowledged");
        assert_eq!(fixture.outbox().await, commands[1..]);
        let again = fixture.placed().await;
        let newest = fixture.outbox().await.pop().expect("command");
        assert!(newest.seq > commands[2].seq, "a number came twice");
        fixture.store.refuse("n", newest, ending(11)).await.expect("refused");
        let ended = fixture.store.sandbox(&again.id).await.expect("found").expect("row");
        assert_eq!((ended.held_by(), ended.ending()), (None, Some(&ending(11))));
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn pages_meet_without_gap_or_overlap() {
    for fixture in stores() {
        for at in 0..7 {
            // Two share each millisecond.
            fixture.store.create_sandbox(row(None, at / 2), Start::End(ending(at / 2))).await.expect("made");
            fixture.store.create_sandbox(row(None, at / 2), Start::Wait).await.expect("made");
        }
        let all = fixture.store.ended_sandboxes("default", Page { limit: 99, ..Page::default() }).await.expect("all");
        assert_eq!(all.len(), 7);
        let place = |row: &SandboxRow| Some(Place { at: row.ending().map_or(0, |e| e.at), id: row.id.clone() });
        let (mut seen, mut from) = (Vec::new(), None);
        loop {
            let page = Page { from, limit: 3, ..Page::default() };
            let rows = fixture.store.ended_sandboxes("default", page).await.expect("page");
            let Some(last) = rows.last() else { break };
            from = place(last);
            seen.extend(rows);
        }
        assert_eq!(seen, all);
        let page = Page { from: place(&all[4]), backward: true, limit: 3, ..Page::default() };
        assert_eq!(fixture.store.ended_sandboxes("default", page).await.expect("back"), all[1..4]);
        let live = fixture.store.live_sandboxes("default", Page { limit: 4, ..Page::default() }).await.expect("live");
        let from = live.last().map(|row| Place { at: row.created_at, id: row.id.clone() });
        let rest =
            fixture.store.live_sandboxes("default", Page { from, limit: 99, ..Page::default() }).await.expect("rest");
        assert_eq!((live.len(), rest.len()), (4, 3));
        assert!([live, rest].concat().is_sorted_by_key(|row| (row.created_at, row.id.clone())));
    }
}

fn ssh_key(number: i64, api_key_id: &str) -> SshKeyRow {
    SshKeyRow {
        id: format!("s{number}"),
        api_key_id: api_key_id.into(),
        name: format!("laptop {number}"),
        key_type: "ssh-ed25519".into(),
        fingerprint: format!("SHA256:{number}"),
        public_key: format!("ssh-ed25519 AAAA{number}"),
        created_at: number,
        last_used_at: None,
    }
}

#[tokio::test]
async fn ssh_keys_come_and_go_with_their_api_key() {
    for fixture in stores() {
        let store = &fixture.store;
        for number in [1, 2] {
            let key = KeyRow { id: format!("k{number}"), name: "n".into(), hash: [number; 32], created_at: 1 };
            store.create_key(key).await.expect("made");
        }
        let keys = [ssh_key(1, "k1"), ssh_key(2, "k2"), ssh_key(3, "k1")];
        for key in &keys {
            store.create_ssh_key(key.clone()).await.expect("added");
        }
        assert_eq!(store.ssh_keys().await, Ok(keys.to_vec()));
        let again = SshKeyRow { id: "s9".into(), name: "x".into(), ..ssh_key(1, "k2") };
        let known = StoreError::SshKeyKnown { name: "laptop 1".into() };
        assert_eq!(store.create_ssh_key(again).await, Err(known));
        assert_eq!(store.create_ssh_key(ssh_key(4, "gone")).await, Err(StoreError::KeyGone));

        store.touch_ssh_key("s2", 77).await.expect("noted");
        assert_eq!(store.delete_key("k1").await, Ok(true));
        let left = SshKeyRow { last_used_at: Some(77), ..keys[1].clone() };
        assert_eq!(store.ssh_keys().await, Ok(vec![left]));
        assert_eq!((store.delete_ssh_key("s2").await, store.delete_ssh_key("s2").await), (Ok(true), Ok(false)));
        store.touch_ssh_key("s2", 78).await.expect("nothing to note");
        // An API key that cannot be removed keeps its SSH keys.
        store.create_ssh_key(ssh_key(5, "k2")).await.expect("added");
        assert_eq!(store.delete_key("k2").await, Err(StoreError::LastKey));
        assert_eq!(store.ssh_keys().await.map(|keys| keys.len()), Ok(1));

        let log = fixture.log.lock().expect("log");
        let told: Vec<_> = log
            .iter()
            .filter_map(|change| match change {
                Committed::SshKeyAdded(key) => Some(format!("+{}", key.id)),
                Committed::SshKeyRemoved { id } => Some(format!("-{id}")),
                _ => None,
            })
            .collect();
        assert_eq!(told, ["+s1", "+s2", "+s3", "-s1", "-s3", "-s2", "+s5"]);
    }
}

#[tokio::test]
async fn keys_come_and_go_but_the_last() {
    for fixture in stores() {
        let key = |n: u8| KeyRow { id: format!("k{n}"), name: "x".into(), hash: [n; 32], created_at: n.into() };
        fixture.store.create_key(key(1)).await.expect("made");
        assert_eq!(fixture.store.delete_key("k1").await, Err(StoreError::LastKey));
        fixture.store.create_key(key(2)).await.expect("made");
        assert_eq!(fixture.store.keys().await, Ok(vec![key(1), key(2)]));
        assert_eq!(fixture.store.delete_key("k1").await, Ok(true));
        assert_eq!(fixture.store.delete_key("k1").await, Ok(false));
        let told = format!("{:?}", fixture.log.lock().expect("log"));
        assert_eq!((told.matches("KeyAdded").count(), told.matches("KeyRemoved").count()), (2, 1));
    }
}

#[tokio::test]
async fn one_that_fails_takes_nothing_with_it() {
    for fixture in stores() {
        // All at once, so that some share a transaction; every second name is taken.
        let creates = (0..100).map(|n| {
            let name = format!("box-{}", n / 2);
            let store = Arc::clone(&fixture.store);
            tokio::spawn(async move { store.create_sandbox(row(Some(&name), 1), Start::Place(on(50 * 1024))).await })
        });
        let mut made = 0;
        for create in creates.collect::<Vec<_>>() {
            match create.await.expect("task") {
                Ok(_) => made += 1,
                Err(error) => assert!(matches!(error, StoreError::NameInUse(_)), "{error}"),
            }
        }
        assert_eq!((made, fixture.told().len(), fixture.outbox().await.len()), (50, 50, 50));
        fixture.check_told().await;
    }
}

#[tokio::test]
async fn a_full_disk_undoes_all_and_passes() {
    for fixture in stores() {
        let Some(sqlite) = &fixture.sqlite else { continue };
        sqlite.execute("PRAGMA max_page_count = 1").await;
        let mut large = row(None, 1);
        large.spec.entrypoint = Some(vec!["x".repeat(500_000)]);
        let creates = (0..8).map(|_| {
            let (store, row) = (Arc::clone(&fixture.store), SandboxRow { id: new_id(), ..large.clone() });
            tokio::spawn(async move { store.create_sandbox(row, Start::Place(on(99999))).await })
        });
        for create in creates.collect::<Vec<_>>() {
            let error = create.await.expect("task").expect_err("the disk is full");
            assert!(matches!(error, StoreError::Full | StoreError::Failed(_)), "{error}");
        }
        assert_eq!((fixture.told().len(), fixture.outbox().await.len()), (0, 0));
        sqlite.execute("PRAGMA max_page_count = 1000000").await;
        fixture.placed().await;
        fixture.check_told().await;
    }
}
