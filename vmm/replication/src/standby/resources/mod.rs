//! The resources of this host that a takeover needs. They are checked at start, and repeatedly
//! while the standby runs.
//!
//! A standby that says `ready` can continue the guest, but its resources may go away later: a tap
//! is deleted, a file system is unmounted, a certificate expires, descriptors run out. A thread of
//! its own checks all of them repeatedly, because storage and networks may be slow, and reports
//! changes to the standby's thread. A resource that does not answer counts as missing (P9).

mod consoles;
mod networks;
mod records;
mod storage;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ft_core::standby::Lack;
use io_gate_host::backend::disk::check_unused;
use io_gate_host::own_files;
use kemari_arbiter::Arbiter;
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_machine::config::{ConsoleConfig, DiskConfig, MachineConfig, NetBackend};
use kemari_machine::{LoopHandle, interface};
use kemari_support::given_file::open_at_once;

use crate::descriptors::Reserve;
use crate::link::Credentials;

pub use records::Expected;
use records::Record;

use super::ready::Prepared;

/// Time between two checks.
const EVERY: Duration = Duration::from_secs(1);
/// A resource that has not answered within this time counts as missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// The resources to check.
pub struct Resources {
    machine: MachineConfig,
    credentials: Option<Credentials>,
    arbiter: Option<Arc<dyn Arbiter>>,
    reserve: Arc<Reserve>,
    prepared: Prepared,
    /// The identity of each disk's file at the first check.
    disks: Mutex<BTreeMap<PathBuf, FileOf>>,
    /// The disks' sizes at the beginning of the session, or at the last check before it.
    sizes: Mutex<BTreeMap<PathBuf, u64>>,
    expected: Arc<Expected>,
    devices: Devices,
    /// The resource that is being checked now, and whether the guest could not run without it.
    at: Mutex<(String, bool)>,
}

/// The device thread of the machine that this side holds, if any: it serves the guest after a
/// takeover. This is not a reference to the machine, because dropping the last one here would end
/// the machine on this thread.
#[derive(Clone, Default)]
pub(super) struct Devices(Arc<Mutex<Option<LoopHandle>>>);

impl Devices {
    /// Sets the thread; `None` when there is no machine.
    pub(super) fn set(&self, thread: Option<LoopHandle>) {
        *self.thread() = thread;
    }

    /// Returns when the thread has answered. A thread that has ended counts as an answer: its
    /// machine is being dropped.
    fn answer(&self) {
        let thread = self.thread().clone();
        if let Some(thread) = thread {
            let _ = thread.call(|_| ());
        }
    }

    /// This lock guards only the handle.
    fn thread(&self) -> MutexGuard<'_, Option<LoopHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The identity of a file, or of the device behind a device file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileOf(u64, u64);

impl Resources {
    /// The resources of a machine. The size of its memory does not matter here.
    pub fn new(
        machine: MachineConfig,
        credentials: Option<Credentials>,
        arbiter: Option<Arc<dyn Arbiter>>,
        reserve: Arc<Reserve>,
    ) -> Self {
        let (prepared, disks, sizes, expected, devices, at) = Default::default();
        Self {
            machine,
            credentials,
            arbiter,
            reserve,
            prepared,
            disks,
            sizes,
            expected,
            devices,
            at,
        }
    }

    /// The expected holder of the records. The standby sets it when it holds a machine.
    pub(super) fn expected(&self) -> Arc<Expected> {
        self.expected.clone()
    }

    /// The device thread that will serve the guest. The standby sets it when there is one.
    pub(super) fn devices(&self) -> Devices {
        self.devices.clone()
    }

    /// The reserve of descriptors. The standby releases it when a takeover needs it.
    pub(super) fn reserve(&self) -> Arc<Reserve> {
        self.reserve.clone()
    }

    /// The machine that has these resources open. The standby sets it when it opens them.
    pub(super) fn prepared(&self) -> Prepared {
        self.prepared.clone()
    }

