//! Every test that this machine can run, in tiers from cheap to dear, and one summary.
//!
//! A tier that cannot run here is named with the reason and does not fail the run, unless it was asked for by name. A
//! further tier is one more line in [`TIERS`].

mod count;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Result, bail};

use self::count::Count;
use crate::{
    artifacts::Artifacts,
    cargo::{self, cargo},
    images, kernel, nested, paths, quickstart,
    run::{self, say},
    setup,
};

/// A group of tests that need the same things.
struct Tier {
    name: &'static str,
    about: &'static str,
    /// Whether it boots VMs: needs root's image, the kernel, the agent and the binary.
    boots: Boots,
    /// Why it runs only when it is asked for by name.
    by_name: Option<&'static str>,
    checks: fn() -> Result<Vec<Check>>,
}

/// With what a tier boots VMs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Boots {
    Nothing,
    /// A build that is quickly made.
    Debug,
    /// One that is fast: where it is emulated, too, that is worth its time.
    Release,
}

/// One command of a tier.
struct Check {
    name: String,
    command: Command,
    /// Whether it prints counts of tests; a command that does not counts as one test.
    counts: bool,
}

/// The tier of `--nested`.
pub(crate) const NESTED: &str = "nested";

const TIERS: [Tier; 9] = [
    Tier {
        name: "tidy",
        about: "format, lints, rules of the repository",
        boots: Boots::Nothing,
        by_name: None,
        checks: tidy,
    },
    Tier { name: "unit", about: "the tests of each crate", boots: Boots::Nothing, by_name: None, checks: unit },
    Tier {
        name: "system",
        about: "the whole system in one process, without VMs",
        boots: Boots::Nothing,
        by_name: None,
        checks: system,
    },
    Tier { name: "vm", about: "the whole system with real VMs", boots: Boots::Debug, by_name: None, checks: vm },
    Tier { name: "sdk", about: "the vendor's published Python SDK", boots: Boots::Debug, by_name: None, checks: sdk },
    Tier {
        name: "examples",
        about: "the examples, with real VMs",
        boots: Boots::Debug,
        by_name: None,
        checks: examples,
    },
    Tier {
        name: NESTED,
        about: "VM programs on working KVM, in an emulated machine",
        boots: Boots::Debug,
        by_name: None,
        checks: nested,
    },
    Tier {
        name: "nested-system",
        about: "the whole system on working KVM, in an emulated machine",
        boots: Boots::Release,
        by_name: Some("it takes up to a quarter of an hour for each VM program"),
        checks: nested_system,
    },
    Tier {
        name: "nested-soak",
        about: "half an hour of random operations on working KVM, in an emulated machine",
        boots: Boots::Release,
        by_name: Some("it takes more than half an hour for each VM program"),
        checks: nested_soak,
    },
];

fn tidy() -> Result<Vec<Check>> {
    let task = |arguments: &[&str]| -> Result<Command> {
        let mut command = Command::new(env::current_exe()?);
        command.args(arguments);
        Ok(command)
    };
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "belljar-tests/device,belljar-tests/system",
        "--",
        "--deny",
        "warnings",
    ];
    Ok(vec![
        Check { name: "tidy: rules".to_owned(), command: task(&["tidy"])?, counts: false },
        Check { name: "tidy: format".to_owned(), command: cargo(&["fmt", "--all", "--check"]), counts: false },
        Check { name: "tidy: lints".to_owned(), command: cargo(&lints), counts: false },
        Check { name: "tidy: generated files".to_owned(), command: task(&["gen", "--check"])?, counts: false },
    ])
}

fn unit() -> Result<Vec<Check>> {
    let mut check = tests("unit: tests", &["--workspace", "--exclude", "belljar-tests"]);
    match setup::beside("docker-registry", "usr/bin/docker-registry") {
        Ok(dir) => {
            let path = env::var_os("PATH").unwrap_or_default();
            check.command.env("PATH", env::join_paths(env::split_paths(&path).chain([dir]))?);
        }
        // The test that uses it says that it does not run.
        Err(error) => say(&format!("  no docker-registry: {error:#}")),
    }
    Ok(vec![check])
}

fn system() -> Result<Vec<Check>> {
    let agent = cargo(&["build", "--package", "belljar-guest"]);
    Ok(vec![
        Check { name: "system: build the agent".to_owned(), command: agent, counts: false },
        tests("system: tests", &["--package", "belljar-tests", "--features", "system", "--test", "system"]),
    ])
}

fn vm() -> Result<Vec<Check>> {
    Ok(vec![tests("vm: tests", &["--package", "belljar-tests", "--features", "e2e", "--test", "vm"])])
}

fn sdk() -> Result<Vec<Check>> {
    Ok(vec![tests("sdk: tests", &["--package", "belljar-tests", "--features", "e2e", "--test", "sdk"])])
}

