//! The faults of a world with own disks.

use super::fault::DiskFault;
use super::{Host, MS, NODES, Role, Tamper, World, trace};
use crate::plan::{Fault, Planned, drawn};
use crate::random::Random;
use ft_core::disks::DiskId;
use ft_core::disks::set::SetRecord;

/// The plan of a seed.
pub(crate) fn plan(seed: u64, steps: u64) -> Vec<Planned> {
    drawn(seed, steps, 150, |random, step, plan| {
        plan.push(Planned { step, fault: Fault::Disks(fault(random)) });
    })
}

fn fault(random: &mut Random) -> DiskFault {
    let (node, other) = (random.index(NODES), random.index(NODES));
    let longest = if random.one_in(3) { 900 } else { 250 };
    let time = random.below(longest);
    match random.below(40) {
        0..4 => DiskFault::Crash(node),
        4..8 => DiskFault::PowerOff(node),
        8..10 => DiskFault::Blackout,
        10..14 => DiskFault::PowerOffAfter(node, random.below(12) as u32, false),
        14..17 => DiskFault::PowerOffAfter(node, random.below(12) as u32, true),
        17..19 => DiskFault::Pause(node, time),
        19..22 => DiskFault::Break(random.index(4)),
        22..24 => DiskFault::Partition(node, other, time),
        24..26 => DiskFault::Isolate(node, 200 + time),
        26..28 => DiskFault::ArbiterDown(time),
        28 => DiskFault::ArbiterCut(node, time),
        29 => DiskFault::WriteFails(node),
        30 => DiskFault::SyncFails(node),
        // Longer than any time-out.
        31..33 => DiskFault::Hang(node, 2 * time),
        33..36 => DiskFault::Swap(node),
        36..39 => DiskFault::SetBack(node),
        _ => DiskFault::Lose(node),
    }
}

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        let Fault::Disks(fault) = fault else { return };
        trace!(self, "fault: {fault:?}");
        let now = self.now;
        match fault {
            DiskFault::Crash(node) => self.crash(node),
            DiskFault::PowerOff(node) => self.power_off(node),
            DiskFault::Blackout => self.black_out(),
            DiskFault::PowerOffAfter(node, writes, all) => {
                self.hosts[node].fuse = Some((writes, all));
            }
            DiskFault::Pause(node, time) => self.hosts[node].asleep_until = now + time * MS,
            DiskFault::Break(at) => {
                let count = self.wires.len();
                if let Some(wire) = self.wires.get_mut(at % count.max(1)) {
                    wire.broken = true;
                }
            }
            DiskFault::Partition(from, to, time) => self.parted[to][from] = now + time * MS,
            DiskFault::Isolate(node, time) => {
                for other in 0..NODES {
                    self.parted[node][other] = now + time * MS;
                    self.parted[other][node] = now + time * MS;
                }
                self.cut[node] = now + time * MS;
            }
            DiskFault::ArbiterDown(time) => self.register.down_until = now + time * MS,
            DiskFault::ArbiterCut(node, time) => self.cut[node] = now + time * MS,
            DiskFault::WriteFails(node) => self.hosts[node].disk.image.failing[0] = 1,
            DiskFault::SyncFails(node) => self.hosts[node].disk.image.failing[1] = 1,
            DiskFault::Hang(node, time) => self.hosts[node].disk.hangs_until = now + time * MS,
            DiskFault::Swap(node) => self.hosts[node].tampers = Some(Tamper::Swap),
            DiskFault::SetBack(node) => self.hosts[node].tampers = Some(Tamper::SetBack),
            DiskFault::Lose(node) => {
                let record = self.register.record.as_ref();
                let alone = record.is_none_or(|record| record.members.len() < 2);
                if !(self.in_set(node) && alone) {
                    self.power_off(node);
                    self.replace_image(node);
                }
            }
        }
    }

    fn black_out(&mut self) {
        self.tally.blackouts += 1;
        for node in 0..NODES {
            self.power_off(node);
        }
    }

    /// A write to a host's storage has ended; returns whether the host has lost power since.
    pub(super) fn boundary(&mut self, node: usize) -> bool {
        let Some((left, all)) = self.hosts[node].fuse else { return false };
        if left > 0 {
            self.hosts[node].fuse = Some((left - 1, all));
            return false;
        }
        self.hosts[node].fuse = None;
        if self.healing {
            return false;
        }
        self.tally.boundaries += 1;
        if all {
            self.black_out()
        } else {
            self.power_off(node)
        }
        true
    }

    /// Whether the set names an image, or may do so soon: a question is under way, or a primary may
    /// still ask one, since it has not noticed that its standby is gone.
    fn may_be_in_set(&self, disk: DiskId) -> bool {
        let named = |record: &SetRecord| record.members.iter().any(|member| member.disk == disk);
        let joins = |host: &Host| matches!(&host.role, Role::Active(active) if active.joins(disk));
        self.register.record.as_ref().is_some_and(named)
            || self.register.may_name(disk)
            || self.hosts.iter().any(joins)
    }

    /// Carries out what the operator does to the image of a host that is off.
    pub(super) fn tamper(&mut self, node: usize) {
        let Some(tamper) = self.hosts[node].tampers else { return };
        if self.may_be_in_set(self.hosts[node].disk.sidecar().disk) {
            return;
        }
        self.hosts[node].tampers = None;
        match tamper {
            Tamper::Swap => self.swap(node),
            Tamper::SetBack => self.set_back(node),
        }
    }

    /// Another file is in the place of the image.
    fn swap(&mut self, node: usize) {
        trace!(self, "{node} has another image");
        self.tally.swapped += 1;
        let image = &mut self.hosts[node].disk.image;
        image.inode += 1;
        let sector = self.random.index(image.content.len());
        image.content[sector] ^= 1 << 60;
        image.durable = image.content;
    }

    fn set_back(&mut self, node: usize) {
        let Some(copy) = self.hosts[node].copy.take() else { return };
        if self.may_be_in_set(copy.sidecar().disk) {
            return;
        }
        trace!(self, "{node} is set back");
        self.tally.set_back += 1;
        self.hosts[node].disk = *copy;
        let mut random = Random::new(self.random.next());
        self.hosts[node].disk.lose_power(&mut random);
    }
}
