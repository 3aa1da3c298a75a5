//! The nested lab: an emulated AMD machine with SVM, in which a stock Debian kernel offers a real `/dev/kvm`.
//!
//! For machines whose own `/dev/kvm` cannot run a stock kernel, or that have none. QEMU's emulator runs the lab's host
//! ("L1"): Debian's kernel, busybox, and the tools of the Linux guest's root file system. A command given by the caller
//! runs there and may start guests ("L2"). It is about twenty times slower than hardware, and correct.
//!
//! Inside, a command finds `/scratch` (a disk of its own with the caller's files, where it starts), `/dev/kvm`, tun,
//! bridge and veth, and Debian's `ip`, `e2fsck`, `redis-cli` and the like, from the guest's image under `/debian`.

mod image;
mod machine;
mod qemu;
mod scratch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::guest::{LinuxGuest, Preparation, kernel};
use machine::Machine;
use scratch::Scratch;

/// The lab's images, from the cache.
#[derive(Debug, Clone)]
pub struct LabImages {
    /// QEMU, with the options that name its data directories.
    qemu: Vec<String>,
    kernel: PathBuf,
    initramfs: PathBuf,
    userland: PathBuf,
}

impl LabImages {
    /// Prepares QEMU and the lab's initramfs, or takes them from the cache.
    ///
    /// # Errors
    /// A package cannot be installed, or an image cannot be made.
    pub fn prepare(p: &Preparation<'_>, guest: &LinuxGuest) -> Result<Self> {
        crate::guest::ensure_packages(&["e2fsprogs", "util-linux"], p.say)?;
        let kernel = kernel::prepare(p, kernel::KernelChoice::Cloud)?;
        Ok(Self {
            qemu: qemu::prepare(p)?,
            kernel: kernel.vmlinux(),
            initramfs: image::prepare(p, &kernel)?,
            userland: guest.rootfs.clone(),
        })
    }
}

/// QEMU's program and first options, for callers that need the lab's version.
///
/// # Errors
/// QEMU cannot be installed, or is too old.
pub fn qemu(p: &Preparation<'_>) -> Result<Vec<String>> {
    qemu::prepare(p)
}

/// What to boot, and what to run in it.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// Appears in messages.
    pub name: String,
    /// The lab's memory.
    pub memory_mib: u32,
    /// Size of `/scratch`; it is sparse.
    pub scratch_mib: u32,
    /// Files for `/scratch`: where they are, and their names there. Permissions are kept.
    pub files: Vec<(PathBuf, String)>,
    /// The shell command that runs in `/scratch`.
    pub command: String,
    /// The command must end within this time.
    pub timeout: Duration,
    /// A lab that prints nothing for this long has stalled.
    pub stall: Duration,
    /// How often a stalled lab is started again.
    pub retries: u32,
    /// Set by a signal handler: the lab is then ended with an error.
    pub interrupted: Arc<AtomicBool>,
}

impl LabSpec {
    /// A lab that runs one command, with the usual sizes and times.
    pub fn new(name: &str, command: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 2048,
            scratch_mib: 2048,
            files: Vec::new(),
            command: command.to_owned(),
            timeout: Duration::from_secs(600),
            stall: Duration::from_secs(90),
            retries: 1,
            interrupted: Arc::default(),
        }
    }

    /// Puts a file into `/scratch`.
    pub fn file(mut self, from: impl Into<PathBuf>, name: &str) -> Self {
        self.files.push((from.into(), name.to_owned()));
        self
    }

    /// Puts a Linux guest into `/scratch`: `vmlinuz`, `vmlinux`, `initramfs.cpio`, and a copy of the root file system
    /// under each of the given names.
    pub fn linux_guest(self, guest: &LinuxGuest, disks: &[&str]) -> Self {
        let spec = self
            .file(&guest.vmlinuz, "vmlinuz")
            .file(&guest.vmlinux, "vmlinux")
            .file(&guest.initramfs, "initramfs.cpio");
        disks.iter().fold(spec, |spec, disk| spec.file(&guest.rootfs, disk))
    }
}

/// The lab stalled; the text says how.
#[derive(Debug)]
struct Stalled(String);

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the nested lab stalled: {}", self.0)
    }
}

impl std::error::Error for Stalled {}

/// A lab that is up. Dropping it ends its QEMU and removes its scratch disk.
#[derive(Debug)]
pub struct Lab {
    machine: Machine,
    scratch: Scratch,
    spec: LabSpec,
}