fn examples() -> Result<Vec<Check>> {
    Ok(vec![tests("examples: tests", &["--package", "belljar-tests", "--features", "e2e", "--test", "examples"])])
}

/// For every VM program that is here, in a machine each: one suite for all drivers, and the jail's.
fn nested() -> Result<Vec<Check>> {
    let suite = cargo::test_program("belljar-vmm", &["--lib"])?;
    each_driver("suite", |driver| inside(driver, &suite, "conformance jail", "BELLJAR_CONFORMANCE", ORDINARY))
}

/// The whole system in one go, the hazards of restored memory, and what guests are told of the processor, with every VM
/// program that is here.
fn nested_system() -> Result<Vec<Check>> {
    let (tests, filter) = (vm_tests()?, "drivers hazards hidden");
    let machine = nested::Machine { limit: 2 * nested::LIMIT, ..ORDINARY };
    let mut checks = each_driver("system", |driver| inside(driver, &tests, filter, "BELLJAR_DRIVER", machine))?;
    let driver = GIVES_DEVICES;
    if nested::vm_program(driver).is_some() {
        let machine = nested::Machine { device: true, ..ORDINARY };
        let tests = cargo::test_program("belljar-tests", &["--features", "device", "--test", "device"])?;
        let command = inside(driver, &tests, "device", "BELLJAR_DRIVER", machine)?;
        checks.push(Check { name: format!("nested: {driver}: device"), command, counts: true });
    }
    Ok(checks)
}

/// The driver, and its program, that can give devices of the host away.
const GIVES_DEVICES: &str = "cloud-hypervisor";

/// How long random operations go on. The machine around them gets ten more, to start and to end.
const SOAK_MINUTES: u32 = 30;

/// Random operations, with every VM program that is here.
fn nested_soak() -> Result<Vec<Check>> {
    let (tests, machine) = (vm_tests()?, nested::Machine { limit: (SOAK_MINUTES + 10) * 60, ..ORDINARY });
    each_driver("soak", |driver| {
        let mut command = inside(driver, &tests, "vms_are_not_kept", "BELLJAR_DRIVER", machine)?;
        command.env("BELLJAR_SOAK_MINUTES", SOAK_MINUTES.to_string());
        Ok(command)
    })
}

/// The tests with real VMs, as a program.
fn vm_tests() -> Result<PathBuf> {
    cargo::test_program("belljar-tests", &["--features", "e2e", "--test", "vm"])
}

/// A check for every VM program that is here.
fn each_driver(what: &str, command: impl Fn(&str) -> Result<Command>) -> Result<Vec<Check>> {
    let check =
        |driver: &str| Ok(Check { name: format!("nested: {driver}: {what}"), command: command(driver)?, counts: true });
    nested_drivers().map(check).collect()
}

/// Drivers that need KVM, and their programs.
const NESTED_DRIVERS: [(&str, &str); 3] =
    [("qemu-kvm", "qemu-system-x86_64"), ("firecracker", "firecracker"), ("cloud-hypervisor", "cloud-hypervisor")];

/// Those whose program is here; of the others it says so.
pub(crate) fn nested_drivers() -> impl Iterator<Item = &'static str> {
    NESTED_DRIVERS.into_iter().filter(|(driver, program)| is_here(driver, program)).map(|(driver, _)| driver)
}

fn is_here(driver: &str, program: &str) -> bool {
    let is_here = nested::vm_program(program).is_some();
    if !is_here {
        say(&format!("  {driver}: skipped: no {program} binary"));
    }
    is_here
}

/// The machine that all but a few of the tests run in.
const ORDINARY: nested::Machine =
    nested::Machine { limit: nested::LIMIT, device: false, memory_mib: nested::MEMORY_MIB };

/// Tests in a machine with working KVM; `variable` tells them of the driver.
fn inside(driver: &str, tests: &Path, filter: &str, variable: &str, machine: nested::Machine) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["nested", "--limit", &machine.limit.to_string()]).args(machine.device.then_some("--device"));
    command.arg("--").arg(tests).args(filter.split(' '));
    command.args(["--test-threads=1", "--color=never", "--nocapture"]);
    command.env(variable, driver);
    Ok(command)
}

/// `cargo nextest run`, or `cargo test` where it is not installed.
fn tests(name: &str, which: &[&str]) -> Check {
    // What a failed test said stands last in the log, where a failed check shows it.
    let runner: &[&str] =
        if cargo::has_nextest() { &["nextest", "run", "--failure-output", "final"] } else { &["test"] };
    let mut command = cargo(runner);
    command.args(which).args(["--no-fail-fast", "--color", "never"]);
    Check { name: name.to_owned(), command, counts: true }
}

/// How a tier went.
enum Outcome {
    Ran(Count),
    NotRun(String),
}

