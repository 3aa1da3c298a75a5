//! `kemari run` with the micro-guest on the real `/dev/kvm`: boot, disk, network, console, reset,
//! power-off, signals.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::os::fd::AsRawFd;

use kemari_workload::{Op, Record, log_capacity, log_sector, payload_hash, record::SLOT_LEN};
use micro::Guest;
use rustix::process::Signal;

/// Checks that the disk has everything that the guest acknowledged, in order, with the right hash
/// chain.
fn check_disk(guest: &Guest, expected: &[(u64, u64)]) {
    let disk = std::fs::read(guest.dir.path().join("disk.img")).unwrap();
    let capacity = log_capacity(disk.len() as u64 / 512);
    for (index, chain) in expected {
        let start = log_sector(*index, capacity) as usize * 512;
        let record = Record::decode(&disk[start..start + SLOT_LEN]).unwrap();
        assert_eq!((record.index, record.chain), (*index, *chain));
    }
}

fn serve_and_power_off(cpus: u32) {
    let mut guest = Guest::boot(cpus);
    let first = guest.ask(Op::Ping);
    assert_eq!(first.applied, 0);
    let mut chain = first.chain;
    let mut appended = Vec::new();
    for number in 1..=50_u64 {
        let payload = [number as u8; 700];
        let reply = guest.ask(Op::Append { payload: &payload, flush: number % 10 == 0 });
        assert_eq!(reply.applied, number);
        // The reply's own sequence number: the first request was the ping.
        chain = kemari_workload::chain_after(
            chain,
            1,
            reply.seq,
            Op::Append { payload: &payload, flush: false }.code() as u8,
            payload_hash(&payload),
        );
        assert_eq!(reply.chain, chain);
        appended.push((reply.applied, chain));
    }
    guest.ask(Op::SetDirty { pages_per_second: 2000, region_pages: 256 });
    let mut last = guest.ask(Op::Ping);
    let before = last.dirty_pages;
    while last.dirty_pages < before + 500 {
        last = guest.ask(Op::Ping);
    }
    assert_eq!(guest.ask(Op::Verify).faults, 0);
    guest.ask(Op::ConsoleMark { number: 77 });
    guest.tell(Op::PowerOff);
    assert_eq!(guest.wait_exit().code(), Some(0), "{}", guest.process.lines().join("\n"));
    check_disk(&guest, &appended);
    assert!(guest.serial().contains(&format!("cpus={cpus}")), "{}", guest.serial());
    assert!(guest.text("console").contains("MARK 77"), "{}", guest.text("console"));
    assert!(!guest.dir.path().join("pid").exists(), "the pid file is left behind");
}

#[test]
fn one_cpu_serves_disk_network_and_console_and_powers_off() {
    serve_and_power_off(1);
}

#[test]
fn two_cpus_serve_disk_network_and_console_and_power_off() {
    serve_and_power_off(2);
}

fn reset(cpus: u32) {
    let mut guest = Guest::boot(cpus);
    let mut boots = vec![guest.ask(Op::Ping).boot_id];
    for _ in 0..3 {
        assert_eq!(
            guest.ask(Op::Append { payload: b"forgotten by the reset", flush: true }).applied,
            1
        );
        guest.tell(Op::Reset);
        let mut reply = guest.ask(Op::Ping);
        // Until the reset is performed, the former guest may answer.
        while Some(&reply.boot_id) == boots.last() {
            reply = guest.ask(Op::Ping);
        }
        assert_eq!(reply.applied, 0, "a guest that was reset remembers nothing");
        assert!(!boots.contains(&reply.boot_id));
        boots.push(reply.boot_id);
    }
    guest.tell(Op::PowerOff);
    assert_eq!(guest.wait_exit().code(), Some(0));
    // The network may be faster than the serial line, which is complete only at the end.
    assert_eq!(guest.serial().matches("micro-guest ready").count(), 4, "{}", guest.serial());
}

#[test]
fn a_reset_boots_the_guest_anew() {
    reset(1);
}

#[test]
fn a_reset_boots_the_guest_anew_on_two_cpus() {
    reset(2);
}

#[test]
fn the_sockets_of_a_network_go_away_with_the_machine() {
    // The second network is on datagram sockets; the guest uses the first.
    let sockets = tempfile::tempdir().unwrap();
    let (ours, theirs) = (sockets.path().join("ours"), sockets.path().join("theirs"));
    let flag = format!("dgram={}:{}", ours.display(), theirs.display());
    let mut guest = Guest::boot_with(1, &["--net", &flag]);
    guest.ask(Op::Ping);
    assert!(ours.exists());
    guest.process.signal(Signal::TERM);
    assert_eq!(guest.wait_exit().code(), Some(143));
    assert!(!ours.exists(), "the socket is left behind");
}

#[test]
fn a_signal_ends_the_machine_in_good_order() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        // A shell without job control, or `nohup`, makes its children ignore some signals, and
        // kemari respects that.
        let mut command = std::process::Command::new("env");
        command.args(["--default-signal=INT,HUP", micro::KEMARI]);
        let mut guest = Guest::boot_through(command, "", 1, &[]);
        guest.ask(Op::Ping);
        assert!(guest.dir.path().join("pid").exists());
        guest.process.signal(signal);
        assert_eq!(guest.wait_exit().code(), Some(code));
        assert!(!guest.dir.path().join("pid").exists(), "the pid file is left behind");
    }
}

/// P9: a console whose reader has stopped delays neither the guest, whose other devices continue,
/// nor the machine's end.
#[test]
fn a_console_that_nobody_reads_holds_up_neither_guest_nor_end() {
    // Create a FIFO for the guest's console before the binary under test starts.
    let script = r#"for a; do case "$a" in *file=*/console) mkfifo "${a#*file=}";; esac; done; exec "$0" "$@""#;
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, micro::KEMARI]);
    let mut guest = Guest::boot_through(command, "", 1, &[]);
    guest.ask(Op::Ping);
    let reader = rustix::fs::open(
        guest.dir.path().join("console"),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    // The smallest capacity of a pipe: a page.
    // SAFETY: a system call on our own descriptor, without pointers.
    assert!(unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) } >= 0);
    for number in 0..600 {
        guest.ask(Op::ConsoleMark { number });
    }
    assert_eq!(guest.ask(Op::Append { payload: b"goes on", flush: true }).applied, 1);
    guest.process.signal(Signal::TERM);
    // 2 s for the reader, and more on a busy machine.
    let code =
        guest.process.wait_exit(std::time::Duration::from_secs(20)).map(|status| status.code());
    assert_eq!(code, Some(Some(143)), "{}", guest.process.lines().join("\n"));
    let mut shown = vec![0; 1 << 16];
    let count = rustix::io::read(&reader, &mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown[..count]).into_owned();
    assert!(shown.contains("MARK 0") && shown.contains("MARK 100"), "{shown}");
}
