//! Writes reports. A report may replace an older report; any other existing file is left alone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The possible first bytes of a report.
const BEGINNINGS: [&str; 3] = ["{", "<svg", "# Faults by thread and system call"];

/// Checks that a report can be written to `path`. Call it before the work that the report
/// describes.
///
/// # Errors
/// The path names a file that is not a report, or its directory does not exist.
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
    // A terminal or a pipe, where no data can be lost.
    if !found.is_file() && !found.is_dir() && !is_block_device(&found) {
        return Ok(());
    }
    // Larger than any report: a larger file is not read.
    const MOST: u64 = 64 << 20;
    let is_read = found.is_file() && found.len() <= MOST;
    let text = if is_read { fs::read(path).unwrap_or_default() } else { vec![0] };
    let is_report = BEGINNINGS.iter().any(|begin| text.starts_with(begin.as_bytes()));
    ensure!(
        text.is_empty() || is_report && std::str::from_utf8(&text).is_ok(),
        "{}: expected a new file or an earlier report, found another file; it is left alone: choose another name",
        path.display()
    );
    Ok(())
}

/// Writes a report.
///
/// # Errors
/// As [`check`]; or the file cannot be written, or the FIFO has no reader.
pub fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    check(path)?;
    let written = match fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
        true => reader_of(path).and_then(|mut fifo| fifo.write_all(text.as_ref())),
        false => fs::write(path, text),
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Opens a FIFO that has a reader. Without `O_NONBLOCK`, the open would block until a reader comes
/// (fifo(7)).
fn reader_of(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::NXIO => io::Error::other("expected a reader of this FIFO, found none"),
        other => other.into(),
    })?;
    // Write in blocking mode: a report may be longer than the FIFO's buffer.
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
        assert!(error.contains("found none"), "{error}");
    }
}
