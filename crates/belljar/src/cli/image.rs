//! Arguments of `belljar image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::value;
use crate::env_vars;

/// `belljar image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images of the server
    Ls,
    /// Build an image into the store of this machine
    Build(ImageBuildArgs),
    /// Import an OCI image into the store of this machine
    Import(ImageImportArgs),
    /// Write an image of the store of this machine as an OCI archive, for skopeo, podman and others
    Export(ImageExportArgs),
    /// Show everything about an image of the store of this machine
    Show {
        /// Its name
        #[arg(value_parser = value::image)]
        name: String,
        /// Where the images are.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Give an image of the store of this machine a second name; nothing is copied
    Tag {
        /// Its name
        #[arg(value_parser = value::image)]
        name: String,
        /// The other name; if it stands for another image, no longer for that
        #[arg(value_parser = value::image)]
        new: String,
        /// Where the images are.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Remove a name from the store of this machine, and its image when no other name stands for that
    Rm {
        /// The name
        #[arg(value_parser = value::image)]
        name: String,
        /// Where the images are.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Remove from the store of this machine what no name stands for, and what builds and imports that broke off have left
    Prune {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Where the images are.
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// `belljar image export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Has one layer with all files, and the configuration. Kept are owners, permissions, times, hard and symbolic links, devices, holes \
and extended attributes; not kept are sockets, attributes of chattr, and times other than that of the last change. For example: \
belljar image export tool tool.tar && skopeo copy oci-archive:tool.tar docker://registry.example.com/team/tool:v2")]
pub struct ImageExportArgs {
    /// Its name
    #[arg(value_parser = value::image)]
    pub name: String,
    /// File to write, or - for stdout
    pub file: PathBuf,
    /// Where the images are.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `belljar commit`.
#[derive(Debug, Args)]
#[command(after_help = "\
The image has the files of the sandbox, and the environment, working directory, user, entrypoint and command of the image \
that the sandbox came from. Memory and processes are not in it. It lies on the node that has the sandbox; \
`belljar create --image NAME` makes a sandbox of it.")]
pub struct CommitArgs {
    /// Let the image be there for every project
    #[arg(long)]
    pub public: bool,
    /// Id or name of the sandbox
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
    /// Name to give the image; if it stands for another image, no longer for that
    #[arg(value_parser = value::image)]
    pub name: String,
}

/// Which image store a command works on.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Directory of the images [default: ~/.cache/belljar/store]
    #[arg(long, value_name = "DIR", env = env_vars::IMAGE_STORE, hide_env_values = true)]
    pub image_store: Option<PathBuf>,
}

/// `belljar build`.
#[derive(Debug, Args)]
#[command(after_help = "\
CONTEXT is the directory whose files COPY and ADD see; what its .dockerignore names is not sent. The server builds in a sandbox of \
its own, and keeps the layers for the next build. FROM takes the server's images (belljar image ls) \
and those of registries; the former need no network.

For example: belljar build -t team/tool . && belljar run --image team/tool -- tool --version")]
pub struct BuildArgs {
    /// Name to give the image; if it stands for another one, no longer for that
    #[arg(short, long, value_name = "NAME", value_parser = value::image)]
    pub tag: String,
    /// The Dockerfile [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Value of an ARG; without =VALUE that of the environment. Seen in the image's history; may be repeated
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = value::build_arg)]
    pub build_arg: Vec<(String, String)>,
    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// What RUN --mount=type=secret,id=ID sees: a file, or a variable of the environment; may be repeated
    #[arg(long, value_name = "id=ID[,src=FILE|,env=NAME]", value_parser = value::build_secret)]
    pub secret: Vec<BuildSecret>,
    /// Run every step, also where nothing has changed
    #[arg(long)]
    pub no_cache: bool,
    /// Ask registries whether they have newer images than those that earlier builds fetched
    #[arg(long)]
    pub pull: bool,
    /// Docker's config.json with what registries are told
    #[arg(long, value_name = "FILE")]
    pub registry_auth: Option<PathBuf>,
    /// Show the image to every project
    #[arg(long)]
    pub public: bool,
    /// Processors of the builder [default: 2]
    #[arg(long, value_name = "N")]
    pub cpus: Option<f64>,
    /// Memory of the builder in MiB, or with a unit [default: 4096]
    #[arg(short, long, value_name = "SIZE", value_parser = value::megabytes)]
    pub memory: Option<u64>,
    /// Disk of the builder in MiB, or with a unit; it holds the layers of earlier builds, too [default: 20480]
    #[arg(long, value_name = "SIZE", value_parser = value::megabytes)]
    pub disk: Option<u64>,
    /// Directory with the files
    pub context: PathBuf,
}

/// A secret of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildSecret {
    /// Its id.
    pub id: String,
    /// Where its value is.
    pub from: SecretSource,
}

/// Where the value of a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file.
    File(PathBuf),
    /// In a variable of the environment.
    Env(String),
}

