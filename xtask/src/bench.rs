//! Runs the benchmark program of `belljar-tests` against a release build. It prints the table; this prepares and calls.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    cargo::cargo,
    images, quickstart,
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
    Ok(if run::interactive(&mut bench)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
