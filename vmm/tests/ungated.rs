//! Devices that no gate can control are refused before anything runs, on the command line of either
//! side, and by a running machine. With fault tolerance off, shared guest memory works, and the
//! other kinds are reported as unavailable.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::process::{Command, Output, Stdio};

use kemari_workload::Op;
use micro::KEMARI;

/// Every kind of such a device: the flags as users of this and other monitors write them, and the
/// kind's name.
const KINDS: [(&[&str], &str); 17] = [
    (&["--net", "tap=tap0,vhost=on"], "vhost-net"),
    (&["--net", "vhost-user=/run/vu.sock"], "vhost-user"),
    (&["--net", "vhost_user=true,socket=/run/vu.sock"], "vhost-user"),
    (&["--disk", "vhost-user=/run/vu.sock"], "vhost-user"),
    (&["--vfio", "0000:01:00.0"], "VFIO"),
    (&["--net", "vfio=0000:01:00.0"], "VFIO"),
    (&["--device", "vfio=0000:01:00.0"], "VFIO"),
    (&["--device", "vfio-pci,host=01:00.0"], "VFIO"),
    (&["--device", "vhost-user-blk,socket=/run/vu.sock"], "vhost-user"),
    (&["--vdpa", "path=/dev/vhost-vdpa-0"], "vDPA"),
    (&["--net", "vhost-vdpa=/dev/vhost-vdpa-0"], "vDPA"),
    (&["--net", "vdpa=/dev/vhost-vdpa-0"], "vDPA"),
    (&["--pmem", "file=/tmp/pmem.img"], "virtio-pmem"),
    (&["--disk", "pmem=/tmp/pmem.img"], "virtio-pmem"),
    (&["--ioeventfd", "fd=7,addr=0xd0000050"], "ioeventfd"),
    (&["--irqfd", "fd=8,gsi=5"], "irqfd"),
    (&["--disk", "path=x,ioeventfd=7"], "ioeventfd"),
];

const SHARED: [&str; 2] = ["--memory", "64,file=/nowhere/ram,share=on"];

#[track_caller]
fn refused(command: &[&str], flags: &[&str], expected: &[&str]) {
    let Output { status, stdout, stderr } =
        Command::new(KEMARI).args(command).args(flags).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{command:?} {flags:?}: {text}");
    assert!(stdout.is_empty(), "the guest has run");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in expected {
        assert!(text.contains(part), "{command:?} {flags:?}: expected `{part}` in: {text}");
    }
}

/// P5: with fault tolerance on, by each of the flags that switch it on.
#[test]
fn with_fault_tolerance_it_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let arbiter = format!("file:{}", dir.path().display());
    let kernel = micro::image().to_str().unwrap();
    let run = ["run", "--serial", "none", "--kernel", kernel];
    let by_standby = [&run[..], &["--standby", "unix:/nowhere/socket"]].concat();
    let by_arbiter = [&run[..], &["--arbiter", &arbiter]].concat();
    let standby = ["standby", "--serial", "none", "--listen", "unix:/nowhere/socket"];
    let shared = [(&SHARED[..], "shared file")];
    for command in [&by_standby[..], &by_arbiter, &standby] {
        for (flags, name) in KINDS.into_iter().chain(shared) {
            let value = flags[1].trim_start_matches("64,").trim_end_matches(",share=on");
            let reasons = ["cannot be used together with fault tolerance", name, value, "; use "];
            refused(command, flags, &[&reasons[..], &flags[..1]].concat());
        }
    }
}

#[test]
fn without_fault_tolerance_it_is_not_there() {
    let kernel = micro::image().to_str().unwrap();
    for (flags, name) in KINDS {
        let run = ["run", "--serial", "none", "--kernel", kernel];
        refused(&run, flags, &["is not supported", name, flags[0], flags[1], "; use "]);
    }
}

#[test]
fn a_standby_has_no_memory_of_its_own() {
    let standby = ["standby", "--serial", "none", "--listen", "unix:/nowhere/socket"];
    refused(&standby, &["--memory", "64"], &["--memory", "the memory size of its primary"]);
}

#[test]
fn guest_memory_in_a_shared_file_can_be_looked_into_and_not_protected() {
    let dir = tempfile::tempdir().unwrap();
    let ram = dir.path().join("ram");
    let memory = format!("64,file={},share=on", ram.display());
    let socket = dir.path().join("control");
    let socket = socket.to_str().unwrap();
    let mut guest = micro::Guest::boot_with(1, &["--memory", &memory, "--control", socket]);
    guest.ask(Op::Append { payload: b"seen from outside", flush: true });
    let seen = std::fs::read(&ram).unwrap();
    assert_eq!(seen.len(), 64 << 20);
    assert!(seen.windows(17).any(|bytes| bytes == b"seen from outside"));

    // A second machine would overwrite the memory of the first.
    let flags = ["--memory", &memory, "--kernel", micro::image().to_str().unwrap()];
    refused(&["run", "--serial", "none"], &flags, &["another process uses it", "--memory"]);

    let ctl = Command::new(KEMARI)
        .args(["ctl", "--control", socket, "protect", "unix:/nowhere/socket"])
        .output()
        .unwrap();
    let text = String::from_utf8(ctl.stderr).unwrap();
    assert_eq!(ctl.status.code(), Some(1), "{text}");
    for part in ["shared file", "fault tolerance", ram.to_str().unwrap(), "; use --memory MIB"] {
        assert!(text.contains(part), "expected `{part}` in: {text}");
    }
    // The first machine still runs.
    guest.ask(Op::Ping);
}
