//! The `belljar` program: the command line, and `up`, which puts server and node together in one process.
//!
//! Layers, each knowing only the ones before it: [`cli`] (definitions), [`settings`] (where a value comes from),
//! [`printer`] (the only place that writes), [`commands`] (one file per verb). A command is a client of the public
//! API like any other, but for `up`, `down`, `doctor`, `vmm` and `image build|rm`, which are about this machine.

pub mod cli;
pub mod commands;
pub mod doctor;
pub mod env_vars;
pub mod exit;
pub mod printer;
pub mod releases;
pub mod remote;
pub mod report;
pub mod settings;
pub mod ssh;
pub mod stdin;
pub mod table;
pub mod up;

use std::ffi::OsString;

use belljar_api::error::code;
use belljar_node::jail;
use clap::Parser;

use crate::{
    cli::{Cli, Command},
    commands::Context,
    exit::ExitStatus,
    printer::Printer,
    settings::{Settings, Surroundings},
};

/// Runs the program with its command line, the program's name included.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitStatus {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes, and go to stdout.
            let status = if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Success };
            let _ = error.print();
            return status;
        }
    };
    // As bare as can be: it is to become a VM process.
    if let Command::Jail = cli.command {
        return match jail::enter() {
            0 => ExitStatus::Success,
            jail::NOBODYS => {
                let error =
                    anyhow::anyhow!("`belljar up` starts VM processes with this; there is nothing to call it for");
                report::report(Printer::new(false, false), &error, ExitStatus::Usage)
            }
            _ => ExitStatus::Failure,
        };
    }
    let printer = Printer::new(cli.global.json, cli.global.quiet);
    let runs_program = matches!(&cli.command, Command::Run(_) | Command::Exec(_) | Command::Shell(_));
    let done = Settings::load(&cli.global, &Surroundings::of_this_process())
        .map_err(anyhow::Error::from)
        .and_then(|settings| commands::dispatch(Context { printer, settings }, cli.command));
    match done {
        Ok(status) => status,
        Err(error) => report::report(printer, &error, if runs_program { not_run(&error) } else { ExitStatus::Failure }),
    }
}

/// How a command ends whose program never ran.
fn not_run(error: &anyhow::Error) -> ExitStatus {
    let missing = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<belljar_client::Error>().is_some_and(|error| error.code() == Some(code::NOT_FOUND))
    };
    if error.chain().any(missing) { ExitStatus::NoSuchProgram } else { ExitStatus::NotRun }
}
