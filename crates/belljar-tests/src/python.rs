//! A Python with the vendor's published SDK, unmodified, pointed at a [`World`].

use std::{fs::File, path::PathBuf, process::Command};

use crate::World;

/// The version that the wire format was taken from.
const SDK: &str = "tensorlake==0.5.163";

/// The interpreter with a World's address and key in its environment.
pub fn python(world: &World) -> Command {
    let mut command = Command::new(interpreter());
    command
        .env("TENSORLAKE_API_URL", format!("http://{}", world.address()))
        .env("TENSORLAKE_API_KEY", world.key())
        // What runs from the repository writes nothing into it.
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A virtual environment with the SDK, made once per cache.
fn interpreter() -> PathBuf {
    let cache = std::env::var_os("BELLJAR_CACHE").map(PathBuf::from);
    let cache =
        cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache/belljar"))).expect("a home directory");
    let shelf = cache.join("venv");
    std::fs::create_dir_all(&shelf).expect("the cache can be written to");
    // Tests are processes, and two at once find that there is none.
    let lock = File::create(shelf.join("lock")).expect("the cache can be written to");
    lock.lock().expect("a lock");
    let venv = shelf.join(SDK);
    let python = venv.join("bin/python");
    let installed =
        Command::new(&python).args(["-c", "import tensorlake.sandbox"]).status().is_ok_and(|it| it.success());
    if !installed {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", SDK]));
    }
    python
}

/// Runs a command, which has to succeed; answers its stdout.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}
