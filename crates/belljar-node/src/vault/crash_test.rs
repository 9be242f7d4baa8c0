//! Every step of every operation fails once, fails for want of space from there on, or is where the program stops.

use super::{
    faults::Fault,
    vault_test::{Contents, Fixture, id, noise},
    *,
};

/// An operation that is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Write,
    Delete,
    Collect,
    Compact,
    Unpack,
    Cache,
    Adopt,
}

/// Three pages of noise, one of which tells the snapshots apart; all share the rest.
fn contents(seed: u64) -> Contents {
    let mut disk = noise(1, 200_000);
    disk[..65536].copy_from_slice(&noise(seed, 65536));
    let mut memory = vec![0; 200_000];
    memory[16384..40_000].copy_from_slice(&noise(seed + 100, 40_000 - 16384));
    Contents::from([(Part::Disk, disk), (Part::Memory, memory)])
}

const NAMES: [&str; 3] = ["one", "two", "three"];

fn expected(name: &str) -> Contents {
    contents(name.len() as u64 * 7 + u64::from(name.as_bytes()[0]))
}

/// A vault with three snapshots; the packs of a fourth and a fifth are partly or all of no use.
fn prepared() -> Fixture {
    let fixture = Fixture::new();
    fixture.write("gone", &expected("gone")).expect("write");
    for name in NAMES {
        fixture.write(name, &expected(name)).expect("write");
    }
    fixture.write("dead", &expected("dead")).expect("write");
    for name in ["gone", "dead"] {
        assert!(fixture.vault.delete(&id(name)).expect("delete"));
    }
    fixture
}

impl Operation {
    fn run(self, fixture: &Fixture) -> Result<(), VaultError> {
        let vault = &fixture.vault;
        match self {
            Self::Write => fixture.write("new", &expected("new")).map(drop),
            Self::Delete => vault.delete(&id("one")).map(drop),
            Self::Collect => vault.collect().map(drop),
            Self::Compact => vault.compact(Compaction::Full).map(drop),
            Self::Unpack => {
                let out = fixture.dir.path().join("out");
                let result = vault.unpack(&id("one"), &out, &[]);
                assert_eq!(result.is_ok(), out.exists());
                if out.exists() {
                    std::fs::remove_dir_all(out).expect("remove");
                }
                result
            }
            Self::Cache => vault.unpacked(&id("one"), &[]).map(|unpacked| {
                assert_eq!(std::fs::read(unpacked.part(Part::Disk)).expect("read"), expected("one")[&Part::Disk]);
            }),
            Self::Adopt => {
                let file = fixture.flat("captured", &[1; 5000]);
                vault.adopt(&id("one"), &[(Part::Devices, &file)]).map(drop)
            }
        }
    }

    /// The snapshot that it makes or removes.
    fn target(self) -> Option<&'static str> {
        match self {
            Self::Write => Some("new"),
            Self::Delete => Some("one"),
            _ => None,
        }
    }
}

fn check_intact(fixture: &Fixture, operation: Operation, what: &str) {
    for name in NAMES {
        match fixture.read(name) {
            Ok(contents) => assert_eq!(contents, expected(name), "{what}: {name}"),
            Err(VaultError::NotFound { .. }) if operation.target() == Some(name) => {}
            Err(error) => panic!("{what}: {name}: {error:?}"),
        }
    }
    match fixture.read("new") {
        Ok(contents) => assert_eq!(contents, expected("new"), "{what}"),
        Err(VaultError::NotFound { .. }) => {}
        Err(error) => panic!("{what}: {error:?}"),
    }
}

/// Removes everything: nothing may be left.
fn check_no_leak(fixture: &Fixture, what: &str) {
    for id in fixture.vault.ids() {
        fixture.vault.delete(&id).expect("delete");
    }
    fixture.vault.collect().expect("collect");
    assert_eq!(fixture.files(), ["snapshots/packs"], "{what}");
    let cache = std::fs::read_dir(fixture.dir.path().join("cache")).expect("list");
    let cached: Vec<_> =
        cache.map(|entry| entry.expect("entry").file_name()).filter(|name| name != "boot-id").collect();
    assert!(cached.is_empty(), "{what}: {cached:?}");
    let left = std::fs::read_dir(fixture.dir.path()).expect("list").map(|entry| entry.expect("entry").file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with('.')), "{what}");
}

/// Answers whether there was a step to fail.
fn check(operation: Operation, fault: Fault) -> bool {
    let what = format!("{operation:?}, {fault:?}");
    let fixture = prepared();
    fixture.vault.files.faults.set(Some(fault));
    let result = operation.run(&fixture);
    let hit = fixture.vault.files.faults.hit();
    fixture.vault.files.faults.set(None);
    if !hit {
        result.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        return false;
    }
    if let (Fault::Full(_), Err(error)) = (fault, &result) {
        assert!(error.is_no_space(), "{what}: {error:?}");
    }
    let fixture = match fault {
        // The node goes on.
        Fault::Once(_) | Fault::Full(_) => {
            if result.is_err() {
                assert_eq!(fixture.read("two").expect("read"), expected("two"), "{what}");
                operation.run(&fixture).unwrap_or_else(|error| panic!("{what}, again: {error:?}"));
            }
            fixture
        }
        Fault::Broken(_) => fixture,
    };
    let fixture = fixture.reopen();
    check_intact(&fixture, operation, &what);
    if result.is_ok()
        && let Some(target) = operation.target()
    {
        assert_eq!(fixture.vault.get(&id(target)).is_ok(), operation == Operation::Write, "{what}");
    }
    if operation == Operation::Unpack {
        // What lies outside of the vault is the caller's to make again.
        operation.run(&fixture).expect("again");
    }
    check_no_leak(&fixture, &what);
    true
}

fn check_every_step(operation: Operation) {
    for fault in [Fault::Once, Fault::Full, Fault::Broken] {
        let steps = (1..).take_while(|step| check(operation, fault(*step))).count();
        // Removing takes no space.
        assert!(steps > 0 || fault(1) == Fault::Full(1), "{operation:?} takes no steps");
    }
}

#[test]
fn a_failed_write_leaves_the_rest_as_it_was() {
    check_every_step(Operation::Write);
}

#[test]
fn a_failed_deletion_leaves_the_rest_as_it_was() {
    check_every_step(Operation::Delete);
}

#[test]
fn a_failed_collection_leaves_every_snapshot_as_it_was() {
    check_every_step(Operation::Collect);
}

#[test]
fn a_failed_compaction_leaves_every_snapshot_as_it_was() {
    check_every_step(Operation::Compact);
}

#[test]
fn a_failed_unpacking_leaves_nothing() {
    for operation in [Operation::Unpack, Operation::Cache, Operation::Adopt] {
        check_every_step(operation);
    }
}
