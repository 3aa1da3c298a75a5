//! The files and the command line that a guest boots.

use alloc::string::String;

use serde::{Deserialize, Serialize};

/// What a guest boots. Its images are sent in the session, so that the guest can be reset on either
/// host (P7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// The kernel.
    pub kernel: ImageId,
    /// The initial RAM disk.
    pub initrd: Option<ImageId>,
    /// The kernel's command line.
    pub cmdline: String,
}

impl BootSource {
    /// Its images, without duplicates.
    pub fn images(&self) -> impl Iterator<Item = ImageId> {
        let initrd = self.initrd.filter(|initrd| *initrd != self.kernel);
        core::iter::once(self.kernel).chain(initrd)
    }
}

/// A file, identified by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageId {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
}

impl core::fmt::Display for ImageId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes, sha256 ", self.size)?;
        self.sha256.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
