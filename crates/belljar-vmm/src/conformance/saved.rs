//! Pausing, saving and restoring. The guest obeys a list in its memory.

use super::{World, with_each};
use crate::driver::{DirtyMemory, DiskLimits, Driver, MemoryChanges, NetworkSpec, Vm, VmSpec};
use crate::error::VmmError;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MEMORY: u64 = 64 << 20;
const PAGE: usize = 4096;

/// Where the guest reads addresses (4 bytes each), one after the other; it waits at the first 0.
const LIST: u64 = 0x30_0000;

/// What the guest does with an address (`eax`) of the list, at whose place it is (`esi`): writes the place there.
pub(crate) const WRITE_PLACE: [u8; 3] = [0x89, 0x30, 0x90];
/// Writes a 0 there.
const WRITE_ZERO: [u8; 3] = [0xc6, 0x00, 0x00];

pub(crate) fn obey(store: [u8; 3]) -> Vec<u8> {
    let wait = [
        0xf3, 0x90, // wait: pause
        0x8b, 0x06, // mov eax, [esi]
        0x85, 0xc0, // test eax, eax
        0x74, 0xf8, // jz wait
    ];
    let next = [
        0x83, 0xc6, 0x04, // add esi, 4
        0xeb, 0xf0, // jmp wait
    ];
    // mov esi, LIST
    [&[0xbe, 0x00, 0x00, 0x30, 0x00], &wait[..], &store, &next].concat()
}

/// The memory of a VM that was paused, as a file.
pub(crate) struct Image(pub(crate) PathBuf);

impl Image {
    /// Of a guest that is to boot.
    pub(crate) fn new(world: &World, name: &str) -> Self {
        let image = Self(world.path(name));
        File::create_new(&image.0).unwrap().set_len(MEMORY).unwrap();
        image
    }

