//! Builds the guest agent and the initramfs that carries it into every VM.
//!
//! The agent is linked statically: the initramfs holds it as `/init` and nothing else, and any root file system will do
//! beside it. The archive is not compressed, because a VM in software emulation unpacks slower than its host reads.

use std::{
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use cpio::{NewcBuilder, newc::ModeFileType};

use crate::{artifacts, cargo::cargo, paths, run};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Archives that stay in the cache; one per build of the agent, some megabytes each.
const KEPT: usize = 8;

/// Builds both. Gives the path of the archive.
pub(crate) fn run() -> Result<PathBuf> {
    let target = paths::target().join("guest");
    let mut build = cargo(&["build", "--profile", "guest", "--target", TARGET, "--package", "belljar-guest"]);
    build.arg("--target-dir").arg(&target).env("RUSTFLAGS", "-C target-feature=+crt-static");
    run::step("guest: build the agent", &mut build)?;
    let agent = target.join(TARGET).join("guest/belljar-guest");
    let agent = fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let archive = archive(&agent)?;
    let shelf = paths::cache()?.join("initrd");
    let _lock = run::lock(&shelf.join("lock"))?;
    let key = artifacts::key(&[&archive]);
    let place = shelf.join(&key).join("initrd.cpio");
    if !place.is_file() {
        write(&shelf, &key, &archive)?;
        artifacts::prune(&shelf, KEPT)?;
    }
    artifacts::make_current("initrd", &place)?;
    Ok(place)
}

fn write(shelf: &Path, key: &str, archive: &[u8]) -> Result<()> {
    let made = shelf.join(format!(".{key}.new"));
    fs::create_dir_all(&made).with_context(|| format!("cannot create {}", made.display()))?;
    let file = made.join("initrd.cpio");
    fs::write(&file, archive).with_context(|| format!("cannot write {}", file.display()))?;
    artifacts::publish(&made, shelf, key)
}

/// The initramfs: the agent, a console to speak on before `/dev` is mounted, and places to mount things on.
fn archive(agent: &[u8]) -> Result<Vec<u8>> {
    /// Number of `/dev/console`.
    const CONSOLE: (u32, u32) = (5, 1);
    let mut entries: Vec<(NewcBuilder, &[u8])> = Vec::new();
    for dir in ["dev", "proc", "sys", "root"] {
        entries.push((entry(dir, 0o755).set_mode_file_type(ModeFileType::Directory), &[]));
    }
    let console = entry("dev/console", 0o600).set_mode_file_type(ModeFileType::Char);
    entries.push((console.rdev_major(CONSOLE.0).rdev_minor(CONSOLE.1), &[]));
    entries.push((entry("init", 0o755).set_mode_file_type(ModeFileType::Regular), agent));
    let mut archive = Cursor::new(Vec::new());
    let mut inode = 0;
    for (entry, content) in entries {
        inode += 1;
        let size = u32::try_from(content.len()).context("the agent has more than 4 GiB")?;
        let mut writer = entry.ino(inode).write(&mut archive, size);
        writer.write_all(content).and_then(|()| writer.finish().map(drop)).context("cannot write the archive")?;
    }
    cpio::newc::trailer(&mut archive).context("cannot write the archive")?;
    Ok(archive.into_inner())
}

/// An entry with no trace of who made it, and when.
fn entry(name: &str, mode: u32) -> NewcBuilder {
    NewcBuilder::new(name).uid(0).gid(0).nlink(1).mtime(0).mode(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_agent() {
        let bytes = archive(b"agent").unwrap();
        assert_eq!(bytes, archive(b"agent").unwrap());
        let mut found = Vec::new();
        let mut rest = Cursor::new(bytes);
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            std::io::Read::read_to_string(&mut reader, &mut content).unwrap();
            let entry = reader.entry();
            found.push(format!(
                "{} {:o} {},{} {content}",
                entry.name(),
                entry.mode(),
                entry.rdev_major(),
                entry.rdev_minor()
            ));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            found,
            [
                "dev 40755 0,0 ",
                "proc 40755 0,0 ",
                "sys 40755 0,0 ",
                "root 40755 0,0 ",
                "dev/console 20600 5,1 ",
                "init 100755 0,0 agent",
            ]
        );
    }
}
