//! Image builds.

use belljar_api::{
    build::{BuildKind, BuildPhase},
    image::ImageInfo,
};
use rusqlite::{Connection, OptionalExtension, Row, params, types::Type};

use super::{
    super::{Committed, StoreError},
    int,
};
use crate::{
    build::{Admission, BuildCache, BuildRow, Event, Standing, admit},
    limits::{BUILD_TTL, BUILDS_KEPT_MAX, BUILDS_MAX},
};

const COLUMNS: &str = "id, request_id, fingerprint, name, image_ref, node_id, status, phase, result, error, created_at, \
                       updated_at, kind, builder_sandbox_id, deadline";

/// The index on these is what makes a name one build's at a time.
const UNDER_WAY: &str = "status IN ('pending', 'running')";

/// As the columns have it: status, phase, result and error.
type Columns = (&'static str, Option<&'static str>, Option<String>, Option<String>);

fn columns(standing: &Standing) -> Result<Columns, StoreError> {
    Ok(match standing {
        Standing::Pending => ("pending", None, None, None),
        Standing::Running(phase) => ("running", Some(word(*phase)), None, None),
        Standing::Succeeded(image) => {
            let image = serde_json::to_string(image).map_err(|error| StoreError::Failed(error.to_string()))?;
            ("succeeded", None, Some(image), None)
        }
        Standing::Failed(error) => ("failed", None, None, Some(error.clone())),
        Standing::Cancelled => ("cancelled", None, None, None),
    })
}

fn kind_word(kind: BuildKind) -> &'static str {
    match kind {
        BuildKind::Dockerfile => "dockerfile",
        BuildKind::Import => "import",
    }
}

fn word(phase: BuildPhase) -> &'static str {
    match phase {
        BuildPhase::AwaitingContext => "awaiting_context",
        BuildPhase::StartingBuilder => "starting_builder",
        BuildPhase::Executing => "executing",
        BuildPhase::Snapshotting => "snapshotting",
        BuildPhase::Publishing => "publishing",
        BuildPhase::Finished => "finished",
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<BuildRow> {
    const RESULT: usize = 8;
    let standing = match row.get_ref(6)?.as_str()? {
        "pending" => Standing::Pending,
        "running" => Standing::Running(match row.get_ref(7)?.as_str()? {
            "awaiting_context" => BuildPhase::AwaitingContext,
            "starting_builder" => BuildPhase::StartingBuilder,
            "snapshotting" => BuildPhase::Snapshotting,
            "publishing" => BuildPhase::Publishing,
            _ => BuildPhase::Executing,
        }),
        "succeeded" => {
            let image: String = row.get(RESULT)?;
            let image: ImageInfo = serde_json::from_str(&image)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(RESULT, Type::Text, error.into()))?;
            Standing::Succeeded(Box::new(image))
        }
        "failed" => Standing::Failed(row.get(9)?),
        _ => Standing::Cancelled,
    };
    Ok(BuildRow {
        id: row.get(0)?,
        kind: if row.get_ref(12)?.as_str()? == "dockerfile" { BuildKind::Dockerfile } else { BuildKind::Import },
        request_id: row.get(1)?,
        fingerprint: row.get(2)?,
        name: row.get(3)?,
        image_ref: row.get(4)?,
        node_id: row.get(5)?,
        standing,
        builder_sandbox_id: row.get(13)?,
        deadline: row.get(14)?,
        created_at: row.get(10)?,
        updated_at: row.get(11)?,
    })
}

fn find(db: &Connection, condition: &str, value: &str) -> Result<Option<BuildRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM builds WHERE {condition}"))?;
    Ok(query.query_row([value], read).optional()?)
}

pub(super) fn get(db: &Connection, id: &str) -> Result<Option<BuildRow>, StoreError> {
    find(db, "id = ?1", id)
}

pub(super) fn requested(db: &Connection, request_id: &str) -> Result<Option<BuildRow>, StoreError> {
    find(db, "request_id = ?1", request_id)
}

