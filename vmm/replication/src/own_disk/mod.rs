//! The own disks of a host (docs/own-disks.md): the files of `io_gate_host::own_disk` with the
//! meaning that `ft_core::disks` gives them.
//!
//! - [`Store`]: a sidecar that is in use: what it says, and how it changes, durably;
//! - [`OwnDisk`]: an image with its sidecar, both locked;
//! - [`init`]: a new sidecar, and a new image if wanted;
//! - [`StandbyQueue`]: the thread that performs a primary's list on a standby's images;
//! - [`PrimaryList`]: the list, the marks and the order of a primary's own disks. It does no I/O;
//! - [`Look`]: what a sidecar says, while another process may be using it.
//!
//! Every call here blocks for as long as the storage takes. None is made under a lock.

mod error;
mod init;
mod look;
mod primary_list;
mod queue;
mod store;
#[cfg(test)]
mod tests;

pub use error::OwnDiskError;
pub use init::{Init, Made, init};
pub use look::{Look, SlotLook};
pub use primary_list::{DiskPlace, Orders, PrimaryList};
pub use queue::{Finished, MarkedDisk, News, QueueOptions, ReceiveError, StandbyQueue};
pub use store::{OwnDisk, Store};

use std::path::{Path, PathBuf};

use ft_core::disks::ImageIdentity;
use io_gate_host::own_disk::{ImageId, SidecarFile};

/// The identity of an image, as a sidecar has it.
fn identity(id: ImageId) -> ImageIdentity {
    let ImageId { inode, filesystem, size } = id;
    ImageIdentity { inode, filesystem, size }
}

/// Where the sidecar of an image is: at `meta`, or beside the image.
///
/// # Errors
/// When the image is a block device: what is beside it in /dev is gone after the next boot.
fn place(image: &Path, id: ImageId, meta: Option<&Path>) -> Result<PathBuf, OwnDiskError> {
    match meta {
        Some(meta) => Ok(meta.to_owned()),
        None if id.is_device() => Err(OwnDiskError::Device { image: image.to_owned() }),
        None => Ok(SidecarFile::beside(image)),
    }
}
