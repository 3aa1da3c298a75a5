//! Why a guest cannot be booted.

use std::path::PathBuf;

use super::acpi::AcpiError;

/// Why a guest cannot be booted, and what to change.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be opened or read.
    #[error("cannot read the {what} {}: {source}: check --{what}", path.display())]
    Unreadable {
        /// `kernel` or `initrd`, also the flag's name.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no kernel.
    #[error(
        "{} is not a kernel: expected a bzImage or a 64-bit x86 ELF image, found {found}: check --kernel", path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// The kernel has no 64-bit entry.
    #[error("{}: a bzImage without 64-bit entry point: use an x86-64 kernel, Linux 3.8 or newer", path.display())]
    No64BitEntry {
        /// The file.
        path: PathBuf,
    },
    /// The kernel does not fit into guest memory.
    #[error("{}: the kernel needs memory up to {needed:#x}, the guest's low memory ends at {end:#x}: raise --memory", path.display())]
    KernelTooLarge {
        /// The file.
        path: PathBuf,
        /// The end of what it needs.
        needed: u64,
        /// The end of what there is.
        end: u64,
    },
    /// The image is damaged.
    #[error("{}: damaged kernel image: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "{}: the initrd of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {end:#x}: raise --memory",
        path.display()
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// Highest address that the kernel accepts.
        end: u64,
    },
    /// The command line is too long.
    #[error("the command line has {found} bytes, this kernel takes {max}: shorten --cmdline")]
    CmdlineTooLong {
        /// Its length.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// The command line contains a NUL.
    #[error("the command line contains a NUL byte: change --cmdline")]
    CmdlineNul,
    /// The ACPI tables could not be made.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A boot structure lies outside guest memory.
    #[error("cannot write a boot structure at {addr:#x}: {reason}: raise --memory")]
    Write {
        /// Where.
        addr: u64,
        /// What the memory says.
        reason: String,
    },
    /// Registers could not be set.
    #[error("{call} of the first vCPU: {source}")]
    Registers {
        /// The ioctl's name.
        call: &'static str,
        /// What the kernel says.
        source: std::io::Error,
    },
}