/// Saves a new build if it may begin, and says what becomes of it. Forgets old ones first.
pub(super) fn create(db: &Connection, changes: &mut Vec<Committed>, row: &BuildRow) -> Result<Admission, StoreError> {
    forget(db, row.created_at)?;
    let same_key = row.request_id.as_deref().map_or(Ok(None), |key| requested(db, key))?;
    let same_name = find(db, &format!("name = ?1 AND {UNDER_WAY}"), &row.name)?;
    let admission = admit(row, same_key, same_name);
    if admission != Admission::New {
        return Ok(admission);
    }
    let count: i64 = db.query_row(&format!("SELECT count(*) FROM builds WHERE {UNDER_WAY}"), [], |row| row.get(0))?;
    if count >= int(BUILDS_MAX) {
        return Err(StoreError::TooMany { what: "image builds under way", max: BUILDS_MAX });
    }
    let (status, phase, result, error) = columns(&row.standing)?;
    db.prepare_cached(&format!(
        "INSERT INTO builds ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
    ))?
    .execute(params![
        row.id,
        row.request_id,
        row.fingerprint,
        row.name,
        row.image_ref,
        row.node_id,
        status,
        phase,
        result,
        error,
        row.created_at,
        row.updated_at,
        kind_word(row.kind),
        row.builder_sandbox_id,
        row.deadline
    ])?;
    changes.push(Committed::Builds);
    Ok(admission)
}

/// Forgets builds that ended long ago, and the oldest of too many.
fn forget(db: &Connection, now: i64) -> Result<(), StoreError> {
    let ttl_ms = i64::try_from(BUILD_TTL.as_millis()).unwrap_or(i64::MAX);
    db.prepare_cached(&format!("DELETE FROM builds WHERE NOT {UNDER_WAY} AND updated_at <= ?1"))?
        .execute([now.saturating_sub(ttl_ms)])?;
    db.prepare_cached(&format!(
        "DELETE FROM builds WHERE id IN
             (SELECT id FROM builds WHERE NOT {UNDER_WAY} ORDER BY updated_at DESC, id DESC LIMIT -1 OFFSET ?1)"
    ))?
    .execute([int(BUILDS_KEPT_MAX)])?;
    Ok(())
}

/// Lets something happen to a build, and gives it as it is then.
pub(super) fn change(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    event: Event,
    at: i64,
) -> Result<Option<BuildRow>, StoreError> {
    let Some(row) = get(db, id)? else { return Ok(None) };
    let Some(next) = row.after(event, at) else { return Ok(Some(row)) };
    let (status, phase, result, error) = columns(&next.standing)?;
    let sql = "UPDATE builds SET status = ?2, phase = ?3, result = ?4, error = ?5, updated_at = ?6, \
               builder_sandbox_id = ?7 WHERE id = ?1";
    let builder = &next.builder_sandbox_id;
    db.prepare_cached(sql)?.execute(params![id, status, phase, result, error, next.updated_at, builder])?;
    changes.push(Committed::Builds);
    Ok(Some(next))
}

/// Ends every build that is under way; how many there were.
pub(super) fn fail_all(
    db: &Connection,
    changes: &mut Vec<Committed>,
    words: &str,
    at: i64,
) -> Result<usize, StoreError> {
    let mut query = db.prepare(&format!("SELECT id FROM builds WHERE {UNDER_WAY}"))?;
    let ids = query.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    for id in &ids {
        change(db, changes, id, Event::Failed(words.to_owned()), at)?;
    }
    Ok(ids.len())
}

/// Sandboxes of builds that have not ended.
pub(super) fn builders(db: &Connection) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT sandboxes.id FROM builds JOIN sandboxes ON sandboxes.id = builds.builder_sandbox_id
               WHERE sandboxes.phase <> 'ended'";
    let mut query = db.prepare(sql)?;
    Ok(query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Where the layers of earlier builds are.
pub(super) fn cache(db: &Connection, namespace: &str) -> Result<Option<BuildCache>, StoreError> {
    let mut query = db.prepare_cached("SELECT snapshot_id, builder_image FROM build_caches WHERE namespace = ?1")?;
    let read = |row: &Row<'_>| Ok(BuildCache { snapshot_id: row.get(0)?, builder_image: row.get(1)? });
    Ok(query.query_row([namespace], read).optional()?)
}

/// Replaces that, and gives what it was.
pub(super) fn set_cache(
    db: &Connection,
    namespace: &str,
    new: Option<&BuildCache>,
) -> Result<Option<BuildCache>, StoreError> {
    let before = cache(db, namespace)?;
    match new {
        Some(new) => {
            let sql = "INSERT OR REPLACE INTO build_caches (namespace, snapshot_id, builder_image) VALUES (?1, ?2, ?3)";
            db.prepare_cached(sql)?.execute(params![namespace, new.snapshot_id, new.builder_image])?;
        }
        None => {
            db.prepare_cached("DELETE FROM build_caches WHERE namespace = ?1")?.execute([namespace])?;
        }
    }
    Ok(before)
}
