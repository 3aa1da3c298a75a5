//! The handshake: what each side says of itself, and whether the two fit together.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use io_gate::host::Term;
use serde::{Deserialize, Serialize};

/// What a side says of itself and of its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the wire protocol.
    pub protocol: u16,
    /// The release of the program, for people to read; not compared.
    pub release: String,
    /// The virtual machine's name.
    pub name: String,
    /// The term in which the primary acts; from a standby, the primary's.
    pub term: Term,
    /// The primary's number for this session, echoed by the standby: what names it was not said in an earlier one.
    pub session: u64,
    /// The standby's number for this session, unlike that of any other, ever; 0 from a primary, which names it in all that
    /// must not be heard again in another session: [`End`](crate::wire::End) and [`Bye`](crate::wire::Message::Bye).
    pub standby_session: u64,
    /// Which kind of arbiter this side asks: `none`, `file`, `etcd`.
    pub arbiter: String,
    /// The machine's parts.
    pub layout: MachineLayout,
    /// Where the bytes of the disks are that the guest can write, by slot.
    pub disks: Vec<DiskStorage>,
    /// Facts of the host that must be equal: CPU features, capabilities of KVM.
    pub facts: Vec<(String, String)>,
    /// How the primary wants the session run.
    pub options: SessionOptions,
}

/// How a session is run. The primary decides, the standby follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOptions {
    /// Whether both sides hash their machine at every epoch and compare (P8).
    pub verify: bool,
}

/// The parts of a machine that both sides must have alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineLayout {
    /// Guest memory, ascending.
    pub memory: Vec<MemoryRegion>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Bytes of a page.
    pub page_size: u32,
    /// Devices, by slot.
    pub devices: Vec<DeviceLayout>,
}

impl MachineLayout {
    /// Bytes of guest memory.
    #[must_use]
    pub fn memory_size(&self) -> u64 {
        self.memory.iter().fold(0, |sum, region| sum.saturating_add(region.len))
    }
}

/// A stretch of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Its first guest address.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLayout {
    /// Where it is in the machine.
    pub slot: u16,
    /// What it is: `virtio-net`.
    pub kind: String,
    /// The version of its saved state.
    pub state_version: u32,
    /// The features that it offers.
    pub features: u64,
    /// What else must be equal: `mac=02:00:00:00:00:01`.
    pub detail: String,
}

/// Where a disk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStorage {
    /// The disk's slot.
    pub slot: u16,
    /// Where.
    pub storage: Storage,
}

/// Ways in which a pair has a disk. The primary chooses one for each; both have to have the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    /// Both hosts see the same bytes.
    Shared {
        /// What this side finds beside or in it, which no other disk has: the primary's was written
        /// for this session.
        mark: String,
    },
}

impl core::fmt::Display for Storage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Shared { mark } => write!(f, "shared, {mark}"),
        }
    }
}

/// The two sides do not fit: each reason names both sides' values and what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub Vec<String>);

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl core::error::Error for Refusal {}

/// Whether a standby can take over the primary's machine.
///
/// # Errors
/// Every reason why not.
pub fn compare(primary: &Hello, standby: &Hello) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    if primary.protocol != standby.protocol {
        // Nothing else can be relied upon to mean the same on both sides.
        return Err(Refusal(Vec::from([format!(
            "protocol: primary {}, standby {}: run the same release on both hosts",
            primary.protocol, standby.protocol
        )])));
    }
    if primary.name != standby.name {
        reasons.push(format!(
            "name: primary `{}`, standby `{}`: give both the same --name, or connect to the standby \
             of this virtual machine",
            primary.name, standby.name
        ));
    }
    if primary.arbiter != standby.arbiter {
        // Two judges could both say yes (P2).
        reasons.push(format!(
            "arbiter: primary `{}`, standby `{}`: give both the same --arbiter",
            primary.arbiter, standby.arbiter
        ));
    }
    compare_layouts(&primary.layout, &standby.layout, &mut reasons);
    compare_disks(&primary.disks, &standby.disks, &mut reasons);
    compare_facts(&primary.facts, &standby.facts, &mut reasons);
    if reasons.is_empty() { Ok(()) } else { Err(Refusal(reasons)) }
}

