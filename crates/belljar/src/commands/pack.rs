//! Packing local files into an archive for a sandbox.
//!
//! Pipes, sockets and devices have no content to copy: they are left out, and told. A file that changes while it is
//! packed is cut or filled up, since its size is in the archive before its content.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use tar::{Builder, Header};

/// What was left out.
pub(super) type Skipped = Vec<PathBuf>;

/// Packs everything below `root`, with names relative to it.
pub(super) fn directory(archive: &mut Builder<impl Write>, root: &Path) -> io::Result<Skipped> {
    directory_where(archive, root, &mut |_, _| true)
}

/// The same, but for what `wanted` says `false` to: it is told the name, and whether that is a directory. Nothing in one
/// that is not wanted is looked at.
pub(super) fn directory_where(
    archive: &mut Builder<impl Write>,
    root: &Path,
    wanted: &mut dyn FnMut(&Path, bool) -> bool,
) -> io::Result<Skipped> {
    let mut skipped = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let at = root.join(&directory);
        for listed in fs::read_dir(&at).map_err(|error| named(&at, &error))? {
            let listed = listed.map_err(|error| named(&at, &error))?;
            let name = directory.join(listed.file_name());
            if !wanted(&name, listed.file_type()?.is_dir()) {
                continue;
            }
            if !entry(archive, &listed.path(), &name)? {
                skipped.push(name);
            } else if listed.file_type()?.is_dir() {
                pending.push(name);
            }
        }
    }
    Ok(skipped)
}

/// Packs one file, directory or link; `false` when it is something else.
pub(super) fn entry(archive: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<bool> {
    let failed = |error| named(path, &error);
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    let mut header = Header::new_gnu();
    header.set_metadata(&metadata);
    if metadata.is_dir() {
        archive.append_data(&mut header, name, io::empty())?;
    } else if metadata.is_symlink() {
        header.set_size(0);
        archive.append_link(&mut header, name, fs::read_link(path).map_err(failed)?)?;
    } else if metadata.is_file() {
        let size = metadata.len();
        let content = File::open(path).map_err(failed)?.take(size).chain(io::repeat(0)).take(size);
        archive.append_data(&mut header, name, content)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// An error that says which file it is about.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::unpack::unpack;
    use super::*;

    #[test]
    fn what_is_packed_can_be_unpacked_and_pipes_are_left_out() {
        let world = tempfile::tempdir().expect("directory");
        let (from, to) = (world.path().join("from"), world.path().join("to"));
        fs::create_dir_all(from.join("a/empty")).expect("directories");
        fs::write(from.join("a/file"), vec![7; 100_000]).expect("file");
        fs::write(from.join("x".repeat(200)), "long").expect("file");
        symlink("a/file", from.join("link")).expect("link");
        symlink("nowhere", from.join("dangling")).expect("link");
        nix::unistd::mkfifo(&from.join("a/pipe"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");

        let mut archive = Builder::new(Vec::new());
        assert_eq!(directory(&mut archive, &from).expect("pack"), [PathBuf::from("a/pipe")]);
        unpack(archive.into_inner().expect("archive").as_slice(), &to).expect("unpack");
        assert_eq!(fs::read(to.join("a/file")).expect("file"), vec![7; 100_000]);
        assert_eq!(fs::read_to_string(to.join("x".repeat(200))).expect("file"), "long");
        assert_eq!(fs::read_link(to.join("link")).expect("link"), PathBuf::from("a/file"));
        assert_eq!(fs::read_link(to.join("dangling")).expect("link"), PathBuf::from("nowhere"));
        assert!(to.join("a/empty").is_dir() && !to.join("a/pipe").exists());
        assert!(directory(&mut Builder::new(Vec::new()), &world.path().join("none")).is_err());
    }
}