/// Runs all tiers, or those named.
pub(crate) fn run(names: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = names.iter().find(|name| !TIERS.iter().any(|tier| tier.name == name.as_str())) {
        let known = TIERS.map(|tier| tier.name).join(", ");
        bail!("there is no tier {unknown:?}; there are {known}");
    }
    setup::run()?;
    if !cargo::has_nextest() {
        say("  cargo-nextest is not installed: tests run with `cargo test`, in fewer processes");
    }
    let mut results = Vec::new();
    let mut built = Vec::new();
    let wanted: Vec<_> =
        TIERS.iter().filter(|tier| names.is_empty() || names.iter().any(|name| name == tier.name)).collect();
    if wanted.iter().any(|tier| tier.name.starts_with(NESTED)) {
        // Now, since it builds the guests' kernel in passing. Where it fails, so does the tier.
        if let Err(error) = kernel::outer() {
            say(&format!("  {error:#}"));
        }
    }
    for tier in wanted {
        say(&format!("{}: {}", tier.name, tier.about));
        let started = Instant::now();
        let outcome = run_tier(tier, &mut built, !names.is_empty());
        results.push((tier.name, outcome, started.elapsed().as_secs_f64()));
    }
    Ok(summary(&results))
}

fn run_tier(tier: &Tier, built: &mut Vec<(Boots, Artifacts)>, wanted: bool) -> Outcome {
    if let Some(why) = tier.by_name.filter(|_| !wanted) {
        return Outcome::NotRun(format!("only with `--tier {}`: {why}", tier.name));
    }
    if tier.boots != Boots::Nothing {
        if let Some(obstacle) = obstacle() {
            say(&format!("  {} is not run: {obstacle}", tier.name));
            return if wanted { Outcome::Ran(Count::failed(obstacle)) } else { Outcome::NotRun(obstacle) };
        }
        if !built.iter().any(|(boots, _)| *boots == tier.boots) {
            match prepare(tier.boots) {
                Ok(artifacts) => built.push((tier.boots, artifacts)),
                Err(error) => {
                    say(&format!("  {error:#}"));
                    return Outcome::Ran(Count::failed(format!("{error:#}")));
                }
            }
        }
    }
    let artifacts = built.iter().find(|(boots, _)| *boots == tier.boots).map(|(_, artifacts)| artifacts);
    let mut total = Count::default();
    match (tier.checks)() {
        Ok(checks) => checks.into_iter().for_each(|check| total.add(run_check(check, artifacts))),
        Err(error) => total.add(Count::failed(format!("{error:#}"))),
    }
    Outcome::Ran(total)
}

fn run_check(mut check: Check, artifacts: Option<&Artifacts>) -> Count {
    let prepared = artifacts.map_or(Ok(()), |artifacts| artifacts.pass_to(&mut check.command).map(drop));
    let finished = prepared.and_then(|()| run::try_step(&check.name, &mut check.command));
    let finished = match finished {
        Ok(finished) => finished,
        Err(error) => return Count::failed(format!("{}: {error:#}", check.name)),
    };
    if !finished.ok {
        run::show_tail(&finished.log);
    }
    let log = fs::read_to_string(&finished.log).unwrap_or_default();
    let mut count = if check.counts { count::of_log(&log) } else { Count::default() };
    if finished.ok && !check.counts {
        count.passed = 1;
    }
    if !finished.ok {
        // A run that failed without a failed test did not compile, or ended early.
        count.failed = count.failed.max(1);
        count.reasons.push(format!("{}: see {}", check.name, finished.log.display()));
    }
    count
}

/// Everything the VM tiers need.
fn prepare(boots: Boots) -> Result<Artifacts> {
    let artifacts = quickstart::build(boots == Boots::Release)?;
    images::build(&artifacts.belljar, images::ALL)?;
    Ok(artifacts)
}

/// Why this machine cannot run VM tests.
fn obstacle() -> Option<String> {
    let missing = setup::missing();
    if !missing.is_empty() {
        return Some(format!("not installed: {}", missing.join(" ")));
    }
    let root = setup::is_root().unwrap_or(false);
    let image = paths::image_store().is_ok_and(|store| has_image(&store));
    (!root && !image).then(|| "only root can build the image, and there is none yet".to_owned())
}

fn has_image(store: &Path) -> bool {
    fs::read_dir(store.join("names")).is_ok_and(|mut names| names.next().is_some())
}

/// Prints how each tier went and, as the last line, the sums.
fn summary(results: &[(&str, Outcome, f64)]) -> ExitCode {
    let mut total = Count::default();
    say("\nSummary");
    for (name, outcome, seconds) in results {
        match outcome {
            Outcome::NotRun(reason) => say(&format!("  {name:<6} not run: {reason}")),
            Outcome::Ran(count) => {
                say(&format!("  {name:<6} {} passed, {} failed ({seconds:.1} s)", count.passed, count.failed));
                for reason in &count.reasons {
                    say(&format!("         {reason}"));
                }
                total.add(count.clone());
            }
        }
    }
    run::answer(&format!("{} passed, {} failed", total.passed, total.failed));
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
