//! The file: how it is opened, what is in it, and how an older one is brought up to date.
//!
//! `application_id` says that the file is ours, `user_version` how many of [`MIGRATIONS`] it has seen. Migrations are
//! only ever added at the end. A file that has seen more than we know is from a newer release and is left alone.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::limits::STORE_BUSY;

/// "BJar" in ASCII.
const APPLICATION_ID: i64 = 0x424A_6172;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// SQLite cannot open or change it.
    #[error("cannot use the database {path}: {source}; check that the directory exists, is writable and has space")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// It belongs to another program.
    #[error("{path} is a database of another program; choose another data directory")]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a newer release.
    #[error(
        "the database {path} has schema version {found}, and this release knows {known}; \
         run the newer release that wrote it, or choose another data directory"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The file could not be made.
    #[error("cannot make the database {path}: {source}; check that the directory exists and is writable")]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread that owns it could not be started.
    #[error("cannot start the store's thread: {source}")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
}

/// What takes a file from one version to the next.
const MIGRATIONS: &[&str] = &[
    // 1: keys, nodes, sandboxes, outbox.
    "CREATE TABLE api_keys (
         id TEXT PRIMARY KEY,
         name TEXT NOT NULL,
         hash BLOB NOT NULL UNIQUE,
         created_at INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE nodes (
         id TEXT PRIMARY KEY,
         driver TEXT NOT NULL,
         version TEXT NOT NULL,
         seen_at INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE sandboxes (
         id TEXT PRIMARY KEY,
         namespace TEXT NOT NULL,
         name TEXT,
         spec TEXT NOT NULL,
         memory_mb INTEGER NOT NULL,
         generation INTEGER NOT NULL,
         phase TEXT NOT NULL CHECK (phase IN ('waiting', 'unreported', 'starting', 'running', 'ended')),
         node_id TEXT,
         held INTEGER NOT NULL CHECK (held IN (0, 1)),
         reason TEXT,
         detail TEXT,
         created_at INTEGER NOT NULL,
         started_at INTEGER,
         terminated_at INTEGER
     ) STRICT;
     CREATE UNIQUE INDEX sandboxes_live_name ON sandboxes (namespace, name) WHERE name IS NOT NULL AND phase <> 'ended';
     CREATE INDEX sandboxes_live ON sandboxes (namespace, created_at, id) WHERE phase <> 'ended';
     CREATE INDEX sandboxes_ended ON sandboxes (namespace, terminated_at, id) WHERE phase = 'ended';
     CREATE INDEX sandboxes_held ON sandboxes (node_id, memory_mb) WHERE held = 1;
     CREATE TABLE outbox (
         seq INTEGER PRIMARY KEY AUTOINCREMENT,
         node_id TEXT NOT NULL,
         sandbox_id TEXT NOT NULL,
         generation INTEGER NOT NULL,
         op TEXT NOT NULL
     ) STRICT;
     CREATE INDEX outbox_node ON outbox (node_id, seq);
     CREATE INDEX outbox_sandbox ON outbox (sandbox_id);",
    // 2: sleep, snapshots, copies, pools. SQLite cannot change a CHECK, so the sandboxes move to a new table.
    "CREATE TABLE sandboxes_new (
         id TEXT PRIMARY KEY,
         namespace TEXT NOT NULL,
         name TEXT,
         spec TEXT NOT NULL,
         memory_mb INTEGER NOT NULL,
         generation INTEGER NOT NULL,
         phase TEXT NOT NULL CHECK (phase IN ('waiting', 'unreported', 'starting', 'running', 'suspending',
             'suspended', 'resuming', 'ended')),
         node_id TEXT,
         held INTEGER NOT NULL CHECK (held IN (0, 1)),
         reason TEXT,
         detail TEXT,
         created_at INTEGER NOT NULL,
         started_at INTEGER,
         terminated_at INTEGER,
         origin TEXT NOT NULL,
         home TEXT,
         pool_id TEXT,
         claimed INTEGER NOT NULL CHECK (claimed IN (0, 1)),
         asked TEXT,
         asked_generation INTEGER,
         trouble TEXT
     ) STRICT;
     INSERT INTO sandboxes_new
         SELECT id, namespace, name, spec, memory_mb, generation, phase, node_id, held, reason, detail, created_at,
             started_at, terminated_at, '{\"from\":\"image\"}', NULL, NULL, 0, NULL, NULL, NULL
         FROM sandboxes;
     DROP TABLE sandboxes;
     ALTER TABLE sandboxes_new RENAME TO sandboxes;
     CREATE UNIQUE INDEX sandboxes_live_name ON sandboxes (namespace, name) WHERE name IS NOT NULL AND phase <> 'ended';
     CREATE INDEX sandboxes_live ON sandboxes (namespace, created_at, id) WHERE phase <> 'ended';
     CREATE INDEX sandboxes_ended ON sandboxes (namespace, terminated_at, id) WHERE phase = 'ended';
     CREATE INDEX sandboxes_held ON sandboxes (node_id, memory_mb) WHERE held = 1;
     CREATE INDEX sandboxes_node ON sandboxes (node_id) WHERE phase <> 'ended' OR held = 1;
     CREATE INDEX sandboxes_pool ON sandboxes (pool_id, created_at) WHERE pool_id IS NOT NULL AND phase <> 'ended';
     CREATE TABLE snapshots (
         id TEXT PRIMARY KEY,
         namespace TEXT NOT NULL,
         sandbox_id TEXT NOT NULL,
         node_id TEXT NOT NULL,
         kind TEXT NOT NULL,
         status TEXT NOT NULL CHECK (status IN ('in_progress', 'completed', 'failed', 'deleting')),
         error TEXT,
         size_bytes INTEGER,
         rootfs_disk_bytes INTEGER,
         spec TEXT NOT NULL,
         parent_id TEXT,
         created_at INTEGER NOT NULL
     ) STRICT;
     CREATE INDEX snapshots_namespace ON snapshots (namespace, created_at, id);
     CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, created_at, id);
     CREATE INDEX snapshots_node ON snapshots (node_id);
     CREATE TABLE copy_requests (
         namespace TEXT NOT NULL,
         key TEXT NOT NULL,
         source_id TEXT NOT NULL,
         copies TEXT NOT NULL,
         created_at INTEGER NOT NULL,
         PRIMARY KEY (namespace, key)
     ) STRICT;
     CREATE INDEX copy_requests_age ON copy_requests (created_at);
     CREATE TABLE pools (
         id TEXT PRIMARY KEY,
         namespace TEXT NOT NULL,
         spec TEXT NOT NULL,
         max_containers INTEGER,
         warm_containers INTEGER,
         created_at INTEGER NOT NULL,
         updated_at INTEGER NOT NULL
     ) STRICT;
     CREATE INDEX pools_namespace ON pools (namespace, created_at, id);",
    // 3: SSH keys.
    "CREATE TABLE ssh_keys (
         id TEXT PRIMARY KEY,
         api_key_id TEXT NOT NULL REFERENCES api_keys (id),
         name TEXT NOT NULL,
         key_type TEXT NOT NULL,
         fingerprint TEXT NOT NULL UNIQUE,
         public_key TEXT NOT NULL,
         created_at INTEGER NOT NULL,
         last_used_at INTEGER
     ) STRICT;
     CREATE INDEX ssh_keys_owner ON ssh_keys (api_key_id);",
    // 4: secrets, and the authority of the egress proxies.
    "CREATE TABLE secrets (
         id TEXT PRIMARY KEY,
         name TEXT NOT NULL UNIQUE,
         sealed BLOB NOT NULL,
         placeholder TEXT NOT NULL UNIQUE,
         hosts TEXT NOT NULL,
         headers TEXT NOT NULL,
         created_at INTEGER NOT NULL,
         updated_at INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE authority (
         one INTEGER PRIMARY KEY CHECK (one = 1),
         certificate TEXT NOT NULL,
         sealed_key BLOB NOT NULL
     ) STRICT;",
    // 5: image builds.
    "CREATE TABLE builds (
         id TEXT PRIMARY KEY,
         request_id TEXT UNIQUE,
         fingerprint BLOB NOT NULL,
         name TEXT NOT NULL,
         image_ref TEXT NOT NULL,
         node_id TEXT NOT NULL,
         status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
         phase TEXT,
         result TEXT,
         error TEXT,
         created_at INTEGER NOT NULL,
         updated_at INTEGER NOT NULL
     ) STRICT;
     CREATE UNIQUE INDEX builds_name ON builds (name) WHERE status IN ('pending', 'running');
     CREATE INDEX builds_age ON builds (updated_at, id);",
    // 6: builds of Dockerfiles, and the layers that are kept for the next one.
    "ALTER TABLE builds ADD COLUMN kind TEXT NOT NULL DEFAULT 'import' CHECK (kind IN ('import', 'dockerfile'));
     ALTER TABLE builds ADD COLUMN builder_sandbox_id TEXT;
     ALTER TABLE builds ADD COLUMN deadline INTEGER;
     CREATE TABLE build_caches (
         namespace TEXT PRIMARY KEY,
         snapshot_id TEXT NOT NULL,
         builder_image TEXT NOT NULL
     ) STRICT;",
];

