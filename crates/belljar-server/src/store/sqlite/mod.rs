//! The embedded store: one SQLite file in WAL mode, one thread that writes and one that reads.
//!
//! It is not shared between processes; a second server on the same file waits for the lock and then fails.

mod build;
mod copy;
mod family;
mod key;
mod node;
mod outbox;
mod pool;
mod rows;
mod sandbox;
mod schema;
mod secret;
mod snapshot;
mod ssh_key;
mod worker;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use belljar_api::node::{Command, NodeHello, SandboxReport, SnapshotReport};

pub use self::schema::OpenError;
use self::worker::{Mode, Worker};
#[cfg(test)]
use super::Committed;
use super::{
    Account, AuthorityRow, Family, KeyRow, NewCopies, NewSnapshot, NodeRow, Observer, Page, PoolChange, Reservation,
    SecretChange, SecretRow, SshKeyRow, Start, Store, StoreError,
};
use crate::{
    build::{Admission, BuildCache, BuildRow, Event},
    life::{Change, Ending, Order, SandboxRow},
    pool::PoolRow,
    snapshot::SnapshotRow,
};

/// The store in a SQLite file.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    writer: Worker,
    reader: Worker,
}

impl SqliteStore {
    /// Opens the file, makes it or brings its schema up to date, and refuses one that is not ours or too new.
    pub(crate) fn open(path: &Path, observer: Observer) -> Result<Self, OpenError> {
        let mut write = schema::connect(path)?;
        schema::migrate(&mut write, path)?;
        let read = schema::connect(path)?;
        let start = |mode, connection| {
            Worker::start(mode, connection, Arc::clone(&observer)).map_err(|source| OpenError::Thread { source })
        };
        Ok(Self { writer: start(Mode::Write, write)?, reader: start(Mode::Read, read)? })
    }

    /// Runs SQL as it stands: tests break the database with it.
    #[cfg(test)]
    pub(crate) async fn execute(&self, sql: &'static str) {
        let run = move |connection: &rusqlite::Connection, _: &mut Vec<Committed>| {
            Ok(connection.query_row(sql, [], |_| Ok(())).or_else(|error| match error {
                rusqlite::Error::QueryReturnedNoRows => Ok(()),
                other => Err(other),
            })?)
        };
        self.writer.run(run).await.expect(sql);
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn create_sandbox(&self, row: SandboxRow, start: Start) -> Result<Arc<SandboxRow>, StoreError> {
        self.writer.run(move |db, changes| sandbox::create(db, changes, row, start)).await
    }

    async fn sandbox(&self, id: &str) -> Result<Option<Arc<SandboxRow>>, StoreError> {
        let id = id.to_owned();
        self.reader.run(move |db, _| Ok(rows::load(db, &id)?.map(Arc::new))).await
    }

    async fn sandbox_named(&self, namespace: &str, name: &str) -> Result<Option<Arc<SandboxRow>>, StoreError> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.reader.run(move |db, _| sandbox::named(db, &namespace, &name)).await
    }

