//! One file per verb. A command gets a [`Context`] and its arguments, prints through the printer and says how the
//! program ends; errors travel up and are reported once, in [`crate::main`].

mod attached;
mod build;
mod commit;
mod completion;
mod cp;
mod create;
mod diff;
mod doctor;
mod down;
mod env;
mod exec;
mod fork;
mod image;
mod interrupt;
mod key;
mod kill;
mod logs;
mod ls;
mod openapi;
mod pack;
mod pool;
mod ps;
mod restore;
mod rm;
mod run;
mod secret;
mod shell;
mod show;
mod snapshot;
mod ssh;
mod ssh_key;
mod state;
mod storage;
mod tree;
mod tunnel;
mod unpack;
mod up;
mod vmm;

use std::future::Future;

use anyhow::Context as _;
use belljar_client::Client;

use crate::{cli::Command, exit::ExitStatus, printer::Printer, settings::Settings};

/// What every command works with.
#[derive(Debug, Clone)]
pub struct Context {
    /// How to speak.
    pub printer: Printer,
    /// Where the server is, and the rest.
    pub settings: Settings,
}

impl Context {
    fn client(&self) -> anyhow::Result<Client> {
        let (url, key) = (&self.settings.api_url, self.settings.key()?);
        let Some(path) = &self.settings.ca else { return Ok(Client::new(url, Some(&key))?) };
        let ca = std::fs::read(path).with_context(|| format!("cannot read {}, which --ca names", path.display()))?;
        Client::with_ca(url, Some(&key), &ca).with_context(|| format!("{} is not usable", path.display()))
    }
}

/// Does what the command line says.
pub fn dispatch(ctx: Context, command: Command) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Up(args) => up::up(&ctx, &args),
        Command::Down(args) => down::down(&ctx, &args),
        Command::Doctor => doctor::doctor(&ctx),
        Command::Create(args) => block_on(create::create(&ctx, args)),
        Command::Ls(args) => block_on(ls::ls(&ctx, &args)),
        Command::Show { sandbox } => block_on(show::show(&ctx, &sandbox)),
        Command::Run(args) => block_on(run::run(&ctx, args)),
        Command::Exec(args) => block_on(exec::exec(&ctx, args)),
        Command::Shell(args) => block_on(shell::shell(&ctx, args)),
        Command::Ssh(args) => block_on(ssh::ssh(&ctx, args)),
        Command::SshConfig(args) => block_on(ssh::ssh_config(&ctx, args)),
        Command::Cp(args) => block_on(cp::cp(&ctx, args)),
        Command::Ps { sandbox } => block_on(ps::ps(&ctx, &sandbox)),
        Command::Kill(args) => block_on(kill::kill(&ctx, &args)),
        Command::Logs(args) => block_on(logs::logs(&ctx, args)),
        Command::Tunnel(args) => block_on(tunnel::tunnel(&ctx, &args)),
        Command::Rm(args) => block_on(rm::rm(&ctx, args)),
        Command::Suspend(args) => block_on(state::suspend(&ctx, &args)),
        Command::Resume(args) => block_on(state::resume(&ctx, &args)),
        Command::Rollback { sandbox, snapshot } => block_on(state::rollback(&ctx, &sandbox, &snapshot)),
        Command::Snapshot(command) => block_on(snapshot::snapshot(&ctx, command)),
        Command::Commit(args) => block_on(commit::commit(&ctx, &args)),
        Command::Build(args) => block_on(build::build(&ctx, &args)),
        Command::Restore(args) => block_on(restore::restore(&ctx, args)),
        Command::Fork(args) => block_on(fork::fork(&ctx, &args)),
        Command::Tree { internal } => block_on(tree::tree(&ctx, internal)),
        Command::Diff { first, second } => block_on(diff::diff(&ctx, &first, &second)),
        Command::Pool(command) => block_on(pool::pool(&ctx, command)),
        Command::Df => block_on(storage::df(&ctx)),
        Command::Gc => block_on(storage::gc(&ctx)),
        Command::Image(command) => image::image(&ctx, command),
        Command::Vmm(command) => vmm::vmm(&ctx, &command),
        Command::Key(command) => block_on(key::key(&ctx, command)),
        Command::Secret(command) => block_on(secret::secret(&ctx, command)),
        Command::SshKey(command) => block_on(ssh_key::ssh_key(&ctx, command)),
        Command::Env => env::env(&ctx),
        Command::Completion { shell } => completion::completion(&ctx, shell),
        Command::Openapi => openapi::openapi(&ctx),
        // Done before anything was read.
        Command::Jail => Ok(ExitStatus::Failure),
    }
}

/// Runs a command that does little but wait: one thread is enough.
fn block_on(command: impl Future<Output = anyhow::Result<ExitStatus>>) -> anyhow::Result<ExitStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let done = runtime.block_on(command);
    runtime.shutdown_background();
    done
}
