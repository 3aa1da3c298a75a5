//! Checks of a command line before any file is created, any term claimed or any data sent.
//!
//! The checks come in the order of their cost: contradicting values, files, the host's KVM.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use io_gate_host::backend::console::Console;
use io_gate_host::backend::disk::Disk;
use io_gate_host::backend::image_format;
use io_gate_host::own_files;
use kemari_arbiter::ArbiterSpec;
use kemari_machine::boot::Boot;
use kemari_machine::config::{BootSource, ConsoleConfig, DiskConfig, MachineConfig, NetBackend};
use kemari_machine::{MachineError, interface};
use kemari_replication::link::{LinkAddr, LinkSecurity};
use kemari_support::given_file::open_at_once;

use super::CliError;
use super::args::{OperationArgs, PairArgs, ReplicationArgs, RunArgs, StandbyArgs};
use super::paths::Paths;
use crate::probe::{HostKvm, probe};

/// Checks the flags of `kemari run`.
pub(super) fn check_run(args: &RunArgs) -> Result<(), CliError> {
    args.check_gated().map_err(|refusal| CliError::usage(refusal.to_string()))?;
    let machine = args.machine();
    let Some(boot) = &machine.boot else { return Err(MachineError::NoKernel.into()) };
    machine.check().map_err(MachineError::from)?;
    check_pair(&args.pair)?;
    check_seize(args, &machine)?;
    Paths::of_machine(&machine).and_of_pair(&args.pair).check()?;
    check_sockets(&args.pair.operation, None)?;
    check_audit(&args.pair.operation)?;
    check_networks(&machine)?;
    check_consoles(&machine)?;
    check_kernel(boot)?;
    check_formats(&machine)
}

/// Checks the flags of `kemari standby`. A disk's format is not checked: a guest may write anything
/// to its disk, and that must not prevent a takeover.
pub(super) fn check_standby(args: &StandbyArgs) -> Result<(), CliError> {
    args.check_gated().map_err(CliError::usage)?;
    // The primary's size is not known yet: any valid size serves to check the rest.
    let machine = args.machine(2 << 20, 1);
    machine.check().map_err(MachineError::from)?;
    check_pair(&args.pair)?;
    let paths = Paths::of_machine(&machine).and_of_pair(&args.pair);
    paths.and_listen(&args.listen).check()?;
    check_sockets(&args.pair.operation, Some(&args.listen))?;
    check_audit(&args.pair.operation)?;
    check_networks(&machine)?;
    check_consoles(&machine)?;
    check_kinds(&machine)?;
    machine.boot.as_ref().map_or(Ok(()), check_kernel)
}

fn check_pair(args: &PairArgs) -> Result<(), CliError> {
    let replication = &args.replication;
    let (interval, timeout) = (replication.heartbeat_interval, replication.heartbeat_timeout);
    if timeout < interval.saturating_mul(2) {
        return Err(CliError::usage(format!(
            "--heartbeat-timeout {timeout}: expected at least twice --heartbeat-interval, which is {interval}, \
            otherwise a live side is suspected; raise it to at least {}, or lower --heartbeat-interval",
            interval.saturating_mul(2)
        )));
    }
    let is_etcd = matches!(args.arbiter.spec, ArbiterSpec::Etcd(_));
    if !is_etcd && (args.arbiter.ca.is_some() || args.arbiter.user.is_some()) {
        return Err(CliError::usage(
            "--arbiter-ca, --arbiter-user: expected --arbiter etcd:HOST:PORT,... with them, found another arbiter, or \
            none",
        ));
    }
    Ok(())
}

/// Checks that there is a term to seize: at the arbiter, or in a disk's fence record.
fn check_seize(args: &RunArgs, machine: &MachineConfig) -> Result<(), CliError> {
    let has_arbiter = args.pair.arbiter.spec != ArbiterSpec::None;
    if args.seize && !has_arbiter && machine.disks().next().is_none() {
        return Err(CliError::usage(
            "--seize: expected --arbiter file:DIR or etcd:HOST:PORT,..., or a --disk, found none of them: there is no \
            term to seize",
        ));
    }
    Ok(())
}

/// Checks that a tap exists, because opening a missing one would create it without a connection. A
/// peer's socket may appear later, but a file of another kind is refused.
fn check_networks(machine: &MachineConfig) -> Result<(), CliError> {
    let flagged = |key: &'static str| move |error| CliError::usage(format!("--net {key}{error}"));
    machine.networks().try_for_each(|(_, network)| match network.backend {
        NetBackend::Tap(name) => {
            interface::check_tap(name, network.create).map_err(CliError::usage)
        }
        NetBackend::Stream(peer) => own_files::check_peer(peer).map_err(flagged("stream=")),
        NetBackend::Dgram(local, peer) => own_files::check_place(local)
            .map_err(flagged("dgram="))
            .and_then(|()| own_files::check_peer(peer).map_err(flagged("dgram=...:"))),
    })
}

/// Checks the console files. A standby writes to its consoles only after a takeover, which is too
/// late to find a wrong path.
fn check_consoles(machine: &MachineConfig) -> Result<(), CliError> {
    machine.consoles().try_for_each(|(_, console)| match console {
        ConsoleConfig::File(path) => {
            Console::check_file(path).map_err(|error| CliError::usage(error.to_string()))
        }
        _ => Ok(()),
    })
}