/// The schema version of this release.
fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Opens the file with our settings.
pub(super) fn connect(path: &Path) -> Result<Connection, OpenError> {
    make_private(path)?;
    let open = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(STORE_BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    open().map_err(|source| OpenError::Sqlite { path: path.to_owned(), source })
}

/// Makes the file before SQLite does, so that only its owner can read it.
fn make_private(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    opened.map(drop).map_err(|source| OpenError::Create { path: path.to_owned(), source })
}

/// Brings the file to [`known`], or says why not.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let number = |connection: &Connection, pragma: &str| {
        connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map_err(failed)
    };
    let (application, found) = (number(connection, "application_id")?, number(connection, "user_version")?);
    let empty: bool =
        connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION_ID && !(empty && application == 0) {
        return Err(OpenError::NotOurs { path: path.to_owned() });
    }
    if found > known() {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: known() });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for (version, sql) in MIGRATIONS.iter().enumerate().skip(done) {
        let mut step = || {
            let transaction = connection.transaction()?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", i64::try_from(version + 1).unwrap_or(i64::MAX))?;
            transaction.commit()
        };
        step().map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<Connection, OpenError> {
        let mut connection = connect(path)?;
        migrate(&mut connection, path).map(|()| connection)
    }

    #[test]
    fn a_file_opens_again_and_a_strange_one_does_not() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("a.db");
        drop(open(&path).expect("new"));
        let connection = open(&path).expect("again");
        connection.pragma_update(None, "user_version", 99).expect("pragma");
        drop(connection);
        let error = open(&path).expect_err("newer").to_string();
        assert!(error.contains("schema version 99") && error.contains("newer release"), "{error}");

        let other = dir.path().join("b.db");
        Connection::open(&other).expect("open").execute_batch("CREATE TABLE t (x)").expect("table");
        assert!(matches!(open(&other), Err(OpenError::NotOurs { .. })));

        let garbage = dir.path().join("c.db");
        std::fs::write(&garbage, vec![7; 4096]).expect("write");
        assert!(matches!(open(&garbage), Err(OpenError::Sqlite { .. })));
        let missing = open(&dir.path().join("no/such.db")).expect_err("missing").to_string();
        assert!(missing.contains("no/such.db"), "{missing}");
    }

    #[test]
    fn a_file_of_the_first_release_is_brought_up_to_date() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("a.db");
        let old = connect(&path).expect("file");
        old.execute_batch(MIGRATIONS[0]).expect("schema");
        old.pragma_update(None, "application_id", APPLICATION_ID).expect("pragma");
        old.pragma_update(None, "user_version", 1).expect("pragma");
        let spec = serde_json::to_string(&crate::testing::rows::spec()).expect("spec");
        for (id, name, phase, node, held) in [
            ("waiting", Some("a"), "waiting", None, 0),
            ("running", Some("b"), "running", Some("n"), 1),
            ("ended", Some("b"), "ended", Some("n"), 0),
        ] {
            old.execute(
                "INSERT INTO sandboxes VALUES (?1, 'default', ?2, ?6, 1024, 3, ?3, ?4, ?5, 'user', '', 1, NULL, 9)",
                rusqlite::params![id, name, phase, node, held, spec],
            )
            .expect(id);
        }
        let op = r#"{"op":"create","spec":{"namespace":"default","image":"i","resources":{"cpus":1,"memory_mb":1,
            "disk_mb":1,"ephemeral_disk_mb":1},"entrypoint":null,"settings":{"name":null,"timeout_secs":1,
            "network":{}}}}"#;
        old.execute("INSERT INTO outbox VALUES (7, 'n', 'running', 1, ?1)", [op]).expect("command");
        drop(old);

        let db = open(&path).expect("migrated");
        let load = |id| super::super::rows::load(&db, id).expect("read").expect("row");
        let row = load("running");
        assert_eq!((row.name.as_deref(), row.generation, row.held_by()), (Some("b"), 3, Some("n")));
        assert!(row.is_running() && row.pool.is_none() && row.home.is_none() && row.trouble.is_none());
        assert_eq!(row.origin, belljar_api::node::Origin::Image);
        assert_eq!(load("ended").ending().map(|ending| ending.at), Some(9));
        assert_eq!(load("waiting").phase, crate::life::Phase::Waiting);
        let commands = super::super::outbox::next(&db, "n", 9).expect("outbox");
        assert!(matches!(commands.as_slice(), [belljar_api::node::Command { seq: 7, .. }]), "{commands:?}");
        let taken = db.execute("UPDATE sandboxes SET name = 'b' WHERE id = 'waiting'", []);
        assert!(taken.is_err(), "live names are no longer unique");
        drop(db);
        open(&path).expect("again");
    }

    #[test]
    fn only_the_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("a.db");
        drop(open(&path).expect("new"));
        assert_eq!(std::fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
    }
}
