//! The errors of setting up devices and their backends.

use std::path::PathBuf;

use io_gate_host::backend::ShareError;
use io_gate_host::backend::console::ConsoleError;
use io_gate_host::backend::disk::DiskError;
use io_gate_host::backend::net::NetError;
use kemari_hypervisor::layout;

use crate::catalog;
use crate::gated::NotGated;

/// Why devices or their backends cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DeviceSetupError {
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The size of a disk image is not a multiple of 512 bytes.
    #[error(
        "disk {path}: expected a multiple of 512 bytes, found {bytes}: round it up with `truncate -s %512 {path}`"
    )]
    DiskSize {
        /// The image's path.
        path: PathBuf,
        /// The image's length in bytes.
        bytes: u64,
    },
    /// A disk cannot be opened for writing.
    #[error(
        "disk {path}: it cannot be written: {error}; make it writable, or add `,readonly=on` to its --disk"
    )]
    DiskReadOnly {
        /// The image's path.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// A network cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A network interface does not exist or cannot be used.
    #[error("{0}")]
    Interface(String),
    /// A console cannot be used.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The machine has more PCI devices than interrupts for them.
    #[error(
        "{wanted} PCI devices: expected at most {}: remove some --net with model=e1000",
        layout::PCI_MAX
    )]
    TooManyPci {
        /// The requested number of devices.
        wanted: usize,
    },
    /// The device's crate is not one that the gate checks.
    #[error(transparent)]
    NotGated(#[from] NotGated),
    /// The device is not in the catalogue.
    #[error("--device: expected one of {}, found `{name}`", catalog::names())]
    Unknown {
        /// The requested name.
        name: String,
    },
    /// The machine has more devices than windows.
    #[error(
        "{wanted} devices: the machine has {} windows: remove some --disk, --net or --device",
        layout::VIRTIO_MMIO_MAX
    )]
    TooMany {
        /// The requested number of devices.
        wanted: usize,
    },
    /// Two devices have the same address, which is a mistake in the layout.
    #[error("devices overlap: {0}")]
    Overlap(String),
    /// The process is out of a system resource.
    #[error("cannot set up devices: {0}")]
    System(#[from] std::io::Error),
}

/// Why a disk cannot be shared with a standby.
#[derive(Debug, thiserror::Error)]
#[error("disk {path}: it cannot be shared with a standby: {error}")]
pub struct ShareDiskError {
    pub(crate) path: PathBuf,
    pub(crate) error: ShareError,
}
