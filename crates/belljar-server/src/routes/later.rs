//! Parts of the wire protocol that a later release brings: they answer 501 with words on what to do meanwhile.

use super::{Route, Verb, later, later_lifecycle};

const MOUNT: &str = "file systems come in a later release; copy files in and out of the sandbox";
const BUILD: &str = "builds that the client itself drives come in a later release; POST /images/v4/builds builds from a \
                     Dockerfile, which newer clients do";
const ORGANIZATION: &str = "organizations come in a later release; there is one, with one project";

/// See the module.
pub(super) static ROUTES: &[Route] = &[
    later_lifecycle(Verb::Post, "/sandboxes/{ref}/file_systems", MOUNT),
    later_lifecycle(Verb::Delete, "/sandboxes/{ref}/file_systems", MOUNT),
    later(Verb::Get, "/platform/v1/sandbox-templates", BUILD),
    later(Verb::Post, "/platform/v1/sandbox-templates", BUILD),
    later(Verb::Post, "/platform/v1/sandbox-template-builds", BUILD),
    later(Verb::Post, "/platform/v1/sandbox-template-builds/{id}/complete", BUILD),
    later(Verb::Get, "/platform/v1/organizations", ORGANIZATION),
    later(Verb::Get, "/platform/v1/organizations/{org}/projects/{project}", ORGANIZATION),
    later(Verb::Post, "/artifact-storage/v1/token", MOUNT),
];
