//! One disk under several names.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use kemari_testbed::process::Process;
use rustix::process::Signal;

use super::micro::{self, KEMARI, PATIENCE};
use super::{Bench, refused};

/// P2: a process that has the image open is alive, even if the operator believes otherwise. A
/// seizure overrides records, and it does not override locks, even if the image has another name
/// without a record beside it.
#[test]
fn p2_a_seizure_passes_over_no_lock_of_a_process_that_lives() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
    let listen = bench.spelled("", "unix:", "link");
    fs::hard_link(bench.path("disk.img"), bench.path("other.img")).unwrap();
    let other = bench.spelled("--disk=", "path=", "other.img");
    let seizes = |holder: &Process| {
        let flags: [&[&str]; 4] = [&[&arbiter], &[&arbiter, &other], &[], &[&other]];
        for flags in flags {
            let (code, said) = refused(bench.run("seizing", &[&["--seize"], flags].concat()));
            assert_eq!(code, 2, "{said}");
            assert!(said.contains("another process uses it"), "{said}");
            assert_eq!(bench.status(holder.name()).unwrap().state(), "alone");
        }
    };
    let standby = bench.side("standby", &["standby", &arbiter, &format!("--listen={listen}")]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let mut primary = bench.run("primary", &[&arbiter]);
    bench.wait_state(&primary, "alone");
    seizes(&primary);
    // A successor uses the locks that a stopped side has left to it.
    bench.control(&primary, &["protect", &listen]);
    bench.wait_state(&primary, "protected");
    primary.signal(Signal::STOP);
    standby.wait_line("took over in term 2", PATIENCE).unwrap();
    bench.wait_state(&standby, "alone");
    primary.kill();
    seizes(&standby);
}

/// A loop device of a file, which exists as long as this value.
struct Loop(String);

impl Loop {
    fn of(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match made.ok().filter(|made| made.status.success()) {
            Some(made) => Some(Self(String::from_utf8(made.stdout).unwrap().trim().to_owned())),
            None => {
                kemari_not_tested::not_tested("this needs losetup, and the right to use it");
                None
            }
        }
    }

    /// A loop device with a second node. The image's name is removed, so only the device can be
    /// locked, as for a device without a file.
    fn with_another_node(bench: &Bench) -> Option<(Self, PathBuf)> {
        let device = Self::of(&bench.path("disk.img"))?;
        fs::remove_file(bench.path("disk.img")).unwrap();
        let number = fs::metadata(&device.0).unwrap().rdev();
        let (major, minor) = (libc::major(number).to_string(), libc::minor(number).to_string());
        let node = bench.path("node");
        let made = Command::new("mknod").arg(&node).args(["b", &major, &minor]).status();
        if !made.is_ok_and(|made| made.success()) || fs::File::open(&node).is_err() {
            kemari_not_tested::not_tested("this needs mknod, and the right to use it");
            return None;
        }
        Some((device, node))
    }

    fn disk(&self) -> String {
        format!("--disk=path={}", self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// P2: one disk has many names on a host.
#[test]
fn p2_a_loop_device_is_kept_apart_from_its_file_and_from_others_of_it() {
    let bench = Bench::new();
    let Some(one) = Loop::of(&bench.path("disk.img")) else { return };
    let Some(other) = Loop::of(&bench.path("disk.img")) else { return };
    let file = bench.spelled("--disk=", "path=", "disk.img");
    for (has, wants) in
        [(&file, one.disk()), (&one.disk(), file.clone()), (&one.disk(), other.disk())]
    {
        let mut machine = bench.run("machine", &[has]);
        bench.wait_state(&machine, "alone");
        let (code, said) = refused(bench.run("second", &[&wants]));
        assert_eq!(code, 2, "{has}, {wants}: {said}");
        assert!(said.contains("another process uses it"), "{has}, {wants}: {said}");
        machine.signal(Signal::TERM);
        machine.wait_exit(PATIENCE).unwrap();
    }
}

/// P2. Fails if the program locks the node by which a device was opened: each node is a file of its
/// own.
#[test]
fn p2_two_nodes_of_one_device_are_one_disk() {
    let bench = Bench::new();
    let Some((device, node)) = Loop::with_another_node(&bench) else { return };
    let node = format!("--disk=path={}", node.display());
    for (has, wants) in [(device.disk(), &node), (node.clone(), &device.disk())] {
        let mut machine = bench.run("machine", &[&has]);
        bench.wait_state(&machine, "alone");
        let (code, said) = refused(bench.run("second", &[wants]));
        assert_eq!(code, 2, "{has}, {wants}: {said}");
        assert!(said.contains("another process uses it"), "{has}, {wants}: {said}");
        machine.signal(Signal::TERM);
        machine.wait_exit(PATIENCE).unwrap();
    }
}

/// P2. Fails if the two sides lock different files: one side finds the kernel's node; the other, in
/// its own container, finds only the node that both were given.
#[test]
fn p2_one_node_is_one_disk_also_where_dev_is_not_the_hosts() {
    let bench = Bench::new();
    let Some((_device, node)) = Loop::with_another_node(&bench) else { return };
    let disk = format!("--disk=path={}", node.display());
    let contained = || {
        let shell = "mount -t tmpfs none /dev; mknod /dev/kvm c 10 232; mknod /dev/null c 1 3; \
                     mknod /dev/urandom c 1 9; exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", shell, "sh", KEMARI]);
        command
    };
    let kernel = format!("--kernel={}", micro::image().display());
    let flags = ["run", "--memory=64", &kernel, &disk];
    for inside_first in [false, true] {
        let start = |name: &str, inside: bool| match inside {
            true => bench.side_by(contained(), name, &flags),
            false => bench.side(name, &flags),
        };
        let mut machine = start("machine", inside_first);
        bench.wait_state(&machine, "alone");
        let (code, said) = refused(start("second", !inside_first));
        assert_eq!(code, 2, "{inside_first}: {said}");
        assert!(said.contains("another process uses it"), "{inside_first}: {said}");
        machine.signal(Signal::TERM);
        machine.wait_exit(PATIENCE).unwrap();
    }
}

/// P2: a mounted file system holds its device exclusively, as this test does.
#[test]
fn p2_a_device_that_the_host_uses_is_no_disk() {
    let bench = Bench::new();
    let Some(device) = Loop::of(&bench.path("disk.img")) else { return };
    let holds = fs::File::options().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
    let listen = bench.spelled("--listen=", "unix:", "link");
    for disk in [device.disk(), format!("{},direct=on", device.disk())] {
        let (code, said) = refused(bench.run("machine", &[&disk]));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("the host has it mounted") && said.contains("lsblk"), "{said}");
    }
    drop(holds);
    let standby = bench.side("standby", &["standby", &device.disk(), &listen]);
    let machine = bench.run("machine", &[&device.disk()]);
    bench.wait_state(&machine, "alone");
    let holds = fs::File::options().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
    standby.wait_line("the host has it mounted", PATIENCE).unwrap();
    drop(holds);
    standby.wait_line("nothing is missing any more", PATIENCE).unwrap();
}
