//! Writes the files that are generated from the code and committed: the OpenAPI document.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{cargo::cargo, paths, run};

const OPENAPI: &str = "openapi/belljar.json";

/// Writes them, or with `check` fails when they differ from what the code gives.
pub(crate) fn run(check: bool) -> Result<()> {
    run::step("build belljar (debug)", &mut cargo(&["build", "--package", "belljar"]))?;
    let made = run::output(&mut cargo(&["run", "--quiet", "--package", "belljar", "--", "openapi"]))?;
    let path = paths::repository().join(OPENAPI);
    let committed = fs::read_to_string(&path).unwrap_or_default();
    if committed == made {
        run::say(&format!("  {OPENAPI}: up to date"));
        return Ok(());
    }
    if check {
        bail!("{OPENAPI} is not what the code describes; run `cargo xtask gen` and commit the result");
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(&path, made).with_context(|| format!("cannot write {OPENAPI}"))?;
    run::say(&format!("  {OPENAPI}: written"));
    Ok(())
}
