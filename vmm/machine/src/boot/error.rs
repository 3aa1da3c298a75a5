//! The error of booting a guest.

use std::path::{Path, PathBuf};

use kemari_hypervisor::layout;

use super::acpi::AcpiError;
use super::map::{Conflict, Part, PlacedPart};

/// Why a guest cannot be booted, and what to change.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("cannot read the {what} {}: {source}: check --{what}", path.display())]
    Unreadable {
        /// `kernel` or `initrd`, also the flag's name.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a kernel.
    #[error(
        "{} is not a kernel: expected a bzImage or a 64-bit x86 ELF image, found {found}: check --kernel", path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// The format that the file seems to have.
        found: String,
    },
    /// The kernel has no 64-bit entry.
    #[error("{}: a bzImage without 64-bit entry point: use an x86-64 kernel, Linux 3.8 or newer", path.display())]
    No64BitEntry {
        /// The file.
        path: PathBuf,
    },
    /// The kernel does not fit into guest memory.
    #[error("{}: the kernel needs memory up to {needed:#x}, the guest's low memory ends at {end:#x}: raise --memory to at least {enough}", path.display())]
    KernelTooLarge {
        /// The file.
        path: PathBuf,
        /// The end of the memory that the kernel needs.
        needed: u64,
        /// The end of the guest's low memory.
        end: u64,
        /// The smallest `--memory` that is enough, in MiB.
        enough: u64,
    },
    /// The kernel needs an address at which no guest has RAM for it.
    #[error(
        "{}: the kernel cannot be loaded: {claim} is not within {:#x} to {:#x} or {:#x} to {:#x}, where a guest has RAM for \
         it: link the kernel to lie there",
        path.display(), 0, layout::EBDA_START, layout::HIGH_MEMORY_START, layout::LOW_RAM_END
    )]
    NoRam {
        /// The file.
        path: PathBuf,
        /// The part of the kernel with its range.
        claim: PlacedPart,
    },
    /// The kernel needs an address that a boot structure uses.
    #[error(
        "{}: the kernel cannot be loaded: {claim} overlaps {by}, which the boot protocol needs: link the kernel to lie at \
         {:#x} or higher", path.display(), layout::HIGH_MEMORY_START
    )]
    OverStructure {
        /// The file.
        path: PathBuf,
        /// The part of the kernel with its range.
        claim: PlacedPart,
        /// The boot structure with its range.
        by: PlacedPart,
    },
    /// The image is damaged.
    #[error("{}: damaged kernel image: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault in the image.
        reason: String,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "{}: the initrd of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {end:#x}: raise --memory to at least {enough}",
        path.display()
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// The size of the initrd in bytes.
        size: u64,
        /// The end of the kernel.
        kernel_end: u64,
        /// The end of this guest's low memory, or the highest address that the kernel accepts.
        end: u64,
        /// The smallest `--memory` that is enough, in MiB.
        enough: u64,
    },
    /// No guest has room for the initrd beside this kernel.
    #[error(
        "{}: the initrd of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {end:#x}, the \
        highest address at which this kernel accepts an initrd: use a smaller --initrd",
        path.display()
    )]
    InitrdHopeless {
        /// The file.
        path: PathBuf,
        /// The size of the initrd in bytes.
        size: u64,
        /// The end of the kernel.
        kernel_end: u64,
        /// Highest address that the kernel accepts.
        end: u64,
    },
    /// The initrd has no bytes.
    #[error("{}: the initrd is empty: give another --initrd, or remove the flag", path.display())]
    InitrdEmpty {
        /// The file.
        path: PathBuf,
    },
    /// The command line is too long.
    #[error("the command line has {found} bytes, this kernel accepts {max}: shorten --cmdline")]
    CmdlineTooLong {
        /// Its length in bytes.
        found: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The command line contains a NUL.
    #[error("the command line contains a NUL byte: change --cmdline")]
    CmdlineNul,
    /// The ACPI tables cannot be built.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A boot structure lies outside guest memory.
    #[error("cannot write a boot structure at {addr:#x}: {reason}: raise --memory")]
    Write {
        /// The address.
        addr: u64,
        /// The error from guest memory.
        reason: String,
    },
    /// KVM refuses the first vCPU's registers.
    #[error("{call} of the first vCPU: {source}")]
    Registers {
        /// The ioctl's name.
        call: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

impl BootError {
    /// The error for the kernel at `path`, whose claim has a conflict.
    pub(super) fn conflict(path: &Path, conflict: Conflict) -> Self {
        let path = path.to_owned();
        match conflict {
            Conflict::BeyondMemory { needed, end } => {
                Self::KernelTooLarge { path, needed, end, enough: mebibytes(needed) }
            }
            Conflict::NoRam(claim) => Self::NoRam { path, claim },
            Conflict::Taken { wanted, by } if matches!(by.part, Part::Structure(_)) => {
                Self::OverStructure { path, claim: wanted, by }
            }
            Conflict::Taken { wanted, by } => {
                Self::Damaged { path, reason: format!("{wanted} and {by} overlap") }
            }
        }
    }
}

/// The smallest `--memory`, in MiB, with which low RAM reaches to `end`.
pub(super) fn mebibytes(end: u64) -> u64 {
    end.div_ceil(1 << 20)
}
