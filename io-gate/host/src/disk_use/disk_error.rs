//! Errors of disks.

use std::io;
use std::path::PathBuf;

use super::fence_claim::FenceClaim;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened.
    #[error("disk {path}: cannot open it: {error}; check the path in --disk and its permissions")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The path is neither a file nor a block device.
    #[error(
        "disk {path}: expected a regular file or a block device, found {found}; check the path in --disk"
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// The kind of the file.
        found: String,
    },
    /// The disk is smaller than one sector.
    #[error("disk {path}: expected at least 512 bytes, found {bytes}; make the image larger")]
    Empty {
        /// The file.
        path: PathBuf,
        /// The length in bytes.
        bytes: u64,
    },
    /// The file system does not support `O_DIRECT`, at all or for this file.
    #[error(
        "disk {path}: its file system does not support direct I/O (O_DIRECT): {error}; remove `direct=on` from \
         --disk, or move the image to another file system"
    )]
    Direct {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The length is not a multiple of the block size.
    #[error(
        "disk {path}: expected a multiple of {block} bytes, the block size of its storage, found {bytes}; make the \
         image larger, or remove `direct=on` from --disk"
    )]
    Blocks {
        /// The file.
        path: PathBuf,
        /// The size of a block in bytes.
        block: u64,
        /// The file's length in bytes.
        bytes: u64,
    },
    /// Another process has the disk locked.
    #[error(
        "disk {path}: another process uses it; look for a `kemari` with this disk, here or on a host that shares it (`fuser -v {path}`, `lslocks`), and stop it first"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The host uses the device, or another program holds it exclusively.
    #[error(
        "disk {path}: the host has it mounted, or a program of the host holds it ({error}): expected a device that is \
         not in use; look with `lsblk {path}`, and unmount it first"
    )]
    Busy {
        /// The device.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The size has changed since the disk was opened.
    #[error(
        "disk {path}: expected {expected} bytes, as when this machine opened it, found {found}: restore its size"
    )]
    Resized {
        /// The file.
        path: PathBuf,
        /// The length that the guest knows, in bytes.
        expected: u64,
        /// The current length in bytes.
        found: u64,
    },
    /// The record beside the disk names another machine that may write to it.
    #[error(
        "disk {path}: {claim} (its record is {record}); end that machine first, for instance with `kemari ctl power-off`; if \
         it and its host are known to be dead, start with --seize"
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// The record.
        record: PathBuf,
        /// The record's content.
        claim: Box<FenceClaim>,
    },
    /// The fence record of the disk cannot be used.
    #[error("the fence record {path}: {error}; `fence=off` in --disk runs without a record")]
    Fence {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// The file system cannot lock.
    #[error(
        "disk {path}: cannot lock it: {error}; expected storage with file locks (F_OFD_SETLK): move the image to such storage"
    )]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}
