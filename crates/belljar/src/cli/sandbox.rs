//! Arguments of the commands that are about sandboxes.

use std::net::IpAddr;

use belljar_api::sandbox::Gpus;
use clap::Args;

use super::value;
use crate::remote::Place;

/// What a new sandbox is like.
#[derive(Debug, Clone, Args)]
pub struct MachineArgs {
    /// Image [default: the server's]
    #[arg(short, long)]
    pub image: Option<String>,
    /// How large it is.
    #[command(flatten)]
    pub size: SizeArgs,
}

/// How large a sandbox is, and what it may reach.
#[derive(Debug, Clone, Default, Args)]
pub struct SizeArgs {
    /// Virtual cpus; fractions are allowed [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<f64>,
    /// Memory in MiB, or with a unit: 2048, 2g [default: 1024]
    #[arg(short, long, value_name = "SIZE", value_parser = value::megabytes)]
    pub memory: Option<u64>,
    /// Disk in MiB, or with a unit: 20g [default: 10240]
    #[arg(long, value_name = "SIZE", value_parser = value::megabytes)]
    pub disk: Option<u64>,
    /// GPU of its own, or N of a model; may be repeated. Such a sandbox cannot sleep
    #[arg(long, value_name = "MODEL[:N]", value_parser = value::gpus)]
    pub gpu: Vec<Gpus>,
    /// Cut the sandbox off the network
    #[arg(long)]
    pub no_network: bool,
    /// Let it reach only this: an address, a CIDR, a host name or *.suffix; may be repeated
    #[arg(long, value_name = "TARGET", conflicts_with = "no_network")]
    pub allow_out: Vec<String>,
    /// Never let it reach this, in the same forms; may be repeated
    #[arg(long, value_name = "TARGET")]
    pub deny_out: Vec<String>,
    /// Let it use this secret, of which it finds a placeholder in its environment; may be repeated
    #[arg(long, value_name = "NAME")]
    pub secret: Vec<String>,
}

/// How a program runs.
#[derive(Debug, Clone, Args)]
pub struct ProgramArgs {
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = value::environment)]
    pub env: Vec<(String, String)>,
    /// Run in this directory [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run as this user: NAME, UID or UID:GID [default: the image's]
    #[arg(short, long)]
    pub user: Option<String>,
}

/// `belljar create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What it is like.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// What is to run it: firecracker, cloud-hypervisor, qemu, qemu-kvm or qemu-tcg [default: what its node has]
    #[arg(long)]
    pub runtime: Option<String>,
    /// How it lives.
    #[command(flatten)]
    pub life: LifeArgs,
    /// Program that starts with the sandbox, with its arguments
    #[arg(last = true, value_name = "ENTRYPOINT")]
    pub entrypoint: Vec<String>,
}

/// How a new sandbox lives and is reached.
#[derive(Debug, Clone, Args)]
pub struct LifeArgs {
    /// Name, by which it can be addressed; a named one is suspended when idle, not ended
    #[arg(short, long, value_parser = value::name)]
    pub name: Option<String>,
    /// End it, or suspend a named one, after this time without use, like 90, 10m or 2h; 0 is never [default: 10m]
    #[arg(short, long, value_name = "TIME", value_parser = value::seconds)]
    pub timeout: Option<u64>,
    /// Let this port be reached from outside; may be repeated
    #[arg(short, long, value_name = "PORT")]
    pub expose: Vec<u16>,
    /// Let exposed ports answer without an API key
    #[arg(long)]
    pub public: bool,
    /// When it is suspended, let only `belljar resume` wake it, and no request
    #[arg(long, requires = "name")]
    pub no_auto_resume: bool,
    /// Return at once, while it still boots
    #[arg(long)]
    pub no_wait: bool,
}

/// `belljar ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show those that have ended, too
    #[arg(short, long)]
    pub all: bool,
    /// Show those in which the server builds images, too
    #[arg(long)]
    pub internal: bool,
}

