//! P3: a machine that starts unprotected and is protected later makes its writes synchronous from
//! then on, within the rights that its threads have kept.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kemari_testbed::pair::status::{Status, control};
use kemari_testbed::process::Process;
use kemari_workload::Op;
use micro::{KEMARI, PATIENCE};

#[test]
fn p3_a_machine_that_is_protected_later_writes_through_and_shares_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let socket = path("control");
    let mut guest = micro::Guest::boot_with(1, &["--control", &socket]);
    guest.ask(Op::Append { payload: b"before", flush: false });
    let disk = guest.dir.path().join("disk.img");
    let link = format!("unix:{}", path("link"));
    let mut command = Command::new(KEMARI);
    command
        .args(["standby", "--rng", "--virtio-console=none", "--serial=none"])
        .arg(format!("--listen={link}"))
        .arg(format!("--disk=path={},serial=micro", disk.display()))
        .arg(format!("--net=stream={}", path("nobody")))
        .stdin(Stdio::null());
    let standby = Process::start("standby", command, Path::new(&path("log"))).unwrap();
    standby.wait_line("listening on", PATIENCE).unwrap();
    control(Path::new(KEMARI), Path::new(&socket), &["protect", &link]).unwrap();
    let begun = Instant::now();
    while !Status::ask(Path::new(KEMARI), Path::new(&socket)).unwrap().is_protected() {
        assert!(begun.elapsed() < PATIENCE, "{}", guest.process.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    }
    for _ in 0..8 {
        guest.ask(Op::Append { payload: b"after", flush: false });
    }
    assert!(guest.process.exited().is_none(), "{}", guest.process.lines().join("\n"));
}
