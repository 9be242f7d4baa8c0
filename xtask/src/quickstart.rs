//! From a fresh clone to a program that ran in a sandbox: everything is built, the server started, one sandbox used.
//!
//! Every step leaves its result in a cache, so a second run takes seconds.

use std::{process::Command, time::Instant};

use anyhow::{Result, bail};

use crate::{
    artifacts::Artifacts,
    cargo, guest, images, kernel, paths,
    run::{self, say},
    setup,
};

/// What the first sandbox does.
const PROGRAM: &str = "import platform, os; print('Hello from', platform.node(), 'running Linux', platform.release(), \
                       'as user', os.getuid())";

pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    say("Setting up this machine");
    setup::run()?;
    say("Building (the kernel takes 6-8 minutes the first time)");
    let artifacts = build(true)?;
    images::build(&artifacts.belljar, images::USUAL)?;
    say("Starting the server");
    let belljar = |arguments: &[&str]| -> Result<Command> {
        let mut command = Command::new(&artifacts.belljar);
        artifacts.pass_to(command.args(arguments))?;
        Ok(command)
    };
    // One that runs already may be older than what was just built; its sandboxes stay.
    talk(&mut belljar(&["down", "--keep"])?)?;
    talk(&mut belljar(&["up", "--detach"])?)?;
    say("Running a Python program in a sandbox of its own");
    talk(&mut belljar(&["run", "--", "python3", "-c", PROGRAM])?)?;
    let binary =
        artifacts.belljar.strip_prefix(paths::repository()).unwrap_or(&artifacts.belljar).display().to_string();
    say(&format!("\nDone in {:.0} s. What to try next:", started.elapsed().as_secs_f64()));
    for next in ["create --name box", "shell box", "ls", "doctor", "down"] {
        say(&format!("  {binary} {next}"));
    }
    say("\nA Tensorlake SDK or its `tl` command talks to this server with:");
    talk(&mut belljar(&["env"])?)
}

/// Everything a node needs but the image.
pub(crate) fn build(release: bool) -> Result<Artifacts> {
    let kernel = kernel::run(false)?;
    say(&format!("  kernel: {}", kernel.display()));
    let initrd = guest::run()?;
    let belljar = cargo::build_belljar(release)?;
    Ok(Artifacts { kernel, initrd, image_store: paths::image_store()?, belljar })
}

fn talk(command: &mut Command) -> Result<()> {
    if run::interactive(command)? {
        return Ok(());
    }
    let shown: Vec<_> = command.get_args().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
    bail!("`belljar {}` failed; `belljar doctor` says what this machine lacks", shown.join(" "));
}
