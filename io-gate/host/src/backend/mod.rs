//! Backends of the gate: disks, networks, consoles, and shared guest memory, which needs no gate.
//! All of them are opened here.
//!
//! An attached backend has two halves. Its lane owns [`Output`](output::Output), and may block in
//! it for ever. Other threads use its input ([`Attached`](crate::attached::Attached)).

pub mod console;
mod direct;
pub mod disk;
mod disk_requests;
pub mod image_format;
mod interest;
pub mod memory;
pub mod net;
pub(crate) mod output;
pub mod own_disk;
mod sector;
pub mod terminal;

use std::io;

/// A backend, ready to be attached to a port with [`GateHost::attach`](crate::GateHost::attach).
#[derive(Debug)]
pub enum Backend {
    /// A disk.
    Disk(disk::Disk),
    /// An own disk: an image that no other host writes to.
    OwnDisk(own_disk::WritableImage),
    /// A network.
    Net(net::Net),
    /// A console.
    Console(console::Console),
}

/// Why a disk cannot be shared with another host.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The port has no disk.
    #[error("expected a disk, found none")]
    NoDisk,
    /// Another process has the disk locked.
    #[error(transparent)]
    Lock(#[from] disk::DiskError),
    /// The guest's earlier writes cannot be made durable.
    #[error("cannot flush earlier writes to the storage: {0}")]
    Sync(io::Error),
}

/// The result of handling an event of a backend's descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handled {
    /// The lane must attend to the backend.
    pub(crate) attend: bool,
    /// There is input.
    pub(crate) input: bool,
}
