//! Checks that the networks of a takeover exist, are connected, and are not used by another
//! process.

use std::path::Path;
use std::time::Duration;

use io_gate_host::own_files::{PlaceError, check_place, check_socket};
use kemari_machine::interface::{self, Interface};

use crate::standby::ready::Prepared;

/// Longer than it takes to open and close a tap.
const OWN_LOOK: Duration = Duration::from_millis(100);

/// What the kernel reports about a tap.
pub(super) type Found = Result<Option<Interface>, String>;

/// P7: checks that a tap exists and is up: a guest that continues here and reaches no peer has not
/// survived.
pub(super) fn tap(name: &str, create: bool, found: &Found) -> Result<(), String> {
    match found.as_ref().map_err(Clone::clone)? {
        None if create => Ok(()),
        None => Err(interface::no_interface(name)),
        Some(found) if found.kind != "tap" => Err(interface::no_tap(name, &found.kind)),
        Some(found) if !found.up => {
            Err(format!("net tap={name}: the interface is down: `ip link set {name} up`"))
        }
        Some(_) => Ok(()),
    }
}

/// Checks that a tap leads somewhere. The result is only reported: the tap may be reachable in ways
/// that are not visible here, by a route of the host or a redirection.
pub(super) fn attached(name: &str, found: &Found) -> Result<(), String> {
    match found {
        Ok(Some(found)) if found.up && found.master.is_none() && !found.has_address => {
            Err(format!(
                "net tap={name}: the interface is not connected: make it a port of a bridge (`ip link set {name} \
                 master BRIDGE`), or give it an address"
            ))
        }
        Ok(Some(found)) if found.master.is_some_and(|(_, up)| !up) => {
            Err(format!("net tap={name}: its bridge is down: `ip link set BRIDGE up`"))
        }
        // Other checks cover these cases.
        _ => Ok(()),
    }
}

/// Checks that no other process uses the tap. The result is only reported: a takeover opens the tap
/// before it claims a term.
pub(super) fn unused(name: &str, prepared: &Prepared) -> Result<(), String> {
    let in_use = || matches!(interface::look(name), Ok(Some(found)) if found.up && found.in_use);
    if nobody_elses(in_use, prepared) {
        return Ok(());
    }
    Err(format!(
        "net tap={name}: another process has it open: end that process, or give this side another tap"
    ))
}

pub(super) fn free_name(name: &Path, prepared: &Prepared) -> Result<(), PlaceError> {
    if nobody_elses(|| check_socket(name).is_err(), prepared) {
        return check_place(name);
    }
    check_socket(name)
}

/// Whether no other process uses the resource. This process uses it for a moment when a primary
/// joins, and from the preparation of a takeover on.
fn nobody_elses(in_use: impl Fn() -> bool, prepared: &Prepared) -> bool {
    // In this order: a preparation is recorded before anything is opened.
    let others = || in_use() && !prepared.is_open();
    if !others() {
        return true;
    }
    std::thread::sleep(OWN_LOOK);
    !others()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::process::Command;
    use std::sync::Arc;

    use io_gate::host::new_gate;
    use io_gate_host::Unfenced;

    use super::super::Resources;
    use crate::standby::ready::Preparing;
    use kemari_machine::Machine;
    use kemari_machine::config::MachineConfig;

    /// Creates a network namespace for this thread, with a tap in it that has an address.
    fn own_tap(name: &str) -> bool {
        // SAFETY: a system call that changes the network namespace of this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            kemari_not_tested::not_tested("this machine permits no network namespace");
            return false;
        }
        for arguments in [
            format!("tuntap add {name} mode tap"),
            format!("link set {name} up"),
            format!("addr add 10.77.0.1/24 dev {name}"),
        ] {
            let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(done.success(), "ip {arguments}");
        }
        true
    }

    fn config(nets: &[&str]) -> MachineConfig {
        MachineConfig {
            nets: nets.iter().map(|net| net.parse().unwrap()).collect(),
            ..MachineConfig::bare("vm", 16 << 20, 1)
        }
    }

    fn machine(config: &MachineConfig) -> Arc<Machine> {
        let (ledger, _) = new_gate();
        Machine::build(config.clone(), ledger, Arc::new(Unfenced)).unwrap()
    }

    /// P7: a side prepares and then may not take over. Fails if its own tap or its own name counts
    /// as another process's: the guest could not continue here then, whatever the operator changes.
    #[test]
    fn what_a_side_has_made_ready_is_its_own() {
        if !own_tap("tap0") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dgram = dir.path().join("name");
        let config = config(&["tap=tap0", &format!("dgram={0}:{0}.peer", dgram.display())]);
        let resources = Resources::new(config.clone(), None, None, Arc::default());
        let preparing = Preparing::telling(resources.prepared());
        let ours = machine(&config);
        assert_eq!(resources.look(), None);
        preparing.prepare(&ours).unwrap();
        assert_eq!(resources.look(), None);
        drop(ours);

        // A tap of another process is in use, even after this side has tried to open it.
        let others = machine(&config);
        Preparing::default().prepare(&others).unwrap();
        let ours = machine(&config);
        preparing.prepare(&ours).unwrap_err();
        let lack = resources.look().unwrap();
        let taken = ["tap0: another process has it open", "another process has this socket"];
        assert!(taken.iter().all(|part| lack.reason.contains(part)), "{lack:?}");
    }
}
