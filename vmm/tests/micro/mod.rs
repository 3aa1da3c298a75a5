//! The micro-guest, run by the real binary on the real `/dev/kvm`, and a host on the guest's
//! network that sends requests to it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test's tool: each test file uses its part"
)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kemari_testbed::packet::{Host, Incoming};
use kemari_testbed::process::Process;
use kemari_testbed::switch::{Cable, Switch};
use kemari_workload::{GUEST_PORT, MAX_REQUEST_LEN, Op, Reply, Request};

/// The binary under test.
pub const KEMARI: &str = env!("CARGO_BIN_EXE_kemari");
const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const OWN: Host = Host { mac: [0x52, 0x55, 0, 0, 0, 1], ip: Ipv4Addr::new(10, 0, 2, 1) };
const OWN_PORT: u16 = 40_000;
/// Upper bound for a guest's boot or answer. Only failures take this long.
pub const PATIENCE: Duration = Duration::from_secs(60);
const RESEND: Duration = Duration::from_millis(200);

/// Builds the micro-guest once, outside its source directory.
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guests/micro");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("micro-guest");
        let status = Command::new(env!("CARGO"))
            .current_dir(&source)
            .args([
                "build",
                "--quiet",
                "--release",
                "--target",
                "x86_64-unknown-none",
                "--target-dir",
            ])
            .arg(&target)
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS")
            .status()
            .unwrap();
        assert!(
            status.success(),
            "the micro-guest does not build: `rustup target add x86_64-unknown-none`?"
        );
        target.join("x86_64-unknown-none/release/micro-guest")
    })
}

/// A running guest and its network.
pub struct Guest {
    pub dir: tempfile::TempDir,
    pub process: Process,
    switch: Switch,
    cable: Cable,
    peer: Option<Host>,
    seq: u64,
}

impl Guest {
    /// Boots a guest with `cpus` vCPUs, a disk, a network, a source of random bytes and a console.
    pub fn boot(cpus: u32) -> Self {
        Self::boot_with(cpus, &[])
    }

    /// As [`boot`](Self::boot), with additional flags.
    pub fn boot_with(cpus: u32, flags: &[&str]) -> Self {
        Self::boot_as(cpus, flags, |_| {})
    }

    /// As [`boot_with`](Self::boot_with); `change` can change the command of the process.
    pub fn boot_as(cpus: u32, flags: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        Self::boot_changed(Command::new(KEMARI), "", cpus, flags, change)
    }

    /// As [`boot_with`](Self::boot_with), with a command that ends in the path of the binary under
    /// test. `options` are added to the guest's command line.
    pub fn boot_through(command: Command, options: &str, cpus: u32, flags: &[&str]) -> Self {
        Self::boot_changed(command, options, cpus, flags, |_| {})
    }

    fn boot_changed(
        mut command: Command,
        options: &str,
        cpus: u32,
        flags: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let switch = Switch::new(dir.path(), &["guest"]).unwrap();
        let cable = switch.plug_in();
        let disk = dir.path().join("disk.img");
        std::fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        // The devices in the order of their windows: disk, network, random bytes, console.
        let devices: Vec<String> = [5, 6, 7, 10]
            .iter()
            .enumerate()
            .map(|(index, irq)| {
                format!(
                    "virtio_mmio.device=0x1000@{:#x}:{irq}",
                    0xd000_0000_u64 + index as u64 * 0x1000
                )
            })
            .collect();
        let memory: &[&str] = if flags.contains(&"--memory") { &[] } else { &["--memory", "64"] };
        command
            .args(["run", "--rng", "--cpus", &cpus.to_string()])
            .arg("--kernel")
            .arg(image())
            .args(["--cmdline", &format!("{} {options}", devices.join(" "))])
            .args(["--disk", &format!("path={},serial=micro", disk.display())])
            .args(["--net", &format!("stream={}", switch.socket(0).display())])
            .args(["--pid-file", &dir.path().join("pid").display().to_string()])
            .args(memory)
            .args(flags)
            .stdin(Stdio::null());
        for (flag, file) in [("--serial", "serial"), ("--virtio-console", "console")] {
            if !flags.contains(&flag) {
                command.arg(format!("{flag}=file={}", dir.path().join(file).display()));
            }
        }
        change(&mut command);
        let process = Process::start("kemari", command, &dir.path().join("log")).unwrap();
        Self { dir, process, switch, cable, peer: None, seq: 0 }
    }

    /// The guest's output on the serial line.
    pub fn serial(&self) -> String {
        self.text("serial")
    }

    /// The contents of a file in the test's directory.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join(name)).unwrap_or_default())
            .into_owned()
    }

    /// Repeats a request until the guest answers.
    pub fn ask(&mut self, op: Op<'_>) -> Reply {
        self.try_ask(op, PATIENCE).unwrap_or_else(|| {
            panic!(
                "no answer to {op:?}; serial:\n{}\nlog:\n{}",
                self.serial(),
                self.process.lines().join("\n")
            )
        })
    }

    /// Repeats a request until the guest answers, for at most `patience`.
    pub fn try_ask(&mut self, op: Op<'_>, patience: Duration) -> Option<Reply> {
        self.seq += 1;
        let mut message = [0; MAX_REQUEST_LEN];
        let request = Request { client: 1, seq: self.seq, op };
        let len = request.encode(&mut message).unwrap();
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.peer {
                None => self.cable.send(&OWN.arp_request(GUEST_IP)),
                Some(guest) => {
                    self.cable.send(&OWN.udp(guest, OWN_PORT, GUEST_PORT, &message[..len]))
                }
            }
            if let Some(reply) = self.listen(&request) {
                return Some(reply);
            }
        }
        None
    }

    /// Sends a request without waiting for an answer.
    pub fn tell(&mut self, op: Op<'_>) {
        self.seq += 1;
        let mut message = [0; MAX_REQUEST_LEN];
        let len = Request { client: 1, seq: self.seq, op }.encode(&mut message).unwrap();
        let guest = self.peer.expect("the guest has been asked something before");
        self.cable.send(&OWN.udp(guest, OWN_PORT, GUEST_PORT, &message[..len]));
    }

    fn listen(&mut self, request: &Request<'_>) -> Option<Reply> {
        let until = Instant::now() + RESEND;
        while let Some(frame) = self.cable.receive(until.saturating_duration_since(Instant::now()))
        {
            match OWN.parse(&frame) {
                Some(Incoming::ArpRequest(asker)) => self.cable.send(&OWN.arp_reply(asker)),
                Some(Incoming::ArpReply(guest)) => {
                    // The first answer gives the address for the request, which the caller sends.
                    self.peer.replace(guest)?;
                }
                Some(Incoming::Udp { port: OWN_PORT, payload, .. }) => {
                    let reply = Reply::decode(payload).unwrap();
                    if (reply.client, reply.seq) == (request.client, request.seq) {
                        assert_eq!(reply.faults, 0, "the guest found faults: {}", self.serial());
                        return Some(reply);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Waits for the process to end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        self.process
            .wait_exit(PATIENCE)
            .unwrap_or_else(|| panic!("it does not end; log:\n{}", self.process.lines().join("\n")))
    }
}
