//! The one error body of every plane: `{"error": "<message>", "code": "<CODE>"}`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a failed request answers, with the fitting HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Words for a person: what was wrong and what to do.
    pub error: String,
    /// One of [`code`]; stable, for programs.
    pub code: String,
}

impl ErrorBody {
    /// An error body with one of the constants of [`code`].
    pub fn new(code: &str, error: impl Into<String>) -> Self {
        Self { error: error.into(), code: code.to_owned() }
    }
}

/// Stable error codes. The published clients act on those marked (client): the *undelivered* codes make them
/// replay a request, so they may only be sent when nothing ran.
pub mod code {
    /// 400: the request's body, query or header has a wrong value.
    pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
    /// 401: no key, or one that is not known.
    pub const UNAUTHENTICATED: &str = "UNAUTHENTICATED";
    /// 403: the key is known and may not do this.
    pub const FORBIDDEN: &str = "FORBIDDEN";
    /// 404: a route, process, file or image that is not there.
    pub const NOT_FOUND: &str = "NOT_FOUND";
    /// 405: the route exists, the method does not.
    pub const METHOD_NOT_ALLOWED: &str = "METHOD_NOT_ALLOWED";
    /// 404: no sandbox has this id or name.
    pub const SANDBOX_NOT_FOUND: &str = "SANDBOX_NOT_FOUND";
    /// 409: a live sandbox has this name.
    pub const NAME_IN_USE: &str = "NAME_IN_USE";
    /// 409: the sandbox's state does not allow this.
    pub const CONFLICT: &str = "CONFLICT";
    /// 413: the body is larger than the limit.
    pub const PAYLOAD_TOO_LARGE: &str = "PAYLOAD_TOO_LARGE";
    /// 415: a JSON body was expected.
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "UNSUPPORTED_MEDIA_TYPE";
    /// 501: a part of the wire protocol that this release does not have.
    pub const NOT_IMPLEMENTED: &str = "NOT_IMPLEMENTED";
    /// 500: our fault; the request id is in the log.
    pub const INTERNAL_ERROR: &str = "INTERNAL_ERROR";
    /// 507: no space left on the disk of the host or of the sandbox.
    pub const NO_SPACE: &str = "NO_SPACE";

    /// 409: no node has the memory free; nothing was made.
    pub const NO_RESOURCES: &str = "NO_RESOURCES";
    /// 404: no snapshot has this id.
    pub const SNAPSHOT_NOT_FOUND: &str = "SNAPSHOT_NOT_FOUND";
    /// 404: no pool has this id.
    pub const POOL_NOT_FOUND: &str = "POOL_NOT_FOUND";
    /// 503: the sandbox sleeps and was told not to wake by itself.
    pub const SANDBOX_AUTO_RESUME_DISABLED: &str = "SANDBOX_AUTO_RESUME_DISABLED";
    /// 503: the sandbox is not running and will not by itself.
    pub const SANDBOX_NOT_RUNNING: &str = "SANDBOX_NOT_RUNNING";
    /// 503 (client, undelivered): booting or waking; try again.
    pub const SANDBOX_NOT_READY: &str = "SANDBOX_NOT_READY";
    /// 503 (client, undelivered): the node that runs it is not connected.
    pub const SANDBOX_UNREACHABLE: &str = "SANDBOX_UNREACHABLE";
    /// 400: a data-plane request that names no sandbox.
    pub const MISSING_SANDBOX_ID: &str = "MISSING_SANDBOX_ID";
    /// 403: the port is not in `exposed_ports`.
    pub const PORT_NOT_EXPOSED: &str = "PORT_NOT_EXPOSED";
    /// 502: nobody listens on the port.
    pub const CONNECTION_REFUSED: &str = "CONNECTION_REFUSED";
    /// 502: the guest closed the connection before it answered.
    pub const CONNECTION_CLOSED: &str = "CONNECTION_CLOSED";
    /// 504: the guest did not answer in time.
    pub const READ_TIMEOUT: &str = "READ_TIMEOUT";
    /// 502: any other failure between the proxy and the guest.
    pub const PROXY_ERROR: &str = "PROXY_ERROR";

    /// 409 (client): another build makes an image of this name.
    pub const IMAGE_BUILD_IN_PROGRESS: &str = "image_build_in_progress";
    /// 409 (client): the idempotency key of a build came again with another body.
    pub const CLIENT_REQUEST_ID_MISMATCH: &str = "client_request_id_mismatch";

    /// 400: a directory where a file is meant.
    pub const IS_DIRECTORY: &str = "IS_DIRECTORY";
    /// 400: a file where a directory is meant.
    pub const NOT_A_DIRECTORY: &str = "NOT_A_DIRECTORY";
    /// 403: a path that contains `..`.
    pub const PATH_TRAVERSAL: &str = "PATH_TRAVERSAL";
    /// 403: the guest's kernel refused.
    pub const PERMISSION_DENIED: &str = "PERMISSION_DENIED";
    /// 400: the process has no open stdin.
    pub const STDIN_NOT_WRITABLE: &str = "STDIN_NOT_WRITABLE";
    /// 429: too many terminal sessions.
    pub const TOO_MANY_SESSIONS: &str = "TOO_MANY_SESSIONS";
    /// 429: too many processes or connections.
    pub const TOO_MANY: &str = "TOO_MANY";
    /// 403: a terminal token that does not fit.
    pub const INVALID_TOKEN: &str = "INVALID_TOKEN";
    /// 404: no such terminal session.
    pub const SESSION_NOT_FOUND: &str = "SESSION_NOT_FOUND";
}
