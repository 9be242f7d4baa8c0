//! The root directory of a jail: what a VM process finds there, and nothing else.

use super::ROOM;
use super::launcher::{Done, Held, Step};
use super::plan::{Network, Plan};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, makedev, mknodat, openat, statat, symlinkat};
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where a program is, as the shell finds it.
pub(super) fn find(program: &Path) -> io::Result<PathBuf> {
    if program.components().count() > 1 {
        return program.canonicalize();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.ok_or(io::ErrorKind::NotFound)?.canonicalize()
}

/// Whether an ELF file has a program header `PT_INTERP`. Format: `elf(5)`.
pub(super) fn needs_interpreter(program: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut start = Vec::new();
    File::open(program)?.take(4096).read_to_end(&mut start)?;
    let number = |at: usize, bytes: usize| {
        let field = start.get(at..at + bytes)?;
        Some(field.iter().rev().fold(0_usize, |number, byte| (number << 8) | usize::from(*byte)))
    };
    if !start.starts_with(b"\x7fELF\x02\x01") {
        // A script, which needs more than that.
        return Ok(true);
    }
    let table = (number(32, 8).unwrap_or(0), number(54, 2).unwrap_or(0), number(56, 2).unwrap_or(0));
    let (at, size, count) = table;
    Ok((0..count.min(64)).any(|index| number(at + index * size, 4) == Some(PT_INTERP as usize)))
}

pub(super) const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

fn in_memory(target: &Path, flags: MountFlags, options: &str) -> Done {
    let options = CString::new(options).step("name options")?;
    mount("tmpfs", target, "tmpfs", flags, Some(options.as_c_str())).step(format_args!("mount {}", target.display()))
}

/// Makes what will be the root, at the run directory's place.
pub(super) fn make_root(plan: &Plan, held: &Held, root: &Path) -> Done {
    in_memory(root, MountFlags::NOSUID, "mode=0755,size=1m,nr_inodes=4096")?;
    let room = root.join(&ROOM[1..]);
    for dir in [room.clone(), root.join("dev/net"), root.join("proc")] {
        std::fs::create_dir_all(&dir).step(format_args!("create {}", dir.display()))?;
    }
    let limits = &plan.limits;
    in_memory(&room, NOTHING, &format!("mode=0700,size={},nr_inodes={}", limits.room_bytes, limits.room_files))?;
    for (file, from) in plan.files.iter().zip(&held.files) {
        let flags = if file.write { NOTHING } else { NOTHING | MountFlags::RDONLY };
        if !file.write {
            make_readable(from).step(format_args!("make {} readable", file.from.display()))?;
        }
        bind(from, &room.join(&file.name), flags)?;
    }
    if held.is_dynamic {
        bind_libraries(root)?;
    }
    if !(held.is_dynamic && held.program.starts_with("/usr")) {
        let program =
            openat(CWD, &held.program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("open the program")?;
        let target = root.join(held.program.strip_prefix("/").unwrap_or(&held.program));
        bind(&program, &target, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV)?;
    }
    for (device, from) in plan.passed_through.iter().zip(&held.devices) {
        let path = device.path();
        let target = root.join(path.strip_prefix("/").unwrap_or(&path));
        std::fs::create_dir_all(&target).step(format_args!("create {}", target.display()))?;
        let flags = NOTHING | MountFlags::RDONLY;
        rebind(Path::new(&format!("/proc/self/fd/{}", from.as_raw_fd())), &target, flags)?;
    }
    make_devices(plan, root)
}

/// Files below `/dev` through which it reaches the devices that it gives its guest.
pub(super) fn vfio_files(plan: &Plan) -> Vec<String> {
    let mut groups: Vec<_> = plan.passed_through.iter().map(|device| device.group).collect();
    groups.sort_unstable();
    groups.dedup();
    let container = (!groups.is_empty()).then(|| "vfio/vfio".to_owned());
    container.into_iter().chain(groups.into_iter().map(|group| format!("vfio/{group}"))).collect()
}

/// Lets everybody read a file that many VMs may share: only its own name in the jail leads there.
pub(super) fn make_readable(file: &OwnedFd) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let metadata = std::fs::metadata(&path)?;
    let mut permissions = metadata.permissions();
    let mode = std::os::unix::fs::PermissionsExt::mode(&permissions);
    if mode & 0o004 == 0 {
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, mode | 0o444);
        std::fs::set_permissions(&path, permissions)?;
    }
    Ok(())
}

/// Gives a file a second place.
fn bind(file: &impl AsFd, target: &Path, flags: MountFlags) -> Done {
    let make = || {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::create_new(target).map(drop)
    };
    make().step(format_args!("create {}", target.display()))?;
    rebind(Path::new(&format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())), target, flags)
}

fn rebind(from: &Path, target: &Path, flags: MountFlags) -> Done {
    mount_bind(from, target).step(format_args!("mount {}", target.display()))?;
    mount_remount(target, MountFlags::BIND | flags, "").step(format_args!("protect {}", target.display()))
}

/// The system's programs and libraries, as they are.
fn bind_libraries(root: &Path) -> Done {
    for name in ["usr", "lib", "lib32", "lib64", "bin"] {
        let (host, inside) = (Path::new("/").join(name), root.join(name));
        match std::fs::read_link(&host) {
            Ok(to) => symlinkat(&to, CWD, &inside).step(format_args!("link {}", inside.display()))?,
            Err(_) if host.is_dir() => {
                std::fs::create_dir(&inside).step(format_args!("create {}", inside.display()))?;
                rebind(&host, &inside, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV)?;
            }
            Err(_) => {}
        }
    }
    Ok(())
}

fn make_devices(plan: &Plan, root: &Path) -> Done {
    if !plan.passed_through.is_empty() {
        std::fs::create_dir(root.join("dev/vfio")).step("create /dev/vfio")?;
    }
    let everybody = Mode::from_bits_truncate(0o666);
    let make = |name: &str, mode: Mode, number| {
        let path = root.join("dev").join(name);
        let made = mknodat(CWD, &path, FileType::CharacterDevice, mode, number);
        made.and_then(|()| rustix::fs::chmod(&path, mode)).step(format_args!("make /dev/{name}"))
    };
    for (name, minor) in [("null", 3), ("zero", 5), ("urandom", 9)] {
        make(name, everybody, makedev(1, minor))?;
    }
    let own = [(plan.kvm, "kvm"), (matches!(plan.network, Network::Tap(_)), "net/tun")];
    let own = own.into_iter().filter(|(wanted, _)| *wanted).map(|(_, name)| name.to_owned());
    for name in own.chain(vfio_files(plan)) {
        let host =
            statat(CWD, Path::new("/dev").join(&name), AtFlags::empty()).step(format_args!("find /dev/{name}"))?;
        make(&name, Mode::RUSR | Mode::WUSR, host.st_rdev)?;
    }
    Ok(())
}