/// Checks `--audit`. The names of a log's files begin with the given path, so a device or a
/// directory of that name would get no records.
fn check_audit(args: &OperationArgs) -> Result<(), CliError> {
    let Some(audit) = &args.audit else { return Ok(()) };
    match std::fs::metadata(&audit.base) {
        Ok(found) if !found.is_file() => Err(CliError::usage(format!(
            "--audit {}: expected the first part of the names of new files, found {}; add a name, for instance {}",
            audit.base.display(),
            own_files::describe(&found),
            if found.is_dir() { audit.base.join("audit") } else { "audit".into() }.display()
        ))),
        _ => Ok(()),
    }
}

/// Checks that the sockets can be created.
fn check_sockets(args: &OperationArgs, listen: Option<&LinkAddr>) -> Result<(), CliError> {
    let flagged = |flag: &str| {
        let flag = flag.to_owned();
        move |error| CliError::usage(format!("{flag}{error}"))
    };
    if let Some(path) = &args.control {
        own_files::check_socket(path).map_err(flagged("--control "))?;
    }
    if let Some(LinkAddr::Unix(path)) = listen {
        own_files::check_socket(path).map_err(flagged("--listen unix:"))?;
    }
    Ok(())
}

/// Checks that the guest may be sent to the standby's address with these flags.
pub(super) fn check_peer(args: &ReplicationArgs, security: &LinkSecurity) -> Result<(), CliError> {
    let Some(standby) = &args.standby else { return Ok(()) };
    standby
        .check(security)
        .map_err(|error| CliError::usage(format!("--standby {standby}: {error}")))
}

/// Checks that the kernel and its initrd exist. Whether they fit into the machine is found when
/// they are loaded.
fn check_kernel(boot: &BootSource) -> Result<(), CliError> {
    let opened = Boot::open(&boot.kernel, boot.initrd.as_deref(), &boot.cmdline);
    let checked = opened.and_then(|boot| boot.check());
    checked.map_err(|error| CliError::usage(error.to_string()))
}

/// Refuses disks that a standby could never open. A disk that does not exist yet may appear later.
fn check_kinds(machine: &MachineConfig) -> Result<(), CliError> {
    machine.disks().try_for_each(|(_, disk)| {
        Disk::check_kind(&disk.path).map_err(|error| CliError::usage(error.to_string()))
    })
}

/// Refuses disks whose content looks like another format, unless `format=raw` is given.
fn check_formats(machine: &MachineConfig) -> Result<(), CliError> {
    machine.disks().filter(|(_, disk)| !disk.is_raw).try_for_each(|(_, disk)| check_format(disk))
}

fn check_format(disk: &DiskConfig) -> Result<(), CliError> {
    let found = open_at_once(&disk.path).and_then(|file| image_format::of_file(&file));
    // An error of opening is reported when the disk is opened for use.
    let Ok(Some(format)) = found else { return Ok(()) };
    let path = disk.path.display();
    Err(CliError::usage(format!(
        "disk {path}: this is {}, expected a raw image; {}, or use it as it is: --disk path={path},format=raw",
        format.name,
        format.to_raw.command(&disk.path)
    )))
}

/// Refuses a Linux kernel on a KVM that runs bare-metal guests only: the kernel would hang without
/// output.
pub(super) fn check_host(boot: &BootSource) -> Result<(), CliError> {
    if !is_linux(&boot.kernel).unwrap_or(false) {
        return Ok(());
    }
    let found = probe();
    // Probe twice, because a host that was stopped for a moment gives the same result once.
    if found.kvm != HostKvm::Ring3Only || probe().kvm != HostKvm::Ring3Only {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "--kernel {}: expected a KVM that runs all of a Linux kernel, found one that runs ring 3 only ({}), where the \
        kernel would hang without any output; use a host with VMX or SVM (`kemari probe` reports it)",
        boot.kernel.display(),
        found.reason
    )))
}

/// Whether a kernel is Linux: by the header of a bzImage, or by the version text in every vmlinux.
fn is_linux(path: &Path) -> io::Result<bool> {
    const BANNER: &[u8] = b"Linux version ";
    /// Larger than any kernel, in bytes.
    const MOST: u64 = 256 << 20;
    let mut file = open_at_once(path)?.take(MOST);
    let mut bytes = Vec::new();
    (&mut file).take(0x206).read_to_end(&mut bytes)?;
    if bytes.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(true);
    }
    let mut piece = vec![0; 1 << 20];
    loop {
        if contains(&bytes, BANNER) {
            return Ok(true);
        }
        // The text may be split across two pieces.
        bytes.drain(..bytes.len().saturating_sub(BANNER.len() - 1));
        let count = match file.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        bytes.extend_from_slice(&piece[..count]);
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == text[0]) {
        if rest[at..].starts_with(text) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn linux_is_known_by_what_it_says_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        let is = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            is_linux(&path).unwrap()
        };
        let mut bz = vec![0; 0x300];
        bz[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(is(&bz));
        // In any place, even across the end of a piece.
        for at in [0x10, 0x206 - 3, 0x206 + (1 << 20) - 5, 0x206 + (1 << 20)] {
            let mut elf = vec![b'L'; at];
            elf.extend(b"Linux version 6.1.0");
            assert!(is(&elf), "{at:#x}");
        }
        assert!(!is(&[b'L'; 5000]));
        assert!(!is(b""));
    }
}
