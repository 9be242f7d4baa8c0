//! The command line: definitions only, and the parsers of single values. What a command does is in
//! [`crate::commands`]; where a value comes from when it is not given here is in [`crate::settings`].

mod image;
mod local;
mod sandbox;
mod ssh;
mod state;
pub mod value;

use std::path::PathBuf;

use clap::{
    Args, Parser, Subcommand,
    builder::styling::{AnsiColor, Styles},
};

pub use self::{
    image::{
        BuildArgs, BuildSecret, CommitArgs, ImageBuildArgs, ImageCommand, ImageExportArgs, ImageImportArgs,
        SecretSource, StoreArgs,
    },
    local::{DownArgs, KeyCommand, SecretCommand, SecretSetArgs, UpArgs, VmmCommand, VmmInstallArgs},
    sandbox::{
        CpArgs, CreateArgs, ExecArgs, KillArgs, LifeArgs, LogsArgs, LsArgs, MachineArgs, ProgramArgs, RmArgs, RunArgs,
        ShellArgs, SizeArgs, TunnelArgs,
    },
    ssh::{SshArgs, SshConfigArgs, SshKeyCommand},
    state::{ForkArgs, PoolArgs, PoolCommand, RestoreArgs, SnapshotCommand, SnapshotCreateArgs, StateArgs},
};
use crate::env_vars;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong command line. `run`, `exec` and `shell` end with the exit code of their \
program (128 + signal), 124 when --timeout stopped it, 127 when there is no such program, and 125 when it could not \
be run for another reason.

First steps: `belljar doctor`, `belljar up --detach`, `belljar run python3 -c 'print(1)'`.";

/// Run untrusted code in virtual machines of your own.
#[derive(Debug, Parser)]
#[command(name = "belljar", version, styles = STYLES, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Print data and errors only: no progress, no notes
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Address of the server [default: http://127.0.0.1:8900]
    #[arg(long, global = true, value_name = "URL", env = env_vars::API_URL, hide_env_values = true)]
    pub api_url: Option<String>,
    /// API key [default: the one that `belljar up` made on this machine]
    #[arg(long, global = true, value_name = "KEY", env = env_vars::API_KEY, hide_env_values = true)]
    pub api_key: Option<String>,
    /// Certificates (PEM) that are trusted beside the system's when the address is https://
    #[arg(long, global = true, value_name = "FILE", env = env_vars::CA, hide_env_values = true)]
    pub ca: Option<PathBuf>,
    /// Directory of `belljar up` [default: /var/lib/belljar for root, else ~/.local/share/belljar]
    #[arg(long, global = true, value_name = "DIR", env = env_vars::DATA_DIR, hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
    /// Configuration file [default: ~/.config/belljar/config.toml]
    #[arg(long, global = true, value_name = "FILE", env = env_vars::CONFIG_FILE, hide_env_values = true)]
    pub config: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the server and run sandboxes on this machine
    Up(Box<UpArgs>),
    /// Stop what `up` started
    Down(DownArgs),
    /// Find out what this machine can do
    Doctor,
    /// Make a sandbox and print its id
    Create(CreateArgs),
    /// List sandboxes
    Ls(LsArgs),
    /// Show everything about a sandbox
    Show {
        /// Id or name
        #[arg(value_name = "SANDBOX", value_parser = value::reference)]
        sandbox: String,
    },
    /// Run a program in a sandbox of its own, which is removed afterwards
    Run(RunArgs),
    /// Run a program in a sandbox
    Exec(ExecArgs),
    /// Open a terminal in a sandbox
    Shell(ShellArgs),
    /// Open an SSH connection to a sandbox
    Ssh(SshArgs),
    /// Print what OpenSSH's configuration file needs to know of a sandbox
    SshConfig(SshConfigArgs),
    /// Copy files and directories to or from a sandbox
    Cp(CpArgs),
    /// List the processes of a sandbox
    Ps {
        /// Id or name
        #[arg(value_name = "SANDBOX", value_parser = value::reference)]
        sandbox: String,
    },
    /// Send a signal to a process of a sandbox
    Kill(KillArgs),
    /// Show what the programs of a sandbox wrote, also after its end
    Logs(LogsArgs),
    /// Reach a TCP port inside a sandbox from this machine
    Tunnel(TunnelArgs),
    /// End sandboxes
    Rm(RmArgs),
    /// Put a named sandbox to sleep, its memory and files kept
    Suspend(StateArgs),
    /// Wake a sandbox; whatever uses it does that, too
    Resume(StateArgs),
    /// Take, list, show and delete snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make an image of the files of a running sandbox, which goes on
    Commit(CommitArgs),
    /// Build an image from a Dockerfile, in a sandbox
    Build(BuildArgs),
    /// Make a sandbox from a snapshot and print its id
    Restore(RestoreArgs),
    /// Copy a running sandbox, memory and all, and print the ids of the copies
    Fork(ForkArgs),
    /// Put a sandbox back to one of its own memory snapshots
    Rollback {
        /// Id or name
        #[arg(value_name = "SANDBOX", value_parser = value::reference)]
        sandbox: String,
        /// Id of the snapshot
        #[arg(value_name = "SNAPSHOT", value_parser = value::id)]
        snapshot: String,
    },
    /// Show which sandbox and snapshot came from which
    Tree {
        /// Show what the server made for itself to build images, too
        #[arg(long)]
        internal: bool,
    },
    /// Show which files differ between two snapshots
    Diff {
        /// Id of the first snapshot
        #[arg(value_name = "SNAPSHOT", value_parser = value::id)]
        first: String,
        /// Id of the second
        #[arg(value_name = "OTHER", value_parser = value::id)]
        second: String,
    },
    /// Keep sandboxes warm, to be had at once
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Show what takes space on the server's disks
    Df,
    /// Remove what no snapshot and no sandbox needs
    Gc,
    /// List, show, build, import, export, name and remove images
    #[command(subcommand)]
    Image(ImageCommand),
    /// List and install the programs that run virtual machines
    #[command(subcommand)]
    Vmm(VmmCommand),
    /// List, make and revoke API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// List, put and remove the secrets that sandboxes use without having them
    #[command(subcommand)]
    Secret(SecretCommand),
    /// List, add and remove the SSH keys that open sandboxes
    #[command(subcommand)]
    SshKey(SshKeyCommand),
    /// Print the two lines that point a Tensorlake SDK at this server
    ///
    /// Use it as: eval "$(belljar env)"
    Env,
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the OpenAPI document of the server
    #[command(hide = true)]
    Openapi,
    /// Make the jail of a VM process; `up` calls it
    #[command(hide = true)]
    Jail,
}
