//! Errors of own disks.

use std::path::PathBuf;

use ft_core::disks::{DiskId, ImageIdentity, PairId, SidecarError};
use io_gate_host::own_disk::OwnDiskError as FileError;

/// Why an own disk cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum OwnDiskError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file at the sidecar's name has no valid slot.
    #[error(
        "{path}: expected a sidecar with a valid slot, found {found}; it is left alone. If it is another program's file, \
         give it another name. If it is a damaged sidecar, move it away and make a new one (kemari disk init): the image \
         then gets a full resync"
    )]
    NoSlot {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// The sidecar cannot be read by this release.
    #[error("{path}: {error}")]
    Release {
        /// The file.
        path: PathBuf,
        /// The versions.
        error: SidecarError,
    },
    /// The sidecar describes another image.
    #[error(
        "image {image}: expected {}, as its sidecar {path} says, found {}: the image was replaced, or copied. Put the \
         former image back. If this one is meant, move the sidecar away and make a new one (kemari disk init {image} \
         --pair {pair}): the image then gets a full resync",
        describe(expected),
        describe(found)
    )]
    OtherImage {
        /// The image.
        image: PathBuf,
        /// The sidecar.
        path: PathBuf,
        /// The machine of the sidecar.
        pair: PairId,
        /// As the sidecar says.
        expected: ImageIdentity,
        /// As the file is.
        found: ImageIdentity,
    },
    /// The image has a sidecar already.
    #[error(
        "{path}: expected no sidecar, found that of image {disk} of pair {pair}; it is left alone. Look at it: kemari disk \
         info IMAGE. To begin anew, move it away first"
    )]
    HasSidecar {
        /// The sidecar.
        path: PathBuf,
        /// Its machine.
        pair: PairId,
        /// Its image.
        disk: DiskId,
    },
    /// A block device without a place for its sidecar.
    #[error(
        "image {image}: expected a place for the sidecar of a block device, found none; name a file on a file system \
         that survives a reboot: --meta FILE"
    )]
    Device {
        /// The device.
        image: PathBuf,
    },
    /// There is no image, and no size for a new one.
    #[error(
        "image {image}: expected an image, found no file; check the path, or make one: kemari disk init {image} --size MIB"
    )]
    NoImage {
        /// The image.
        image: PathBuf,
    },
    /// The image has another size than the one that was asked for.
    #[error(
        "image {image}: expected {expected} bytes (--size), found {found}; leave --size out to take the image as it is"
    )]
    OtherSize {
        /// The image.
        image: PathBuf,
        /// As was asked for.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// The size is no number of sectors.
    #[error(
        "image {image}: expected a multiple of 512 bytes, found {found}; make the image larger, for instance truncate -s \
         %512 {image}"
    )]
    Sectors {
        /// The image.
        image: PathBuf,
        /// Its size in bytes.
        found: u64,
    },
    /// The image is not raw.
    #[error("image {image}: expected a raw image, found {found}; {advice}")]
    Format {
        /// The image.
        image: PathBuf,
        /// Its format.
        found: &'static str,
        /// How to make it raw.
        advice: String,
    },
}

fn describe(id: &ImageIdentity) -> String {
    let ImageIdentity { inode, filesystem, size } = id;
    format!("inode {inode} of file system {filesystem:x} with {size} bytes")
}