    async fn held_sandboxes(&self) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
        self.reader.run(|db, _| sandbox::held(db)).await
    }

    async fn live_sandboxes(&self, namespace: &str, page: Page) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
        let namespace = namespace.to_owned();
        self.reader.run(move |db, _| sandbox::live(db, &namespace, &page)).await
    }

    async fn ended_sandboxes(&self, namespace: &str, page: Page) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
        let namespace = namespace.to_owned();
        self.reader.run(move |db, _| sandbox::ended(db, &namespace, &page)).await
    }

    async fn place_sandbox(&self, id: &str, on: Reservation) -> Result<Option<Arc<SandboxRow>>, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| sandbox::place(db, changes, &id, &on)).await
    }

    async fn change_sandbox(&self, id: &str, change: Change) -> Result<Option<Arc<SandboxRow>>, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| sandbox::change(db, changes, &id, &change)).await
    }

    async fn order(&self, id: &str, order: Order) -> Result<Option<Arc<SandboxRow>>, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| sandbox::order(db, changes, &id, &order)).await
    }

    async fn copy_sandbox(&self, new: NewCopies) -> Result<Option<Vec<Arc<SandboxRow>>>, StoreError> {
        self.writer.run(move |db, changes| copy::copy(db, changes, &new)).await
    }

    async fn take_snapshot(&self, new: NewSnapshot) -> Result<Option<SnapshotRow>, StoreError> {
        self.writer.run(move |db, changes| snapshot::take(db, changes, new)).await
    }

    async fn snapshot(&self, id: &str) -> Result<Option<SnapshotRow>, StoreError> {
        let id = id.to_owned();
        self.reader.run(move |db, _| snapshot::get(db, &id)).await
    }

    async fn snapshots(
        &self,
        namespace: &str,
        sandbox_id: Option<&str>,
        page: Page,
    ) -> Result<Vec<SnapshotRow>, StoreError> {
        let (namespace, sandbox_id) = (namespace.to_owned(), sandbox_id.map(str::to_owned));
        self.reader.run(move |db, _| snapshot::list(db, &namespace, sandbox_id.as_deref(), &page)).await
    }

    async fn delete_snapshot(&self, id: &str) -> Result<Option<SnapshotRow>, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| snapshot::delete(db, changes, &id)).await
    }

    async fn family(&self, namespace: &str, internal: bool) -> Result<Family, StoreError> {
        let namespace = namespace.to_owned();
        self.reader.run(move |db, _| family::of(db, &namespace, internal)).await
    }

    async fn create_build(&self, row: BuildRow) -> Result<Admission, StoreError> {
        self.writer.run(move |db, changes| build::create(db, changes, &row)).await
    }

    async fn build(&self, id: &str) -> Result<Option<BuildRow>, StoreError> {
        let id = id.to_owned();
        self.reader.run(move |db, _| build::get(db, &id)).await
    }

    async fn build_requested(&self, request_id: &str) -> Result<Option<BuildRow>, StoreError> {
        let request_id = request_id.to_owned();
        self.reader.run(move |db, _| build::requested(db, &request_id)).await
    }

    async fn change_build(&self, id: &str, event: Event, at: i64) -> Result<Option<BuildRow>, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| build::change(db, changes, &id, event, at)).await
    }

    async fn fail_builds(&self, words: &'static str, at: i64) -> Result<usize, StoreError> {
        self.writer.run(move |db, changes| build::fail_all(db, changes, words, at)).await
    }

    async fn builders(&self) -> Result<Vec<String>, StoreError> {
        self.reader.run(|db, _| build::builders(db)).await
    }

    async fn build_cache(&self, namespace: &str) -> Result<Option<BuildCache>, StoreError> {
        let namespace = namespace.to_owned();
        self.reader.run(move |db, _| build::cache(db, &namespace)).await
    }

    async fn set_build_cache(
        &self,
        namespace: &str,
        cache: Option<BuildCache>,
    ) -> Result<Option<BuildCache>, StoreError> {
        let namespace = namespace.to_owned();
        self.writer.run(move |db, _| build::set_cache(db, &namespace, cache.as_ref())).await
    }

    async fn create_pool(&self, row: PoolRow) -> Result<(), StoreError> {
        self.writer.run(move |db, changes| pool::create(db, changes, &row)).await
    }

    async fn pool(&self, id: &str) -> Result<Option<PoolRow>, StoreError> {
        let id = id.to_owned();
        self.reader.run(move |db, _| pool::get(db, &id)).await
    }

    async fn pools(&self, namespace: Option<&str>) -> Result<Vec<PoolRow>, StoreError> {
        let namespace = namespace.map(str::to_owned);
        self.reader.run(move |db, _| pool::list(db, namespace.as_deref())).await
    }

    async fn change_pool(&self, id: &str, change: PoolChange) -> Result<Option<PoolRow>, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| pool::change(db, changes, &id, change)).await
    }

    async fn delete_pool(&self, id: &str, ending: Ending) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| pool::delete(db, changes, &id, &ending)).await
    }

    async fn claim(&self, pool_id: &str) -> Result<Option<Arc<SandboxRow>>, StoreError> {
        let id = pool_id.to_owned();
        self.writer.run(move |db, changes| pool::claim(db, changes, &id)).await
    }

    async fn terminate_sandbox(&self, id: &str, ending: Ending) -> Result<Option<Arc<SandboxRow>>, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| sandbox::terminate(db, changes, &id, ending)).await
    }

    async fn sync_node(&self, hello: NodeHello, account: Account, at: i64) -> Result<(), StoreError> {
        self.writer.run(move |db, changes| node::sync(db, changes, &hello, &account, at)).await
    }

    async fn report_snapshot(&self, node_id: &str, report: SnapshotReport) -> Result<(), StoreError> {
        let node_id = node_id.to_owned();
        self.writer.run(move |db, changes| snapshot::report(db, changes, &node_id, &report, false)).await
    }

    async fn report(&self, node_id: &str, report: SandboxReport, at: i64) -> Result<(), StoreError> {
        let node_id = node_id.to_owned();
        self.writer.run(move |db, changes| node::report(db, changes, &node_id, &report, at, false)).await
    }

    async fn outbox(&self, node_id: &str, limit: usize) -> Result<Vec<Command>, StoreError> {
        let node_id = node_id.to_owned();
        self.reader.run(move |db, _| outbox::next(db, &node_id, limit)).await
    }

    async fn acknowledge(&self, node_id: &str, seq: u64) -> Result<(), StoreError> {
        let node_id = node_id.to_owned();
        self.writer.run(move |db, _| outbox::remove(db, &node_id, seq)).await
    }

    async fn refuse(&self, node_id: &str, command: Command, ending: Ending) -> Result<(), StoreError> {
        let node_id = node_id.to_owned();
        self.writer.run(move |db, changes| node::refuse(db, changes, &node_id, &command, ending)).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.reader.run(|db, _| outbox::nodes(db)).await
    }

    async fn keys(&self) -> Result<Vec<KeyRow>, StoreError> {
        self.reader.run(|db, _| key::all(db)).await
    }

    async fn create_key(&self, row: KeyRow) -> Result<(), StoreError> {
        self.writer.run(move |db, changes| key::create(db, changes, row)).await
    }

    async fn delete_key(&self, id: &str) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| key::delete(db, changes, id)).await
    }

    async fn ssh_keys(&self) -> Result<Vec<SshKeyRow>, StoreError> {
        self.reader.run(|db, _| ssh_key::all(db)).await
    }

    async fn create_ssh_key(&self, row: SshKeyRow) -> Result<(), StoreError> {
        self.writer.run(move |db, changes| ssh_key::create(db, changes, row)).await
    }

    async fn delete_ssh_key(&self, id: &str) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, changes| ssh_key::delete(db, changes, id)).await
    }

    async fn touch_ssh_key(&self, id: &str, at: i64) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.writer.run(move |db, _| ssh_key::touch(db, &id, at)).await
    }

    async fn secrets(&self) -> Result<Vec<SecretRow>, StoreError> {
        self.reader.run(|db, _| secret::all(db)).await
    }

    async fn put_secrets(&self, changes: Vec<SecretChange>) -> Result<Vec<SecretRow>, StoreError> {
        self.writer.run(move |db, _| secret::put(db, changes)).await
    }

    async fn delete_secret(&self, reference: &str) -> Result<bool, StoreError> {
        let reference = reference.to_owned();
        self.writer.run(move |db, _| secret::delete(db, &reference)).await
    }

    async fn authority(&self) -> Result<Option<AuthorityRow>, StoreError> {
        self.reader.run(|db, _| secret::authority(db)).await
    }

    async fn save_authority(&self, row: AuthorityRow) -> Result<(), StoreError> {
        self.writer.run(move |db, _| secret::save_authority(db, &row)).await
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// A value that SQLite can hold; what is larger than it can hold never occurs and is cut.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The way back; a negative number never occurs and counts as 0.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
