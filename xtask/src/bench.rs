//! Runs the benchmark program of `belljar-tests` against a release build. It prints the table; this prepares and calls.

use std::{
    env,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use crate::{
    artifacts::Artifacts,
    cargo::{build_belljar, cargo},
    images, paths, quickstart,
    run::{self, say},
    setup,
    test::nested_drivers,
};

/// Says which program.
const BENCH: [&str; 7] = ["--release", "--package", "belljar-tests", "--features", "e2e", "--bin", "bench"];

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    setup::run()?;
    say("Building");
    let section = |name: &str| arguments.first().is_some_and(|first| first == name);
    if section("image") {
        // It boots nothing.
        let belljar = build_belljar(true)?;
        build_bench()?;
        let mut bench = cargo(&["run", "--quiet"]);
        bench.args(BENCH).arg("--").args(arguments).env("BELLJAR_BIN", belljar);
        return answer(&mut bench);
    }
    let artifacts = quickstart::build(true)?;
    images::build(&artifacts.belljar, images::USUAL)?;
    build_bench()?;
    if section("driver") {
        return each_driver(&artifacts, arguments);
    }
    let mut bench = cargo(&["run", "--quiet"]);
    artifacts.pass_to(bench.args(BENCH).arg("--").args(arguments))?;
    if section("net") {
        process_driver(&mut bench)?;
    }
    answer(&mut bench)
}

fn build_bench() -> Result<()> {
    run::step("build the benchmark", cargo(&["build"]).args(BENCH))
}

fn answer(bench: &mut Command) -> Result<ExitCode> {
    Ok(if run::interactive(bench)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where KVM works: in the emulated machine, with each VM program that is here.
fn each_driver(artifacts: &Artifacts, arguments: &[String]) -> Result<ExitCode> {
    let program = paths::target().join("release/bench").canonicalize().context("the benchmark")?;
    let mut all_ran = true;
    for driver in nested_drivers() {
        let mut inside = Command::new(env::current_exe()?);
        inside.args(["nested", "--"]).arg(&program).args(arguments);
        artifacts.pass_to(&mut inside)?;
        all_ran &= run::interactive(inside.env("BELLJAR_DRIVER", driver))?;
    }
    Ok(if all_ran { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