    /// Checks everything, without a time limit. Returns all that is missing as one lack.
    fn look(&self) -> Option<Lack> {
        let mut lacks: Vec<Lack> = Vec::new();
        let mut prove = |what: String, blocks: bool, proven: &dyn Fn() -> Result<(), String>| {
            self.is_at(what, blocks);
            if let Err(reason) = proven() {
                lacks.push(Lack { reason, blocks });
            }
        };
        for (_, disk) in self.machine.disks() {
            prove(format!("disk {}", disk.path.display()), true, &|| self.disk(disk));
            self.records(disk, &mut prove);
        }
        for (name, create) in self.taps() {
            self.is_at(format!("net tap={name}"), true);
            let found = interface::look(name)
                .map_err(|error| format!("net tap={name}: cannot query the kernel: {error}"));
            prove(format!("net tap={name}"), true, &|| networks::tap(name, create, &found));
            prove(format!("net tap={name}"), false, &|| networks::attached(name, &found));
            prove(format!("net tap={name}"), false, &|| networks::unused(name, &self.prepared));
        }
        for name in self.datagram_names() {
            prove(format!("net dgram={}", name.display()), true, &|| {
                networks::free_name(name, &self.prepared)
                    .map_err(|error| format!("net dgram={error}"))
            });
        }
        for path in self.console_files() {
            prove(format!("console {}", path.display()), true, &|| consoles::usable(path));
        }
        prove("descriptors".to_owned(), true, &|| {
            self.reserve.hold().map_err(|error| error.to_string())
        });
        prove("the device thread of this side's machine".to_owned(), true, &|| {
            self.devices.answer();
            Ok(())
        });
        for path in self.boot_files() {
            prove(path.display().to_string(), false, &|| readable(path));
        }
        if let Some(credentials) = &self.credentials {
            prove("certificate".to_owned(), false, &|| {
                credentials.check_validity().map_err(|error| error.to_string())
            });
        }
        if let Some(arbiter) = &self.arbiter {
            prove("arbiter".to_owned(), false, &|| {
                arbiter.answers().map_err(|error| format!("the arbiter is unreachable: {error}"))
            });
        }
        self.is_at(String::new(), false);
        let blocks = lacks.iter().any(|lack| lack.blocks);
        let reasons: Vec<_> = lacks.into_iter().map(|lack| lack.reason).collect();
        (!reasons.is_empty()).then(|| Lack { reason: reasons.join("; "), blocks })
    }

    fn taps(&self) -> impl Iterator<Item = (&str, bool)> {
        self.machine.networks().filter_map(|(_, network)| match network.backend {
            NetBackend::Tap(name) => Some((name.as_str(), network.create)),
            _ => None,
        })
    }

    fn datagram_names(&self) -> impl Iterator<Item = &Path> {
        self.machine.networks().filter_map(|(_, network)| match network.backend {
            NetBackend::Dgram(local, _) => Some(local.as_path()),
            _ => None,
        })
    }

    /// Checks the fence record, if there is an arbiter.
    fn records(
        &self,
        disk: &DiskConfig,
        prove: &mut impl FnMut(String, bool, &dyn Fn() -> Result<(), String>),
    ) {
        if self.arbiter.is_none() {
            return;
        }
        let what = || format!("the fence record of disk {}", disk.path.display());
        self.is_at(what(), true);
        let found = Record::look(disk);
        prove(what(), true, &|| found.as_ref().map(drop).map_err(String::clone));
        if let Ok(Some(record)) = &found {
            prove(what(), false, &|| record.is_the_primarys(&self.expected));
        }
    }

    fn console_files(&self) -> impl Iterator<Item = &Path> {
        self.machine.consoles().filter_map(|(_, console)| match console {
            ConsoleConfig::File(path) => Some(path.as_path()),
            _ => None,
        })
    }

    fn boot_files(&self) -> impl Iterator<Item = &Path> {
        let boot = self.machine.boot.iter();
        boot.flat_map(|boot| std::iter::once(&boot.kernel).chain(&boot.initrd))
            .map(PathBuf::as_path)
    }