    /// This one with what a guest wrote since, under another name.
    fn with(&self, world: &World, name: &str, dirty: &DirtyMemory) -> Self {
        let path = world.path(name);
        std::fs::copy(&self.0, &path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let mut rest = dirty.data.as_slice();
        for (offset, length) in &dirty.runs {
            let (run, other) = rest.split_at(usize::try_from(*length).unwrap());
            file.write_all_at(run, *offset).unwrap();
            rest = other;
        }
        assert!(rest.is_empty());
        Self(path)
    }

    /// Tells the guest to write to `addresses`, after `done` earlier ones.
    fn tell(&self, done: u64, addresses: &[u64]) {
        let words = addresses.iter().flat_map(|address| u32::try_from(*address).unwrap().to_le_bytes());
        let file = OpenOptions::new().write(true).open(&self.0).unwrap();
        file.write_all_at(&words.collect::<Vec<u8>>(), LIST + done * 4).unwrap();
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

/// Below this a VM program may write itself, such as another generation's number after a restore.
const GUESTS_OWN: u64 = 0x10_0000;

/// The pages of the runs, as far as they are the guest's own.
fn pages(dirty: &DirtyMemory) -> Vec<u64> {
    let all = dirty.runs.iter().flat_map(|(start, length)| (*start..start + length).step_by(PAGE));
    all.filter(|page| *page >= GUESTS_OWN).collect()
}

/// The content of those pages.
fn contents(dirty: &DirtyMemory) -> Vec<&[u8]> {
    dirty.data[dirty.data.len() - pages(dirty).len() * PAGE..].chunks(PAGE).collect()
}

/// Lets the guest go on until it has written to the page `last`, then pauses it.
async fn run_until(vm: &dyn Vm, last: u64) -> DirtyMemory {
    loop {
        vm.resume().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        vm.pause().await.unwrap();
        let dirty = vm.copy_dirty(vm.room_for_dirty().unwrap()).unwrap();
        if pages(&dirty).contains(&last) {
            return dirty;
        }
    }
}

/// A VM that was saved after its first write: its memory, and how to go on with it.
pub(crate) struct Saved {
    pub(crate) image: Image,
    /// In what it differs from a blank one.
    runs: Vec<(u64, u64)>,
    pub(crate) spec: VmSpec,
}

const FIRST: u64 = 0x40_0000;

/// A guest that first tells itself to write to [`FIRST`].
fn first_then_obey(store: [u8; 3]) -> Vec<u8> {
    let mut code = vec![0xc7, 0x05]; // mov dword [LIST], FIRST
    for word in [LIST, FIRST] {
        code.extend(u32::try_from(word).unwrap().to_le_bytes());
    }
    code.extend(obey(store));
    code
}

pub(crate) async fn saved(driver: &dyn Driver, world: &World, store: [u8; 3]) -> Saved {
    let image = Image::new(world, "memory-0");
    let boot = VmSpec { memory: Some(image.0.clone()), ..world.spec(&first_then_obey(store)) };
    let vm = driver.launch(&boot).await.unwrap();
    let dirty = run_until(&*vm, FIRST).await;
    let image = image.with(world, "memory-1", &dirty);
    let devices = world.path("devices-1");
    vm.save_devices(&devices).await.unwrap();
    vm.kill().await.unwrap();
    world.assert_clean();
    let spec = VmSpec { memory: Some(image.0.clone()), devices: Some(devices), ..boot };
    Saved { image, runs: dirty.runs, spec }
}

#[tokio::test]
async fn many_generations() {
    with_each(async |driver, world| {
        let Saved { mut image, mut spec, .. } = saved(driver, world, WRITE_PLACE).await;
        for generation in 0..5 {
            let done = 1 + generation * 3;
            let written = [0x50_0000, 0x60_0000, 0x60_2000].map(|address| address + generation * 0x10_0000);
            image.tell(done, &written);
            let vm = driver.launch(&spec).await.unwrap();
            assert!(vm.is_paused().await.unwrap());
            assert!(pages(&vm.copy_dirty(Vec::new()).unwrap()).is_empty());
            let dirty = run_until(&*vm, written[2]).await;
            assert_eq!(pages(&dirty), written);
            for (index, page) in (0..).zip(contents(&dirty)) {
                let place = LIST + (done + index) * 4;
                assert_eq!(page[..4], u32::try_from(place).unwrap().to_le_bytes());
            }
            let devices = world.path(&format!("devices-after-{generation}"));
            vm.save_devices(&devices).await.unwrap();
            vm.kill().await.unwrap();
            world.assert_clean();
            image = image.with(world, &format!("memory-after-{generation}"), &dirty);
            spec = VmSpec { memory: Some(image.0.clone()), devices: Some(devices), ..spec };
        }
        assert_eq!(image.content()[0x40_0000..][..4], u32::try_from(LIST).unwrap().to_le_bytes());
    })
    .await;
}

#[tokio::test]
async fn changes_to_what_memory_began_as_are_put_back() {
    with_each(async |driver, world| {
        const HIDDEN: u64 = 0x70_0000;
        let Saved { image, mut runs, spec } = saved(driver, world, WRITE_PLACE).await;
        image.tell(1, &[0x50_0000, 0x60_0000]);
        let base = Image::new(world, "base");
        runs.insert(runs.partition_point(|(offset, _)| *offset < HIDDEN), (HIDDEN, PAGE as u64));
        let file = OpenOptions::new().write(true).open(&base.0).unwrap();
        file.write_all_at(&[7; PAGE], HIDDEN).unwrap();
        let with = |runs: &[(u64, u64)]| VmSpec {
            memory: Some(base.0.clone()),
            changes: Some(MemoryChanges { from: image.0.clone(), runs: runs.into() }),
            ..spec.clone()
        };
        if !driver.capabilities().takes_changes {
            let error = driver.launch(&with(&runs)).await.err().expect("it cannot");
            assert!(matches!(error, VmmError::BadSpec { field: "changes", .. }), "{error}");
            return;
        }
        let error = driver.launch(&with(&[(MEMORY, 0x1000)])).await.err().expect("it is outside");
        assert!(matches!(error, VmmError::Changes { .. }), "{error}");
        world.assert_clean();
        let vm = driver.launch(&with(&runs)).await.unwrap();
        let dirty = run_until(&*vm, 0x60_0000).await;
        let changed: Vec<u64> = pages(&dirty);
        for page in [LIST, FIRST, 0x50_0000, 0x60_0000, HIDDEN] {
            assert!(changed.contains(&page), "{page:#x}");
        }
        let after = base.with(world, "after", &dirty).content();
        let word = |at: u64| after[usize::try_from(at).unwrap()..].first_chunk::<4>().copied().map(u32::from_le_bytes);
        let place = |index: u64| u32::try_from(LIST + index * 4).ok();
        assert_eq!([FIRST, 0x50_0000, 0x60_0000].map(word), [0, 1, 2].map(place));
        assert_eq!(word(HIDDEN), Some(0), "what is zero now hides what was there");
        assert_eq!(
            base.content().iter().position(|byte| *byte != 0),
            usize::try_from(HIDDEN).ok(),
            "the file is as it was"
        );
        vm.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn siblings_see_nothing_of_each_other_and_leave_their_base_alone() {
    with_each(async |driver, world| {
        let Saved { image, spec, .. } = saved(driver, world, WRITE_PLACE).await;
        image.tell(1, &[0x50_0000, 0x51_0000]);
        std::fs::set_permissions(&image.0, Permissions::from_mode(0o444)).unwrap();
        let before = image.content();
        let mut vms = Vec::new();
        for _ in 0..3 {
            let other = World::new();
            let memory = other.path("memory, linked=1");
            std::fs::hard_link(&image.0, &memory).unwrap();
            let spec = VmSpec {
                run_dir: other.run_dir(),
                disk: Some(other.path("disk")),
                memory: Some(memory),
                ..spec.clone()
            };
            vms.push((driver.launch(&spec).await.unwrap(), other));
        }
        for index in 0..vms.len() {
            for (later, _) in &vms[index..] {
                assert!(pages(&later.copy_dirty(Vec::new()).unwrap()).is_empty());
            }
            assert_eq!(pages(&run_until(&*vms[index].0, 0x51_0000).await), [0x50_0000, 0x51_0000]);
        }
        assert!(image.content() == before);
        for (vm, other) in vms {
            vm.kill().await.unwrap();
            other.assert_clean();
        }
    })
    .await;
}

#[tokio::test]
async fn a_vm_that_never_went_on_is_saved_again() {
    with_each(async |driver, world| {
        let Saved { image, mut spec, .. } = saved(driver, world, WRITE_PLACE).await;
        image.tell(1, &[0x50_0000]);
        for name in ["devices-2", "devices-3"] {
            let vm = driver.launch(&spec).await.unwrap();
            vm.save_devices(&world.path(name)).await.unwrap();
            vm.kill().await.unwrap();
            spec.devices = Some(world.path(name));
        }
        let vm = driver.launch(&spec).await.unwrap();
        assert_eq!(pages(&run_until(&*vm, 0x50_0000).await), [0x50_0000]);
        vm.kill().await.unwrap();
    })
    .await;
}

/// They are not the base's, which may hold something else there.
#[tokio::test]
async fn pages_that_were_zeroed_are_told() {
    with_each(async |driver, world| {
        let Saved { image, spec, .. } = saved(driver, world, WRITE_ZERO).await;
        image.tell(1, &[0x50_0000, 0x50_1000]);
        let vm = driver.launch(&spec).await.unwrap();
        let dirty = run_until(&*vm, 0x50_1000).await;
        assert_eq!(pages(&dirty), [0x50_0000, 0x50_1000]);
        assert!(contents(&dirty).concat().iter().all(|byte| *byte == 0));
        vm.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_paused_vm_is_adopted_and_its_directory_may_be_renamed() {
    with_each(async |driver, world| {
        let Saved { image, spec, .. } = saved(driver, world, WRITE_PLACE).await;
        image.tell(1, &[0x50_0000]);
        let vm = driver.launch(&spec).await.unwrap();
        drop(vm);
        let vm = driver.adopt(&spec.run_dir).await.unwrap().unwrap();
        assert!(vm.is_paused().await.unwrap());

        // What is above it, as that is harder.
        let (old, new) = (spec.run_dir.parent().unwrap(), world.path("renamed"));
        std::fs::rename(old, &new).unwrap();
        std::fs::rename(&image.0, world.path("renamed-memory")).unwrap();
        let written = run_until(&*vm, 0x50_0000).await;
        vm.save_devices(&world.path("devices-2")).await.unwrap();
        vm.resume().await.unwrap();
        drop(vm);
        let vm = driver.adopt(&new.join("run")).await.unwrap().unwrap();
        assert!(!vm.is_paused().await.unwrap());
        for _ in 0..2 {
            vm.pause().await.unwrap();
            assert!(vm.is_paused().await.unwrap());
        }
        assert!(vm.copy_dirty(Vec::new()).unwrap() == written);
        vm.save_devices(&world.path("devices-3")).await.unwrap();
        vm.grow_disk(2 << 20).await.unwrap();
        vm.kill().await.unwrap();
        std::fs::rename(&new, old).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_process_that_was_made_ahead_gets_a_guest() {
    with_each(async |driver, world| {
        let Saved { image, spec, .. } = saved(driver, world, WRITE_PLACE).await;
        image.tell(1, &[0x50_0000]);
        let ahead = VmSpec { id: "ahead".into(), memory: None, devices: None, ..spec.clone() };
        if !driver.capabilities().prepares {
            assert!(driver.prepare(&ahead).await.is_err());
            return;
        }
        let prepare = async || driver.prepare(&ahead).await.unwrap();
        let prepared = prepare().await;
        let (old, new) = (spec.run_dir.parent().unwrap(), world.path("renamed"));
        std::fs::rename(old, &new).unwrap();
        let moved = VmSpec { run_dir: new.join("run"), ..spec.clone() };
        let vm = driver.launch_in(prepared, &moved).await.unwrap();
        assert!(vm.is_paused().await.unwrap());
        let written = run_until(&*vm, 0x50_0000).await;
        assert!(vm.copy_dirty(Vec::new()).unwrap() == written);
        drop(vm);
        let vm = driver.adopt(&moved.run_dir).await.unwrap().unwrap();
        vm.save_devices(&world.path("devices-2")).await.unwrap();
        vm.grow_disk(2 << 20).await.unwrap();
        vm.kill().await.unwrap();
        std::fs::rename(&new, old).unwrap();

        // For another one it is of no use, and nobody's it ends like a VM.
        let misfit = VmSpec { disk_limits: DiskLimits::default(), ..spec.clone() };
        let error = driver.launch_in(prepare().await, &misfit).await.err().unwrap();
        assert!(error.to_string().contains("disk_limits"), "{error}");
        world.assert_clean();
        let damaged = world.path("damaged");
        std::fs::write(&damaged, "?").unwrap();
        let damaged = VmSpec { devices: Some(damaged), ..spec.clone() };
        assert!(driver.launch_in(prepare().await, &damaged).await.is_err());
        world.assert_clean();
        drop(prepare().await);
        driver.end(&spec.run_dir).await.unwrap();
        world.assert_clean();
    })
    .await;
}

#[tokio::test]
async fn a_state_holds_no_path_of_the_host() {
    with_each(async |driver, world| {
        let Saved { spec, .. } = saved(driver, world, WRITE_PLACE).await;
        let state = std::fs::read(spec.devices.unwrap()).unwrap();
        let directory = world.path("");
        let parts = [directory.as_path(), Path::new("memory-0"), Path::new("/proc/"), Path::new("/usr/")];
        for part in parts.map(|path| path.as_os_str().as_encoded_bytes()) {
            let found = state.windows(part.len()).position(|window| window == part);
            let around = |at: usize| {
                String::from_utf8_lossy(&state[at.saturating_sub(40)..(at + 80).min(state.len())]).into_owned()
            };
            assert_eq!(found.map(around), None);
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_vm_cannot_go_on_with_is_refused() {
    with_each(async |driver, world| {
        let Saved { spec: good, .. } = saved(driver, world, WRITE_PLACE).await;
        let check = async |spec: VmSpec, expected: &str| {
            let error = driver.launch(&spec).await.err().unwrap();
            assert!(error.to_string().contains(expected), "{error}");
            world.assert_clean();
        };
        let state = std::fs::read(good.devices.as_ref().unwrap()).unwrap();
        let with = |name: &str, bytes: &[u8]| {
            std::fs::write(world.path(name), bytes).unwrap();
            VmSpec { devices: Some(world.path(name)), ..good.clone() }
        };
        let mut flipped = state.clone();
        flipped[state.len() - 1000] ^= 1;
        check(with("flipped", &flipped), "flipped; it must be").await;
        check(with("flipped", &flipped), "damaged").await;
        for (name, bytes) in [("short", &state[..state.len() / 2]), ("empty", b""), ("foreign", &[0x55; 100_000])] {
            check(with(name, bytes), &format!("{name}; it must be")).await;
        }
        check(VmSpec { devices: Some(world.path("missing")), ..good.clone() }, "cannot open the device state").await;
        check(VmSpec { vcpus: 2, ..good.clone() }, "1 vcpus, 64 MiB of memory, a disk and no network card").await;
        check(VmSpec { disk: None, ..good.clone() }, "no disk").await;

        let memory = |path: PathBuf| VmSpec { memory: Some(path), ..good.clone() };
        File::create(world.path("small")).unwrap().set_len(MEMORY - 1).unwrap();
        check(memory(world.path("small")), "small has 67108863 bytes, must have 67108864").await;
        check(memory(world.path("missing")), "cannot open the memory file").await;
        check(memory(world.run_dir()), "must have 67108864").await;
        check(VmSpec { memory: None, ..good.clone() }, "memory must be the file that belongs").await;

        // Another VM uses the disk.
        let vm = driver.launch(&good).await.unwrap();
        let other = World::new();
        let error = driver.launch(&VmSpec { run_dir: other.run_dir(), ..good.clone() }).await.err().unwrap();
        assert!(format!("{error:?}").contains("lock") || error.to_string().contains("lock"), "{error:?}");
        other.assert_clean();
        vm.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_saved_is_told() {
    with_each(async |driver, world| {
        let to = world.path("devices");
        let image = Image::new(world, "memory");
        let vm = driver.launch(&VmSpec { memory: Some(image.0), ..world.spec(&obey(WRITE_PLACE)) }).await.unwrap();
        assert!(!vm.is_paused().await.unwrap());
        assert!(matches!(vm.save_devices(&to).await, Err(VmmError::NotPaused { .. })));
        vm.pause().await.unwrap();
        std::fs::write(&to, "precious").unwrap();
        let error = vm.save_devices(&to).await.unwrap_err();
        assert!(matches!(&error, VmmError::Save { path, .. } if *path == to), "{error}");
        assert_eq!(std::fs::read(&to).unwrap(), b"precious");
        assert!(vm.save_devices(&world.path("none/devices")).await.is_err());
        vm.save_devices(&world.path("good")).await.unwrap();
        // It goes on all the same.
        vm.resume().await.unwrap();
        assert!(!vm.is_paused().await.unwrap());
        vm.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_disk_grows() {
    with_each(async |driver, world| {
        let Saved { spec, .. } = saved(driver, world, WRITE_PLACE).await;
        // Before it goes on, and while it does.
        let size = || std::fs::metadata(world.path("disk")).unwrap().len();
        OpenOptions::new().write(true).open(world.path("disk")).unwrap().set_len(2 << 20).unwrap();
        let vm = driver.launch(&spec).await.unwrap();
        vm.grow_disk(2 << 20).await.unwrap();
        vm.resume().await.unwrap();
        vm.grow_disk(3 << 20).await.unwrap();
        assert_eq!(size(), 3 << 20);
        let error = vm.grow_disk(2 << 20).await.unwrap_err();
        assert!(matches!(error, VmmError::SmallerDisk { current: 0x30_0000, wanted: 0x20_0000, .. }), "{error}");
        assert_eq!(size(), 3 << 20);
        vm.kill().await.unwrap();
        let spec = VmSpec { disk: None, network: NetworkSpec::None, ..world.spec(&obey(WRITE_PLACE)) };
        let vm = driver.launch(&spec).await.unwrap();
        vm.grow_disk(1 << 20).await.unwrap_err();
        vm.kill().await.unwrap();
    })
    .await;
}
