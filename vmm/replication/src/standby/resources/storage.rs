//! Checks that the storage of an open disk answers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes read from a device, and their alignment (open(2), `O_DIRECT`): at least one sector of most
/// devices.
const BLOCK: usize = 4096;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// The flags for opening a disk to check it.
///
/// P3: a block device is read past the page cache. Otherwise this host would cache its pages, the
/// other host would write the disk later, and after a takeover the guest would read the content of
/// the first check. A file system keeps a file's pages current.
pub(super) fn flags(is_device: bool) -> i32 {
    let direct = if is_device { libc::O_DIRECT } else { 0 };
    direct | libc::O_NONBLOCK | libc::O_CLOEXEC
}

/// Reads from the beginning of a disk, opened with [`flags`].
pub(super) fn answers(file: &File, is_device: bool, len: u64) -> io::Result<()> {
    if !is_device {
        // Another check refuses an empty disk.
        return if len > 0 { file.read_exact_at(&mut [0; 1], 0) } else { Ok(()) };
    }
    let mut block = Box::new(Block([0; BLOCK]));
    match file.read_at(&mut block.0, 0) {
        Ok(0) => {
            Err(io::Error::other("expected a size, found none: its medium or server is missing"))
        }
        Ok(_) => Ok(()),
        // The sectors are larger than the read. This error itself is an answer.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::fs::OpenOptionsExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use io_gate_host::backend::disk::{Disk, DiskOptions};

    use super::*;

    /// A block device whose storage the test can change behind it, as another host does.
    struct Device(PathBuf);

    impl Device {
        fn of(storage: &Path) -> Option<Self> {
            let made = Command::new("losetup").args(["--find", "--show"]).arg(storage).output();
            let made = made.ok().filter(|made| made.status.success());
            let Some(made) = made else {
                kemari_not_tested::not_tested("no loop device can be had (losetup)");
                return None;
            };
            Some(Self(String::from_utf8(made.stdout).unwrap().trim().into()))
        }
    }

    impl Drop for Device {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
        }
    }

    fn first(disk: &File) -> u8 {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    }

    fn write(storage: &File, byte: u8) {
        storage.write_all_at(&[byte; BLOCK], 0).unwrap();
        storage.sync_all().unwrap();
    }

    /// P3. Fails if the check leaves old pages of the device in the cache, or if opening the disk
    /// for the guest finds them there.
    #[test]
    fn p3_a_takeover_reads_from_a_device_what_the_other_host_has_written() {
        let storage = tempfile::NamedTempFile::new().unwrap();
        storage.as_file().set_len(1 << 20).unwrap();
        let Some(device) = Device::of(storage.path()) else { return };
        // Another process keeps the device open: otherwise its pages would vanish with the last
        // close.
        let others = File::open(&device.0).unwrap();
        let disk = Disk::open(&device.0, DiskOptions::default()).unwrap();
        disk.forget_cached();
        write(storage.as_file(), 1);
        let look = File::options().read(true).custom_flags(flags(true)).open(&device.0).unwrap();
        answers(&look, true, 0).unwrap();
        write(storage.as_file(), 2);
        assert_eq!(first(&others), 2, "the look has left what it read");
        write(storage.as_file(), 3);
        disk.forget_cached();
        assert_eq!(first(&others), 3, "what was read before");
    }

    #[test]
    fn a_file_is_read_and_an_empty_one_is_not() {
        let file = tempfile::tempfile().unwrap();
        answers(&file, false, 0).unwrap();
        assert!(answers(&file, false, 1).is_err(), "it was cut short meanwhile");
        write(&file, 1);
        answers(&file, false, 1).unwrap();
    }
}
