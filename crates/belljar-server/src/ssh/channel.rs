//! A session channel from its opening to its end: what was asked for, then what runs, then how that ended.

use std::{collections::BTreeMap, sync::Arc};

use belljar_api::exec::{ExecExit, ExecProgram, StartExec, TerminalSize};
use russh::server::Handle;
use tokio::sync::mpsc;

use super::{
    bridge::{self, Outbox},
    inbox::Inbox,
    program::{self, Control, ProgramError},
    session::Ends,
    user::User,
};
use crate::{
    app::App,
    error::ApiError,
    ingress::{self, Target},
    limits::{SSH_CONTROLS, SSH_ENV_BYTES_MAX, SSH_ENV_MAX},
};

/// Exit status of what did not run, as `ssh` itself has it.
const NOT_RUN: u32 = 255;
/// What SSH calls stderr.
const STDERR: u32 = 1;

/// What a channel is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// A login, or on a port user the port.
    Shell,
    Program(ExecProgram),
}

/// A channel that has not started.
pub(super) struct Opened {
    outbox: Outbox,
    env: BTreeMap<String, String>,
    env_bytes: usize,
    terminal: Option<TerminalSize>,
    controls: mpsc::Receiver<Control>,
}

impl Opened {
    pub(super) fn new(outbox: Outbox) -> (Self, mpsc::Sender<Control>) {
        let (sender, controls) = mpsc::channel(SSH_CONTROLS);
        (Self { outbox, env: BTreeMap::new(), env_bytes: 0, terminal: None, controls }, sender)
    }

    /// Sets a variable for the program; whether there was room.
    pub(super) fn set(&mut self, name: &str, value: &str) -> bool {
        let bytes = self.env_bytes + name.len() + value.len();
        let fits = self.env.len() < SSH_ENV_MAX && bytes <= SSH_ENV_BYTES_MAX;
        let is_name = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        if fits && is_name {
            self.env_bytes = bytes;
            self.env.insert(name.to_owned(), value.to_owned());
        }
        fits && is_name
    }

    /// Gives the program a terminal; whether its kind could be set.
    pub(super) fn give_terminal(&mut self, term: &str, size: TerminalSize) -> bool {
        self.terminal = Some(size);
        term.is_empty() || self.set("TERM", term)
    }

    pub(super) fn resize(&mut self, size: TerminalSize) {
        if self.terminal.is_some() {
            self.terminal = Some(size);
        }
    }

    /// Does the channel's work and tells its end. Dropped when the client goes.
    pub(super) async fn run(self, app: &App, user: &str, ends: Ends, work: Work, inbox: &Inbox, handle: &Handle) {
        let outbox = Arc::clone(&self.outbox);
        let exit = match User::parse(user) {
            Err(error) => Err(error.to_string()),
            Ok(User { sandbox, port: Some(port) }) => match work {
                Work::Shell => lead(app, Target { sandbox, port }, inbox, &outbox).await,
                Work::Program(_) => Err(format!(
                    "{user} is port {port} of {sandbox}, and not a program; run programs as `ssh {sandbox}@…`"
                )),
            },
            Ok(User { sandbox, port: None }) => self.run_program(app, &sandbox, ends, work, inbox).await,
        };
        tell(exit, &outbox, handle).await;
    }

    async fn run_program(
        self,
        app: &App,
        sandbox: &str,
        ends: Ends,
        work: Work,
        inbox: &Inbox,
    ) -> Result<ExecExit, String> {
        let Self { outbox, mut env, terminal, controls, .. } = self;
        let (client, server) = (ends.client, ends.server);
        env.insert("SSH_CLIENT".to_owned(), format!("{} {} {}", client.ip(), client.port(), server.port()));
        let both = format!("{} {} {} {}", client.ip(), client.port(), server.ip(), server.port());
        env.insert("SSH_CONNECTION".to_owned(), both);
        let program = match work {
            Work::Shell => ExecProgram::Login,
            Work::Program(program) => program,
        };
        let start = StartExec { program, env, terminal, ..StartExec::default() };
        program::run(app, sandbox, &start, inbox, &outbox, controls).await.map_err(|error| match error {
            // Nobody is left to read words.
            ProgramError::Client(_) => String::new(),
            other => other.to_string(),
        })
    }
}

/// Leads a session to a port: its stdin and stdout are the connection.
async fn lead(app: &App, target: Target, inbox: &Inbox, outbox: &Outbox) -> Result<ExecExit, String> {
    let stream = ingress::open(app, &target).await.map_err(ApiError::told)?;
    match bridge::carry(inbox, outbox, stream).await {
        Ok(()) => Ok(ExecExit { exit_code: Some(0), ..ExecExit::default() }),
        Err(error) => Err(format!("the connection to port {} broke off: {error}", target.port)),
    }
}

/// Tells the client how it ended, and closes the channel.
async fn tell(exit: Result<ExecExit, String>, outbox: &Outbox, handle: &Handle) {
    let id = outbox.id();
    let told = async {
        match exit {
            Ok(ExecExit { signal: Some(number), oom_killed, .. }) => {
                let words = if oom_killed { "the sandbox is out of memory" } else { "" };
                let name = program::name(number);
                let _ = handle.exit_signal_request(id, name, false, words.to_owned(), "en".to_owned()).await;
            }
            Ok(ExecExit { exit_code, .. }) => {
                // SSH has room for more, but programs have 8 bits.
                let status = exit_code.and_then(|code| u32::try_from(code).ok()).unwrap_or(NOT_RUN);
                outbox.exit_status(status).await?;
            }
            Err(words) => {
                if !words.is_empty() {
                    outbox.extended_data_bytes(STDERR, format!("belljar: {words}\r\n")).await?;
                }
                outbox.exit_status(NOT_RUN).await?;
            }
        }
        outbox.eof().await?;
        outbox.close().await
    };
    if let Err(error) = told.await {
        tracing::debug!(%error, "a channel's client was gone before its end");
    }
}
