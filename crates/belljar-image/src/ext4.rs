//! Packs a file tree into an ext4 file system, byte for byte the same for the same tree.
//!
//! mkfs.ext4 is told every identifier it would draw at random. Two times it cannot be told, it copies them from each
//! file: of the last change (`ctime`), which no program can set, and of the last access (`atime`), which changes while
//! mkfs.ext4 reads. debugfs sets both in the finished file system, and of the root directory also its owner, mode and time,
//! which mkfs.ext4 does not copy.

use std::{
    fs::{self, File},
    ops::RangeInclusive,
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::{
    error::ImageError,
    limits::{JOURNAL_MIB, MAX_GROWN_GIB},
    tool,
};

/// Identity of every root file system that is built; a sandbox finds its disk by device, so it need not be unique.
const UUID: &str = "b3117a40-0000-4000-8000-000000000001";
/// Seed of the directory hashes.
const HASH_SEED: &str = "b3117a40-0000-4000-8000-000000000002";

/// Spelled out, because the defaults differ between versions of mkfs.ext4.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

const BLOCK_BYTES: u64 = 4096;

/// First inode of a file; below are the file system's own, of which only the root directory has a time to set.
const FIRST_FILE: u64 = 11;
const ROOT: u64 = 2;

/// Writes the tree at `root` into a new sparse file at `to`; every time that mkfs.ext4 would take from the clock is
/// `time`, seconds since 1970.
pub(crate) fn pack(root: &Path, to: &Path, size_mib: u64, time: i64) -> Result<(), ImageError> {
    let file = File::create_new(to).map_err(ImageError::io("create", to))?;
    file.set_len(size_mib << 20).map_err(ImageError::io("set the size of", to))?;
    // Room for descriptors up to the largest size. The file is all zeros: nothing has to be cleared, now or at mount.
    let extended = format!(
        "hash_seed={HASH_SEED},root_owner=0:0,resize={},nodiscard,lazy_itable_init=0,lazy_journal_init=0,\
         assume_storage_prezeroed=1",
        (MAX_GROWN_GIB << 30) / BLOCK_BYTES
    );
    let mut mkfs = tool::command("mkfs.ext4");
    mkfs.env("E2FSPROGS_FAKE_TIME", time.to_string());
    mkfs.args(["-q", "-F", "-L", "belljar", "-b", "4096", "-I", "256", "-m", "0"]);
    mkfs.args(["-O", FEATURES, "-U", UUID, "-E", &extended, "-J", &format!("size={JOURNAL_MIB}")]);
    mkfs.arg("-d").arg(root).arg(to);
    tool::run(&mut mkfs, &mut |_| {})?;
    let top = fs::symlink_metadata(root).map_err(ImageError::io("read", root))?;
    set_fields(to, &top, time)
}

fn set_fields(image: &Path, top: &fs::Metadata, time: i64) -> Result<(), ImageError> {
    let layout = tool::run(tool::command("dumpe2fs").arg(image), &mut |_| {})?;
    let used = used_inodes(&layout).ok_or_else(|| ImageError::BadRecord {
        path: image.to_owned(),
        reason: "dumpe2fs does not say which inodes are free".into(),
    })?;
    let mut script = String::new();
    let of_root = [("mode", top.mode()), ("uid", top.uid()), ("gid", top.gid())];
    for (field, value) in of_root {
        script.push_str(&format!("set_inode_field <{ROOT}> {field} {value}\n"));
    }
    script.push_str(&format!("set_inode_field <{ROOT}> mtime @{}\n", top.mtime().max(0)));
    for inode in used.into_iter().flatten().filter(|&inode| inode == ROOT || inode >= FIRST_FILE) {
        // The parts below a second exist since e2fsprogs 1.47.1, and come from the build's clock too.
        for field in ["atime", "ctime"] {
            script.push_str(&format!("set_inode_field <{inode}> {field} @{time}\n"));
            script.push_str(&format!("set_inode_field <{inode}> {field}_extra 0\n"));
        }
    }
    let commands = image.with_extension("debugfs");
    fs::write(&commands, script).map_err(ImageError::io("write", &commands))?;
    let mut debugfs = tool::command("debugfs");
    debugfs.env("E2FSPROGS_FAKE_TIME", time.to_string()).arg("-w").arg("-f").arg(&commands).arg(image);
    // Its exit code says nothing about its commands: after its name and version, silence means success.
    let mut complaints = Vec::new();
    let result = tool::run(&mut debugfs, &mut |line| {
        if !line.starts_with("debugfs 1.") {
            complaints.push(line.to_owned());
        }
    });
    fs::remove_file(&commands).map_err(ImageError::io("remove", &commands))?;
    result?;
    complaints.truncate(crate::limits::ERROR_TAIL_LINES);
    if complaints.is_empty() {
        Ok(())
    } else {
        Err(ImageError::Tool {
            program: "debugfs".into(),
            status: "exit status: 0".into(),
            tail: complaints.join("\n"),
        })
    }
}

/// Ranges of used inodes in the output of dumpe2fs: all but those in its `Free inodes:` lines.
fn used_inodes(layout: &str) -> Option<Vec<RangeInclusive<u64>>> {
    let total = layout.lines().find_map(|line| line.strip_prefix("Inode count:"))?.trim().parse::<u64>().ok()?;
    let mut used = Vec::new();
    let mut next = 1;
    for list in layout.lines().filter_map(|line| line.strip_prefix("  Free inodes:")) {
        for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            if first > next {
                used.push(next..=first - 1);
            }
            next = last + 1;
        }
    }
    if next <= total {
        used.push(next..=total);
    }
    Some(used)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn used_inodes_are_those_not_free() {
        let check = |free: &str, expect: &[RangeInclusive<u64>]| {
            let layout = format!("Inode count:              40\n{free}");
            assert_eq!(used_inodes(&layout).as_deref(), Some(expect), "{free}");
        };
        check("  Free inodes: 14-20\n  Free inodes: 21-40\n", &[1..=13]);
        check("  Free inodes: 14, 18-20\n  Free inodes: \n", &[1..=13, 15..=17, 21..=40]);
        check("", &[1..=40]);
        assert_eq!(used_inodes("nothing"), None);
        assert_eq!(used_inodes("Inode count: 4\n  Free inodes: x-y"), None);
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut digests = Vec::new();
        for (copy, order) in [["b", "a", "c"], ["c", "b", "a"]].iter().enumerate() {
            let root = dir.path().join(copy.to_string());
            let accessed = UNIX_EPOCH + Duration::from_secs(1000 * copy as u64);
            fs::create_dir_all(root.join("usr")).unwrap();
            for name in order {
                let path = root.join("usr").join(name);
                fs::write(&path, name).unwrap();
                let times = fs::FileTimes::new().set_modified(UNIX_EPOCH).set_accessed(accessed);
                fs::File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
            }
            for part in [root.join("usr"), root.clone()] {
                fs::File::open(part).unwrap().set_modified(UNIX_EPOCH).unwrap();
            }
            let image = dir.path().join(format!("{copy}.ext4"));
            pack(&root, &image, 512, 1_700_000_000).unwrap();
            digests.push(crate::digest::of_file(&image).unwrap());
        }
        assert_eq!(digests[0], digests[1]);
        // No test can give two files two change times; so it looks at the one that there is.
        let image = dir.path().join("0.ext4");
        let stat = tool::run(tool::command("debugfs").args(["-R", "stat /usr/a"]).arg(image), &mut |_| {}).unwrap();
        for (field, time) in
            [(" ctime", 1_700_000_000), (" atime", 1_700_000_000), ("crtime", 1_700_000_000), (" mtime", 0)]
        {
            assert!(stat.contains(&format!("{field}: 0x{time:08x}:00000000")), "{field} in {stat}");
        }
    }
}
