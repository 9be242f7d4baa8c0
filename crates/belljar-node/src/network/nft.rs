//! `nft` in one network: a process that is told one script after the other.
//!
//! ```text
//! (none) --the network is made, or a script--> ready --script--> ready
//!    ^                                            └─ released, told much, or broken ─┐
//!    └────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! With a process for each script most of the time would go by for its start, and for its end, which waits until the kernel
//! has freed what the script replaced. This one reads line after line; each line is one step of the kernel, or none. It
//! ends with its input, so also when the node dies.
//!
//! An `nft` that was built without that mode, or that echoes what it reads, gets a process for each script.
//!
//! It knows no rules: those are [`crate::egress::ruleset`]'s. Called by the networks and their gates. Blocking.

use std::{
    io::{self, BufRead, BufReader, PipeReader, Write},
    process::{Child, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use super::{NetworkError, host, slot};
use crate::{
    limits::{NFT_INPUT, PROGRAM_OUTPUT},
    program::{self, ProgramError},
};

/// What follows each line, and how the answer begins: it comes without the kernel, and nothing else is answered so.
const MARK: &str = "describe ct mark";
const MARKED: &str = "ct expression, datatype mark";

/// The rules of one network can be changed through this.
pub(super) struct Nft {
    number: u32,
    process: Mutex<Option<Process>>,
}

impl Nft {
    /// For a network that is there. Starts nothing yet.
    pub(super) fn of(number: u32) -> Self {
        Self { number, process: Mutex::default() }
    }

    /// Starts what will be asked for soon, in the network of the calling thread, which has that number.
    pub(super) fn start(number: u32) -> Result<Self, NetworkError> {
        Ok(Self { number, process: Mutex::new(Process::start()?) })
    }

    /// Applies a whole script, or none of it. Of one that cannot be told, so that it may be applied twice, the second time
    /// must change nothing.
    pub(super) fn run(&self, script: &str) -> Result<(), NetworkError> {
        match self.say(&one_line(script))? {
            Some(answer) => complaint(&answer).map_or(Ok(()), Err),
            None => slot::enter(self.number, || host::nft(script)),
        }
    }

    /// What `list` commands, separated by `;`, write: JSON, a line for each.
    pub(super) fn ask(&self, commands: &str) -> Result<String, NetworkError> {
        match self.say(commands)? {
            Some(answer) => complaint(&answer).map_or(Ok(answer), Err),
            None => slot::enter(self.number, || host::nft_list(&["-j", commands])),
        }
    }

    /// Ends the process: the next script will have to wait for another one.
    pub(super) fn release(&self) {
        drop(self.process.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// What the process answers to a line; `None` where there is none to be had.
    fn say(&self, line: &str) -> Result<Option<String>, NetworkError> {
        let mut kept = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is gone was ended by somebody else.
        let told = kept.take().and_then(|mut process| process.say(line).ok().map(|answer| (process, answer)));
        let (process, answer) = match told {
            Some(told) => told,
            None => {
                let Some(mut process) = slot::enter(self.number, Process::start)? else { return Ok(None) };
                let answer = process.say(line).map_err(|source| ProgramError::Run { program: "nft", source })?;
                (process, answer)
            }
        };
        // It remembers every line.
        *kept = (process.told < NFT_INPUT).then_some(process);
        Ok(Some(answer))
    }
}

/// A script as one command line.
fn one_line(script: &str) -> String {
    let lines = script.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.collect::<Vec<_>>().join("; ")
}

/// The error in an answer. Some versions note things about rules that they did not look up while they list something else.
fn complaint(answer: &str) -> Option<NetworkError> {
    let is_note = |line: &&str| line.starts_with("netlink: ") || line.starts_with('{');
    let words: Vec<_> = answer.lines().skip_while(is_note).collect();
    let output: String = words.join("\n").trim().chars().take(PROGRAM_OUTPUT).collect();
    (!output.is_empty()).then(|| ProgramError::Failed { program: "nft", output }.into())
}

/// `nft -i`.
struct Process {
    /// There until it is dropped.
    child: Option<Child>,
    /// What it writes, errors too: they come in order.
    output: BufReader<PipeReader>,
    /// Bytes.
    told: usize,
}

impl Process {
    /// In the network of the calling thread. `None` if it does not talk as it should.
    fn start() -> Result<Option<Self>, NetworkError> {
        let start = || {
            let (output, writer) = io::pipe()?;
            // It keeps what it was told in a file in the home directory.
            let mut command = program::command("nft", ["-j", "-i"]);
            command.env("HOME", "/dev/null").stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
            let child = command.spawn()?;
            Ok(Self { child: Some(child), output: BufReader::new(output), told: 0 })
        };
        let mut process = start().map_err(|source| ProgramError::Run { program: "nft", source })?;
        Ok(process.say("").is_ok_and(|answer| answer.is_empty()).then_some(process))
    }

    /// Tells it a line; gives what it says to that.
    fn say(&mut self, line: &str) -> io::Result<String> {
        let input = self.child.as_mut().and_then(|child| child.stdin.as_mut()).ok_or(io::ErrorKind::BrokenPipe)?;
        let text = format!("{line}\n{MARK}\n");
        self.told += text.len();
        // It reads a whole line before it answers, and the mark fits into the pipe.
        input.write_all(text.as_bytes())?;
        let mut answer = String::new();
        loop {
            let from = answer.len();
            if self.output.read_line(&mut answer)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if answer[from..].starts_with(MARKED) {
                answer.truncate(from);
                return Ok(answer);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        drop(child.stdin.take());
        // Its end may take as long as the kernel needs to free old rules, for which nobody waits.
        let collected = thread::Builder::new().name("nft".into()).spawn(move || drop(child.wait()));
        if let Err(error) = collected {
            tracing::warn!(%error, "an `nft` that has ended is not collected");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        egress::ruleset,
        network::slot::{Owner, Slot, Taps},
    };

    /// A network of this host, until the end of the test.
    struct Made(Option<Slot>);

    impl Drop for Made {
        fn drop(&mut self) {
            self.0.take().map(Slot::discard).expect("it was made").expect("removed");
        }
    }

    #[test]
    fn one_process_takes_script_after_script() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: network namespaces need root");
            return;
        }
        let made = Made(Some(Slot::make(&Owner::this_process(), Taps::Open).expect("a network")));
        let nft = Nft::of(made.0.as_ref().expect("made").number());
        let pid = || nft.process.lock().expect("kept").as_ref().and_then(|it| Some(it.child.as_ref()?.id()));
        let chains = || nft.ask("list chains").expect("a list");
        nft.run("# A remark.\nadd counter inet belljar out\n\nadd chain inet belljar one\n").expect("taken");
        let first = pid();
        assert!(first.is_some(), "this `nft` is not talked to");
        nft.run("add counter inet belljar in\n").expect("taken");
        assert_eq!(pid(), first, "the same goes on");
        assert!(chains().contains("\"one\""));

        // Not at all, where it cannot be taken whole.
        let script = "add chain inet belljar two\nadd rule inet belljar nowhere drop\n";
        let error = nft.run(script).expect_err("refused").to_string();
        assert!(error.contains("No such file or directory"), "{error}");
        assert!(!chains().contains("\"two\""), "half of it was applied");
        let error = nft.run("nonsense\n").expect_err("refused").to_string();
        assert!(error.contains("syntax error"), "{error}");
        let error = nft.ask(ruleset::LIST).expect_err("there is no such set").to_string();
        assert!(error.contains("No such file or directory"), "{error}");

        // Another one, where somebody ended it.
        let first = pid().expect("kept");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(first.cast_signed()), nix::sys::signal::SIGKILL)
            .expect("ended");
        nft.run("add chain inet belljar three\n").expect("taken");
        assert_ne!(pid(), Some(first));
        nft.release();
        assert_eq!(pid(), None);
        assert!(chains().contains("\"three\""));

        // And after it was told so much that it has grown.
        let first = pid();
        nft.process.lock().expect("kept").as_mut().expect("kept").told = NFT_INPUT;
        nft.run("add chain inet belljar four\n").expect("taken");
        assert_eq!(pid(), None);
        assert!(chains().contains("\"four\""));
        assert_ne!(pid(), first);
    }
}
