//! The micro-guest of a pair: its command line, its addresses and its observer.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kemari_workload::{Op, Reply};

use crate::client::history::History;
use crate::client::{Client, ClientConfig, Window};
use crate::disk::{DiskFindings, DiskLog};
use crate::findings::{Finding, Kind};
use crate::packet::Host;
use crate::pair::config::GuestConfig;
use crate::pair::observer::{DiskCheck, Observer};
use crate::switch::Cable;

/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The client's addresses.
pub const CLIENT: Host = Host { mac: [2, 0, 0, 0, 0, 0xc1], ip: Ipv4Addr::new(10, 0, 2, 2) };
/// The base addresses of the virtio-mmio devices: disk, network, entropy. A stock kernel reads them
/// from ACPI's DSDT, which the micro-guest cannot parse.
const DEVICES: [&str; 3] = ["4K@0xd0000000:5", "4K@0xd0001000:6", "4K@0xd0002000:7"];

/// Maximum number of vCPUs that the guest supports.
pub const MAX_CPUS: u32 = 4;

/// Size of the guest's disk in bytes.
pub const DISK_BYTES: u64 = 256 << 20;

/// The load on the guest.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Number of client IDs that send requests at the same time.
    pub writers: u32,
    /// The seed of the workload.
    pub seed: u64,
    /// Number of further pages that the guest dirties per second.
    pub dirty: u32,
    /// Time after which an unanswered request is repeated.
    pub resend: Duration,
}

/// The configuration of a run's guest.
pub fn guest(kernel: PathBuf, memory: u64, cpus: u32, load: Load) -> GuestConfig {
    GuestConfig {
        kernel,
        initrd: None,
        command_line: format!("{} dirty={}", command_line(cpus), load.dirty),
        memory,
        cpus,
        boots_protected: true,
    }
}

/// The guest's command line: its devices (disk, network, entropy), its address and its number of
/// vCPUs.
#[must_use]
pub fn command_line(cpus: u32) -> String {
    let mut words: Vec<String> =
        DEVICES.iter().map(|device| format!("virtio_mmio.device={device}")).collect();
    words.extend([format!("ip={GUEST}"), format!("smp={cpus}")]);
    words.join(" ")
}

/// Adds a device that the guest drives, of any kind.
pub fn exercise(guest: &mut GuestConfig) {
    guest.command_line.push_str(" virtio_mmio.device=4K@0xd0003000:10 exercise=on");
}

/// The observer of a micro-guest.
#[derive(Debug)]
pub struct MicroObserver {
    client: Client,
    disk: DiskLog,
    /// Findings in records that were checked before the end of a round.
    found: DiskFindings,
    /// The history before an idle guest was ordered to reset itself; `None` for a loaded guest.
    before: Option<History>,
    /// The boot ID of the guest that was ordered to reset itself.
    former: Option<u64>,
}

impl MicroObserver {
    /// Starts the load over `cable`. The guest's disk is `image`.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn start(cable: Cable, load: Load, image: &Path) -> Result<Self> {
        let Load { writers, seed, resend, .. } = load;
        let config = ClientConfig { own: CLIENT, guest: GUEST, writers, seed, resend };
        let disk = DiskLog::open(image)?;
        let client = Client::start(cable, config);
        Ok(Self { client, disk, found: DiskFindings::default(), before: None, former: None })
    }

    fn verify(&self, patience: Duration) -> Result<Reply> {
        self.client.ask(Op::Verify, patience).context("the guest does not answer to `verify`")
    }

    fn findings(&self, disk: DiskFindings) -> Vec<Finding> {
        let mut findings = self.client.take_findings();
        findings.extend(disk.findings);
        if disk.overwritten > 0 {
            let what = format!(
                "{} records were overwritten before they could be checked: the disk is too small for this load",
                disk.overwritten
            );
            findings.push(Finding::new(Kind::Behaviour, what));
        }
        findings
    }
}

impl Observer for MicroObserver {
    fn answered(&self) -> u64 {
        self.client.operations()
    }

    fn wait_answered(&self, count: u64, timeout: Duration) -> bool {
        self.client.wait_operations(count, timeout)
    }

    fn next_window(&self) -> Window {
        self.client.next_window()
    }

    fn disk_fails(&self, fails: bool) {
        self.client.disk_fails(fails);
    }

    fn disk_errors(&self) -> u64 {
        self.client.with_history(|history| history.disk_errors())
    }

    fn keep_up(&mut self) -> Result<()> {
        let new = self.client.with_history(|history| self.disk.check_new(history))?;
        self.found.checked += new.checked;
        self.found.overwritten += new.overwritten;
        self.found.findings.extend(new.findings);
        Ok(())
    }

    fn print(&self, lines: u64) {
        (0..lines).for_each(|number| self.client.order(Op::ConsoleMark { number }));
    }

    fn judged(&self) -> u64 {
        self.client.judged()
    }

    fn check(&mut self, patience: Duration) -> Result<Vec<Finding>> {
        self.verify(patience)?;
        self.keep_up()?;
        let found = std::mem::take(&mut self.found);
        Ok(self.findings(found))
    }

    fn finish(&mut self, patience: Duration) -> Result<Vec<Finding>> {
        self.verify(patience)?;
        if !self.client.hold(patience) {
            bail!("requests stay unanswered: {:?}", self.client.outstanding());
        }
        self.client.check_complete();
        Ok(self.client.take_findings())
    }

    fn reset(&mut self, is_idle: bool) -> Result<()> {
        self.keep_up()?;
        self.before = is_idle.then(|| self.client.with_history(History::clone));
        self.former = self.client.with_history(History::boot_id);
        self.client.may_reset(true);
        self.client.order(Op::Reset);
        Ok(())
    }

    fn begin_anew(&mut self, patience: Duration) -> Result<Vec<Finding>> {
        let deadline = Instant::now() + patience;
        // Wait for an answer with a new boot ID: a guest that resets itself serves no further
        // request, so its answers stop.
        let reply = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let reply = self.client.ask(Op::Ping, left);
            let reply = reply.context("no guest answers that has been reset")?;
            if Some(reply.boot_id) != self.former {
                break reply;
            }
        };
        self.client.may_reset(false);
        let mut findings = Vec::new();
        // Check the disk of an idle guest only: a loaded guest overwrites its earlier records.
        if let Some(before) = self.before.take() {
            let found = self.disk.check_all(&before)?;
            findings = self.findings(found);
            if reply.applied != 0 {
                let what = format!("expected 0 operations after a reset, found {}", reply.applied);
                findings.push(Finding::new(Kind::Behaviour, what));
            }
        }
        self.disk.begin_anew();
        self.client.go_on();
        Ok(findings)
    }

    fn power_off(&mut self) {
        // Do not wait for the answer: the machine may end before it arrives.
        self.client.order(Op::PowerOff);
    }

    fn check_disk(&mut self) -> Result<DiskCheck> {
        let found = self.client.with_history(|history| self.disk.check_all(history))?;
        let what = format!("{} log records read back, whole and in the chain", found.checked);
        Ok(DiskCheck { what, findings: self.findings(found) })
    }
}

#[cfg(test)]
mod tests {
    /// Fails if the harness and the guest have different limits.
    #[test]
    fn the_guest_has_as_many_vcpus_as_is_said() {
        let guest = include_str!("../../guests/micro/src/smp.rs");
        let line = format!("pub const MAX_CPUS: usize = {};", super::MAX_CPUS);
        assert!(guest.contains(&line), "no `{line}`");
    }
}
