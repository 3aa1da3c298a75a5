//! Reads files that an operator names or provides a directory for: keys, certificates, passwords, marks, the arbiter's records,
//! logs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_gate_host::own_files;
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};

/// Larger than any of them, in bytes.
const MOST: u64 = 4 << 20;

/// Reads a regular file. Does not wait for the writer of a FIFO, and does not read a device without an end.
///
/// # Errors
/// When it is not a regular file, too large, or cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_up_to(path, MOST)
}

/// As [`read`], with a lower limit `most`.
///
/// # Errors
/// As [`read`].
pub fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let len = file.metadata()?.len();
    if len > most {
        return Err(io::Error::other(format!(
            "expected a regular file of at most {most} bytes, found one of {len} bytes"
        )));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map(|_| bytes)
}

/// Opens a regular file of any length; does not wait, as [`read`].
///
/// # Errors
/// When it is not a regular file, or cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let file = open_at_once(path);
    // A socket cannot be opened at all: ask for the metadata by its path.
    match file.as_ref().map_or_else(|_| fs::metadata(path), File::metadata) {
        Ok(found) if !found.is_file() => Err(io::Error::other(format!(
            "expected a regular file, found {}",
            own_files::describe(&found)
        ))),
        _ => file,
    }
}

/// Opens a file of any kind for reading, without waiting for a FIFO's writer or a line's carrier.
///
/// # Errors
/// When the file cannot be opened.
pub fn open_at_once(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`].
pub fn read_text(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(read(path)?);
    text.map_err(|_| io::Error::other("bytes that are not UTF-8 text"))
}

/// Makes the file system ask its server. An NFS client keeps what it knows of a directory for up to a minute (`acdirmax`),
/// including the absence of names. `AT_STATX_FORCE_SYNC` is the documented way to make it look (statx(2)).
///
/// # Errors
/// When nothing has this path, or the server does not answer.
pub fn ask_server(path: &Path, what: StatxFlags) -> io::Result<Statx> {
    Ok(statx(CWD, path, AtFlags::STATX_FORCE_SYNC, what)?)
}

/// Makes the file system ask its server for the names in the directory of `path`: it then finds a file that another host has
/// just made.
///
/// # Errors
/// As [`ask_server`].
pub fn ask_server_of_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let what = StatxFlags::INO | StatxFlags::MTIME | StatxFlags::CTIME;
    ask_server(directory.unwrap_or(Path::new(".")), what).map(drop)
}
