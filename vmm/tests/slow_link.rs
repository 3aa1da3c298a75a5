//! P7: a pair stays protected over a link so slow that one epoch takes longer than the heartbeat
//! timeout.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kemari_testbed::network::{Host, TestNetwork};
use kemari_testbed::pair::status::Status;
use kemari_testbed::process::Process;
use kemari_workload::Op;
use micro::{KEMARI, PATIENCE};

/// In milliseconds; the timeout is longer than a busy machine delays a thread.
const HEARTBEAT: [&str; 4] = ["--heartbeat-interval", "100", "--heartbeat-timeout", "2000"];
const PATIENCE_OF_SIDES: Duration = Duration::from_millis(2000);
/// An epoch of this guest has 1 MiB, which takes more than twice the timeout to send.
const DIRTY_PAGES: u32 = 256;
const BYTES_PER_SECOND: u64 = 224 << 10;

#[test]
fn an_epoch_may_take_longer_than_patience_lasts() {
    let network = TestNetwork::loopback("it is to be slow".to_owned()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let arbiter = format!("file:{}", path("arbiter"));
    let control = path("control");
    let common = [&HEARTBEAT[..], &["--arbiter", &arbiter, "--insecure-plain-tcp"]].concat();

    let dial = network.dial_address(Host::B);
    let flags = ["--control", control.as_str(), "--max-in-flight", "1"];
    let mut guest = micro::Guest::boot_with(1, &[&common[..], &flags].concat());
    guest.ask(Op::Ping);

    let mut command = network.command(Host::B, Path::new(KEMARI));
    let disk = guest.dir.path().join("disk.img");
    command
        .args(["standby", "--listen", &network.listen_address(Host::B), "--rng"])
        .args(["--disk", &format!("path={},serial=micro", disk.display())])
        .args(["--net", &format!("stream={}", path("nobody"))])
        .args(["--serial", "none", "--virtio-console", "none"])
        .args(&common)
        .stdin(Stdio::null());
    let standby = Process::start("standby", command, &dir.path().join("standby.log")).unwrap();
    standby.wait_line("listening on", PATIENCE).unwrap();
    let socket = Path::new(&control);
    kemari_testbed::pair::status::control(Path::new(KEMARI), socket, &["protect", &dial]).unwrap();
    guest.process.wait_line("protected: the standby holds", PATIENCE).unwrap();

    network.throttle_replication(Some(BYTES_PER_SECOND)).unwrap();
    guest.ask(Op::SetDirty { pages_per_second: 10_000, region_pages: DIRTY_PAGES });
    // The link is slow: an acknowledgement takes longer than the heartbeat timeout of either side.
    // On a busy host the guest needs several epochs to rewrite enough pages.
    let patience = PATIENCE_OF_SIDES.as_micros();
    let mut appended = 0;
    let status = loop {
        guest.ask(Op::Append { payload: b"over a slow link", flush: true });
        appended += 1;
        let status = Status::ask(Path::new(KEMARI), socket).unwrap();
        let commit = status.quantiles("commit_latency_us").max;
        if appended >= 2 && u128::from(commit) > 2 * patience {
            break status;
        }
        assert!(appended < 20, "{commit} us; {:?}", status.json());
    };
    let said = [guest.process.lines(), standby.lines()].concat().join("\n");
    assert!(status.is_protected(), "{:?}\n{said}", status.json());
    assert!(!said.contains("unprotected") && !said.contains("lost the primary"), "{said}");

    // A silent peer is still found.
    network.cut_replication(&[Host::A, Host::B]).unwrap();
    guest.process.wait_line("unprotected", PATIENCE).unwrap();
    drop(standby);
}