/// `belljar image build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Builds on this machine, into its own store; a server elsewhere does not see it. Needs root, mmdebstrap and e2fsprogs. \
The same package versions give the same image, which is then not built again.")]
pub struct ImageBuildArgs {
    /// Name to give it [default: belljar/debian]; belljar/builder is what Dockerfiles are built in, belljar/debian-systemd has systemd and Docker
    #[arg(value_parser = value::image)]
    pub name: Option<String>,
    /// Debian suite [default: bookworm; trixie for belljar/builder and belljar/debian-systemd]
    #[arg(long, value_parser = belljar_image::SUITES)]
    pub suite: Option<String>,
    /// Size of its file system in MiB, or with a unit; a sandbox grows it to its disk [default: chosen by the build]
    #[arg(long, value_name = "SIZE", value_parser = value::megabytes)]
    pub size: Option<u64>,
    /// Another Debian package to install; may be repeated
    #[arg(short, long, value_name = "PACKAGE")]
    pub package: Vec<String>,
    /// Debian mirror [default: the one of this machine]
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Build even when nothing has changed
    #[arg(long)]
    pub force: bool,
    /// Where the images are.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// `belljar image import`.
#[derive(Debug, Args)]
#[command(after_help = "\
SOURCE is an image of a registry (debian:12, registry.example.com/team/tool:v2, or pinned: NAME@sha256:…), of a directory in \
the OCI image layout (oci:DIR[:TAG]) or of a file that `docker save` wrote (docker-archive:FILE[:NAME:TAG]). Without \
--username the registry is told what `docker login` stored.

Works on this machine, into its own store; a server elsewhere does not see it. Needs root and e2fsprogs. Nothing of the \
image is run. A sandbox takes over its environment, working directory and user; where the image names none: / and root. \
What broke off goes on where it ended when the command is called again. The same layers give the same image, which is then \
not made again.")]
pub struct ImageImportArgs {
    /// Where it is, see below
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Name to give it [default: the last part of the repository, with its tag]
    #[arg(long, value_name = "NAME", value_parser = value::image)]
    pub name: Option<String>,
    /// Which variant of it: OS/ARCH or OS/ARCH/VARIANT [default: linux on the processor of this machine]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Speak to the registry over HTTP, or over HTTPS with a certificate that nobody knows, if need be
    #[arg(long)]
    pub insecure: bool,
    /// User whose name the registry is told; needs --password-stdin
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    pub username: Option<String>,
    /// Read that user's password or access token from stdin
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
    /// Size of its file system in MiB, or with a unit; a sandbox grows it to its disk [default: what its files need]
    #[arg(long, value_name = "SIZE", value_parser = value::megabytes)]
    pub size: Option<u64>,
    /// Import even when nothing has changed
    #[arg(long)]
    pub force: bool,
    /// Where the images are.
    #[command(flatten)]
    pub store: StoreArgs,
}
