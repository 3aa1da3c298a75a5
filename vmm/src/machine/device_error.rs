//! Why the devices, or what is behind them, cannot be had.

use std::path::PathBuf;

use io_gate_host::backend::ShareError;
use io_gate_host::backend::console::ConsoleError;
use io_gate_host::backend::disk::DiskError;
use io_gate_host::backend::net::NetError;
use kemari_hypervisor::layout;

use super::catalog;
use super::gated::NotGated;

/// Why the devices or what is behind them could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceSetupError {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk image that is cut off.
    #[error(
        "disk {path}: expected a multiple of 512 bytes, found {bytes}: round it up with `truncate -s %512 {path}`"
    )]
    DiskSize {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A disk without write permission.
    #[error(
        "disk {path}: it cannot be written: {error}; make it writable, or add `,readonly=on` to its --disk"
    )]
    DiskReadOnly {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// A network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A network interface that is none.
    #[error("{0}")]
    Interface(String),
    /// A console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// More PCI devices than interrupts for them.
    #[error(
        "{wanted} PCI devices: expected at most {}: remove some --net with model=e1000",
        layout::PCI_MAX
    )]
    TooManyPci {
        /// How many.
        wanted: usize,
    },
    /// A device of a crate that nobody has looked at.
    #[error(transparent)]
    NotGated(#[from] NotGated),
    /// A device that is in no catalogue.
    #[error("--device: expected one of {}, found `{name}`", catalog::names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// More devices than windows.
    #[error(
        "{wanted} devices: the machine has {} windows: remove some --disk, --net or --device",
        layout::VIRTIO_MMIO_MAX
    )]
    TooMany {
        /// How many.
        wanted: usize,
    },
    /// Two devices at one address: a mistake in the layout.
    #[error("devices overlap: {0}")]
    Overlap(String),
    /// The process is out of something.
    #[error("cannot set up devices: {0}")]
    System(#[from] std::io::Error),
}

/// A disk cannot be shared with a standby.
#[derive(Debug, thiserror::Error)]
#[error("disk {path}: it cannot be shared with a standby: {error}")]
pub struct ShareDiskError {
    pub(super) path: PathBuf,
    pub(super) error: ShareError,
}
