//! The machine's disks: how to open each, which other processes may have it open, and the record of
//! the term that may write to it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use io_gate_host::backend::disk::{Disk, DiskError, DiskOptions, Side};
use io_gate_host::disk_use::disk_fence::{DiskFence, FenceClaim};
use io_gate_host::disk_use::disk_lock::Use;

use crate::config::{DiskConfig, FenceRecord, MachineConfig};
use crate::device_error::DeviceSetupError;

/// How long a process may take at its end to release its locks, and the interval between two
/// attempts to lock.
const ENDING: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(20);

/// The kind of machine for which a disk is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opens {
    /// A machine that does not share the disk.
    Alone,
    /// The side of a pair that runs the guest from its start.
    Active,
    /// The side of a pair that takes over. The other side may be stopped and still have the disk
    /// open.
    Successor,
    /// A standby that checks whether it could open the disk.
    Standby,
}

impl Opens {
    fn shared(self) -> bool {
        self != Self::Alone
    }
}

/// Opens a disk. `machine` is the name for its fence record, if terms decide who may write.
pub(crate) fn open(
    config: &DiskConfig,
    opens: Opens,
    machine: Option<&str>,
) -> Result<Disk, DeviceSetupError> {
    let disk = reserve_for(config, opens, machine.is_some())?;
    with_record(disk, config, opens, machine)
}

/// Does what [`open`] does, with a disk that is already open.
pub(crate) fn reopen(
    disk: Disk,
    config: &DiskConfig,
    opens: Opens,
    machine: Option<&str>,
) -> Result<Disk, DeviceSetupError> {
    share(&disk, config, opens, machine.is_some())?;
    with_record(disk, config, opens, machine)
}

fn with_record(
    disk: Disk,
    config: &DiskConfig,
    opens: Opens,
    machine: Option<&str>,
) -> Result<Disk, DeviceSetupError> {
    let Some(record) = fence_record(config) else { return Ok(disk) };
    match (machine, opens) {
        (Some(machine), Opens::Standby) => {
            check_machine(config, &record, machine)?;
            Ok(disk)
        }
        (Some(machine), _) => Ok(disk.fenced_by(DiskFence::open(&record, machine)?)),
        (None, _) => match DiskFence::look(&record)?.filter(|claim| !claim.free) {
            None => Ok(disk),
            Some(claim) => Err(held(config, record, claim)),
        },
    }
}

/// Opens and locks a disk of a machine that has an arbiter and is about to start. Does not read its
/// fence record.
///
/// P2: the holder of a lock is a live process that may be about to write, perhaps under another
/// name of the image and with another record beside it. So a seizure overrides records, but never a
/// lock. The lock of a pair does not exclude other pairs' locks: so this machine first locks the
/// image alone, and then as one side of a pair.
pub(crate) fn reserve(config: &DiskConfig, seize: bool) -> Result<Disk, DeviceSetupError> {
    let disk = open_file(config, Opens::Active)?;
    let until = Instant::now() + ENDING;
    let alone = loop {
        match disk.lock(Use::Alone) {
            Err(DiskError::Locked { .. }) if Instant::now() < until => std::thread::sleep(AGAIN),
            result => break result,
        }
    };
    match alone {
        // `share` reports an error of the lock call itself.
        Ok(()) | Err(DiskError::Lock { .. }) => share(&disk, config, Opens::Active, true)?,
        Err(error) if seize => return Err(error.into()),
        Err(error) => return Err(locked(config, error)),
    }
    Ok(disk)
}

fn reserve_for(
    config: &DiskConfig,
    opens: Opens,
    has_terms: bool,
) -> Result<Disk, DeviceSetupError> {
    let disk = open_file(config, opens)?;
    if opens != Opens::Alone {
        share(&disk, config, opens, has_terms)?;
    }
    Ok(disk)
}

fn open_file(config: &DiskConfig, opens: Opens) -> Result<Disk, DeviceSetupError> {
    let refused = [libc::EACCES, libc::EPERM, libc::EROFS];
    let options = DiskOptions {
        read_only: config.read_only,
        lock: opens == Opens::Alone,
        write_through: config.cache.write_through(opens.shared()),
        direct: config.direct,
    };
    Disk::open(&config.path, options).map_err(|error| match error {
        error @ DiskError::Locked { .. } => locked(config, error),
        DiskError::Open { path, error }
            if !config.read_only
                && error.raw_os_error().is_some_and(|code| refused.contains(&code)) =>
        {
            DeviceSetupError::DiskReadOnly { path, error }
        }
        error => error.into(),
    })
}

