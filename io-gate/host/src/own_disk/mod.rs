//! The files of an own disk (docs/own-disks.md): the image, which only this host uses, and its
//! sidecar. Bytes only: what a slot or a mark says is known to `ft-core` and its drivers.
//!
//! Both files are locked while they are in use (R11): a process that was stopped keeps its locks,
//! so no new one begins beside it. A file system without locks is refused.
//!
//! Every call that writes blocks for as long as the storage takes. The caller is the lane of the
//! disk, or a thread of its own; it holds no lock.

mod error;
mod image;
mod medium;
mod sidecar;

pub use error::OwnDiskError;
pub use image::{ImageId, OwnImage};
pub use sidecar::{SLOTS, SidecarFile};
