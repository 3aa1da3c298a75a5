//! The micro-guest as the guest of a pair: its command line, its addresses, and its observer.

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
/// The addresses of the virtio-mmio devices: disk, network, entropy. A stock kernel reads them in ACPI's DSDT, which this
/// guest cannot parse.
const DEVICES: [&str; 3] = ["4K@0xd0000000:5", "4K@0xd0001000:6", "4K@0xd0002000:7"];

/// The largest number of vCPUs that the guest drives.
pub const MAX_CPUS: u32 = 4;

/// How large the guest's disk is.
pub const DISK_BYTES: u64 = 256 << 20;

/// The load on the guest.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// How many client ids ask at the same time.
    pub writers: u32,
    /// The seed of the workload.
    pub seed: u64,
    /// Pages that the guest dirties per second in addition.
    pub dirty: u32,
    /// An unanswered request is repeated after this time.
    pub resend: Duration,
}

/// The guest's part of a run's configuration.
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

/// The guest's command line: its devices (a disk, a network, entropy), its address and its CPUs.
#[must_use]
pub fn command_line(cpus: u32) -> String {
    let mut words: Vec<String> =
        DEVICES.iter().map(|device| format!("virtio_mmio.device={device}")).collect();
    words.extend([format!("ip={GUEST}"), format!("smp={cpus}")]);
    words.join(" ")
}

/// Has the guest drive one more device, of any kind.
pub fn exercise(guest: &mut GuestConfig) {
    guest.command_line.push_str(" virtio_mmio.device=4K@0xd0003000:10 exercise=on");
}

/// The observer of a micro-guest.
#[derive(Debug)]
pub struct MicroObserver {
    client: Client,
    disk: DiskLog,
    /// Findings in records that were checked early.
    found: DiskFindings,
    /// The history before an idle guest was ordered to reset itself.
    before: Option<History>,
    /// The boot id of the guest that was ordered to reset itself.
    former: Option<u64>,
}

impl MicroObserver {
    /// Starts the load over `cable`; the guest's disk is `image`.
    ///
    /// # Errors
    /// When the image cannot be read.
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
        // A guest that resets itself serves no further request, so an answer shows that the guest knows every earlier order.
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
        // A loaded guest overwrites its earlier records.
        if let Some(before) = self.before.take() {
            let found = self.disk.check_all(&before)?;
            findings = self.findings(found);
            if reply.applied != 0 {
                let what = format!("it was reset, and counts {} operations", reply.applied);
                findings.push(Finding::new(Kind::Behaviour, what));
            }
        }
        self.disk.begin_anew();
        self.client.go_on();
        Ok(findings)
    }

    fn power_off(&mut self) {
        // The machine may end before the answer arrives: only the power-off counts.
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
    /// Fails if a command line is refused or built by another limit than the guest's.
    #[test]
    fn the_guest_has_as_many_vcpus_as_is_said() {
        let guest = include_str!("../../guests/micro/src/smp.rs");
        let line = format!("pub const MAX_CPUS: usize = {};", super::MAX_CPUS);
        assert!(guest.contains(&line), "no `{line}`");
    }
}
