//! The parts of a machine, and whether they are equal on both sides.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// The parts of a machine that must be equal on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineLayout {
    /// Guest memory, in ascending order.
    pub memory: Vec<MemoryRegion>,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Page size in bytes.
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

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Its first guest address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLayout {
    /// The slot in the machine.
    pub slot: u16,
    /// The kind of device: `virtio-net`.
    pub kind: String,
    /// The version of its saved state.
    pub state_version: u32,
    /// The features that it offers.
    pub features: u64,
    /// Other properties that must be equal: `mac=02:00:00:00:00:01`.
    pub detail: String,
}

pub(super) fn compare_layouts(
    primary: &MachineLayout,
    standby: &MachineLayout,
    reasons: &mut Vec<String>,
) {
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
                "device slot {slot}: primary {}, standby {}: {}",
                describe_devices(&ours),
                describe_devices(&theirs),
                advise(&ours, &theirs)
            ));
        }
    }
}

/// Advice if the two sides have different devices in a slot.
fn advise(primary: &[DeviceLayout], standby: &[DeviceLayout]) -> String {
    match (primary, standby) {
        ([ours], []) => {
            let flag = flag_of(&ours.kind);
            format!(
                "the standby lacks it: give the standby the primary's {flag}, or remove it from the primary"
            )
        }
        ([], [theirs]) => {
            let flag = flag_of(&theirs.kind);
            format!(
                "the primary lacks it: give the primary the standby's {flag}, or remove it from the standby"
            )
        }
        _ => "give both the same devices, in the same order, from the same release".to_string(),
    }
}

/// The command-line flag of a device.
fn flag_of(kind: &str) -> &'static str {
    match kind {
        "virtio-blk" => "--disk",
        "virtio-net" => "--net",
        "e1000" => "--net with model=e1000",
        "virtio-rng" => "--rng",
        "virtio-console" => "--virtio-console",
        "rtc-pl031" => "--rtc",
        _ => "--device",
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