fn compare_layouts(primary: &MachineLayout, standby: &MachineLayout, reasons: &mut Vec<String>) {
    if primary.memory != standby.memory {
        reasons.push(format!(
            "memory: primary {}, standby {}: give both the same --memory",
            describe_memory(&primary.memory),
            describe_memory(&standby.memory)
        ));
    }
    if primary.cpus != standby.cpus {
        reasons.push(format!(
            "cpus: primary {}, standby {}: give both the same --cpus",
            primary.cpus, standby.cpus
        ));
    }
    if primary.page_size != standby.page_size {
        reasons.push(format!(
            "page size: primary {}, standby {}: run both on hosts of the same architecture",
            primary.page_size, standby.page_size
        ));
    }
    let mut slots: Vec<u16> =
        primary.devices.iter().chain(&standby.devices).map(|device| device.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    for slot in slots {
        let of = |layout: &MachineLayout| -> Vec<DeviceLayout> {
            layout.devices.iter().filter(|device| device.slot == slot).cloned().collect()
        };
        let (ours, theirs) = (of(primary), of(standby));
        if ours != theirs {
            reasons.push(format!(
                "device slot {slot}: primary {}, standby {}: give both the same devices, in the \
                 same order, from the same release",
                describe_devices(&ours),
                describe_devices(&theirs)
            ));
        }
    }
}

/// P3: a write that the primary has acknowledged is in the disk that the standby would go on with.
fn compare_disks(primary: &[DiskStorage], standby: &[DiskStorage], reasons: &mut Vec<String>) {
    let mut slots: Vec<u16> = primary.iter().chain(standby).map(|disk| disk.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    for slot in slots {
        let of = |disks: &[DiskStorage]| {
            let found = disks.iter().find(|disk| disk.slot == slot);
            found.map_or_else(|| "none".to_string(), |disk| disk.storage.to_string())
        };
        let (ours, theirs) = (of(primary), of(standby));
        if ours != theirs {
            reasons.push(format!(
                "disk in slot {slot}: primary {ours}; standby {theirs}: they do not see the same \
                 disk: give both the one image on storage that both hosts share, not a copy"
            ));
        }
    }
}

fn compare_facts(
    primary: &[(String, String)],
    standby: &[(String, String)],
    reasons: &mut Vec<String>,
) {
    let mut names: Vec<&String> = primary.iter().chain(standby).map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let of = |facts: &[(String, String)]| {
            let values: Vec<&str> = facts
                .iter()
                .filter(|(found, _)| found == name)
                .map(|(_, value)| value.as_str())
                .collect();
            if values.is_empty() { "nothing".to_string() } else { values.join(", ") }
        };
        let (ours, theirs) = (of(primary), of(standby));
        if ours != theirs {
            reasons.push(format!(
                "{name}: primary has {ours}, standby has {theirs}: use hosts that are alike in this"
            ));
        }
    }
}

fn describe_memory(regions: &[MemoryRegion]) -> String {
    const MIB: u64 = 1 << 20;
    if regions.is_empty() {
        return "none".to_string();
    }
    let parts: Vec<String> = regions
        .iter()
        .map(|region| match region.len % MIB {
            0 => format!("{} MiB at {:#x}", region.len / MIB, region.start),
            _ => format!("{} bytes at {:#x}", region.len, region.start),
        })
        .collect();
    parts.join(" + ")
}

fn describe_devices(devices: &[DeviceLayout]) -> String {
    if devices.is_empty() {
        return "none".to_string();
    }
    let parts: Vec<String> = devices
        .iter()
        .map(|device| {
            format!(
                "{} v{} ({}{}features {:#x})",
                device.kind,
                device.state_version,
                device.detail,
                if device.detail.is_empty() { "" } else { ", " },
                device.features
            )
        })
        .collect();
    parts.join(" and ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::wire::PROTOCOL;

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL,
            release: "0.1.0".into(),
            name: "vm".into(),
            term: Term(1),
            session: 7,
            standby_session: 8,
            arbiter: "file".into(),
            layout: MachineLayout {
                memory: Vec::from([MemoryRegion { start: 0, len: 512 << 20 }]),
                cpus: 2,
                page_size: 4096,
                devices: Vec::from([DeviceLayout {
                    slot: 2,
                    kind: "virtio-net".into(),
                    state_version: 1,
                    features: 0x20,
                    detail: "mac=02:00:00:00:00:01".into(),
                }]),
            },
            disks: Vec::from([DiskStorage {
                slot: 3,
                storage: Storage::Shared { mark: "mark 1".into() },
            }]),
            facts: Vec::from([("cpu".into(), "avx2".into())]),
            options: SessionOptions::default(),
        }
    }

    fn refused(change: impl FnOnce(&mut Hello)) -> String {
        let mut other = hello();
        change(&mut other);
        compare(&hello(), &other).unwrap_err().to_string()
    }

    #[test]
    fn equal_machines_fit_whatever_the_release_is_called() {
        let mut other = hello();
        other.release = "0.1.1".into();
        other.term = Term(9);
        assert_eq!(compare(&hello(), &other), Ok(()));
    }

    #[test]
    fn each_difference_names_both_values_and_what_to_change() {
        let text = refused(|other| other.protocol = 9);
        assert!(text.contains("primary 6, standby 9: run the same release"), "{text}");
        let text = refused(|other| other.name = "web".into());
        assert!(text.contains("primary `vm`, standby `web`") && text.contains("--name"), "{text}");
        let text = refused(|other| other.arbiter = "none".into());
        assert!(
            text.contains("primary `file`, standby `none`: give both the same --arbiter"),
            "{text}"
        );
        let text = refused(|other| other.layout.memory[0].len = 256 << 20);
        assert!(text.contains("512 MiB at 0x0, standby 256 MiB at 0x0"), "{text}");
        let text = refused(|other| other.layout.cpus = 1);
        assert!(text.contains("cpus: primary 2, standby 1") && text.contains("--cpus"), "{text}");
        let text = refused(|other| other.layout.page_size = 16384);
        assert!(text.contains("page size: primary 4096, standby 16384"), "{text}");
        let text = refused(|other| other.layout.devices[0].kind = "virtio-blk".into());
        assert!(
            text.contains(
                "device slot 2: primary virtio-net v1 (mac=02:00:00:00:00:01, features 0x20)"
            ) && text.contains("standby virtio-blk v1"),
            "{text}"
        );
        let text = refused(|other| other.layout.devices.clear());
        assert!(text.contains("standby none"), "{text}");
        let text = refused(|other| other.layout.devices[0].state_version = 2);
        assert!(text.contains("virtio-net v2"), "{text}");
        let text = refused(|other| other.layout.devices[0].features = 0);
        assert!(text.contains("features 0x0"), "{text}");
        let text = refused(|other| {
            let Storage::Shared { mark } = &mut other.disks[0].storage;
            *mark = "mark 2".into();
        });
        assert!(
            text.contains("disk in slot 3: primary shared, mark 1; standby shared, mark 2")
                && text.contains("not a copy"),
            "{text}"
        );
        let text = refused(|other| other.disks.clear());
        assert!(text.contains("mark 1; standby none"), "{text}");
        let text = refused(|other| other.facts[0].1 = "sse2".into());
        assert!(text.contains("cpu: primary has avx2, standby has sse2"), "{text}");
        let text = refused(|other| other.facts.clear());
        assert!(text.contains("standby has nothing"), "{text}");
    }

    #[test]
    fn all_differences_are_told_at_once() {
        let text = refused(|other| {
            other.layout.cpus = 1;
            other.name = "web".into();
        });
        assert!(text.contains("cpus") && text.contains("name"), "{text}");
    }
}
