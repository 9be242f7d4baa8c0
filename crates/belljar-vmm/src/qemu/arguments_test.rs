use super::*;
use crate::VmmError;
use crate::driver::Capabilities;
use crate::limits::{CMDLINE_EXTRA_BYTES, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use crate::pci::PciDevice;
use crate::probe::Program;
use crate::spec::validate;
use proptest::prelude::*;
use std::num::NonZeroU64;
use std::path::PathBuf;

fn config(accel: Accelerator) -> QemuConfig {
    QemuConfig::new(Program { path: PathBuf::from("qemu"), version: "10.0.2".into() }, accel)
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
        memory: None,
        devices: None,
        changes: None,
        disk_limits: DiskLimits::default(),
        hidden_features: HiddenFeatures::default(),
        passed_through: Vec::new(),
        network: NetworkSpec::None,
        jail: None,
    }
}

fn capabilities(accel: Accelerator) -> Capabilities {
    crate::driver::Driver::capabilities(&super::super::QemuDriver::new(config(accel)))
}

/// Compares the arguments, one option per line, with the expected text.
fn check(accel: Accelerator, spec: &VmSpec, expected: &str) {
    validate(spec, &capabilities(accel)).unwrap();
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
         -append console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on reboot=t noreplace-smp tsc_early_khz=2445424 tsc=reliable",
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
        memory: None,
        devices: None,
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
         -blockdev driver=raw,node-name=disk,discard=unmap,detect-zeroes=unmap,file.driver=file,file.aio=threads,file.drop-cache=off,file.filename=/data/a,,b/disk.raw
         -device virtio-blk-device,drive=disk
         -netdev user,restrict=on,ipv6=off,id=net
         -device virtio-net-device,netdev=net
         -kernel /data/vmlinux
         -initrd /data/agent, 1.cpio
         -append console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on reboot=t belljar.root=/dev/vda belljar.user=tl-user a=b",
    );
}

#[test]
fn begun_with_a_memory_file() {
    let spec = VmSpec { memory: Some("/data/zero, 512".into()), ..spec() };
    check(
        Accelerator::Tcg,
        &spec,
        r"-nodefaults
         -no-user-config
         -name sbx-1,process=belljar-vm
         -object memory-backend-file,id=mem,size=512M,mem-path=/data/zero,, 512,share=off,readonly=on,rom=off
         -machine microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,memory-backend=mem
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
         -append console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on reboot=t noreplace-smp tsc_early_khz=2445424 tsc=reliable",
    );
}

#[test]
fn restored_in_hardware() {
    let spec = VmSpec {
        initrd: Some("/data/agent.cpio".into()),
        disk: Some("/data/disk.raw".into()),
        vcpus: 2,
        memory: Some("/data/memory".into()),
        devices: Some("/data/devices".into()),
        network: NetworkSpec::User { restrict: false },
        ..spec()
    };
    check(
        Accelerator::Kvm,
        &spec,
        r"-nodefaults
         -no-user-config
         -name sbx-1,process=belljar-vm
         -object memory-backend-file,id=mem,size=512M,mem-path=/data/memory,share=off,readonly=on,rom=off
         -machine microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,memory-backend=mem
         -accel kvm
         -cpu host
         -smp 2
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
         -blockdev driver=raw,node-name=disk,discard=unmap,detect-zeroes=unmap,file.driver=file,file.aio=threads,file.drop-cache=off,file.filename=/data/disk.raw
         -device virtio-blk-device,drive=disk
         -netdev user,restrict=off,ipv6=off,id=net
         -device virtio-net-device,netdev=net
         -S
         -incoming defer",
    );
    assert_eq!(incoming(), json!({ "uri": "file:/proc/self/fd/5" }));
}

#[test]
fn one_that_tells_a_head() {
    let shape = Shape { vcpus: 1, memory_mib: 512, disk: false, card: Card::User, processor: None };
    let expected = "-nodefaults -no-user-config -name shape,process=belljar-vm \
                    -object memory-backend-file,id=mem,size=512M,mem-path=/proc/self/fd/5,share=on \
                    -machine microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,memory-backend=mem -accel kvm -cpu host \
                    -smp 1 -m 512M -display none \
                    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
                    -chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control -netdev user,restrict=on,ipv6=off,id=net \
                    -device virtio-net-device,netdev=net -S";
    assert_eq!(teller(&config(Accelerator::Kvm), &shape).join(" "), expected);
    assert_eq!(outgoing(), json!({ "uri": "file:/proc/self/fd/4" }));
}

#[test]
fn what_cannot_be_is_refused() {
    let check = |change: &dyn Fn(&mut VmSpec), field: &str| {
        let mut spec = spec();
        change(&mut spec);
        let error = validate(&spec, &capabilities(Accelerator::Tcg)).unwrap_err();
        assert!(matches!(error, VmmError::BadSpec { field: found, .. } if found == field), "{error}");
    };
    let gpu = PciDevice { address: "0000:01:00.0".parse().unwrap(), group: 7 };
    check(&|spec| spec.passed_through = vec![gpu.clone()], "passed_through");
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
    check(&|spec| spec.memory = Some("x".into()), "memory");
    check(&|spec| spec.devices = Some("/x".into()), "memory");
}

proptest! {
    /// Whatever a path is called, it stays one value of one option: every comma that was not ours is doubled.
    #[test]
    fn a_path_cannot_add_options(name in "[a-z,=.: -]{1,30}") {
        let mut spec = spec();
        spec.disk = Some(format!("/{name}").into());
        spec.memory = Some(format!("/{name}").into());
        let all = arguments(&config(Accelerator::Tcg), &spec, None);
        let value = |option: &str| all.iter().skip_while(|word| *word != option).nth(1).unwrap();
        let disk = value("-blockdev").split_once("file.filename=").unwrap().1;
        let memory = value("-object").split_once("mem-path=").unwrap().1.strip_suffix(",share=off,readonly=on,rom=off").unwrap();
        for file in [disk, memory] {
            prop_assert_eq!(file.replace(",,", "\0").matches(',').count(), 0);
            prop_assert_eq!(file.replace(",,", ","), format!("/{name}"));
        }
        let plain = VmSpec { disk: Some("/d".into()), memory: Some("/m".into()), ..spec.clone() };
        prop_assert_eq!(all.len(), arguments(&config(Accelerator::Tcg), &plain, None).len());
    }
}

#[test]
fn a_disk_is_as_fast_as_is_said() {
    let disk = Some(PathBuf::from("/data/disk"));
    let check = |bytes, requests, group: Option<&str>| {
        let disk_limits = DiskLimits { bytes: NonZeroU64::new(bytes), requests: NonZeroU64::new(requests) };
        let all = arguments(&config(Accelerator::Kvm), &VmSpec { disk: disk.clone(), disk_limits, ..spec() }, None);
        let value = |option: &str, part: &str| {
            all.windows(2).find(|pair| pair[0] == option && pair[1].contains(part)).map(|pair| pair[1].clone())
        };
        assert_eq!(value("-object", "throttle").as_deref(), group);
        let back_end = value("-blockdev", "node-name=disk").unwrap();
        assert_eq!(back_end.starts_with("driver=throttle,"), group.is_some(), "{back_end}");
    };
    check(0, 0, None);
    check(5, 0, Some("throttle-group,id=disk-limits,x-bps-total=5"));
    check(5, 7, Some("throttle-group,id=disk-limits,x-bps-total=5,x-iops-total=7"));
}
