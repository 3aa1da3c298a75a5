//! Builds a side's Hello: the machine's own description in the protocol's terms. The handshake
//! compares the two.

use ft_core::Term;
use ft_core::arbiter::DiskClaim;
use ft_core::handshake::{
    ArbiterView, BootSource, DeviceLayout, DiskStorage, Hello, ImageId, MachineLayout,
    MemoryRegion, SessionOptions,
};
use ft_core::wire::PROTOCOL;
use kemari_machine::boot::{Boot, BootError, ContentId};
use kemari_machine::config::{MachineConfig, NetBackend};
use kemari_machine::{DeviceDescription, Machine, MachineDescription, MachineError, interface};

/// This side's description, except its identity. The primary sets term, session and options.
pub(crate) fn describe(
    machine: &Machine,
    name: &str,
    arbiter: Option<ArbiterView>,
    disks: Vec<DiskStorage>,
    networks: Vec<(String, String)>,
) -> Hello {
    Hello {
        protocol: PROTOCOL,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        name: name.to_owned(),
        term: Term(0),
        session: 0,
        standby_session: 0,
        holder: String::new(),
        arbiter: arbiter.unwrap_or_else(ArbiterView::none),
        layout: layout(machine),
        disks,
        boot: None,
        images: Vec::new(),
        facts: machine.facts().into_iter().chain(networks).collect(),
        options: SessionOptions::default(),
    }
}

/// The layout that must be equal in both machines of a pair.
pub(crate) fn layout(machine: &Machine) -> MachineLayout {
    let MachineDescription { memory, cpus, page_size, devices } = machine.description();
    let region = |(start, len)| MemoryRegion { start, len };
    let device = |device| {
        let DeviceDescription { slot, kind, state_version, features, detail } = device;
        DeviceLayout { slot, kind, state_version, features, detail }
    };
    MachineLayout {
        memory: memory.into_iter().map(region).collect(),
        cpus,
        page_size,
        devices: devices.into_iter().map(device).collect(),
    }
}

/// The boot files' ids and the command line.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn boot_source(boot: &Boot) -> Result<BootSource, BootError> {
    let (kernel, initrd) = boot.ids()?;
    let initrd = initrd.map(image_id);
    Ok(BootSource { kernel: image_id(kernel), initrd, cmdline: boot.cmdline.clone() })
}

/// The id of a boot file, made from the id of its content.
pub(crate) fn image_id(ContentId { size, sha256 }: ContentId) -> ImageId {
    ImageId { size, sha256 }
}

/// The newest claim in the fence records of the machine's disks, for the arbiter.
///
/// # Errors
/// When a record cannot be read, or another machine holds a disk.
pub fn disk_claim(machine: &Machine) -> Result<Option<DiskClaim>, MachineError> {
    let newest = machine.disk_claim()?;
    Ok(newest.map(|(claim, record)| DiskClaim {
        term: claim.term,
        text: format!("{claim} (in {})", record.display()),
        ended: claim.free,
        holder: claim.holder,
    }))
}

/// Stands for the MTU of a network that has none or does not exist yet.
const ANY: &str = "any";

/// The networks' MTUs, in order. A host drops packets larger than its tap's MTU. After a takeover
/// by a host with a smaller MTU the guest would reach its peers with small packets only (P7).
pub(crate) fn networks(config: &MachineConfig) -> Vec<(String, String)> {
    let all = config.networks().enumerate();
    all.map(|(at, (_, network))| {
        let mtu = match network.backend {
            NetBackend::Tap(name) => match interface::look(name) {
                Ok(found) => found.map_or(ANY.to_owned(), |found| found.mtu.to_string()),
                Err(error) => format!("an interface that cannot be examined ({error})"),
            },
            _ => ANY.to_owned(),
        };
        (format!("MTU of network {} (`ip link set TAP mtu N`)", at + 1), mtu)
    })
    .collect()
}

/// As [`networks`], for a primary with the MTUs in `theirs`. An MTU at least as large as the
/// primary's counts as equal.
pub(crate) fn answer_networks(
    config: &MachineConfig,
    theirs: &[(String, String)],
) -> Vec<(String, String)> {
    let said = |name: &str| theirs.iter().find(|(theirs, _)| theirs == name);
    let answer = |(name, ours): (String, String)| match said(&name) {
        Some((_, theirs)) if takes_as_much(&ours, theirs) => (name, theirs.clone()),
        _ => (name, ours),
    };
    networks(config).into_iter().map(answer).collect()
}

fn takes_as_much(ours: &str, theirs: &str) -> bool {
    match (ours.parse::<u32>(), theirs.parse::<u32>()) {
        (Ok(ours), Ok(theirs)) => ours >= theirs,
        _ => ours == ANY || theirs == ANY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P7. Fails if a standby that would drop no packet is refused, or one that would drop packets
    /// is accepted.
    #[test]
    fn only_a_smaller_mtu_is_another_one() {
        for (ours, theirs) in [("1500", "1500"), ("9000", "1500"), (ANY, "9000"), ("1400", ANY)] {
            assert!(takes_as_much(ours, theirs), "{ours} for {theirs}");
        }
        for (ours, theirs) in [("1400", "1500"), ("cannot be examined", "1500")] {
            assert!(!takes_as_much(ours, theirs), "{ours} for {theirs}");
        }
    }
}
