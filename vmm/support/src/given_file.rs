//! Reads files that an operator names, or that lie in a directory which an operator provides: keys,
//! certificates, passwords, marks, the arbiter's records, logs.
//!
//! Such a path may name anything: no read waits for a FIFO's writer, and each but [`open`] has a
//! limit of its size (P9).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_gate_host::own_files;
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};

/// Default limit in bytes, larger than any of these files.
const MOST: u64 = 4 << 20;

/// Reads a regular file of up to 4 MiB. Does not wait for the writer of a FIFO, and does not read
/// an endless device.
///
/// # Errors
/// When it is not a regular file, too large, or cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_up_to(path, MOST)
}

/// Does what [`read`] does, with the limit `most` in bytes.
///
/// # Errors
/// Those of [`read`].
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

/// Opens a regular file of any length; does not wait for the writer of a FIFO.
///
/// # Errors
/// When it is not a regular file, or cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let file = open_at_once(path);
    // A socket cannot be opened: get the metadata by its path.
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

/// Does what [`read`] does, for text.
///
/// # Errors
/// Those of [`read`]; also when the bytes are not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(read(path)?);
    text.map_err(|_| io::Error::other("bytes that are not UTF-8 text"))
}

/// Makes the file system ask its server for `path`. An NFS client caches what it knows of a
/// directory for up to a minute (`acdirmax`), including that a name is missing.
/// `AT_STATX_FORCE_SYNC` is the documented way to bypass this cache (statx(2)).
///
/// # Errors
/// When the path does not exist, or the server does not answer.
pub fn ask_server(path: &Path, what: StatxFlags) -> io::Result<Statx> {
    Ok(statx(CWD, path, AtFlags::STATX_FORCE_SYNC, what)?)
}

/// Makes the file system ask its server for the names in the directory of `path`. It then finds a
/// file that another host has just created.
///
/// # Errors
/// Those of [`ask_server`].
pub fn ask_server_of_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let what = StatxFlags::INO | StatxFlags::MTIME | StatxFlags::CTIME;
    ask_server(directory.unwrap_or(Path::new(".")), what).map(drop)
}