/// The lab's first line, when `/dev/kvm` exists and the command starts.
const UP: &str = "LAB up ";
/// The lab's last line, with the command's exit status.
const EXIT: &str = "LAB exit ";
/// The lab's line when it cannot do its work.
const FAILED: &str = "LAB failed";
/// What a kernel prints when it makes no progress.
const STALL_SIGNS: &[&str] = &[
    "rcu_sched self-detected stall",
    "detected stalls on CPU",
    "rcu_preempt detected",
    "soft lockup",
];

impl Lab {
    /// Boots a lab until its command starts.
    ///
    /// `on_line` gets every line of the lab's serial console, without its end.
    ///
    /// # Errors
    /// The lab cannot be started, does not come up in time, or stalls.
    fn boot(images: &LabImages, spec: &LabSpec, on_line: &mut dyn FnMut(&str)) -> Result<Self> {
        let scratch = Scratch::make(spec)?;
        let machine = Machine::start(images, spec, &scratch)?;
        let mut lab = Self { machine, scratch, spec: spec.clone() };
        lab.wait_for(UP, on_line)?;
        Ok(lab)
    }

    /// Waits for the command's end; returns its exit status.
    ///
    /// # Errors
    /// It does not end in time, or the lab stalls.
    pub fn run(&mut self, on_line: &mut dyn FnMut(&str)) -> Result<i32> {
        let status = self.wait_for(EXIT, on_line)?;
        let status = status.trim().parse().with_context(|| format!("exit status {status:?}"))?;
        self.machine.wait_for_power_off(&self.spec)?;
        Ok(status)
    }

    /// Waits for a line that begins with `marker` and returns what follows it.
    ///
    /// # Errors
    /// No such line comes in time, or the lab stalls or ends.
    pub fn wait_for(&mut self, marker: &str, on_line: &mut dyn FnMut(&str)) -> Result<String> {
        loop {
            let line = self.machine.next_line(&self.spec)?;
            on_line(&line);
            if let Some(rest) = line.strip_prefix(marker) {
                return Ok(rest.to_owned());
            }
            if line.starts_with(FAILED) {
                bail!("lab {}: {line}", self.spec.name);
            }
            if STALL_SIGNS.iter().any(|sign| line.contains(sign)) {
                bail!(Stalled(line));
            }
            if line.starts_with(EXIT) {
                bail!(
                    "lab {}: its command ended before it said {marker:?}: {line}",
                    self.spec.name
                );
            }
        }
    }

    /// Types into the lab's serial console: the standard input of its command.
    ///
    /// # Errors
    /// The lab has ended.
    pub fn type_in(&mut self, text: &[u8]) -> Result<()> {
        self.machine.type_in(text)
    }

    /// Reads a file of `/scratch`, after the lab has ended.
    ///
    /// # Errors
    /// The lab still runs, or there is no such file.
    pub fn fetch(&mut self, name: &str) -> Result<Vec<u8>> {
        self.machine.ensure_ended()?;
        self.scratch.fetch(name)
    }
}

/// Boots a lab, runs its command to the end, and returns the exit status and the ended lab (for `fetch`).
///
/// A stall at any time is reported, and everything starts once more in a fresh lab.
///
/// # Errors
/// The lab cannot be started, or stalls again.
pub fn run(
    images: &LabImages,
    spec: &LabSpec,
    on_line: &mut dyn FnMut(&str),
) -> Result<(i32, Lab)> {
    retry(spec, on_line, |on_line| {
        let mut lab = Lab::boot(images, spec, on_line)?;
        let status = lab.run(on_line)?;
        Ok((status, lab))
    })
}

/// Repeats `work` after a stall: the emulator is known to stall sometimes. Other errors are not repeated.
fn retry<T>(
    spec: &LabSpec,
    on_line: &mut dyn FnMut(&str),
    mut attempt: impl FnMut(&mut dyn FnMut(&str)) -> Result<T>,
) -> Result<T> {
    let mut left = spec.retries;
    loop {
        match attempt(on_line) {
            Err(why) if left > 0 && why.is::<Stalled>() => {
                left -= 1;
                on_line(&format!("LAB retry of {}: {why:#}", spec.name));
            }
            other => return other.with_context(|| format!("nested lab {}", spec.name)),
        }
    }
}

#[cfg(test)]
mod failover_tests;
#[cfg(test)]
mod tests;