    /// Checks that the image can be opened as a takeover would, is still the same file, and can be
    /// read.
    fn disk(&self, disk: &DiskConfig) -> Result<(), String> {
        let failed =
            |what: &str, error: io::Error| format!("disk {}: {what}: {error}", disk.path.display());
        // Do not open a block device for writing: closing it would make udev scan the device, each
        // second.
        let is_device = std::fs::metadata(&disk.path)
            .is_ok_and(|metadata| metadata.file_type().is_block_device());
        let file = File::options()
            .read(true)
            .write(!disk.read_only && !is_device)
            .custom_flags(storage::flags(is_device))
            .open(&disk.path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    failed("it cannot be written", error)
                }
                _ => failed("it cannot be opened", error),
            })?;
        let metadata = file.metadata().map_err(|error| failed("it cannot be examined", error))?;
        let found = match metadata.file_type().is_block_device() {
            true => FileOf(u64::MAX, metadata.rdev()),
            false => FileOf(metadata.dev(), metadata.ino()),
        };
        storage::answers(&file, is_device, metadata.len())
            .map_err(|error| failed("it cannot be read", error))?;
        if is_device && !disk.read_only {
            check_unused(&disk.path).map_err(|error| error.to_string())?;
        }
        self.keeps_its_size(
            disk,
            (&file).seek(SeekFrom::End(0)).map_err(|error| failed("it has no size", error))?,
        )?;
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        match disks.get(&disk.path) {
            None => drop(disks.insert(disk.path.clone(), found)),
            Some(known) if *known == found => {}
            Some(_) => {
                return Err(format!(
                    "disk {}: another file has replaced it since this standby started: put the former file back, or \
                     start the standby again",
                    disk.path.display()
                ));
            }
        }
        Ok(())
    }

    /// P3: a disk keeps its size during a session, because the guest knows that size.
    fn keeps_its_size(&self, disk: &DiskConfig, found: u64) -> Result<(), String> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sizes.entry(disk.path.clone()).or_insert(found);
        // Between sessions the disk may get another size.
        if self.expected.get().is_none() {
            *known = found;
        }
        if *known == found {
            return Ok(());
        }
        Err(format!(
            "disk {}: expected {known} bytes, as when the guest was protected, found {found}: restore its size",
            disk.path.display()
        ))
    }

    fn is_at(&self, what: String, blocks: bool) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = (what, blocks);
    }

    fn hangs(&self) -> Lack {
        let (at, blocks) = self.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Lack { reason: format!("{at}: no answer for {PATIENCE:?}"), blocks }
    }

    /// Checks everything repeatedly until the watch is dropped. Calls `told` with what is missing
    /// when that changes. Returns after the first check of everything.
    ///
    /// # Errors
    /// When the process is out of threads.
    pub fn watch(
        self: &Arc<Self>,
        mut told: impl FnMut(Option<Lack>) + Send + 'static,
    ) -> io::Result<Watch> {
        let over = Arc::new(AtomicBool::new(false));
        let (found, finding) = sync_channel(1);
        let (resources, ends) = (self.clone(), over.clone());
        threads::start("resources", Role::Main, move || {
            resources.look_on(&ends, &found);
        })?;
        let mut last = self.found(&finding).unwrap_or_default();
        told(last.clone());
        let resources = self.clone();
        threads::start("resources-told", Role::Main, move || {
            while let Some(lack) = resources.found(&finding) {
                if lack != last {
                    last.clone_from(&lack);
                    told(lack);
                }
            }
        })?;
        Ok(Watch(over))
    }

    fn look_on(&self, over: &AtomicBool, found: &SyncSender<Option<Lack>>) {
        while !over.load(Ordering::Relaxed) {
            // This fails only when the other thread has panicked, which ends the process.
            let _ = found.send(self.look());
            std::thread::sleep(EVERY);
        }
    }

    /// The last result; `None` when the checking thread has ended.
    fn found(&self, finding: &Receiver<Option<Lack>>) -> Option<Option<Lack>> {
        match finding.recv_timeout(EVERY + PATIENCE) {
            Ok(lack) => Some(lack),
            Err(RecvTimeoutError::Timeout) => Some(Some(self.hangs())),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

/// Resources are checked repeatedly as long as this exists.
pub struct Watch(Arc<AtomicBool>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn readable(path: &Path) -> Result<(), String> {
    let found = open_at_once(path).and_then(|file| file.metadata());
    let found =
        found.map_err(|error| format!("{}: it cannot be opened: {error}", path.display()))?;
    match found.is_file() || found.file_type().is_block_device() {
        true => Ok(()),
        false => Err(format!(
            "{}: expected a regular file or a block device, found {}",
            path.display(),
            own_files::describe(&found)
        )),
    }
}
