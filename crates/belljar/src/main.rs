//! The `belljar` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    belljar::main(std::env::args_os()).into()
}
