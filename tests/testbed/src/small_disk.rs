//! A file system of limited size for the guest's disk. The harness can fill it and empty it while
//! the guest runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Bytes beyond the size of the disk; the filler takes them too.
const MARGIN: u64 = 32 << 20;
const STEPS: [u64; 3] = [16 << 20, 1 << 20, 4096];

/// The file system. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Creates the directory `dir` and mounts a tmpfs there, with room for a disk of `bytes` bytes.
    ///
    /// # Errors
    /// The user may not mount, or `dir` exists.
    pub fn mount(dir: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={},mode=700", bytes + MARGIN), "kemari"])
            .arg(dir)
            .output()
            .context("cannot run `mount`")?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            bail!("a disk of limited size needs root: {}", reason.trim());
        }
        Ok(Self { dir: dir.to_owned() })
    }

    fn filler(&self) -> PathBuf {
        self.dir.join("filler")
    }

    /// Takes all free space, so that no new block can be allocated.
    ///
    /// # Errors
    /// An allocation fails for another reason than a full file system.
    pub fn fill(&self) -> Result<()> {
        let path = self.filler();
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut taken = 0;
        for step in STEPS {
            loop {
                match fallocate(&file, FallocateFlags::empty(), taken, step) {
                    Ok(()) => taken += step,
                    Err(Errno::NOSPC) => break,
                    Err(error) => bail!("cannot fill {}: {error}", path.display()),
                }
            }
        }
        Ok(())
    }

    /// Frees the space.
    ///
    /// # Errors
    /// The filler cannot be truncated or removed.
    pub fn empty(&self) -> Result<()> {
        let path = self.filler();
        // Truncate before unlinking: only this frees the space of an open file. A child that
        // another thread has forked has the filler open until it calls exec.
        let truncated = File::create(&path);
        truncated
            .and_then(|_| fs::remove_file(&path))
            .context("cannot empty the disk's file system")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detach lazily: processes may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).stderr(Stdio::null()).status();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Needs root to mount.
    #[test]
    fn it_is_full_and_empty_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = match SmallDisk::mount(&dir.path().join("disk"), 1 << 20) {
            Ok(disk) => disk,
            Err(error) => {
                assert!(!rustix::process::geteuid().is_root(), "{error:#}");
                eprintln!("NOT TESTED: {error:#}");
                return;
            }
        };
        let write = || fs::write(dir.path().join("disk/file"), [7; 8192]);
        write().unwrap();
        disk.fill().unwrap();
        let other = fs::write(dir.path().join("disk/other"), [7; 8192]);
        assert_eq!(other.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        // The test has the filler open, as a child between fork and exec does.
        let held = File::open(disk.filler()).unwrap();
        disk.empty().unwrap();
        fs::write(dir.path().join("disk/other"), [7; 8192]).unwrap();
        drop(held);
    }
}
