//! Where reports go: new files, or over reports of before. Anything else that has the name is kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How each kind of report begins.
const BEGINNINGS: [&str; 3] = ["{", "<svg", "# Faults by thread and system call"];

/// Whether a report may be written to `path`: before the work whose report it is.
///
/// # Errors
/// The path names a file that is no report, or a name in no directory.
pub fn check(path: &Path) -> Result<()> {
    let Ok(found) = fs::metadata(path) else {
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        ensure!(
            directory.is_dir(),
            "{}: expected a name in a directory that exists, found no directory {}",
            path.display(),
            directory.display()
        );
        return Ok(());
    };
    // A terminal, a pipe: nothing is lost there.
    if !found.is_file() && !found.is_dir() && !is_block_device(&found) {
        return Ok(());
    }
    // Longer than any report: what is so long is not read.
    const MOST: u64 = 64 << 20;
    let is_read = found.is_file() && found.len() <= MOST;
    let text = if is_read { fs::read(path).unwrap_or_default() } else { vec![0] };
    let is_report = BEGINNINGS.iter().any(|begin| text.starts_with(begin.as_bytes()));
    ensure!(
        text.is_empty() || is_report && std::str::from_utf8(&text).is_ok(),
        "{}: expected a new file or a report of before, found something else; it is left alone: choose another name",
        path.display()
    );
    Ok(())
}

/// Writes a report.
///
/// # Errors
/// As [`check`]; or the file cannot be written, or nobody reads the FIFO.
pub fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    check(path)?;
    let written = match fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
        true => reader_of(path).and_then(|mut fifo| fifo.write_all(text.as_ref())),
        false => fs::write(path, text),
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// A FIFO that somebody reads. Who opens one otherwise waits until somebody does (fifo(7)).
fn reader_of(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::NXIO => io::Error::other("expected that somebody reads this FIFO, found nobody"),
        other => other.into(),
    })?;
    // A report that is longer than what the FIFO holds is taken bit by bit.
    rustix::fs::fcntl_setfl(&fifo, OFlags::empty())?;
    Ok(fifo.into())
}

fn is_block_device(found: &fs::Metadata) -> bool {
    found.file_type().is_block_device()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_report_goes_over_a_report_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        write(&path, "{}").unwrap();
        write(&path, "{\"a\": 1}").unwrap();
        for other in [&b"notes"[..], b"QFI\xfb", &[0; 512], b"{\xff"] {
            fs::write(&path, other).unwrap();
            assert!(write(&path, "{}").is_err(), "{other:?}");
            assert_eq!(fs::read(&path).unwrap(), other);
        }
        assert!(write(dir.path(), "{}").is_err());
        assert!(check(&dir.path().join("nowhere/report")).is_err());
        write(Path::new("/dev/null"), "{}").unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let error = format!("{:#}", write(&fifo, "{}").unwrap_err());
        assert!(error.contains("found nobody"), "{error}");
    }
}