/// `belljar run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What the sandbox is like.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// How the program runs.
    #[command(flatten)]
    pub program: ProgramArgs,
    /// Kill the program after this time, like 90, 10m or 2h
    #[arg(short, long, value_name = "TIME", value_parser = value::seconds)]
    pub timeout: Option<u64>,
    /// Keep the sandbox, and print its id on stderr
    #[arg(long)]
    pub keep: bool,
    /// Pass stdin on to the program
    #[arg(long)]
    pub interactive: bool,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `belljar exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// How the program runs.
    #[command(flatten)]
    pub program: ProgramArgs,
    /// Pass stdin on to the program
    #[arg(short, long, conflicts_with = "detach")]
    pub interactive: bool,
    /// Return at once and print the pid; `belljar logs` shows what it writes
    #[arg(short, long, conflicts_with = "timeout")]
    pub detach: bool,
    /// Kill the program after this time, like 90, 10m or 2h
    #[arg(short, long, value_name = "TIME", value_parser = value::seconds)]
    pub timeout: Option<u64>,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `belljar shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// How the program runs.
    #[command(flatten)]
    pub program: ProgramArgs,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", default_value = "/bin/bash")]
    pub command: Vec<String>,
}

/// `belljar cp`.
#[derive(Debug, Args)]
#[command(after_help = "\
One of the two is in a sandbox: SANDBOX:/path. Where DEST is a directory, or ends in a slash, SRC is put into it \
under its own name. Symbolic links within a directory are copied as such, owners and special files are not copied.")]
pub struct CpArgs {
    /// File or directory to copy
    #[arg(value_parser = Place::parse)]
    pub src: Place,
    /// Where to copy it
    #[arg(value_parser = Place::parse)]
    pub dest: Place,
}

/// `belljar kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Signal: KILL, SIGKILL or 9
    #[arg(short, long, default_value = "TERM", value_parser = value::signal)]
    pub signal: i32,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
    /// Pid, or the name of a managed process
    pub process: String,
}

/// `belljar logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Only the last so many lines
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<usize>,
    /// Only lines of this level; may be repeated
    #[arg(short, long, value_name = "LEVEL")]
    pub level: Vec<Level>,
    /// Only lines of this process: its pid, or the name of a managed one
    #[arg(short, long, value_name = "PROCESS")]
    pub process: Option<String>,
    /// Go on until the process ends
    #[arg(short, long, requires = "process", conflicts_with_all = ["tail", "level"])]
    pub follow: bool,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
}

/// Level of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// Finest detail
    Trace,
    /// Detail
    Debug,
    /// Lines of stdout
    Info,
    /// Trouble that was survived
    Warn,
    /// Lines of stderr, and failures
    Error,
    /// The end
    Fatal,
}

impl Level {
    /// Its number on the wire.
    pub fn number(self) -> u8 {
        match self {
            Self::Trace => 1,
            Self::Debug => 2,
            Self::Info => 3,
            Self::Warn => 4,
            Self::Error => 5,
            Self::Fatal => 6,
        }
    }
}

/// `belljar tunnel`.
#[derive(Debug, Args)]
#[command(after_help = "\
`belljar tunnel box 8000` opens a local port that leads to port 8000 in the sandbox; any port of 127.0.0.1 there will do, \
exposed or not.

`belljar tunnel --reverse box 5432:db.lan:5432` opens port 5432 on 127.0.0.1 in the sandbox, which leads to db.lan:5432 \
as seen from this machine. Everything in the sandbox can use it until the command ends. `5432` alone means \
5432:127.0.0.1:5432, and 0 as the first port any free one.

An open tunnel keeps the sandbox from falling asleep by itself. One that is suspended ends its tunnels; they do not come \
back when it wakes.")]
pub struct TunnelArgs {
    /// Open a port in the sandbox that leads to this side
    #[arg(short, long, conflicts_with_all = ["local", "bind"])]
    pub reverse: bool,
    /// Local port [default: any free one]
    #[arg(short, long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub local: u16,
    /// Local address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub bind: IpAddr,
    /// Id or name
    #[arg(value_parser = value::reference)]
    pub sandbox: String,
    /// Port in the sandbox; with --reverse, PORT:HOST:PORT
    #[arg(value_name = "PORT", value_parser = value::tunnel)]
    pub port: value::TunnelPort,
}

/// `belljar rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Ids or names
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "SANDBOX", value_parser = value::reference)]
    pub sandboxes: Vec<String>,
    /// End every sandbox
    #[arg(long)]
    pub all: bool,
}
