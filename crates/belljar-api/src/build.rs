//! Image builds as the public API shows them (`/images/v4/builds`).
//!
//! The published clients poll [`BuildInfo`] until its status is one of the last three. For a Dockerfile they then upload the
//! context to where [`StartedBuild`] says, and seal it. Of what they send, the size of the builder means nothing for an
//! import: nothing of the image is run. `disk_mb` means nothing for either: the file system has the size that its files
//! need, and each sandbox grows it to its own `disk_mb`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{error::code, image::ImageInfo, secret::SecretValue};

/// What an image is built of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildKind {
    /// A Dockerfile and its context.
    Dockerfile,
    /// An image of a registry.
    Import,
}

/// Body of `POST /images/v4/builds`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartBuild {
    /// What to build it of.
    pub kind: BuildKind,
    /// Name to give it; capitals count as small letters. If it stands for another image, no longer for that.
    pub name: String,
    /// For an import: `REGISTRY/NAME:TAG` or `NAME@sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_ref: Option<String>,
    /// `global`: it is there for every project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_scope: Option<String>,
    /// Docker's `config.json`, as text; only its `auths` are used. It is kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_credentials_json: Option<SecretValue>,
    /// See the module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u64>,
    /// Path of the Dockerfile in the context; `Dockerfile` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile_path: Option<String>,
    /// Images that the Dockerfile builds on, as the client found them. Another one of the same name by now is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<BuildParent>,
    /// Values of the Dockerfile's `ARG`s. They are seen in the image's history: secrets are not for here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub build_args: BTreeMap<String, String>,
    /// Stage to build; the last one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What `RUN --mount=type=secret,id=…` sees, by id. They are kept nowhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretValue>,
    /// Run every step, also where nothing changed since an earlier build.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
    /// Ask registries whether they have newer images than those that were fetched for an earlier build.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pull: bool,
    /// Size of the sandbox that a Dockerfile is built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder_resources: Option<BuilderResources>,
}

/// An image that a Dockerfile builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildParent {
    /// As the Dockerfile calls it.
    pub reference: String,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_id: Option<String>,
}

/// Size of the sandbox that a Dockerfile is built in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuilderResources {
    /// Processors; 2 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// MiB of memory; 4096 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// MiB of its disk, which holds the layers of this build and those that are kept of earlier ones; 20480 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u64>,
}

/// Where a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// Others are built first.
    Pending,
    /// It is under way.
    Running,
    /// The image is there.
    Succeeded,
    /// There is none.
    Failed,
    /// There is none, as was asked for.
    Cancelled,
}

impl BuildStatus {
    /// Whether it will change no more.
    pub fn is_over(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// How far a build is, in the order in which it gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildPhase {
    /// Its context has not been sealed.
    AwaitingContext,
    /// It has not begun, or the sandbox that it is built in starts.
    StartingBuilder,
    /// The Dockerfile's steps run, or layers are fetched and unpacked.
    Executing,
    /// The file system is packed.
    Snapshotting,
    /// It is hashed and named.
    Publishing,
    /// It is over, however it ended.
    Finished,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildInfo {
    /// `build_` and 21 characters.
    pub build_id: String,
    /// What it is built of.
    pub kind: BuildKind,
    /// Name of the image.
    pub name: String,
    /// Where it stands.
    pub status: BuildStatus,
    /// How far it is.
    pub phase: BuildPhase,
    /// 1: nothing is tried twice without being asked for.
    pub attempt_no: u32,
    /// The `Idempotency-Key` of the request that began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_request_id: Option<String>,
    /// The sandbox that a Dockerfile is built in. What its process `tl-image-builder` says is the log; both go some
    /// seconds after the build's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder_sandbox_id: Option<String>,
    /// Milliseconds since the epoch: a build of a Dockerfile that goes on then fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_deadline_ms: Option<i64>,
    /// Milliseconds since the epoch.
    pub created_at_ms: i64,
    /// Milliseconds since the epoch.
    pub updated_at_ms: i64,
    /// The image of one that succeeded, as it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ImageInfo>,
    /// Why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answer of `POST /images/v4/builds`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartedBuild {
    /// The build.
    #[serde(flatten)]
    pub build: BuildInfo,
    /// Where the context of a Dockerfile goes, while the build waits for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_upload: Option<ContextUpload>,
}

/// Where a context goes: `PUT` it there, as a tar archive that is not packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContextUpload {
    /// Whoever has this URL may upload; no key is asked for.
    pub url: String,
    /// Most bytes of the archive.
    pub max_bytes: u64,
}

/// Body of `POST /images/v4/builds/{id}/context/seal`: the context is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SealContext {
    /// SHA-256 of the archive, in hexadecimal digits.
    pub digest: String,
}

/// Body of `POST /images/v4/builds/cancel`: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CancelBuild {
    /// The build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// The `Idempotency-Key` that it was begun under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_request_id: Option<String>,
}

/// What came of a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelOutcome {
    /// There will be no image of it.
    Cancelled,
    /// The same, from an earlier request.
    AlreadyCancelled,
    /// It was too late: the image is there.
    AlreadyCompleted,
    /// It had failed, or did so first.
    AlreadyFailed,
    /// No build is known under this `client_request_id`. One may still come.
    NotAdmitted,
}

/// Answer of `POST /images/v4/builds/cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CancelledBuild {
    /// What came of it.
    pub outcome: CancelOutcome,
    /// The build, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildInfo>,
}

/// 409: another build makes an image of this name. An [`crate::error::ErrorBody`] that says which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildInProgress {
    /// Words for a person.
    pub error: String,
    /// `image_build_in_progress`
    pub code: String,
    /// The name.
    pub image_name: String,
    /// The other build.
    pub active_build_id: String,
    /// What that is built of.
    pub active_kind: BuildKind,
    /// Where that stands.
    pub active_status: BuildStatus,
}

impl BuildInProgress {
    /// Says that `active` is in the way.
    pub fn new(active: &BuildInfo) -> Self {
        let (name, id) = (&active.name, &active.build_id);
        Self {
            error: format!(
                "build {id} makes an image {name:?} already; wait for it, or cancel it with POST /images/v4/builds/cancel"
            ),
            code: code::IMAGE_BUILD_IN_PROGRESS.to_owned(),
            image_name: name.clone(),
            active_build_id: id.clone(),
            active_kind: active.kind,
            active_status: active.status,
        }
    }
}
