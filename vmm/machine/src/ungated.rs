//! The list of devices and features that the gate cannot control, each with the reason and an
//! alternative.
//!
//! With fault tolerance on, everything on the list is refused before anything runs (P5). With it
//! off, only guest memory in a shared file is allowed, the one that this program implements.

use std::fmt;
use std::str::FromStr;

use crate::config::MachineConfig;

/// A way for bytes to leave or enter the guest past the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ungated {
    /// The host's kernel serves a network's queues.
    VhostNet,
    /// Another process serves a device's queues.
    VhostUser,
    /// A device of the host is passed through to the guest.
    Vfio,
    /// Hardware serves a device's queues.
    Vdpa,
    /// Guest memory that other processes can map.
    SharedMemory,
    /// A file that the guest writes to by memory stores.
    Pmem,
    /// Notifications and interrupts that KVM exchanges with another process.
    ForeignEvents,
}

impl Ungated {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::VhostNet,
        Self::VhostUser,
        Self::Vfio,
        Self::Vdpa,
        Self::SharedMemory,
        Self::Pmem,
        Self::ForeignEvents,
    ];

    /// The name, the reason why it cannot be gated, and the alternative.
    const fn row(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::VhostNet => (
                "vhost-net",
                "the host's kernel sends the guest's packets itself, before the checkpoint that contains their cause \
                is acknowledged, and its writes to guest memory are not tracked",
                "--net tap=IFNAME without vhost=on",
            ),
            Self::VhostUser => (
                "vhost-user",
                "another process maps guest memory and serves the device's queues itself: its effects are not held, \
                and its writes to guest memory are not tracked",
                "--net tap=IFNAME or stream=SOCKET, --disk path=FILE",
            ),
            Self::Vfio => (
                "VFIO",
                "a device of the host reads and writes guest memory itself: its effects are not held, its writes are \
                not tracked, and its state cannot be moved to another host",
                "--net tap=IFNAME, --disk path=FILE",
            ),
            Self::Vdpa => (
                "vDPA",
                "hardware serves the device's queues itself: its effects are not held, and its writes to guest memory \
                are not tracked",
                "--net tap=IFNAME",
            ),
            Self::SharedMemory => (
                "guest memory in a shared file",
                "other processes can change it without dirty tracking, and can see data that is not committed",
                "--memory MIB without file=",
            ),
            Self::Pmem => (
                "virtio-pmem",
                "the guest writes to the file by a store to memory, so that no write can be held until its checkpoint \
                is acknowledged",
                "--disk path=FILE",
            ),
            Self::ForeignEvents => (
                "an ioeventfd or irqfd of another process",
                "KVM signals it, and takes interrupts from it, directly while the guest runs: neither waits for a \
                checkpoint",
                "the devices of this program, which have their own notifications",
            ),
        }
    }

    /// The name for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Finds one in the value of a flag, in the spelling of this or another monitor.
    #[must_use]
    pub fn spelled(value: &str) -> Option<Self> {
        value.split(',').find_map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let key = key.replace('_', "-");
            let off = matches!(value, "off" | "false" | "no" | "0");
            let named = |prefix: &str| key.starts_with(prefix) && !off;
            let events = matches!(key.as_str(), "ioeventfd" | "irqfd");
            match key.as_str() {
                _ if named("vhost-user") => Some(Self::VhostUser),
                _ if named("vhost-vdpa") || named("vdpa") => Some(Self::Vdpa),
                _ if named("vhost") => Some(Self::VhostNet),
                _ if named("vfio") => Some(Self::Vfio),
                _ if named("pmem") || named("virtio-pmem") || named("nvdimm") => Some(Self::Pmem),
                // In other monitors, `ioeventfd=on` means a descriptor of their own, not a foreign
                // one.
                _ if events && !off && value != "on" => Some(Self::ForeignEvents),
                _ => None,
            }
        })
    }

    /// The ungated feature that the machine uses. This program can run it only without fault
    /// tolerance.
    #[must_use]
    pub fn of(machine: &MachineConfig) -> Option<Found> {
        let file = machine.memory_file.as_ref()?;
        Some(Found { kind: Self::SharedMemory, spelled: format!("file={}", file.display()) })
    }

    fn is_implemented(self) -> bool {
        self == Self::SharedMemory
    }
}

