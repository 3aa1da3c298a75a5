//! The nested lab: an emulated AMD machine with SVM, in which a stock Debian kernel provides a real
//! `/dev/kvm`.
//!
//! For machines without a `/dev/kvm` that runs stock kernels. QEMU's emulator runs the lab's host
//! ("L1"): Debian's kernel, busybox, and the programs of the Linux guest's root file system. The
//! caller's command runs there and may start guests ("L2"). The lab is about twenty times slower
//! than hardware, and correct.
//!
//! The command starts in `/scratch`, a disk with the caller's files. It has `/dev/kvm`, tun, bridge
//! and veth, and Debian's `ip`, `e2fsck`, `redis-cli` and others, from the guest's image under
//! `/debian`.

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

/// The lab's images in the cache.
#[derive(Debug, Clone)]
pub struct LabImages {
    /// QEMU's program, with the options that name its data directories.
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

/// QEMU's program and its first options, for callers that need the lab's version of QEMU.
///
/// # Errors
/// QEMU cannot be installed, or is too old.
pub fn qemu(p: &Preparation<'_>) -> Result<Vec<String>> {
    qemu::prepare(p)
}

/// The machine to boot, and the command to run in it.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// The lab's name in messages.
    pub name: String,
    /// The lab's memory in MiB.
    pub memory_mib: u32,
    /// Size of the disk at `/scratch` in MiB. Its image is sparse.
    pub scratch_mib: u32,
    /// Files for `/scratch`: the path on this machine, and the name there. Permissions are kept.
    pub files: Vec<(PathBuf, String)>,
    /// The shell command that runs in `/scratch`.
    pub command: String,
    /// Time limit for the whole lab.
    pub timeout: Duration,
    /// The lab counts as stalled after this time without output.
    pub stall: Duration,
    /// Number of times that a stalled lab is started again.
    pub retries: u32,
    /// A signal handler sets it to end the lab with an error.
    pub interrupted: Arc<AtomicBool>,
}

impl LabSpec {
    /// A lab that runs one command, with default sizes and times.
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

    /// Adds a file to `/scratch`.
    pub fn file(mut self, from: impl Into<PathBuf>, name: &str) -> Self {
        self.files.push((from.into(), name.to_owned()));
        self
    }

    /// Adds a Linux guest to `/scratch`: `vmlinuz`, `vmlinux`, `initramfs.cpio`, and a copy of the
    /// root file system under each name in `disks`.
    pub fn linux_guest(self, guest: &LinuxGuest, disks: &[&str]) -> Self {
        let spec = self
            .file(&guest.vmlinuz, "vmlinuz")
            .file(&guest.vmlinux, "vmlinux")
            .file(&guest.initramfs, "initramfs.cpio");
        disks.iter().fold(spec, |spec, disk| spec.file(&guest.rootfs, disk))
    }
}

/// The error of a stalled lab; the text contains its sign.
#[derive(Debug)]
struct Stalled(String);

impl std::fmt::Display for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the nested lab stalled: {}", self.0)
    }
}

impl std::error::Error for Stalled {}

/// A running lab. Dropping it ends its QEMU and removes its scratch disk.
#[derive(Debug)]
pub struct Lab {
    machine: Machine,
    scratch: Scratch,
    spec: LabSpec,
}

/// Marker of the lab's first line: `/dev/kvm` exists and the command starts.
const UP: &str = "LAB up ";
/// Marker of the lab's last line, with the command's exit status.
const EXIT: &str = "LAB exit ";
/// Marker of the lab's line when `/dev/kvm` or a disk is missing.
const FAILED: &str = "LAB failed";
/// A kernel prints these when a CPU makes no progress.
const STALL_SIGNS: &[&str] = &[
    "rcu_sched self-detected stall",
    "detected stalls on CPU",
    "rcu_preempt detected",
    "soft lockup",
];

impl Lab {
    /// Boots a lab and waits until its command starts.
    ///
    /// `on_line` receives each line of the lab's serial console, without the line end.
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

    /// Waits for the end of the command and returns its exit status.
    ///
    /// # Errors
    /// The command does not end in time, or the lab stalls.
    pub fn run(&mut self, on_line: &mut dyn FnMut(&str)) -> Result<i32> {
        let status = self.wait_for(EXIT, on_line)?;
        let status = status.trim().parse().with_context(|| format!("exit status {status:?}"))?;
        self.machine.wait_for_power_off(&self.spec)?;
        Ok(status)
    }

    /// Waits for a line that begins with `marker`, and returns the rest of the line.
    ///
    /// # Errors
    /// No such line arrives in time, or the lab stalls or ends.
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

    /// Writes to the lab's serial console, which is the standard input of its command.
    ///
    /// # Errors
    /// The lab has ended.
    pub fn type_in(&mut self, text: &[u8]) -> Result<()> {
        self.machine.type_in(text)
    }

    /// Reads a file from `/scratch` after the end of the lab.
    ///
    /// # Errors
    /// The lab still runs, or the file does not exist.
    pub fn fetch(&mut self, name: &str) -> Result<Vec<u8>> {
        self.machine.ensure_ended()?;
        self.scratch.fetch(name)
    }
}

/// Boots a lab and runs its command to the end. Returns the exit status and the ended lab (for
/// `fetch`).
///
/// Reports a stall, and then starts again with a fresh lab.
///
/// # Errors
/// The lab cannot be started, or stalls once more often than it is retried.
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

/// Repeats `attempt` after a stall, because the emulator sometimes stalls. Returns other errors.
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
