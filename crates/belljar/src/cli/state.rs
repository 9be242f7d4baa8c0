//! Arguments of the commands that are about the state of sandboxes: sleep, snapshots, copies, pools.

use clap::{Args, Subcommand};

use super::{
    sandbox::{LifeArgs, MachineArgs, SizeArgs},
    value,
};

/// `belljar suspend` and `belljar resume`.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// Return at once, while the server is still at it
    #[arg(long)]
    pub no_wait: bool,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
}

/// `belljar snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a running sandbox and print its id; the sandbox goes on
    Create(SnapshotCreateArgs),
    /// List snapshots, newest first
    Ls {
        /// Only those of this sandbox: id or name
        #[arg(value_parser = value::reference)]
        sandbox: Option<String>,
        /// Show what the server keeps of its image builds, too
        #[arg(long)]
        internal: bool,
    },
    /// Show everything about a snapshot
    Show {
        /// Its id
        #[arg(value_parser = value::id)]
        snapshot: String,
    },
    /// Delete snapshots; what came from them keeps what it has
    Rm {
        /// Their ids
        #[arg(required = true, value_name = "SNAPSHOT", value_parser = value::id)]
        snapshots: Vec<String>,
    },
}

/// `belljar snapshot create`.
#[derive(Debug, Args)]
pub struct SnapshotCreateArgs {
    /// Keep memory and processes, too: a sandbox restored from it goes on where this one stood
    #[arg(long, conflicts_with = "filesystem")]
    pub memory: bool,
    /// Keep the files only: a sandbox restored from it boots, and may have other cpus and memory [default]
    #[arg(long)]
    pub filesystem: bool,
    /// Return at once, while it is still being written
    #[arg(long)]
    pub no_wait: bool,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
}

/// `belljar restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is not given is as the snapshot's source had it, but for the name. A memory snapshot fixes cpus and memory; the \
disk can only grow.")]
pub struct RestoreArgs {
    /// Its size, where it is to differ.
    #[command(flatten)]
    pub size: SizeArgs,
    /// How it lives.
    #[command(flatten)]
    pub life: LifeArgs,
    /// Id of the snapshot
    #[arg(value_parser = value::id)]
    pub snapshot: String,
}

/// `belljar fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// How many copies
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub times: u16,
    /// The same key with the same request within 24 hours gives the same copies
    #[arg(long, value_name = "TEXT")]
    pub idempotency_key: Option<String>,
    /// Id or name of a running sandbox
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
}

/// `belljar pool`.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool of warm sandboxes and print its id
    Create(PoolArgs),
    /// List pools
    Ls,
    /// Show a pool and its sandboxes
    Show {
        /// Its id
        #[arg(value_parser = value::id)]
        pool: String,
    },
    /// Change a pool: what is not given stays
    Update {
        /// What is to differ.
        #[command(flatten)]
        args: PoolArgs,
        /// Its id
        #[arg(value_parser = value::id)]
        pool: String,
    },
    /// Remove a pool with its warm sandboxes; refused while claimed ones live
    Rm {
        /// Its id
        #[arg(value_parser = value::id)]
        pool: String,
    },
    /// Take a running sandbox out of a pool and print its id
    Claim {
        /// Id of the pool
        #[arg(value_parser = value::id)]
        pool: String,
    },
}

/// What a pool is like.
#[derive(Debug, Args)]
pub struct PoolArgs {
    /// What its sandboxes are like.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Sandboxes that are kept running, ready to be claimed
    #[arg(short, long, value_name = "N")]
    pub warm: Option<u32>,
    /// Most sandboxes, warm and claimed together
    #[arg(long, value_name = "N")]
    pub max: Option<u32>,
    /// Suspend a claimed one after this time without use, like 90, 10m or 2h; 0 is never
    #[arg(short, long, value_name = "TIME", value_parser = value::seconds)]
    pub timeout: Option<u64>,
    /// Let this port be reached from outside; may be repeated
    #[arg(short, long, value_name = "PORT")]
    pub expose: Vec<u16>,
}
