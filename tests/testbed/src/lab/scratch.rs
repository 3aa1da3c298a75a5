//! The lab's directory on this machine, and its scratch disk: the caller's files go in, results
//! come out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use super::LabSpec;
use crate::guest::{output, run};

/// The name of the caller's command in the scratch disk.
const COMMAND: &str = "lab-command";
/// Prefix of the directory's name. The process ID and a count follow.
const PREFIX: &str = "kemari-lab-";

/// The lab's directory. Dropping it removes the directory.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Creates the directory, and an ext4 disk that contains the caller's files.
    pub(super) fn make(spec: &LabSpec) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        remove_abandoned();
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let scratch = Self { dir };
        let tree = scratch.path("tree");
        fs::create_dir(&tree)?;
        for (from, name) in &spec.files {
            // Copy instead of linking: two links to one file would become one file in the disk.
            run(Command::new("cp")
                .args(["--sparse=always", "--reflink=auto", "--preserve=mode"])
                .args([from, &tree.join(name)]))?;
        }
        fs::write(tree.join(COMMAND), format!("{}\n", spec.command))?;
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-m", "0", "-L", "lab-scratch", "-d"])
            .args([&tree, &scratch.disk()])
            .arg(format!("{}M", spec.scratch_mib)))
        .context("cannot make the lab's scratch disk (LabSpec::scratch_mib says how large)")?;
        fs::remove_dir_all(&tree)?;
        Ok(scratch)
    }

    /// A path in the lab's directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The disk's image.
    pub(super) fn disk(&self) -> PathBuf {
        self.path("scratch.ext4")
    }

    /// Reads a file from the disk. The lab must have ended.
    pub(super) fn fetch(&self, name: &str) -> Result<Vec<u8>> {
        replay_journal(&self.disk())?;
        let to = self.path("fetched");
        let _ = fs::remove_file(&to);
        let request = format!("dump \"/{name}\" \"{}\"", to.display());
        let said = output(Command::new("debugfs").args(["-R", &request]).arg(self.disk()))?;
        match fs::read(&to) {
            Ok(content) if said.is_empty() => Ok(content),
            _ => bail!("the lab left no file {name} in /scratch {said}"),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes the directories of killed processes.
fn remove_abandoned() {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|p| !Path::new("/proc").join(p).exists()) {
            // Ignore the error: another process may be removing the same directory. The next lab
            // removes the rest.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Replays the disk's journal: after a power failure it holds changes that the directories do not
/// show yet.
fn replay_journal(disk: &Path) -> Result<()> {
    let status = Command::new("e2fsck").args(["-p"]).arg(disk).output()?.status;
    match status.code() {
        Some(0 | 1) => Ok(()),
        _ => bail!("e2fsck of the lab's scratch disk ended with {status}"),
    }
}
