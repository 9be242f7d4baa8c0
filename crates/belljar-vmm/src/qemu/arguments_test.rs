use super::*;
use crate::probe::QemuProgram;
use proptest::prelude::*;
use std::path::PathBuf;

fn config(accel: Accelerator) -> QemuConfig {
    QemuConfig::new(QemuProgram { path: PathBuf::from("qemu"), version: "10.0.2".into() }, accel)
}

fn spec() -> VmSpec {
    VmSpec {
        id: "sbx-1".into(),
        run_dir: PathBuf::from("/run/sbx-1"),
        kernel: PathBuf::from("/data/vmlinux"),
        initrd: None,
        disk: None,
        cmdline_extra: String::new(),
        vcpus: 1,
        memory_mib: 512,
        network: NetworkSpec::None,
    }
}

/// Compares the arguments, one option per line, with the expected text.
fn check(accel: Accelerator, spec: &VmSpec, expected: &str) {
    validate(spec).unwrap();
    let mut lines = String::new();
    for word in arguments(&config(accel), spec, Some(2_445_424)) {
        let end = if word.starts_with('-') { "\n" } else { " " };
        lines.push_str(end);
        lines.push_str(&word);
    }
    let expected: Vec<&str> = expected.lines().map(str::trim).collect();
    assert_eq!(lines.trim_start(), expected.join("\n"));
}

#[test]
fn smallest_in_software() {
    check(
        Accelerator::Tcg,
        &spec(),
        r"-nodefaults
         -no-user-config
         -name sbx-1,process=belljar-vm
         -machine microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on
         -accel tcg,thread=multi,tb-size=256
         -cpu max,-erms,-fsrm,-fzrm,-fsrs,-fsrc
         -smp 1
         -m 512M
         -display none
         -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
         -action reboot=shutdown,shutdown=pause
         -chardev socket,id=qmp,fd=3,server=on,wait=off
         -mon chardev=qmp,mode=control
         -chardev ringbuf,id=console,size=65536
         -serial chardev:console
         -device virtio-serial-device,max_ports=2
         -chardev socket,id=link,fd=4,server=on,wait=off
         -device virtserialport,chardev=link,name=belljar.link
         -device virtio-rng-device
         -kernel /data/vmlinux
         -append console=ttyS0 quiet loglevel=3 reboot=t panic=-1 random.trust_cpu=on noreplace-smp tsc_early_khz=2445424 tsc=reliable",
    );
}

#[test]
fn everything_in_hardware() {
    let spec = VmSpec {
        initrd: Some("/data/agent, 1.cpio".into()),
        disk: Some("/data/a,b/disk.raw".into()),
        cmdline_extra: "belljar.user=tl-user a=b".into(),
        vcpus: 4,
        memory_mib: 4096,
        network: NetworkSpec::User { restrict: true },
        ..spec()
    };
    check(
        Accelerator::Kvm,
        &spec,
        r"-nodefaults
         -no-user-config
         -name sbx-1,process=belljar-vm
         -machine microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on
         -accel kvm
         -cpu host
         -smp 4
         -m 4096M
         -display none
         -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
         -action reboot=shutdown,shutdown=pause
         -chardev socket,id=qmp,fd=3,server=on,wait=off
         -mon chardev=qmp,mode=control
         -chardev ringbuf,id=console,size=65536
         -serial chardev:console
         -device virtio-serial-device,max_ports=2
         -chardev socket,id=link,fd=4,server=on,wait=off
         -device virtserialport,chardev=link,name=belljar.link
         -device virtio-rng-device
         -blockdev driver=raw,node-name=disk,discard=unmap,detect-zeroes=unmap,file.driver=file,file.aio=threads,file.filename=/data/a,,b/disk.raw
         -device virtio-blk-device,drive=disk
         -netdev user,id=net,restrict=on,ipv6=off
         -device virtio-net-device,netdev=net
         -kernel /data/vmlinux
         -initrd /data/agent, 1.cpio
         -append console=ttyS0 quiet loglevel=3 reboot=t panic=-1 random.trust_cpu=on belljar.root=/dev/vda belljar.user=tl-user a=b",
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let check = |change: &dyn Fn(&mut VmSpec), field: &str| {
        let mut spec = spec();
        change(&mut spec);
        let error = validate(&spec).unwrap_err();
        assert!(matches!(error, VmmError::BadSpec { field: found, .. } if found == field), "{error}");
    };
    for id in ["", "a b", "a,b", "a/../b", "a=b", &"x".repeat(65), "ä"] {
        check(&|spec| spec.id = id.to_owned(), "id");
    }
    for vcpus in [0, MAX_VCPUS + 1, u32::MAX] {
        check(&|spec| spec.vcpus = vcpus, "vcpus");
    }
    for memory in [0, MIN_MEMORY_MIB - 1, MAX_MEMORY_MIB + 1, u64::MAX] {
        check(&|spec| spec.memory_mib = memory, "memory_mib");
    }
    for extra in ["a\nb", "a\0b", "\t", &"x".repeat(CMDLINE_EXTRA_BYTES + 1)] {
        check(&|spec| spec.cmdline_extra = extra.to_owned(), "cmdline_extra");
    }
    check(&|spec| spec.kernel = "vmlinux".into(), "kernel");
    check(&|spec| spec.initrd = Some("x".into()), "initrd");
    check(&|spec| spec.disk = Some("nbd:host".into()), "disk");
}

proptest! {
    /// Whatever a path is called, it stays one value of one option: every comma that was not ours is doubled.
    #[test]
    fn a_path_cannot_add_options(name in "[a-z,=.: -]{1,30}") {
        let mut spec = spec();
        spec.disk = Some(format!("/{name}").into());
        let all = arguments(&config(Accelerator::Tcg), &spec, None);
        let blockdev = all.iter().skip_while(|word| *word != "-blockdev").nth(1).unwrap();
        let file = blockdev.split_once("file.filename=").unwrap().1;
        prop_assert_eq!(file.replace(",,", "\0").matches(',').count(), 0);
        prop_assert_eq!(file.replace(",,", ","), format!("/{name}"));
        let plain = arguments(&config(Accelerator::Tcg), &VmSpec { disk: Some("/d".into()), ..spec.clone() }, None);
        prop_assert_eq!(all.len(), plain.len());
    }
}
