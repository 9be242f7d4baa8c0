//! Runs the benchmark program of `belljar-tests` against a release build. It prints the table; this prepares and calls.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{
    cargo::cargo,
    images, paths, quickstart,
    run::{self, say},
    setup,
};

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    setup::run()?;
    say("Building");
    let artifacts = quickstart::build(true)?;
    images::build(&artifacts.belljar)?;
    let which = ["--release", "--package", "belljar-tests", "--features", "e2e", "--bin", "bench"];
    run::step("build the benchmark", cargo(&["build"]).args(which))?;
    let mut bench = cargo(&["run", "--quiet"]);
    artifacts.pass_to(bench.args(which).arg("--").args(arguments))?;
    if arguments.first().is_some_and(|section| section == "net") {
        process_driver(&mut bench)?;
    }
    Ok(if run::interactive(&mut bench)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A server whose sandboxes are plain processes of this machine, built apart: no release ever has that driver.
fn process_driver(bench: &mut Command) -> Result<()> {
    let target = paths::target().join("process-driver");
    let mut build = cargo(&["build", "--release", "--package", "belljar", "--package", "belljar-guest"]);
    build.args(["--features", "belljar/process-driver", "--target-dir"]).arg(&target);
    run::step("build the server with the process driver", &mut build)?;
    let built = target.join("release");
    bench.env("BELLJAR_BIN", built.join("belljar"));
    bench.env("BELLJAR_DRIVER", format!("process:{}", built.join("belljar-guest").display()));
    Ok(())
}
