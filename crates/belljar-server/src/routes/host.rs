//! Keys, images, the server itself.

use super::{Answers, Auth, BYTES, HEALTH_PATH, Op, Route, Verb, route};

const GONE: Answers = &[
    (204, "", "It is gone."),
    (403, "ErrorBody", "It is one of those that come with the server (`belljar/…`)."),
    (404, "ErrorBody", "There is no such image; the words name those that there are."),
];

/// See the module.
pub(super) static ROUTES: &[Route] = &[
    route(
        Verb::Post,
        "/platform/v1/keys/introspect",
        Op::IntrospectKey,
        "Say whose key this is",
        &[(200, "Introspection", "The key's id and scope.")],
    ),
    route(Verb::Get, "/platform/v1/keys", Op::ListKeys, "List API keys", &[(200, "KeyList", "Without their secrets.")]),
    route(
        Verb::Post,
        "/platform/v1/keys",
        Op::CreateKey,
        "Make an API key",
        &[(201, "CreatedKey", "The only answer that ever shows the secret.")],
    )
    .body("CreateKey"),
    route(
        Verb::Delete,
        "/platform/v1/keys/{id}",
        Op::DeleteKey,
        "Remove an API key; it is refused at once",
        &[(200, "", "It is removed."), (409, "ErrorBody", "It is the only one.")],
    ),
    route(
        Verb::Get,
        "/platform/v1/users/me/ssh-keys",
        Op::ListSshKeys,
        "List the SSH keys of the project",
        &[(200, "SshKeyList", "Oldest first.")],
    ),
    route(
        Verb::Post,
        "/platform/v1/users/me/ssh-keys",
        Op::AddSshKey,
        "Add a public SSH key; it opens every sandbox of the project, and goes with the API key that added it",
        &[(201, "SshKeyInfo", "It is added."), (409, "ErrorBody", "It was added before.")],
    )
    .body("AddSshKey"),
    route(
        Verb::Delete,
        "/platform/v1/users/me/ssh-keys/{id}",
        Op::DeleteSshKey,
        "Remove an SSH key; connections that it opened are closed",
        &[(200, "", "It is removed.")],
    ),
    route(
        Verb::Get,
        "/platform/v1/ssh-gateway",
        Op::ShowSshGateway,
        "Show where `ssh` finds the sandboxes, and the host key",
        &[(200, "SshGateway", "Port and host key."), (404, "ErrorBody", "The server does not listen for SSH.")],
    ),
    route(
        Verb::Get,
        "/platform/v1/secrets",
        Op::ListSecrets,
        "List secrets, without their values",
        &[(200, "SecretList", "By name.")],
    ),
    route(
        Verb::Put,
        "/platform/v1/secrets",
        Op::PutSecrets,
        "Put one secret or several: new ones, or what changes; sandboxes that use one have the new value at once",
        &[(200, "SecretInfo", "It is put. The answer to several is a SecretList.")],
    )
    .body("PutSecrets"),
    route(
        Verb::Get,
        "/platform/v1/secrets/{id}",
        Op::GetSecret,
        "Show a secret by id or name, without its value",
        &[(200, "SecretInfo", "The secret.")],
    ),
    route(
        Verb::Delete,
        "/platform/v1/secrets/{id}",
        Op::DeleteSecret,
        "Remove a secret by id or name; no request carries it any more",
        &[(200, "", "It is removed.")],
    ),
    route(
        Verb::Get,
        "/images/v4/images",
        Op::ListImages,
        "List images",
        &[(200, "ImageList", "By name: all of them, up to 1000, or one page.")],
    )
    .query(&[
        ("page_size", "Most images, 1 to 1000."),
        ("cursor", "Begin where an earlier answer's `pagination.next` says."),
    ]),
    route(
        Verb::Get,
        "/images/v4/images/name/{name}",
        Op::GetImage,
        "Show an image by name; slashes as they are",
        &[(200, "ImageInfo", "The image.")],
    ),
    route(
        Verb::Post,
        "/images/v4/images/from-snapshot",
        Op::ImageFromSnapshot,
        "Make an image of a filesystem snapshot",
        &[
            (201, "ImageInfo", "It is made, and named."),
            (400, "ErrorBody", "The snapshot is not completed or holds memory, or no image can have the name."),
            (403, "ErrorBody", "The name is one of those that come with the server (`belljar/…`)."),
            (409, "ErrorBody", "An image of this name is being made."),
            (507, "ErrorBody", "There is no room for it."),
        ],
    )
    .body("ImageFromSnapshot"),
    route(
        Verb::Delete,
        "/images/v4/images/name/{name}",
        Op::DeleteImage,
        "Remove an image's name, and the image with its last one; sandboxes keep what they have",
        GONE,
    ),
    route(
        Verb::Get,
        "/images/v4/images/{id}",
        Op::GetImageById,
        "Show an image by id; of its names the first",
        &[(200, "ImageInfo", "The image.")],
    ),
    route(
        Verb::Delete,
        "/images/v4/images/{id}",
        Op::DeleteImageById,
        "Remove an image with all its names; sandboxes keep what they have",
        GONE,
    ),
    route(
        Verb::Post,
        "/images/v4/builds",
        Op::StartBuild,
        "Start to build an image of a Dockerfile, or to import one of a registry; with an `Idempotency-Key`, the same request \
         again finds the same build",
        &[
            (201, "StartedBuild", "It has begun, or had: upload the context where one is wanted, and poll it."),
            (400, "ErrorBody", "A value is missing or wrong."),
            (403, "ErrorBody", "The name is one of those that come with the server (`belljar/…`)."),
            (409, "BuildInProgress", "Another build makes an image of this name, or the key was used with another body."),
            (429, "ErrorBody", "Too many builds are under way."),
            (503, "ErrorBody", "No node is connected."),
        ],
    )
    .body("StartBuild"),
    route(
        Verb::Put,
        "/images/v4/builds/{id}/context",
        Op::PutContext,
        "Upload the context of a Dockerfile, a tar archive; to the whole URL that the build's start answered no key is needed",
        &[
            (200, "", "It is there; seal it."),
            (404, "ErrorBody", "No build waits for a context under this URL."),
            (409, "ErrorBody", "It is being uploaded, or sealed."),
            (413, "ErrorBody", "It is too large."),
        ],
    )
    .query(&[("token", "What the URL has.")])
    .body(BYTES),
    route(
        Verb::Post,
        "/images/v4/builds/{id}/context/seal",
        Op::SealContext,
        "Say that the context of a Dockerfile is complete; the build then goes on",
        &[
            (200, "BuildInfo", "It goes on."),
            (400, "ErrorBody", "What was uploaded has another digest."),
            (409, "ErrorBody", "Nothing whole was uploaded, or the build waits for none."),
        ],
    )
    .body("SealContext"),
    route(
        Verb::Get,
        "/images/v4/builds/{id}",
        Op::GetBuild,
        "Show a build; one that is over is remembered for a week",
        &[(200, "BuildInfo", "How far it is, and what came of it."), (404, "ErrorBody", "No such build is known.")],
    ),
    route(
        Verb::Post,
        "/images/v4/builds/cancel",
        Op::CancelBuild,
        "Cancel a build, by its id or its `Idempotency-Key`",
        &[
            (200, "CancelledBuild", "What came of it: the image may have been there first."),
            (404, "ErrorBody", "No build with this id is known."),
        ],
    )
    .body("CancelBuild"),
    route(
        Verb::Get,
        "/platform/v1/storage",
        Op::ShowStorage,
        "Show what takes space on the nodes",
        &[(200, "StorageList", "One for each connected node.")],
    ),
    route(
        Verb::Post,
        "/platform/v1/storage/gc",
        Op::CollectGarbage,
        "Remove what no snapshot and no sandbox needs",
        &[(200, "CollectedList", "What was freed, one for each connected node.")],
    ),
    route(Verb::Get, HEALTH_PATH, Op::Health, "Say that the server answers", &[(200, "Health", "It does.")])
        .auth(Auth::Nobody),
    route(
        Verb::Post,
        belljar_api::node::CONNECT_PATH,
        Op::ConnectNode,
        "Connect a node (HTTP upgrade)",
        &[(101, "", "The connection is the node protocol's.")],
    )
    .auth(Auth::Node),
];
