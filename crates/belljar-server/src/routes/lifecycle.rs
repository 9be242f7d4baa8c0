//! Sandboxes and what belongs to them: flat, and below a namespace.

use super::{Op, PAGE, Route, Verb, lifecycle};

const INTERNAL: &str = "`true`: what the server made for itself to build images, too; default `false`.";
const WAIT: &[(&str, &str)] = &[("wait_ms", "Wait at most so long, up to 120000 ms; default 0.")];

/// See the module.
pub(super) static ROUTES: &[Route] = &[
    lifecycle(
        Verb::Post,
        "/sandboxes",
        Op::CreateSandbox,
        "Create a sandbox",
        &[
            (200, "CreatedSandbox", "It is running."),
            (202, "AcceptedSandbox", "Answer to `wait:false`."),
            (409, "ErrorBody", "The name is in use."),
            (422, "CreatedSandbox", "It failed; `reason` and `error_details` say why."),
            (504, "CreatedSandbox", "Still pending at the deadline; it goes on."),
        ],
    )
    .body("CreateSandbox"),
    lifecycle(
        Verb::Get,
        "/sandboxes",
        Op::ListSandboxes,
        "List live sandboxes, oldest first",
        &[(200, "SandboxList", "All of them, or one page when `limit` is given.")],
    )
    .query(&[
        ("status", "Only those with this status."),
        ("internal", INTERNAL),
        ("limit", "Most rows, 1 to 1000."),
        ("cursor", "Begin where an earlier answer's cursor says."),
    ]),
    lifecycle(
        Verb::Get,
        "/sandboxes/{ref}",
        Op::GetSandbox,
        "Show a sandbox by id, or a live one by name",
        &[(200, "SandboxInfo", "The sandbox, also when it has ended.")],
    ),
    lifecycle(
        Verb::Get,
        "/sandboxes/{ref}/network",
        Op::GetNetworkUse,
        "Count what has passed through a sandbox's network",
        &[
            (200, "NetworkUse", "Since its VM process began."),
            (
                404,
                "ErrorBody",
                "There is no such sandbox, or nothing is counted now: it is asleep, or rules do not hold there.",
            ),
        ],
    ),
    lifecycle(
        Verb::Patch,
        "/sandboxes/{ref}",
        Op::PatchSandbox,
        "Change a live sandbox",
        &[
            (200, "SandboxInfo", "As it is now; of one that is awake, new rules of its network hold."),
            (409, "ErrorBody", "The name is in use, or the sandbox has ended."),
        ],
    )
    .body("PatchSandbox"),
    lifecycle(
        Verb::Delete,
        "/sandboxes/{ref}",
        Op::DeleteSandbox,
        "Terminate a sandbox; again is no error",
        &[(200, "", "It is terminated.")],
    ),
    lifecycle(
        Verb::Post,
        "/sandboxes/{ref}/suspend",
        Op::SuspendSandbox,
        "Put a named sandbox to sleep, its state kept",
        &[
            (200, "SandboxInfo", "It sleeps."),
            (202, "SandboxInfo", "Its node is at it."),
            (400, "ErrorBody", "It has no name, or is not running yet, or has ended."),
            (409, "ErrorBody", "It did not happen, and why; or it is being resumed."),
        ],
    )
    .query(WAIT),
    lifecycle(
        Verb::Post,
        "/sandboxes/{ref}/resume",
        Op::ResumeSandbox,
        "Wake a sandbox",
        &[
            (200, "SandboxInfo", "It runs."),
            (202, "SandboxInfo", "Its node is at it."),
            (400, "ErrorBody", "It is not running yet, or has ended."),
            (409, "ErrorBody", "It did not happen, and why; or it is still being suspended."),
        ],
    )
    .query(WAIT),
    lifecycle(
        Verb::Post,
        "/sandboxes/{ref}/rollback",
        Op::RollbackSandbox,
        "Put a sandbox back to one of its own memory snapshots",
        &[
            (200, "SandboxInfo", "It runs, as it was then."),
            (202, "SandboxInfo", "Its node is at it."),
            (400, "ErrorBody", "The snapshot is not completed, of another sandbox, or of the file system only."),
            (409, "ErrorBody", "It did not happen, and why; or something else is under way."),
        ],
    )
    .body("Rollback")
    .query(WAIT),
    lifecycle(
        Verb::Post,
        "/sandboxes/{ref}/copy",
        Op::CopySandbox,
        "Copy a running sandbox; with an `Idempotency-Key` header the same request gives the same copies for 24 hours",
        &[
            (200, "CopiedSandboxes", "They are running."),
            (400, "ErrorBody", "It is not running yet, or has ended."),
            (409, "ErrorBody", "It sleeps, the memory does not suffice, or the key belongs to another request."),
            (422, "CopiedSandboxes", "At least one failed; each says how it stands."),
            (504, "CopiedSandboxes", "At least one is still pending at the deadline; it goes on."),
        ],
    )
    .query(&[("times", "How many, 1 to 100; default 1.")]),
    lifecycle(
        Verb::Post,
        "/sandboxes/{ref}/snapshot",
        Op::TakeSnapshot,
        "Take a snapshot of a running sandbox, which goes on",
        &[
            (202, "AcceptedSnapshot", "Its node is at it."),
            (400, "ErrorBody", "It is not running yet, has ended, or is being snapshotted already."),
            (409, "ErrorBody", "It sleeps; resume it first."),
        ],
    )
    .body("CreateSnapshot"),
    lifecycle(
        Verb::Get,
        "/sandboxes/{ref}/snapshots",
        Op::ListSandboxSnapshots,
        "List the snapshots of a sandbox, newest first",
        &[(200, "SnapshotList", "One page.")],
    )
    .query(PAGE),
    lifecycle(
        Verb::Get,
        "/snapshots",
        Op::ListSnapshots,
        "List snapshots, newest first",
        &[(200, "SnapshotList", "One page.")],
    )
    .query(&[
        ("limit", "Most rows, 1 to 1000."),
        ("cursor", "Begin where an earlier answer's cursor says."),
        ("internal", INTERNAL),
    ]),
    lifecycle(
        Verb::Get,
        "/snapshots/{id}",
        Op::GetSnapshot,
        "Show a snapshot",
        &[(200, "SnapshotInfo", "The snapshot.")],
    )
    .query(&[("wait_ms", "While it is in progress wait at most so long, up to 120000 ms; default 0.")]),
    lifecycle(
        Verb::Delete,
        "/snapshots/{id}",
        Op::DeleteSnapshot,
        "Delete a snapshot; those made from it, and sandboxes, keep what they have",
        &[(200, "", "It is being deleted, and soon unknown.")],
    ),
    lifecycle(
        Verb::Get,
        "/snapshots/{id}/diff/{other}",
        Op::DiffSnapshots,
        "Compare the files of two snapshots",
        &[(200, "SnapshotDiff", "What is added, removed or changed in the second.")],
    ),
    lifecycle(
        Verb::Get,
        "/tree",
        Op::ShowTree,
        "Show which sandbox and snapshot came from which",
        &[(200, "Tree", "Oldest first.")],
    )
    .query(&[("internal", INTERNAL)]),
    lifecycle(
        Verb::Get,
        "/archived-sandboxes",
        Op::ListArchived,
        "List terminated sandboxes, last ended first",
        &[(200, "ArchivedList", "One page.")],
    )
    .query(&[
        ("limit", "Most rows, 1 to 1000; default 100."),
        ("cursor", "Begin where an earlier answer's cursor says."),
        ("direction", "`forward` (older) or `backward` (newer)."),
        ("internal", INTERNAL),
    ]),
    lifecycle(
        Verb::Get,
        "/archived-sandboxes/{id}",
        Op::GetArchived,
        "Show a terminated sandbox",
        &[(200, "SandboxInfo", "The sandbox.")],
    ),
    lifecycle(
        Verb::Get,
        "/sandboxes/{ref}/logs",
        Op::GetLogs,
        "Read a sandbox's log",
        &[(200, "LogPage", "One page.")],
    )
    .query(&[
        ("level", "Only this level, 1 to 6; may repeat."),
        ("processId", "Only this process; may repeat."),
        ("nextToken", "Go on where an earlier page ended."),
        ("head", "Only the first so many lines."),
        ("tail", "Only the last so many lines."),
        ("body", "Only lines that contain this text."),
    ]),
    lifecycle(
        Verb::Get,
        "/sandboxes/{ref}/processes",
        Op::GetLogProcesses,
        "List the processes in a log",
        &[(200, "LogProcessList", "In order of their first line.")],
    ),
    lifecycle(
        Verb::Post,
        "/sandbox-pools",
        Op::CreatePool,
        "Create a pool of warm sandboxes",
        &[(200, "CreatedPool", "It is being filled.")],
    )
    .body("PoolRequest"),
    lifecycle(Verb::Get, "/sandbox-pools", Op::ListPools, "List pools", &[(200, "PoolList", "Oldest first.")]),
    lifecycle(
        Verb::Get,
        "/sandbox-pools/{id}",
        Op::GetPool,
        "Show a pool and its sandboxes",
        &[(200, "PoolInfo", "The pool.")],
    ),
    lifecycle(
        Verb::Put,
        "/sandbox-pools/{id}",
        Op::ReplacePool,
        "Replace what a pool is; warm sandboxes that differ are replaced",
        &[(200, "PoolInfo", "As it is now.")],
    )
    .body("PoolRequest"),
    lifecycle(
        Verb::Delete,
        "/sandbox-pools/{id}",
        Op::DeletePool,
        "Delete a pool and its warm sandboxes",
        &[(200, "", "It is gone."), (409, "ErrorBody", "Claimed sandboxes of it live.")],
    ),
    lifecycle(
        Verb::Post,
        "/sandbox-pools/{id}/sandboxes",
        Op::ClaimSandbox,
        "Take a sandbox out of a pool: a warm one at once, else a new one",
        &[
            (200, "CreatedSandbox", "It is running."),
            (422, "CreatedSandbox", "It failed; `reason` and `error_details` say why."),
            (429, "ErrorBody", "The pool has as many sandboxes as it may."),
            (504, "CreatedSandbox", "Still pending at the deadline; it goes on."),
        ],
    ),
];