/// Locks an open disk in the way that `opens` requires.
fn share(
    disk: &Disk,
    config: &DiskConfig,
    opens: Opens,
    has_terms: bool,
) -> Result<(), DeviceSetupError> {
    let side = match opens {
        Opens::Alone => {
            return disk.lock(Use::Alone).map_err(|error| locked(config, error));
        }
        Opens::Active => Side::Active,
        Opens::Successor => Side::Successor,
        Opens::Standby => Side::Standby,
    };
    disk.share(side, has_terms).map_err(|error| locked(config, error))?;
    // Drop cached pages before the first read.
    disk.forget_cached();
    Ok(())
}

/// The error for a locked disk: names the holder if the fence record does.
fn locked(config: &DiskConfig, error: DiskError) -> DeviceSetupError {
    let claim = fence_record(config).and_then(|record| {
        let claim = DiskFence::look(&record).ok()??;
        Some((record, claim)).filter(|(_, claim)| !claim.free)
    });
    match (error, claim) {
        (DiskError::Locked { .. }, Some((record, claim))) => held(config, record, claim),
        (error, _) => error.into(),
    }
}

fn check_machine(
    config: &DiskConfig,
    record: &std::path::Path,
    machine: &str,
) -> Result<(), DeviceSetupError> {
    match DiskFence::look(record)? {
        Some(claim) if claim.machine != machine && !claim.free => {
            Err(held(config, record.to_owned(), claim))
        }
        _ => Ok(()),
    }
}

fn held(config: &DiskConfig, record: PathBuf, claim: FenceClaim) -> DeviceSetupError {
    DiskError::Held { path: config.path.clone(), record, claim: Box::new(claim) }.into()
}

/// The newest claim in the fence records of the disks, for a machine that is about to start;
/// `None`: no record names a holder.
///
/// # Errors
/// When a record cannot be read, or another machine holds a disk.
pub(crate) fn newest_claim(
    config: &MachineConfig,
) -> Result<Option<(FenceClaim, PathBuf)>, DeviceSetupError> {
    let mut newest: Option<(FenceClaim, PathBuf)> = None;
    for (_, disk) in config.disks() {
        let Some(record) = fence_record(disk) else { continue };
        let Some(claim) = DiskFence::look(&record)? else { continue };
        if claim.machine != config.name {
            if !claim.free {
                return Err(held(disk, record, claim));
            }
        } else if newest.as_ref().is_none_or(|(found, _)| claim.term > found.term) {
            newest = Some((claim, record));
        }
    }
    Ok(newest)
}

/// Seizes the disks from their recorded holder, which is dead according to the operator.
///
/// P2: freeing a record takes the right to write from its holder. A holder that has the disk open
/// is alive, and keeps the right.
///
/// # Errors
/// When another process has a disk open, or a record cannot be written.
pub(crate) fn seize(config: &MachineConfig) -> Result<(), DeviceSetupError> {
    let alone = |(_, disk): (u16, &DiskConfig)| {
        let open = open_file(disk, Opens::Active)?;
        match open.lock(Use::Alone) {
            // Attaching the disk later reports an error of the lock call itself.
            Ok(()) | Err(DiskError::Lock { .. }) => Ok(open),
            Err(error) => Err(DeviceSetupError::from(error)),
        }
    };
    let _alone: Vec<Disk> = config.disks().map(alone).collect::<Result<_, _>>()?;
    for (_, disk) in config.disks() {
        if let Some(record) = fence_record(disk)
            && let Some(claim) = DiskFence::look(&record)?.filter(|claim| !claim.free)
        {
            DiskFence::open(&record, &claim.machine)?.free(claim.term, &claim.holder)?;
            log::warn!("seized disk {}: {claim}", disk.path.display());
        }
    }
    Ok(())
}

/// Frees the disks of a machine that won `term` and never ran in it: their records may still name
/// the former side.
///
/// # Errors
/// When a record cannot be written: the error is the first one; all other records are freed.
pub fn give_back(config: &MachineConfig, term: u64, holder: &str) -> Result<(), DiskError> {
    let give_back = |record: PathBuf| {
        // A disk without a record has no holder.
        match DiskFence::look(&record)? {
            Some(_) => DiskFence::open(&record, &config.name)?.free(term, holder),
            None => Ok(()),
        }
    };
    let records = config.disks().filter_map(|(_, disk)| fence_record(disk));
    // Free the other records even if one fails.
    records.map(give_back).fold(Ok(()), Result::and)
}

/// The path of a disk's fence record. A block device has none beside it: `/dev` differs between
/// hosts.
#[must_use]
pub fn fence_record(disk: &DiskConfig) -> Option<PathBuf> {
    match &disk.fence {
        _ if disk.read_only => None,
        FenceRecord::Off => None,
        FenceRecord::At(path) => Some(path.clone()),
        FenceRecord::Beside => {
            let is_file = std::fs::metadata(&disk.path).is_ok_and(|metadata| metadata.is_file());
            is_file.then(|| DiskFence::beside(&disk.path))
        }
    }
}
