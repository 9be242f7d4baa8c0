//! Everything that is done with this repository and is not a program of it: `cargo xtask <task>`.
//!
//! One file per task. Tasks call each other as functions, other programs through [`run`], and the `belljar` binary like
//! any user does: nothing here depends on the workspace's crates.

mod artifacts;
mod bench;
mod cargo;
mod generate;
mod guest;
mod images;
mod kernel;
mod nested;
mod paths;
mod quickstart;
mod run;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and tries out Belljar.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// From a fresh clone to a program running in a sandbox on this machine.
    Quickstart,
    /// Run every test that this machine can run.
    Test {
        /// Only this tier; may be given several times.
        #[arg(long = "tier", value_name = "NAME")]
        tiers: Vec<String>,
        /// Only what runs in a machine with working KVM that is emulated here: the tier `nested`.
        #[arg(long)]
        nested: bool,
    },
    /// Run a shell's command line in an emulated machine with working KVM.
    Nested {
        /// Seconds after which the machine is given up.
        #[arg(long, value_name = "SECONDS", default_value_t = nested::LIMIT)]
        limit: u32,
        /// Give the machine an IOMMU and a PCI device that is vfio-pci's. It is slower then.
        #[arg(long)]
        device: bool,
        /// Memory of the machine; what is written to its disk is in there, too.
        #[arg(long, value_name = "MIB", default_value_t = nested::MEMORY_MIB)]
        memory: u32,
        /// The command line.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Measure the promised numbers on this machine.
    Bench {
        /// Arguments for the benchmark program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Install the Debian packages that building and running needs.
    Setup,
    /// Build the guest kernel from Debian's source.
    Kernel {
        /// Look for a newer source even when a kernel of this configuration was built before.
        #[arg(long)]
        update: bool,
    },
    /// Build the guest agent and the initramfs that carries it.
    Guest,
    /// Build the default image into the image store.
    Images,
    /// Check the rules of this repository that the compiler does not.
    Tidy,
    /// Write the files that are generated from the code.
    Gen {
        /// Write nothing; fail when a file is out of date.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Quickstart => quickstart::run(),
        Task::Test { mut tiers, nested } => {
            tiers.extend(nested.then(|| test::NESTED.to_owned()));
            return finish(test::run(&tiers));
        }
        Task::Nested { limit, device, memory, command } => {
            return finish(nested::run(&command, nested::Machine { limit, device, memory_mib: memory }));
        }
        Task::Bench { arguments } => return finish(bench::run(&arguments)),
        Task::Setup => setup::run(),
        Task::Kernel { update } => kernel::run(update).map(|path| run::answer(&path.display().to_string())),
        Task::Guest => guest::run().map(|path| run::answer(&path.display().to_string())),
        Task::Images => images::run(),
        Task::Tidy => tidy::run(),
        Task::Gen { check } => generate::run(check),
    };
    finish(result.map(|()| ExitCode::SUCCESS))
}

fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        run::say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
