//! The images to send, and whether both sides boot the same.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::boot::{BootSource, ImageId};
use super::hello::Hello;

/// The images that a primary sends to a standby, in this order: those that the standby lacks.
#[must_use]
pub fn images_to_send(primary: &Hello, standby: &Hello) -> Vec<ImageId> {
    let all = primary.boot.iter().flat_map(BootSource::images);
    all.filter(|image| !standby.images.contains(image)).collect()
}

/// The total size of the images in bytes.
pub(crate) fn total_size(images: &[ImageId]) -> u64 {
    images.iter().fold(0, |sum, image| sum.saturating_add(image.size))
}

/// A standby with its own kernel must have the primary's, since otherwise the guest would change at
/// its next reset. The images to send are kept in the standby's memory and may not exceed guest
/// memory (P9), for which it needs room anyway.
pub(super) fn compare_boot(primary: &Hello, standby: &Hello, reasons: &mut Vec<String>) {
    if let Some(theirs) = &standby.boot {
        let ours = primary.boot.as_ref();
        let shown = |image: Option<ImageId>| {
            image.map_or_else(|| "none".to_string(), |image| image.to_string())
        };
        let mut compare = |what: &str, ours: String, theirs: String| {
            if ours != theirs {
                reasons.push(format!(
                    "{what}: primary {ours}, standby {theirs}: give the standby the same --{what}, or none of \
                     --kernel, --initrd and --cmdline: it then uses the primary's"
                ));
            }
        };
        let kernel = ours.map(|boot| boot.kernel);
        compare("kernel", shown(kernel), shown(Some(theirs.kernel)));
        compare("initrd", shown(ours.and_then(|boot| boot.initrd)), shown(theirs.initrd));
        let cmdline = ours.map_or("none".to_string(), |boot| format!("`{}`", boot.cmdline));
        compare("cmdline", cmdline, format!("`{}`", theirs.cmdline));
    }
    let (size, memory) =
        (total_size(&images_to_send(primary, standby)), primary.layout.memory_size());
    if size > memory {
        reasons.push(format!(
            "kernel and initrd: the primary has to send {size} bytes, expected at most the {memory} bytes of \
             guest memory: \
             give the standby the same files by --kernel and --initrd"
        ));
    }
}