/// An ungated device or feature in the value of a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its kind.
    pub kind: Ungated,
    /// Its spelling in the flag.
    pub spelled: String,
}

impl Found {
    /// The refusal; `None`: the feature can be used.
    #[must_use]
    pub fn refusal(&self, fault_tolerance: bool) -> Option<Refusal> {
        if !fault_tolerance && self.kind.is_implemented() {
            return None;
        }
        Some(Refusal { found: self.clone(), fault_tolerance })
    }
}

/// The text of a refusal, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    found: Found,
    fault_tolerance: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, why, instead) = self.found.kind.row();
        let spelled = &self.found.spelled;
        if self.fault_tolerance {
            write!(
                f,
                "`{spelled}`: {name} cannot be used together with fault tolerance (a standby or an arbiter): {why}; use {instead}"
            )
        } else {
            write!(f, "`{spelled}`: {name} is not supported by this monitor; use {instead}")
        }
    }
}

impl std::error::Error for Refusal {}

/// A flag's value, which may name a device that the gate cannot control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked<T> {
    /// The value, which the gate can control.
    Gated(T),
    /// The device or feature that the gate cannot control.
    Ungated(Found),
}

impl<T: FromStr> FromStr for Asked<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match Ungated::spelled(text) {
            Some(kind) => Ok(Self::Ungated(Found { kind, spelled: text.to_owned() })),
            None => text.parse().map(Self::Gated),
        }
    }
}

impl<T> Asked<T> {
    /// The value, if the gate can control it.
    #[must_use]
    pub fn gated(&self) -> Option<&T> {
        match self {
            Self::Gated(value) => Some(value),
            Self::Ungated(_) => None,
        }
    }

    /// The device or feature that the gate cannot control, if the value names one.
    #[must_use]
    pub fn ungated(&self) -> Option<&Found> {
        match self {
            Self::Gated(_) => None,
            Self::Ungated(found) => Some(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_known() {
        for (text, expected) in [
            ("tap=tap0,vhost=on", Ungated::VhostNet),
            ("vhost=on,tap=tap0", Ungated::VhostNet),
            ("vhost-user=/run/vu.sock", Ungated::VhostUser),
            ("vhost_user=true,socket=/run/vu.sock", Ungated::VhostUser),
            ("vhost-user-blk,chardev=c", Ungated::VhostUser),
            ("vhost-vdpa=/dev/vhost-vdpa-0", Ungated::Vdpa),
            ("vdpa=/dev/vhost-vdpa-0", Ungated::Vdpa),
            ("vfio=0000:01:00.0", Ungated::Vfio),
            ("vfio-pci,host=01:00.0", Ungated::Vfio),
            ("virtio-pmem-pci,memdev=m", Ungated::Pmem),
            ("path=x,ioeventfd=7", Ungated::ForeignEvents),
            ("irqfd=9", Ungated::ForeignEvents),
        ] {
            assert_eq!(Ungated::spelled(text), Some(expected), "{text}");
        }
        for text in
            ["tap=tap0", "tap=vhost", "tap=t,vhost=off", "path=/vfio/x", "path=x,ioeventfd=on"]
        {
            assert_eq!(Ungated::spelled(text), None, "{text}");
        }
    }

    #[test]
    fn refusals_say_why_and_what_to_use() {
        for kind in Ungated::ALL {
            let found = Found { kind, spelled: "as it was spelled".to_owned() };
            let text = found.refusal(true).map(|refusal| refusal.to_string()).unwrap_or_default();
            for part in ["as it was spelled", kind.name(), "fault tolerance", "; use "] {
                assert!(text.contains(part), "expected `{part}` in: {text}");
            }
            let off = found.refusal(false);
            assert_eq!(off.is_none(), kind == Ungated::SharedMemory);
            assert!(off.is_none_or(|refusal| refusal.to_string().contains("not supported")));
        }
    }
}
